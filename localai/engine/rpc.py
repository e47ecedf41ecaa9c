"""llama.cpp's RPC backend: a model whose layers are on other machines, and this machine's memory lent to them.

The backend aborts the process when a worker cannot be reached or dies, waits for ever where it hangs, and its server
never returns. So none of it happens in the program's own process: `python -m localai.engine.rpc` is a child that serves
(`serve`) or says what workers have (`ask`), and `engine.child` one that holds a model.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from localai.engine import library
from localai.errors import EngineError
from localai.probes import memory
from localai.probes.source import Source

_LENT = 0.9  # of the RAM that is available: a worker never swaps
_CPU = 0  # enum ggml_backend_dev_type
_GPUS = (1, 2)
_GET_MEMORY = 2  # the place of get_memory in struct ggml_backend_device_i, which a device begins with


def supported() -> bool:
    """Whether the installed engine was built with GGML_RPC."""
    return bool(library.api().llama_supports_rpc())


def require() -> None:
    """Raise EngineError where the engine was not built with GGML_RPC."""
    if not supported():
        raise EngineError(
            "the installed engine cannot work with other machines: it was built without GGML_RPC",
            "localai doctor has the command that builds it with",
        )


def register(endpoints: Sequence[str]) -> None:
    """Make the devices of the workers known to llama.cpp, before a model is loaded. Aborts where one is unreachable."""
    require()
    ggml, add_server = library.ggml(), _function("ggml_backend_rpc_add_server", ctypes.c_void_p, [ctypes.c_char_p])
    for endpoint in endpoints:
        registry = add_server(endpoint.encode())
        if not registry:
            raise EngineError(f"the worker {endpoint} lends no device", "start it again: localai worker")
        ggml.ggml_backend_register(registry)


def _function(name: str, result: Any, arguments: list[Any]) -> Any:
    ggml = library.ggml()
    registry = ggml.ggml_backend_reg_by_name(b"RPC")
    address = ggml.ggml_backend_reg_get_proc_address(registry, name.encode()) if registry else None
    if not address:
        raise EngineError(f"the installed engine has no {name}", "localai doctor has the command that builds it anew")
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def ask(endpoints: Sequence[str]) -> list[dict[str, Any]]:
    """The devices of the workers: name, endpoint, memory_total_bytes, memory_free_bytes."""
    register(endpoints)
    return [
        {
            "name": device.name,
            "endpoint": device.description,
            "memory_total_bytes": device.memory_total_bytes,
            "memory_free_bytes": device.memory_free_bytes,
        }
        for device in library.info().devices
        if device.name.startswith("RPC")
    ]


def serve(endpoint: str, threads: int, limit_bytes: int) -> None:
    """Lend this machine's devices at `endpoint` (HOST:PORT, numeric) until killed; returns only where that fails.

    The GPUs, or the processor where there are none; of none more than `limit_bytes` (0: no limit).
    """
    require()
    ggml = library.ggml()
    every = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    lent = [each for each in every if ggml.ggml_backend_dev_type(each) in _GPUS]
    lent = lent or [each for each in every if ggml.ggml_backend_dev_type(each) == _CPU][:1]
    told = [_limit_memory(each, limit_bytes) for each in lent]
    start = _function(
        "ggml_backend_rpc_start_server",
        None,
        [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)],
    )
    start(endpoint.encode(), None, threads, len(lent), (ctypes.c_void_p * len(lent))(*lent))
    del told  # llama.cpp has called these functions until here


_Size = ctypes.POINTER(ctypes.c_size_t)
_GetMemory = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _Size, _Size)


def _limit_memory(device: int, limit_bytes: int) -> object:
    """Have a device tell what is really free; the caller keeps what is returned alive.

    llama.cpp calls all of the RAM free, whatever else is in it. There is no call to change that: the function is
    replaced in the device's own table, and put back where another place turns out to be asked.
    """
    table = ctypes.cast(device, ctypes.POINTER(ctypes.c_void_p))
    before = table[_GET_MEMORY]
    own = _GetMemory(before or 0)
    of_ram = library.ggml().ggml_backend_dev_type(device) == _CPU
    asked = []

    def get_memory(_: int, free: Any, total: Any) -> None:
        asked.append(True)
        own(device, free, total)
        if of_ram and (found := memory.memory(Source())) is not None:
            total[0] = min(found.total_bytes, found.limit_bytes or found.total_bytes)
            free[0] = round(found.available_bytes * _LENT)
        if limit_bytes:
            total[0] = min(total[0], limit_bytes)
        free[0] = min(free[0], total[0])

    function = _GetMemory(get_memory)
    table[_GET_MEMORY] = ctypes.cast(function, ctypes.c_void_p)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    library.ggml().ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    if not asked:
        table[_GET_MEMORY] = before
    return function


# ------------------------------------------------------------------------------------------------ the child process


def main(arguments: Sequence[str]) -> int:
    """`ask ENDPOINT…` prints the devices as JSON; `serve ENDPOINT THREADS LIMIT` serves until its stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is our parent's to take
    library.on_fatal(_give_up)
    try:
        if arguments[0] == "ask":
            sys.stdout.write(json.dumps(ask(arguments[1:])))
            sys.stdout.flush()
            return 0
        _, endpoint, threads, limit = arguments
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        serve(endpoint, int(threads), int(limit))
    except EngineError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
    return 1


def _give_up(reason: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{reason}\n".encode())
    os._exit(1)


def _leave_with_parent() -> None:
    """End when the parent does, however it does."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
