"""The server of this user, asked through its socket: which models it holds, and answers of theirs.

Whatever goes wrong before an answer has begun means that there is no server to use, and the command loads the model
itself. The socket lies in a folder that only this user can enter, and both ends look who the other is.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from localai import __version__, settings, wire
from localai.domain.engine import BatchEngine, ChatEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, Event, GenerationRequest, Message
from localai.domain.plan import Plan
from localai.errors import EngineError, LocalaiError, QueueFull
from localai.wire import Json

ANSWER_LIMIT_S = 10.0  # for what needs no model
LOADING_LIMIT_S = 300.0  # for what needs one that may have to be loaded first
STOPPING_LIMIT_S = 5.0  # for an answer to end that is told to; many are written together, and a step may take long
_POLL_S = 0.1  # how often Ctrl-C is asked for, and a full queue
LONGEST_PATH = 100  # bytes; sun_path has 104 on macOS, 108 on Linux


def socket_file() -> Path:
    """Where the socket of this user's server lies; shorter where the folders' own path is longer than sockets take."""
    own = settings.folders().cache / "run" / "server.sock"
    if len(os.fsencode(own)) <= LONGEST_PATH:
        return own
    import hashlib  # 10 ms that a warm command has no use for
    import tempfile

    name = f"localai-{os.getuid()}-{hashlib.sha256(os.fsencode(own)).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name / "server.sock"


def available() -> bool:
    """Whether this system has such sockets."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end, as the kernel says; None where it cannot say."""
    if sys.platform == "linux":
        told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[1])
    with contextlib.suppress(OSError, struct.error):  # struct xucred of macOS and the BSDs: version, uid, groups
        return int(struct.unpack_from("II", connection.getsockopt(0, 1, 76))[1])
    return None


def _never() -> bool:
    return False


def _patience(limit_s: float | None, cancelled: Callable[[], bool]) -> Callable[[], None]:
    """What to call while nothing happens: raises KeyboardInterrupt, and TimeoutError once it has been for so long."""
    ends_at = None if limit_s is None else monotonic() + limit_s

    def give_up() -> None:
        if cancelled():
            raise KeyboardInterrupt
        if ends_at is not None and monotonic() > ends_at:
            raise TimeoutError("the server does not answer")

    return give_up


class Asked:
    """One question to the server and its answers, an object a line. Use it in a `with`.

    A server that hangs reads nothing, not even a long question: `cancelled` is asked meanwhile, and where it says so
    KeyboardInterrupt is raised.
    """

    def __init__(self, content: Json, limit_s: float | None, cancelled: Callable[[], bool] = _never) -> None:
        path = socket_file()
        folder = os.stat(path.parent)
        if folder.st_uid != os.getuid() or folder.st_mode & 0o077:
            raise OSError(f"{path.parent} is open to others")
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.connection.settimeout(limit_s)
            self.connection.connect(str(path))
            if peer_uid(self.connection) != os.getuid():
                raise OSError("the socket is another user's")
            self._send(wire.line({"version": __version__, **content}), limit_s, cancelled)
        except BaseException:
            self.connection.close()
            raise
        self.lines = self.connection.makefile("rb")

    def _send(self, line: bytes, limit_s: float | None, cancelled: Callable[[], bool]) -> None:
        give_up = _patience(limit_s, cancelled)
        self.connection.settimeout(_POLL_S)
        left = memoryview(line)
        while left:
            try:
                left = left[self.connection.send(left) :]
            except TimeoutError:
                give_up()
        self.connection.settimeout(limit_s)

    def next(self) -> Json:
        """Raises OSError where the server has gone, ValueError for nonsense, LocalaiError for what it refuses."""
        text = self.lines.readline(wire.LONGEST_LINE)
        if not text.endswith(b"\n"):
            raise OSError("the server has gone")
        told = wire.parsed(text)
        if "error" in told:
            raise wire.to_error(told)
        return told

    def wait(self, cancelled: Callable[[], bool]) -> None:
        """Until something comes, or for as long as an answer may take. Raises KeyboardInterrupt."""
        import select

        give_up = _patience(self.connection.gettimeout(), cancelled)
        while not select.select([self.connection], [], [], _POLL_S)[0]:
            give_up()

    def close(self) -> None:
        """Go away: the server ends what it was doing for us. From any thread."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.lines.close()
        self.connection.close()

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(content: Json, limit_s: float | None = ANSWER_LIMIT_S, cancelled: Callable[[], bool] = _never) -> Json | None:
    """The server's one answer, None where there is none. Raises LocalaiError for what it refuses.

    Raises KeyboardInterrupt when `cancelled` says so.
    """
    if not available():
        return None
    try:
        with Asked(content, limit_s, cancelled) as asked:
            asked.wait(cancelled)
            return asked.next()
    except (OSError, ValueError):
        return None


def find(
    path: Path, wanted: Json, load: bool = False, cancelled: Callable[[], bool] = _never
) -> tuple[Json, Plan] | None:
    """What the server says of the model in `path`, and its plan, where it holds it for what is wanted.

    With `load` it may load the model, which takes as long as it takes. What it cannot load is no answer.
    Raises KeyboardInterrupt when `cancelled` says so.
    """
    content = {"do": "hold", "path": str(path), "load": load, **wanted}
    try:
        # also what is held may have to be loaded anew, for its context
        told = ask(content, None if load else LOADING_LIMIT_S, cancelled)
        return (told, wire.to_plan(told["plan"])) if told and told.get("held") else None
    except (LocalaiError, KeyError, TypeError, ValueError):
        return None


class WarmEngine(ChatEngine):
    """A model that the server holds. Counting raises KeyboardInterrupt where `cancelled` says so."""

    def __init__(self, path: Path, context: int, cancelled: Callable[[], bool] = _never) -> None:
        self._path = str(path)
        self._cancelled = cancelled
        self.context = context
        self.load_ms = 0.0

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        counting = self._asking("count", messages=wire.of_messages(messages), think=think)
        told = ask(counting, LOADING_LIMIT_S, self._cancelled)
        if told is None:
            raise gone()
        return int(told["tokens"])

    def _asking(self, what: str, **content: Any) -> Json:
        return {"do": what, "path": self._path, "context": self.context, **content}

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """As `ChatEngine`; when `cancelled` says so the server is told, and what it has said by then is the answer.

        Raises KeyboardInterrupt where the server does not even end what it is told to.
        """
        for event in self.taken(request, cancelled):
            if event is not None:
                yield event

    def taken(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event | None]:
        """The same, with a None first, once the server has taken the request."""
        try:
            with Asked(self._asking("generate", request=wire.of_request(request)), None, cancelled) as asked:
                for event in _events(asked, cancelled):
                    if isinstance(event, LocalaiError):
                        raise event
                    if isinstance(event, AnswerEnd):  # this answer waited for no loading
                        event = replace(event, timings=replace(event.timings, load_ms=0.0))
                    yield event
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise gone() from error

    def close(self) -> None:
        """Nothing is freed: the server keeps the model."""


def _events(asked: Asked, cancelled: Callable[[], bool]) -> Iterator[Any]:
    """None once the request is taken, then deliveries up to the last; `cancelled` is asked 20 times a second."""
    import select

    ends_at: float | None = None  # once it is told to stop
    buffer = b""
    while True:
        if ends_at is None and cancelled():
            ends_at = monotonic() + STOPPING_LIMIT_S
            asked.connection.settimeout(_POLL_S)  # one that hangs takes no more words than its socket holds
            with contextlib.suppress(OSError):  # what had come before the server went is still there to be read
                asked.connection.sendall(wire.line({"do": "cancel"}))
        head, newline, rest = buffer.partition(b"\n")
        if not newline:
            ready, _, _ = select.select([asked.connection], [], [], 0.05)
            if ready:
                more = asked.connection.recv(65536)
                if not more:
                    raise OSError("the server has gone")
                buffer += more
            elif ends_at is not None and monotonic() > ends_at:
                raise KeyboardInterrupt
            continue
        buffer = rest
        told = wire.parsed(head)
        event = None if told == wire.TAKEN else wire.to_event(told)
        yield event
        if isinstance(event, AnswerEnd | LocalaiError):
            return


class WarmTicket(Ticket):
    def __init__(self) -> None:
        import threading

        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class WarmBatchEngine(BatchEngine):
    """A model that the server holds, for many requests: each has a connection and a thread."""

    def __init__(self, path: Path, context: int, sequences: int) -> None:
        self._one = WarmEngine(path, context)
        self.context, self.load_ms, self.sequences = context, 0.0, sequences
        self._tickets: set[WarmTicket] = set()

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        return self._one.count_tokens(messages, think)

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """As `BatchEngine`; others may ask the server, too: where its queue is full this waits for a place."""
        import threading

        ticket = WarmTicket()
        self._tickets.add(ticket)
        try:
            events = self._taken(request, ticket)
        except BaseException:
            self._tickets.discard(ticket)
            raise

        def answer() -> None:
            try:
                for event in events:
                    if event is not None:
                        deliver(event)
            except LocalaiError as error:
                deliver(error)
            except KeyboardInterrupt:
                deliver(gone())
            finally:
                self._tickets.discard(ticket)

        threading.Thread(target=answer, daemon=True).start()
        return ticket

    def _taken(self, request: GenerationRequest, ticket: WarmTicket) -> Iterator[Event | None]:
        while True:
            events = self._one.taken(request, ticket.cancelled.is_set)
            try:
                next(events)
                return events
            except QueueFull:
                if ticket.cancelled.wait(_POLL_S):
                    raise

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Nothing is told beforehand: the server finds common beginnings by itself."""
        return 0

    def close(self) -> None:
        for ticket in list(self._tickets):
            ticket.cancel()


def gone() -> EngineError:
    return EngineError("the server that held the model has gone", "try again: the model is then loaded here")
