"""The exact command that builds the engine anew for what a machine has, in the way this program was installed."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ENGINE = "llama-cpp-python"
_CUDA_COMPILER = Path("/usr/local/cuda/bin/nvcc")  # where NVIDIA's installer puts it, often not on the PATH

# The CMake option of each backend, and the program that building it needs (llama.cpp, ggml/CMakeLists.txt and
# docs/build.md); the packages that bring the program, by package manager.
OPTIONS = {
    "CUDA": "GGML_CUDA",
    "HIP": "GGML_HIP",
    "ROCM": "GGML_HIP",
    "VULKAN": "GGML_VULKAN",
    "SYCL": "GGML_SYCL",
    "METAL": "GGML_METAL",
    "MTL": "GGML_METAL",
    "OPENCL": "GGML_OPENCL",
    "OPENVINO": "GGML_OPENVINO",
    "HEXAGON": "GGML_HEXAGON",
    "HTP": "GGML_HEXAGON",
    "CANN": "GGML_CANN",
    "BLAS": "GGML_BLAS",
    "RPC": "GGML_RPC",
}
_NEEDS = {
    "GGML_CUDA": "nvcc",
    "GGML_HIP": "hipcc",
    "GGML_VULKAN": "glslc",
}
_PACKAGES = {
    "nvcc": {"apt-get": "nvidia-cuda-toolkit", "pacman": "cuda", "dnf": "cuda-toolkit"},
    "glslc": {
        "apt-get": "libvulkan-dev glslc spirv-headers",
        "pacman": "vulkan-headers shaderc spirv-headers",
        "dnf": "vulkan-headers vulkan-loader-devel glslc spirv-headers-devel",
    },
}
_INSTALL = {"apt-get": "sudo apt-get install -y", "pacman": "sudo pacman -S", "dnf": "sudo dnf install -y"}


class Way(StrEnum):
    """How this program was installed."""

    CHECKOUT = "checkout"  # `make setup` in a checkout
    PIPX = "pipx"
    UV_TOOL = "uv tool"
    UV = "uv"  # an environment without pip
    PIP = "pip"


@dataclass(frozen=True, slots=True)
class Installation:
    """This installation: `prefix` is its environment, `has` whether a program is on the PATH.

    `cuda_compiler` is an nvcc that is not on the PATH.
    """

    way: Way
    prefix: Path
    python: str
    engine_version: str | None
    windows: bool = False
    has: Callable[[str], bool] = lambda name: shutil.which(name) is not None
    cuda_compiler: str | None = None


def installation(engine_version: str | None) -> Installation:
    """The installation that is running."""
    prefix = Path(sys.prefix)
    has_pip = importlib.util.find_spec("pip") is not None
    return Installation(
        way_of(prefix, has_pip),
        prefix,
        sys.executable,
        engine_version,
        sys.platform == "win32",
        cuda_compiler=str(_CUDA_COMPILER) if _CUDA_COMPILER.exists() else None,
    )


def way_of(prefix: Path, has_pip: bool) -> Way:
    """How the environment at `prefix` was made, by the marks that each tool leaves in it."""
    if (prefix / ".localai-setup.json").exists() and (prefix.parent / "scripts" / "setup_venv.py").exists():
        return Way.CHECKOUT
    if (prefix / "pipx_metadata.json").exists():
        return Way.PIPX
    if (prefix / "uv-receipt.toml").exists():
        return Way.UV_TOOL
    return Way.PIP if has_pip else Way.UV


def rebuild(here: Installation, options: Iterable[str], loaded: Iterable[str] = ()) -> str:
    """The command that builds the engine with these CMake options and those of the backends that it has already."""
    kept = [OPTIONS[name] for each in loaded for name in OPTIONS if each.upper().startswith(name)]
    wanted = list(dict.fromkeys([*options, *kept]))
    arguments = " ".join(f"-D{name}=on" for name in wanted)
    steps = [*_tools(here, wanted), *_build(here, {"CMAKE_ARGS": arguments, **_cuda_compiler(here, wanted)})]
    return "; ".join(steps) if here.windows else " && ".join(steps)


def missing_tools(here: Installation, options: Iterable[str]) -> list[str]:
    """The programs that building with these options needs and that are not found."""
    needed = [_NEEDS[option] for option in options if option in _NEEDS]
    return [name for name in needed if not here.has(name) and not (name == "nvcc" and here.cuda_compiler)]


def _tools(here: Installation, options: Iterable[str]) -> list[str]:
    if here.windows:
        return []
    missing = missing_tools(here, options)
    manager = next((name for name in _INSTALL if here.has(name)), None)
    packages = [_PACKAGES[name][manager] for name in missing if manager and name in _PACKAGES]
    return [f"{_INSTALL[manager]} {' '.join(packages)}"] if manager and packages else []


def _cuda_compiler(here: Installation, options: Iterable[str]) -> dict[str, str]:
    if "GGML_CUDA" in options and here.cuda_compiler and not here.has("nvcc"):
        return {"CUDACXX": here.cuda_compiler}
    return {}


def _build(here: Installation, variables: dict[str, str]) -> list[str]:
    """The steps for this way of installation; never from a cache, since no cache looks at CMAKE_ARGS."""
    engine = f"{ENGINE}=={here.engine_version}" if here.engine_version else ENGINE
    pip = f"install --force-reinstall --no-deps --no-cache-dir --no-binary {ENGINE} {engine}"
    uv = f"--reinstall --no-deps --no-cache --no-binary {ENGINE} {engine}"
    if here.windows:
        quoted = here.python.replace("'", "''")
        run = f"& '{quoted}' -m pip {pip}" if here.way is not Way.UV else f"uv pip install --python '{quoted}' {uv}"
        return [*(f"$env:{name}='{value}'" for name, value in variables.items()), run]
    setting = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    python = shlex.quote(here.python)
    match here.way:
        case Way.CHECKOUT:
            return [f"cd {shlex.quote(str(here.prefix.parent))}", "make clean", f"{setting} make setup"]
        case Way.PIPX:
            return [f"{setting} pipx runpip {shlex.quote(here.prefix.name)} {pip}"]
        case Way.UV_TOOL | Way.UV:
            return [f"{setting} uv pip install --python {python} {uv}"]
    return [f"{setting} {python} -m pip {pip}"]
