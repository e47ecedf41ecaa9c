"""The process that `child` starts: it loads a model, answers what comes through the pipe, and dies with its parent.

Messages to it: ("submit", number, request), ("call", number, (method, arguments)), ("cancel", number), ("close",).
Its own: ("progress", share), ("notice", text), ("failed", error), ("loaded", (context, load_ms)), ("died", reason),
("answer", (number, what, whether it is the last)).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from localai.domain.engine import BatchEngine, Delivery
from localai.domain.generation import AnswerEnd, GenerationRequest
from localai.domain.plan import Plan
from localai.errors import EngineError, LocalaiError, unexpected


def serve(connection: Connection, path: Path, plan: Plan, how: Mapping[str, Any]) -> None:
    """Load the model and answer until told to close, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to take
    from localai.engine import library, rpc, scheduler

    parent = _Parent(connection)
    library.on_fatal(parent.give_up)
    try:
        rpc.register(plan.workers)
        engine = scheduler.load(
            path, plan, lambda share: parent.send("progress", share), None,
            lambda text: parent.send("notice", text), **how,
        )  # fmt: skip
    except LocalaiError as error:
        parent.send("failed", error)
        return
    parent.send("loaded", (engine.context, engine.load_ms))
    _Answering(engine, parent).run()


class _Parent:
    """The other end of the pipe. Any thread may send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        with self._sending:
            try:
                self._connection.send((kind, content))
            except OSError:  # nobody listens any more
                os._exit(1)

    def receive(self) -> tuple[Any, ...]:
        """The next message. Ends the process where the parent is gone."""
        try:
            message: tuple[Any, ...] = self._connection.recv()
            return message
        except (EOFError, OSError):
            os._exit(0)

    def give_up(self, reason: str) -> None:
        """Say why, and end the process at once."""
        # the lock may be held by a thread that will never go on
        with contextlib.suppress(OSError):
            self._connection.send(("died", reason))
        os._exit(int(EngineError.exit_code))


class _Answering:
    """Does what the parent asks of the engine."""

    def __init__(self, engine: BatchEngine, parent: _Parent) -> None:
        self._engine, self._parent = engine, parent
        self._tickets: dict[int, Any] = {}  # of the requests under way; None while one is being taken

    def run(self) -> None:
        """Until told to close."""
        while True:
            match self._parent.receive():
                case ("submit", number, request):
                    self._submit(number, request)
                case ("call", number, (name, arguments)):
                    self._call(number, name, arguments)
                case ("cancel", number):
                    if (ticket := self._tickets.pop(number, None)) is not None:
                        ticket.cancel()
                case ("close",):
                    self._engine.close()
                    return

    def _answer(self, number: int, what: Any, last: bool) -> None:
        self._parent.send("answer", (number, what, last))

    def _submit(self, number: int, request: GenerationRequest) -> None:
        """Take a request: None says so, an error why not; its events follow."""
        self._tickets[number] = None
        taken = threading.Event()
        try:
            ticket = self._engine.submit(request, self._delivering(number, taken))
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            del self._tickets[number]
            self._answer(number, _known(error), True)
            return
        self._tickets[number] = ticket
        self._answer(number, None, False)
        taken.set()

    def _delivering(self, number: int, taken: threading.Event) -> Callable[[Delivery], None]:
        def deliver(event: Delivery) -> None:
            taken.wait()  # the word that the request is taken goes first
            last = isinstance(event, AnswerEnd | LocalaiError)
            if last:
                self._tickets.pop(number, None)
            self._answer(number, event, last)

        return deliver

    def _call(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        """What a method of the engine returns, or the error that it raises."""
        try:
            found = getattr(self._engine, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            found = _known(error)
        self._answer(number, found, True)


def _known(error: Exception) -> LocalaiError:
    return error if isinstance(error, LocalaiError) else unexpected(error)
