"""Runs the HTTP API: takes the port first, says so, and ends at a word, Ctrl-C or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import logging
import signal
import socket
from collections.abc import Callable, Generator

from localai.errors import LocalaiError, UsageError

CONNECTIONS = 512
GRACE_S = 2  # for answers under way when the server is told to end
ENDING_S = 5  # for them to be told that they are cut off


def need_extra() -> None:
    """Raise UsageError where what the HTTP API stands on is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise UsageError(
            "the HTTP API needs packages that are not installed: fastapi and uvicorn",
            "pip install fastapi uvicorn (pipx inject localai fastapi uvicorn);"
            " without them: localai serve --socket-only",
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises LocalaiError for a port that is taken, UsageError for no address of ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host} is no address: {error}", "127.0.0.1 is this machine alone") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise LocalaiError(
                f"port {port} is taken by another program",
                "localai ps tells whether it is ours; else take another --port",
            ) from error
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}", "--host and --port say where"
        ) from error
    return listener


class Running:
    """The HTTP server, once it runs; `stop` works from any thread, before that too."""

    def __init__(self) -> None:
        self._stopped = False
        self._server: object = None

    def stop(self) -> None:
        self._stopped = True
        if self._server is not None:
            self._server.should_exit = True  # type: ignore[attr-defined]

    def run(self, app: object, listener: socket.socket, ready: Callable[[], None], cut_off: Callable[[], None]) -> bool:
        """Serve until told to end; True where it was Ctrl-C. `ready` is called when requests are answered.

        `cut_off` is called, in another thread, where answers are still under way a moment after that: it fails them.
        """
        import uvicorn

        from localai.server.connections import Connection

        interrupted: list[int] = []

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Generator[None, None, None]:
                loop = asyncio.get_running_loop()

                def told(number: int) -> None:
                    if self.should_exit:
                        self.force_exit = True
                    self.should_exit = True
                    if number == signal.SIGINT:
                        interrupted.append(number)

                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, told, number)
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                ready()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is cut off now is no fault
                loop = asyncio.get_running_loop()
                loop.call_later(GRACE_S, loop.run_in_executor, None, cut_off)
                await super().shutdown(sockets)

        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            http=Connection,
            ws="none",
            log_config=None,
            log_level="error",  # what strangers send is nothing to be told of
            access_log=False,
            lifespan="off",
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=GRACE_S + ENDING_S,
            server_header=False,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self._server = server = Server(config)
        server.should_exit = self._stopped
        server.run([listener])
        return bool(interrupted)
