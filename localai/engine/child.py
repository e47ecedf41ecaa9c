"""A model held by a process of its own, for models that are spread over other machines.

llama.cpp aborts the process where a worker dies, and waits for ever where one hangs. In a child neither harms the
program: the requests under way fail with one line, one that is stuck is killed, and the next request starts another.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from localai.domain.engine import Delivery, KvState
from localai.domain.generation import AnswerEnd, Event, GenerationRequest, Message
from localai.domain.plan import Plan
from localai.engine import child_process
from localai.errors import EngineClosed, LocalaiError

_POLL_S = 0.1  # how often Ctrl-C is asked for while nothing comes
_PATIENCE_S = 3.0  # how long a child may take to end an answer, or itself, before it is killed
_STUCK_S = 30.0  # how long it may say nothing at all, asked to end one of several answers: a step may take long
_HINT = "see whether the workers still run (localai worker), and ask again"

Progress = Callable[[float], None]
Notice = Callable[[str], None]


def load(
    path: Path,
    plan: Plan,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    notice: Notice | None = None,
    how: Mapping[str, Any] | None = None,
) -> ChildEngine:
    """Load the model of `path` in a process of its own, as `plan` says, its workers included.

    `how` are the named parameters of `scheduler.load`. Raises EngineError, DoesNotFit, KeyboardInterrupt.
    """
    engine = ChildEngine(path, plan, notice or (lambda text: None), how or {})
    engine.start(progress or (lambda share: None), cancelled or (lambda: False))
    return engine


def _closed() -> EngineClosed:
    return EngineClosed("the engine is closed", "load the model again")


class _Ticket:
    """Implements `domain.engine.Ticket`."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self.cancel = cancel


class ChildEngine:
    """A model in another process; implements `domain.engine.BatchEngine` and `domain.engine.ChatEngine`."""

    context = 0
    load_ms = 0.0

    def __init__(self, path: Path, plan: Plan, notice: Notice, how: Mapping[str, Any]) -> None:
        self._path, self._plan, self._notice, self._how = path, plan, notice, dict(how)
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        self._child: _Child | None = None
        self._closed = False

    def start(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        """Start the child and wait until it has loaded the model."""
        child = _Child(self._path, self._plan, self._how)
        try:
            self.context, self.load_ms = child.loaded(progress, cancelled, self._notice)
        except BaseException:
            child.kill()
            raise
        self._child = child
        if self._closed:  # while it was loading
            self.close()
            raise _closed()

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more. One whose process has died takes the next request."""
        return self._closed

    def _alive(self) -> _Child:
        with self._lock:
            if self._closed:
                raise _closed()
            if self._child is None or not self._child.alive():
                try:
                    self.start(lambda share: None, lambda: self._closed)
                except KeyboardInterrupt:
                    if self._closed:
                        raise _closed() from None
                    raise
            assert self._child is not None, "it has just been started"
            return self._child

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> _Ticket:
        """Take a request; `deliver` is called in a thread of this engine's. Raises LocalaiError, as the engine does."""
        child, number = self._alive(), next(self._numbers)
        first: queue.SimpleQueue[LocalaiError | None] = queue.SimpleQueue()
        waiting = [first]

        def arrived(answer: Any) -> None:
            if waiting:
                waiting.pop().put(answer)  # None where it is taken; else why it isn't
            else:
                deliver(answer)

        child.ask(number, "submit", request, arrived)
        if (refusal := first.get()) is not None:
            raise refusal
        return _Ticket(lambda: child.cancel(number))

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included."""
        return self._call("count_tokens", tuple(messages), think)

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """See `domain.engine.BatchEngine`."""
        return self._call("share", tuple(one), tuple(other), think)

    def _call(self, name: str, *arguments: Any) -> int:
        """What a method of the child's engine returns. Raises LocalaiError."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._alive().ask(next(self._numbers), "call", (name, arguments), answers.put)
        found = answers.get()
        if isinstance(found, LocalaiError):
            raise found
        return int(found)

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """Yield events, the last an `AnswerEnd`. Raises ContextOverflow, EngineError."""
        arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        ticket = self.submit(request, arrived.put)
        patience: float | None = None
        try:
            while True:
                try:
                    event = arrived.get(timeout=_POLL_S)
                except queue.Empty:
                    if patience is None and cancelled():
                        ticket.cancel()
                        patience = _PATIENCE_S
                    elif patience is not None and (patience := patience - _POLL_S) <= 0:
                        self._kill()  # what waits is then told so
                        patience = None
                    continue
                if isinstance(event, LocalaiError):
                    raise event
                yield event
                if isinstance(event, AnswerEnd):
                    return
                if patience is None and cancelled():
                    ticket.cancel()
                    patience = _PATIENCE_S
        finally:
            ticket.cancel()

    def keep_only(self, messages: Sequence[Message], think: bool | None = None) -> None:
        """Nothing of it is brought back: see `state`."""

    def state(self, affordable: Callable[[int], bool]) -> KvState | None:
        """None: what the workers hold of a conversation is not brought back."""
        return None

    def resume(self, state: KvState) -> bool:
        """False: see `state`."""
        return False

    def _kill(self) -> None:
        child = self._child
        if child is not None:
            child.kill()

    def close(self) -> None:
        """End the process. Idempotent."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """The process of `child_process`, and what is asked of it. Messages are pickled: both ends are this program."""

    def __init__(self, path: Path, plan: Plan, how: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=child_process.serve, args=(theirs, path, plan, how), daemon=True, name="model"
        )
        self._process.start()
        theirs.close()
        self._sending = threading.Lock()
        self._asked: dict[int, Callable[[Any], None]] = {}
        self._changing = threading.Lock()
        self._heard = 0  # messages
        self._reason = ""
        self._reader = threading.Thread(target=self._read, name="model's answers", daemon=True)

    def loaded(self, progress: Progress, cancelled: Callable[[], bool], notice: Notice) -> tuple[int, float]:
        """Wait for the model: its context in tokens, and milliseconds. Raises what the child raised."""
        while True:
            try:
                if not self._connection.poll(_POLL_S):
                    if cancelled():
                        raise KeyboardInterrupt
                    continue
                kind, content = self._connection.recv()
            except (EOFError, OSError):
                raise self._died() from None
            if kind == "progress":
                progress(content)
            elif kind == "notice":
                notice(content)
            elif kind == "died":
                self._reason = content
            elif kind == "failed":
                raise content
            elif kind == "loaded":
                self._reader.start()
                context, load_ms = content
                return int(context), float(load_ms)
            if cancelled():
                raise KeyboardInterrupt

    def alive(self) -> bool:
        return self._process.is_alive() and not self._reason

    def ask(self, number: int, kind: str, content: Any, deliver: Callable[[Any], None]) -> None:
        """Ask something whose answers go to `deliver`, a LocalaiError where the child dies."""
        with self._changing:
            self._asked[number] = deliver
        self.send((kind, number, content))

    def cancel(self, number: int) -> None:
        """Have an answer ended; where nothing is heard of it, nor anything else, the process is killed."""
        self.send(("cancel", number))
        self._watch(number)

    def _watch(self, number: int) -> None:
        if number not in self._asked:
            return
        heard = self._heard

        def look() -> None:
            if self._heard != heard:
                self._watch(number)
            elif number in self._asked:
                self._reason = "it does not answer"
                self._process.kill()

        timer = threading.Timer(_STUCK_S, look)
        timer.daemon = True
        timer.start()

    def send(self, message: tuple[Any, ...]) -> None:
        with self._sending, contextlib.suppress(OSError, ValueError):  # a dead child is told of by the reader
            self._connection.send(message)
            return
        self._fail_all()

    def _read(self) -> None:
        try:
            while True:
                kind, content = self._connection.recv()
                self._heard += 1
                if kind == "died":
                    self._reason = content
                elif kind == "notice":
                    continue  # said when the model was first loaded
                else:
                    number, answer, last = content
                    with self._changing:
                        deliver = self._asked.pop(number, None) if last else self._asked.get(number)
                    if deliver is not None:
                        with contextlib.suppress(Exception):  # a receiver's fault is no reason to fail the others
                            deliver(answer)
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - a message that is none: whoever waits must be told
            self._reason = f"its answer cannot be read ({type(error).__name__})"
            self._process.kill()
        finally:
            self._fail_all()

    def _fail_all(self) -> None:
        with self._changing:
            waiting, self._asked = self._asked, {}
        for deliver in waiting.values():
            with contextlib.suppress(Exception):
                deliver(self._died())

    def _died(self) -> EngineClosed:
        self._process.join(_PATIENCE_S)
        if not self._reason:
            self._reason = f"its process ended (exit code {self._process.exitcode})"
        return EngineClosed(f"the model on other machines is lost: {self._reason}", _HINT)

    def end(self) -> None:
        """Have it free its memory, and the workers' with it; kill it where it does not."""
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._connection.send(("close",))
        self._process.join(_PATIENCE_S)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
