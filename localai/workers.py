"""Other machines that lend their memory to this one's models, and this one's lent to others: llama.cpp's RPC backend.

Its protocol knows neither passwords nor encryption: whoever reaches a worker can use it and read what passes.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from localai import settings
from localai.domain.machine import Gpu
from localai.engine import rpc
from localai.errors import EngineError, LocalaiError, NetworkError, UsageError

PORT = 50052  # llama.cpp's own
MOST = 16  # GGML_RPC_MAX_SERVERS (ggml-rpc.h)
_ANSWER_S = 10.0  # to tell its memory; a worker that serves another program answers when that is done
_CONNECT_S = 5.0
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def parse(text: str) -> tuple[str, ...]:
    """The workers of `--rpc`, HOST:PORT each, with `PORT` where none is named. Raises UsageError."""
    found = dict.fromkeys(_endpoint(each.strip()) for each in text.split(",") if each.strip())
    if not found:
        raise UsageError("--rpc names no worker", "it takes HOST:PORT,HOST:PORT: what localai worker printed there")
    if len(found) > MOST:
        raise UsageError(f"--rpc names {len(found)} workers", f"llama.cpp takes at most {MOST}")
    return tuple(found)


def _endpoint(text: str) -> str:
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(PORT))
    if ":" in host or "[" in host:
        raise UsageError(f"--rpc {text!r} is an IPv6 address", "llama.cpp's RPC takes IPv4 addresses and host names")
    if not _HOST.fullmatch(host) or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"--rpc {text!r} is no HOST:PORT", f"for example --rpc 192.168.1.7:{PORT}")
    return f"{host}:{int(port)}"


def gpus(endpoints: Sequence[str], gbps: float | None = None) -> tuple[Gpu, ...]:
    """What the workers lend, as devices with memory of their own; `gbps` is assumed of the memory behind them.

    Raises NetworkError for one that cannot be reached or does not answer, or in offline mode; EngineError where the
    installed engine was built without RPC.
    """
    if settings.offline():
        raise NetworkError("other machines cannot be used: connections are forbidden (offline mode)", "leave out --rpc")
    rpc.require()
    with ThreadPoolExecutor(len(endpoints)) as pool:
        devices = [device for found in pool.map(_ask, endpoints) for device in found]
    return tuple(
        Gpu(
            vendor="RPC",
            name=f"worker {device['endpoint']}",
            vram_total_bytes=device["memory_total_bytes"],
            vram_free_bytes=device["memory_free_bytes"],
            usable_by_engine=True,
            bandwidth_gbps=gbps,
            source="assumed",
        )
        for device in devices
    )


def _ask(endpoint: str) -> list[dict[str, Any]]:
    """The devices of one worker, asked in a process of its own: llama.cpp aborts where it does not answer."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NetworkError(
            f"the worker {endpoint} cannot be reached: {reason}",
            f"start it there: localai worker --host ADDRESS --port {port}",
        ) from error
    try:
        done = subprocess.run(
            [sys.executable, "-m", "localai.engine.rpc", "ask", endpoint],
            capture_output=True,
            timeout=_ANSWER_S,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise NetworkError(
            f"the worker {endpoint} does not answer within {_ANSWER_S:.0f} s",
            "a worker serves one program at a time: end the other one, or start another worker",
        ) from error
    except (subprocess.CalledProcessError, ValueError) as error:
        said = getattr(error, "stderr", b"").decode("utf-8", "replace").strip().split("\n")[0]
        raise NetworkError(
            f"{endpoint} is no worker of this engine's version: {said or 'it gives no answer'}",
            "run localai worker there, with the same llama-cpp-python as here",
        ) from error
    return [device for device in found if device["memory_free_bytes"]]


# ----------------------------------------------------------------------------------------------- lending this machine


@dataclass(frozen=True, slots=True)
class Worker:
    """This machine's memory being lent: where, and by which process."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def clients(self) -> Iterator[bool]:
        """True for each client that comes, False when it leaves. Raises EngineError when the server has ended."""
        assert self.process.stdout is not None, "it is a pipe"
        for line in self.process.stdout:
            if line.startswith(b"Accepted client"):
                yield True
            elif line.startswith(b"Client connection closed"):
                yield False
        raise _ended(self.process)

    def stop(self) -> None:
        """End it. Idempotent."""
        self.process.kill()
        self.process.wait()


def start(host: str, port: int, threads: int, limit_bytes: int) -> Worker:
    """Serve llama.cpp's RPC protocol at `host` and `port` from a child process, which ends with this one.

    `limit_bytes` is the most memory that is lent, 0 for all that is free. Raises UsageError for an address that is not
    this machine's, LocalaiError for a port that is taken, EngineError for an engine built without RPC.
    """
    rpc.require()
    address = _free_address(host, port)
    endpoint = f"{address}:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "localai.engine.rpc", "serve", endpoint, str(threads), str(limit_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    worker = Worker(endpoint, process)
    try:
        _await(worker, "127.0.0.1" if address == "0.0.0.0" else address, port)
    except BaseException:
        worker.stop()
        raise
    return worker


def _free_address(host: str, port: int) -> str:
    """`host` as a numeric IPv4 address of this machine at which the port is free: llama.cpp takes no other."""
    try:
        address = str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host!r} is no IPv4 address or name", "for example --host 127.0.0.1, or this machine's own address"
        ) from error
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        if sys.platform != "win32":  # there it would allow a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise LocalaiError(
                f"cannot listen at {address}:{port}: {error.strerror}", "another one: --port NUMBER, --host ADDRESS"
            ) from error
    return address


def _await(worker: Worker, address: str, port: int) -> None:
    """Return once the server takes connections; the one that tells so is gone from its list of clients."""
    clients = worker.clients()
    while True:
        if worker.process.poll() is not None:
            raise _ended(worker.process)
        with contextlib.suppress(OSError), contextlib.closing(socket.create_connection((address, port), timeout=0.2)):
            break
        time.sleep(0.02)
    next(clients), next(clients)


def _ended(process: subprocess.Popen[bytes]) -> EngineError:
    process.wait()
    said = process.stderr.read().decode("utf-8", "replace").strip().split("\n")[0] if process.stderr else ""
    return EngineError(f"the worker has ended: {said or f'exit {process.returncode}'}", "start it again")
