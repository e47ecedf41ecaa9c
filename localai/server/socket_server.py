"""The server's socket for the shell: `run`, `chat`, `map`, `ps` and `stop` of the same user and version."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localai import __version__, library, loading, warm, wire
from localai.domain.engine import Delivery
from localai.domain.generation import AnswerEnd
from localai.errors import LocalaiError, UsageError
from localai.holding import TEXT, Held, Holder
from localai.wire import Json

FIRST_LINE_S = 30.0
MOST_CONNECTIONS = 256
ACCEPT_AGAIN_S = 0.1


class SocketServer:
    """Listens on the socket, a thread a connection. `stop` is called when somebody wants the server to end."""

    def __init__(self, holder: Holder, facts: Json, stop: Callable[[], None]) -> None:
        self._holder, self._facts, self._stop = holder, facts, stop
        self._listener: socket.socket | None = None
        self._lock: Any = None
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.path = warm.socket_file()

    def open(self) -> bool:
        """Take the socket; False where another server of this user has it. Raises LocalaiError."""
        import fcntl

        try:
            folder = self._private_folder(self.path.parent)
            self._lock = os.open(folder / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                self._lock = None
                return False
            self.path.unlink(missing_ok=True)  # whoever made it has died: we have its lock
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o177)
            try:
                self._listener.bind(str(self.path))
            finally:
                os.umask(before)
            self._listener.listen(64)
        except OSError as error:
            raise LocalaiError(
                f"cannot make the socket {self.path}: {error.strerror or error}", "check the folder's permissions"
            ) from error
        threading.Thread(target=self._accept, args=(self._listener,), name="socket", daemon=True).start()
        return True

    @staticmethod
    def _private_folder(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = os.lstat(path)
        if found.st_uid != os.getuid() or not os.path.isdir(path) or os.path.islink(path):
            raise OSError(f"{path} is not this user's folder")
        os.chmod(path, 0o700)
        return path

    def close(self) -> None:
        """Take nothing more. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if self._listener is None:
                    return
                time.sleep(ACCEPT_AGAIN_S)  # such as too many open files: that passes
                continue
            if warm.peer_uid(connection) != os.getuid() or not self._room.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                try:
                    self._answer(JsonLines(connection))
                finally:
                    connection.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        finally:
            self._room.release()

    def _answer(self, connection: JsonLines) -> None:
        try:
            asked = connection.read(FIRST_LINE_S)
            if asked is None:
                return
            if asked.get("version") != __version__ and asked.get("do") not in ("ps", "stop"):
                raise UsageError("the server is of another version", "localai stop, then start it again")
            do = {"ps": self._ps, "stop": self._end, "hold": self._hold, "count": self._count}.get(str(asked.get("do")))
            if do is not None:
                connection.write(do(asked))
            elif asked.get("do") == "generate":
                self._generate(asked, connection)
            else:
                raise UsageError("the server does not know that", "localai stop, then start it again")
        except LocalaiError as error:
            connection.write(wire.of_error(error))
        except (ValueError, KeyError, TypeError) as error:
            connection.write(wire.of_error(UsageError(f"malformed: {error}", "localai stop, then start it again")))

    # ------------------------------------------------------------------------------------------------- questions

    def _ps(self, asked: Json) -> Json:
        return {
            **self._facts,
            "started_at": self._holder.started_at,
            "models": [facts(each) for each in self._holder.held()],
        }

    def _end(self, asked: Json) -> Json:
        if (model := asked.get("model")) is None:
            self._stop()
            return {"stopped": True, "pid": os.getpid()}
        here = [each.found for each in self._holder.held() if model in (each.name, str(each.found.path))]
        return {"models": self._holder.unload(here[0] if here else library.find(str(model)))}

    def _found(self, asked: Json) -> library.Found:
        return library.find(str(asked["path"]))

    def _hold(self, asked: Json) -> Json:
        """Whether the model is held with what the command wants of it."""
        found = self._found(asked)
        here = self._holder.peek(found)
        if here is None and not asked.get("load"):
            return {"held": False}
        context, thoughts = asked.get("context"), asked.get("thoughts")
        if context and thoughts and (here.thinks if here else loading.thinks(found)):
            context += thoughts
        held = self._holder.acquire(found, TEXT, context)
        self._holder.release(held)
        plan = held.plan
        wanted = {"gpu_layers": plan.gpu_layers, "threads": plan.threads, "kv_type": plan.kv_type}
        differs = any(asked.get(key) not in (None, value) for key, value in wanted.items())
        exact = asked.get("exact_context")
        if differs or exact not in (None, plan.context):
            return {"held": False}
        return {
            "held": True,
            "plan": wire.of_plan(plan),
            "context": held.writer.context,
            "params": held.params,
            "context_length": held.context_length,
            "note": held.note,
        }

    def _using(self, asked: Json) -> Held:
        """The model, loaded anew where it has been let go of since, with the context that the command counts on."""
        return self._holder.acquire(self._found(asked), TEXT, asked.get("context"))

    def _count(self, asked: Json) -> Json:
        held = self._using(asked)
        try:
            return {"tokens": held.writer.count_tokens(wire.to_messages(asked["messages"]), asked["think"])}
        finally:
            self._holder.release(held)

    def _generate(self, asked: Json, connection: JsonLines) -> None:
        held = self._using(asked)
        arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        try:
            ticket = held.writer.submit(wire.to_request(asked["request"]), arrived.put)
            connection.write(wire.TAKEN)
            # whatever comes meanwhile, a word to cancel or the end of the connection, means the same
            threading.Thread(target=connection.wait, args=(ticket.cancel,), daemon=True).start()
            try:
                while True:
                    event = arrived.get()
                    connection.write(wire.of_event(event))
                    if isinstance(event, AnswerEnd | LocalaiError):
                        return
            finally:
                ticket.cancel()
        finally:
            self._holder.release(held)


def facts(held: Held) -> Json:
    """What `ps` tells of a model in memory."""
    return {
        "model": held.name,
        "path": str(held.found.path),
        "kind": held.kind,
        "context": held.plan.context,
        "sequences": held.plan.sequences,
        "placement": str(held.plan.placement),
        "memory_bytes": held.memory_bytes,
        "requests": held.users,
        "expires_in_s": held.expires_in_s,
    }


class JsonLines:
    """A connection, a JSON object a line."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = b""

    def read(self, limit_s: float) -> Json | None:
        """The next object, None where there is none. Raises ValueError."""
        self._connection.settimeout(limit_s)
        while b"\n" not in self._buffer:
            more = self._connection.recv(65536)
            if not more:
                return None
            self._buffer += more
            if len(self._buffer) > wire.LONGEST_LINE:
                raise ValueError("too long")
        text, _, self._buffer = self._buffer.partition(b"\n")
        self._connection.settimeout(120.0)
        return wire.parsed(text)

    def wait(self, then: Callable[[], None]) -> None:
        """Until something comes, or the other end has gone; then do that."""
        import selectors  # select() alone knows no descriptor beyond 1,023

        with contextlib.suppress(OSError, ValueError), selectors.DefaultSelector() as waiting:
            waiting.register(self._connection, selectors.EVENT_READ)
            waiting.select()
        then()

    def write(self, content: Json) -> None:
        self._connection.sendall(wire.line(content))
