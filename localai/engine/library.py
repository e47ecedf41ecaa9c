"""The installed llama.cpp: loaded once, its log kept off the terminal, its devices listed.

Only the low-level bindings (`llama_cpp.llama_cpp`) are used: the C API, as it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import re
import sys
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localai.domain.machine import EngineDevice, EngineInfo
from localai.errors import EngineError

# enum ggml_log_level and enum ggml_backend_dev_type of ggml.h and ggml-backend.h
_WARN, _ERROR = 3, 4
ABORTED = 2  # llama_decode's answer when the abort callback said so
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}

_OUT_OF_MEMORY = re.compile(
    r"out of memory|(failed|unable) to allocate|OutOfDeviceMemory|bad_alloc|cannot allocate", re.IGNORECASE
)
_SOURCE_FOLDER = re.compile(r"^\S*[/\\](?=\S+:\d+: )")  # of the machine where the engine was compiled
_PREFIXES = re.compile(r"^(error loading model( \w+)?: |\w+: +)*")  # of llama.cpp's functions

_log: deque[tuple[int, str]] = deque(maxlen=50)
_log_callbacks: list[Any] = []
_callbacks: list[Any] = []  # llama.cpp keeps the pointers, so Python must keep the objects
_fatal_handlers: list[Callable[[str], object]] = []


def on_fatal(handler: Callable[[str], object]) -> None:
    """Have `handler` told the reason before llama.cpp aborts the process (a failed assertion on a hostile file).

    The abort cannot be prevented: the handler says what is to be said and ends the process itself, by `os._exit`.
    """
    _fatal_handlers[:] = [handler]


@functools.cache
def api() -> Any:
    """The module of C functions, its backends ready and its log collected. Raises EngineError without one."""
    try:
        bindings = _import_bindings("llama_cpp")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"llama.cpp cannot be loaded: {printable(str(error))}",
            "install it again: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    _log_callbacks.append(bindings.llama_log_callback(_collect))
    bindings.llama_log_set(_log_callbacks[0], None)
    _hear_of_aborts(bindings)
    bindings.llama_backend_init()
    return bindings


def _hear_of_aborts(bindings: Any) -> None:
    def tell(message: bytes | None) -> None:
        text = _SOURCE_FOLDER.sub("", (message or b"").decode("utf-8", "replace"))
        for handler in _fatal_handlers:
            handler(printable(text))
        if not _fatal_handlers:  # as llama.cpp itself would
            os.write(2, f"{text}\n".encode())

    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # ggml would run a debugger, and print pages
    abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(tell)
    with contextlib.suppress(OSError, AttributeError):
        _library(bindings, "ggml-base").ggml_set_abort_callback(abort_callback)
        _callbacks.append(abort_callback)


def _library(bindings: Any, name: str) -> ctypes.CDLL:
    """The library of that name that libllama has brought in.

    A look-up in libllama finds what is in the libraries it stands on, but not under Windows. There it is opened by its
    name; elsewhere that could load a second copy of it, since a wheel holds copies where there were links (lib*.so and
    lib*.so.0), and what is registered in the one is unknown to the other.
    """
    if sys.platform == "win32":
        for form in ("{}.dll", "lib{}.dll"):
            if (path := Path(bindings._base_path) / form.format(name)).exists():
                return ctypes.CDLL(str(path))
    whole: ctypes.CDLL = bindings._lib
    return whole


@functools.cache
def mtmd() -> Any:
    """The module of C functions for pictures (libmtmd), its log collected. Raises EngineError without one."""
    api()
    try:
        bindings = _import_bindings("mtmd_cpp")
        bindings.mtmd_helper_log_set(_log_callbacks[0], None)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise EngineError(
            f"llama.cpp is installed without its part for images: {printable(str(error))}",
            "install it again: pip install --force-reinstall --no-cache-dir llama-cpp-python",
        ) from error
    return bindings


def _import_bindings(name: str) -> Any:
    """Import `llama_cpp.NAME` without the rest of its package.

    The package's `__init__` imports numpy, jinja2 and a server's worth of types: 80 ms of a cold start and 25 MB that
    this program has no use for. While the submodule is imported an empty package stands in; it is then taken away, so
    that an ordinary `import llama_cpp` still gives the whole.
    """
    if (done := sys.modules.get(f"llama_cpp.{name}")) is not None:
        return done
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama-cpp-python is not installed")
    whole = sys.modules.get("llama_cpp")  # somebody else may have imported it
    stand_in = types.ModuleType("llama_cpp")
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = stand_in
    try:
        return importlib.import_module(f"llama_cpp.{name}")
    finally:
        del sys.modules["llama_cpp"]
        if whole is not None:
            sys.modules["llama_cpp"] = whole


def _collect(level: int, text: bytes | None, _: object) -> None:
    if level in (_WARN, _ERROR) and text:
        _log.append((level, text.decode("utf-8", "replace").strip()))


def forget_log() -> None:
    """Empty the collected log, before a call whose reason for failing may be asked."""
    _log.clear()
    api().llama_log_set(_log_callbacks[0], None)  # an `import llama_cpp` by anybody since has put its own there


def reason() -> str:
    """Why the last call failed, in llama.cpp's own words: its first error, else its last warning, else ""."""
    errors = [text for level, text in _log if level == _ERROR]
    line = errors[0] if errors else _log[-1][1] if _log else ""
    return printable(_PREFIXES.sub("", line))


def out_of_memory() -> bool:
    """Whether the collected log says that memory was refused."""
    return any(_OUT_OF_MEMORY.search(text) for _, text in _log)


def printable(text: str) -> str:
    """`text` in one line of at most 300 characters; names in a model file may hold control characters."""
    return "".join(c if c.isprintable() else " " for c in text)[:300].strip()


def info() -> EngineInfo:
    """What the installed llama.cpp is and can use; `version` None where there is none. Never raises."""
    from importlib.metadata import PackageNotFoundError, version  # 15 ms that no cold start should pay

    try:
        api()
        installed = version("llama-cpp-python")
    except (EngineError, PackageNotFoundError):
        return EngineInfo(version=None)
    try:
        devices = _devices()
        # not llama_supports_gpu_offload, which says yes to every engine that is built with RPC
        offload = any(device.kind in ("gpu", "igpu") for device in devices)
        return EngineInfo(installed, _backends(), offload, devices)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return EngineInfo(installed)


class _BufferOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override of llama.h; a list of them ends with a null pattern."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def experts_on_cpu(layers: int) -> Any:
    """llama.cpp's `tensor_buft_overrides` that keep the routed experts of the first `layers` layers in RAM; None for 0.

    Keep the array alive while the model is loaded. The patterns are those of llama.cpp's own --n-cpu-moe (common.h).
    """
    if layers <= 0:
        return None
    cpu_buffer_type = _library(api(), "ggml-base").ggml_backend_cpu_buffer_type
    cpu_buffer_type.restype = ctypes.c_void_p
    ram = cpu_buffer_type()
    overrides = (_BufferOverride * (layers + 1))()
    for layer in range(layers):
        overrides[layer].pattern = rb"blk\.%d\.ffn_(up|down|gate|gate_up)_(ch|)exps" % layer
        overrides[layer].buffer_type = ram
    return overrides


def system_info() -> str | None:
    """The instructions that the engine was built for ("CPU : AVX2 = 1 | …"), in llama.cpp's words; None without one."""
    try:
        text = api().llama_print_system_info()
    except (EngineError, AttributeError):
        return None
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else None


@functools.cache
def quantizer() -> Any:
    """ggml's own quantizer: (type, floats, where to, first, rows, numbers a row, None) → bytes written."""
    function = _library(api(), "ggml-base").ggml_quantize_chunk
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [ctypes.c_int, pointer, pointer, number, number, number, pointer], number
    return function


@functools.cache
def ggml() -> ctypes.CDLL:
    """libggml with the types of what is asked of it."""
    library = _library(api(), "ggml")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, arguments, result in (
        ("ggml_backend_reg_count", [], size),
        ("ggml_backend_reg_get", [size], pointer),
        ("ggml_backend_reg_name", [pointer], ctypes.c_char_p),
        ("ggml_backend_reg_by_name", [ctypes.c_char_p], pointer),
        ("ggml_backend_reg_get_proc_address", [pointer, ctypes.c_char_p], pointer),
        ("ggml_backend_register", [pointer], None),
        ("ggml_backend_dev_count", [], size),
        ("ggml_backend_dev_get", [size], pointer),
        ("ggml_backend_dev_name", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_description", [pointer], ctypes.c_char_p),
        ("ggml_backend_dev_type", [pointer], ctypes.c_int),
        ("ggml_backend_dev_memory", [pointer, ctypes.POINTER(size), ctypes.POINTER(size)], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


def _backends() -> tuple[str, ...]:
    it = ggml()
    names = (it.ggml_backend_reg_name(it.ggml_backend_reg_get(index)) for index in range(it.ggml_backend_reg_count()))
    return tuple(printable((name or b"").decode("utf-8", "replace")) for name in names)


def _devices() -> tuple[EngineDevice, ...]:
    it = ggml()
    found = []
    for index in range(it.ggml_backend_dev_count()):
        device = it.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        it.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            EngineDevice(
                name=printable((it.ggml_backend_dev_name(device) or b"").decode("utf-8", "replace")),
                description=printable((it.ggml_backend_dev_description(device) or b"").decode("utf-8", "replace")),
                kind=_DEVICE_KINDS.get(it.ggml_backend_dev_type(device), "accel"),
                memory_total_bytes=total.value or None,
                memory_free_bytes=free.value if total.value else None,
            )
        )
    return tuple(found)
