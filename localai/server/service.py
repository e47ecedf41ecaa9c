"""The running server: what `localai serve` was asked for, from taking its port to letting go of its models.

What stands on fastapi is imported where a port is served: the shell's socket alone needs none of it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from localai import background, gguf, holding, library, render, shapes, warm
from localai.commands import model_loading
from localai.errors import LocalaiError
from localai.holding import Holder
from localai.library import Found
from localai.loading import LoadOptions
from localai.server import http, socket_server


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks of a server: `model` is loaded before anything is answered.

    `port` is 0 for one that is free, None where only the shell's socket is served. `parallel` goes before the plan.
    """

    model: str | None
    load_options: LoadOptions
    keep_alive_s: float
    parallel: int | None
    host: str
    origins: frozenset[str]
    port: int | None
    require_key: bool
    leave_when_idle: bool
    as_json: bool


class Service:
    """The server in this process: a port, the shell's socket, and the models behind both.

    Made, it has its port and its key. Raises LocalaiError for a port that is taken, UsageError for no address of ours.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._listener = None if wanted.port is None else http.listen(wanted.host, wanted.port)
        self._url: str | None = None
        self._key: str | None = None
        if self._listener is not None:
            self._url = f"http://{shown_host(wanted.host)}:{self._listener.getsockname()[1]}"
            self._key = needed_key(wanted.require_key, self._listener)
        self._holder = Holder(wanted.load_options, wanted.parallel, wanted.keep_alive_s)
        self._ended, self._running = threading.Event(), http.Running()
        facts = {"pid": os.getpid(), "url": self._url}
        self._socket_server = socket_server.SocketServer(self._holder, facts, self._stop) if warm.available() else None
        self._has_socket = False

    def run(self) -> bool:
        """Answer until told to end; True where that was Ctrl-C. Raises LocalaiError."""
        try:
            self._has_socket = self._socket_server is not None and self._socket_server.open()
            if self._listener is None and not self._has_socket:
                raise LocalaiError(background.already(warm.ask({"do": "ps"}) or {}), "localai stop ends it")
            default = preloaded(self._wanted.model, self._holder) if self._wanted.model else None
            if self._wanted.leave_when_idle:
                threading.Thread(target=self._holder.wait_until_empty, args=(self._stop,), daemon=True).start()
            if self._listener is None:
                return wait(self._ended, self._tell)
            return self._answer_http(self._listener, default)
        finally:
            self._close()

    def _answer_http(self, listener: socket.socket, default: Found | None) -> bool:
        from localai.server.app import application
        from localai.server.generating import Dispatcher
        from localai.server.security import Rules

        dispatcher = Dispatcher(self._holder, default)
        try:
            rules = Rules(self._wanted.host, self._key, self._wanted.origins)
            return self._running.run(application(dispatcher, rules), listener, self._tell, self._holder.close)
        finally:
            dispatcher.close()

    def _stop(self) -> None:
        self._ended.set()
        self._running.stop()

    def _tell(self) -> None:
        """Say that requests are answered, and where."""
        if self._wanted.as_json:
            path = str(self._socket_server.path) if self._socket_server is not None and self._has_socket else None
            render.json_object({"url": self._url, "pid": os.getpid(), "socket": path})
            render.flush()
        elif self._url:
            render.note(f"answering on {self._url} (OpenAI: {self._url}/v1, Ollama: {self._url}); Ctrl-C ends it")
        else:
            render.note("answering this user's run, chat and map; Ctrl-C ends it")
        if self._socket_server is not None and not self._has_socket:
            render.note("another server has the shell's socket: run, chat, map, ps and stop ask that one")

    def _close(self) -> None:
        if self._socket_server is not None:
            self._socket_server.close()
        self._holder.close()
        if self._listener is not None:
            self._listener.close()


def shown_host(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def needed_key(required: bool, listener: socket.socket) -> str | None:
    """The key that requests must bring: none where only this machine can ask, and nobody wants one."""
    from localai.server import security

    if security.is_loopback(listener.getsockname()[0]) and not required:
        return None
    key, new = security.api_key()
    if new:
        render.note(f"the API key, shown this once (it is kept in {security.key_file()}): {key}")
    return key


def preloaded(model: str, holder: Holder) -> Found:
    """The model of `-m`, in memory before anything is answered."""
    found = library.find(model)
    if found.why:
        render.note(found.why)
    with model_loading.loading_shown(found.name):
        kind = holding.TEXT if shapes.makes_text(gguf.read_header(found.path)) else holding.VECTORS
        holder.release(holder.acquire(found, kind))
    return found


def wait(ended: threading.Event, ready: Callable[[], None]) -> bool:
    """Until the socket says to end, or a signal; True where it was Ctrl-C."""
    interrupted: list[int] = []

    def told(number: int, _: object) -> None:
        if number == signal.SIGINT:
            interrupted.append(number)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    ready()
    ended.wait()
    return bool(interrupted)
