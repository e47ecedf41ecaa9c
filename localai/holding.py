"""The models that a server holds in memory: loaded when asked for, several while memory allows, let go when unused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic, time

from localai import embeddings, library, loading, recording
from localai.domain.engine import BatchEngine
from localai.domain.plan import Plan
from localai.engine.embedding import Embedder
from localai.errors import DoesNotFit, EngineClosed, NotFound
from localai.loading import LoadOptions
from localai.serial_engine import SerialEngine

KEEP_ALIVE_S = 300.0  # unused so long, a model is let go
MOST_AT_ONCE = 8  # answers that a model is planned for where nobody said how many
TEXT, PICTURES, VECTORS = "text", "pictures", "vectors"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Held:
    """A model in memory: `engine` for one that writes, `embedder` for vectors. `users` are requests under way."""

    kind: str
    found: library.Found
    plan: Plan
    note: str | None
    engine: BatchEngine | None = None
    embedder: Embedder | None = None
    params: int = 0
    context_length: int | None = None
    thinks: bool = False
    users: int = 0
    asked_context: int = 0  # what it was loaded for, which may be more than there was room for
    keep_alive_s: float = KEEP_ALIVE_S
    used_at: float = field(default_factory=monotonic)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until it is let go if nobody asks; None for never."""
        return None if self.keep_alive_s < 0 else max(self.used_at + self.keep_alive_s - monotonic(), 0.0)

    @property
    def writer(self) -> BatchEngine:
        assert self.engine is not None, "it is held to write"
        return self.engine

    @property
    def memory_bytes(self) -> int:
        return self.plan.memory.total_bytes

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        if self.embedder is not None:
            with self.one_at_a_time:  # nobody is evaluating
                self.embedder.close()


class Holder:
    """Holds models for the requests of many threads. `close` frees everything.

    A model is let go when nobody has asked for it for its keep-alive (negative: never), or when another one needs the
    memory and nobody is using it: the one unused the longest first.
    """

    def __init__(
        self,
        options: LoadOptions | None = None,
        parallel: int | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._options, self._parallel = options or LoadOptions(), parallel
        self.keep_alive_s = keep_alive_s
        self._held: list[Held] = []
        self._changed = threading.Condition()
        self._loading = threading.Lock()
        self._closed = False
        self.started_at = time()
        self._thread = threading.Thread(target=self._expire, name="keep-alive", daemon=True)
        self._thread.start()

    def held(self) -> list[Held]:
        """The models in memory, the one used last first."""
        with self._changed:
            return sorted(self._held, key=lambda each: -each.used_at)

    def acquire(
        self, found: library.Found, kind: str = TEXT, context: int | None = None, keep_alive_s: float | None = None
    ) -> Held:
        """The model in memory, loaded where it isn't; `release` it afterwards. Blocks as long as that takes.

        `context` is how many tokens the request needs: a model held with less is loaded anew if nobody is using it.
        Raises NotFound, DoesNotFit, EngineError.
        """
        if (here := self.take(found, kind, context, keep_alive_s)) is not None:
            return here
        try:
            with self._loading:
                if self._closed:
                    raise _stopping()
                if (here := self.take(found, kind, context, keep_alive_s)) is not None:
                    return here
                self._let_go_where_unused(lambda each: each.found.path == found.path and each.kind == kind)
                loaded = self._load(found, kind, context)
                with self._changed:
                    if self._closed:
                        loaded.close()
                        raise _stopping()
                    loaded.users, loaded.asked_context = 1, context or 0
                    loaded.keep_alive_s = self.keep_alive_s if keep_alive_s is None else keep_alive_s
                    self._held.append(loaded)
                return loaded
        except KeyboardInterrupt:
            if self._closed:  # what was loading has seen it; else it is Ctrl-C
                raise _stopping() from None
            raise
        finally:
            with self._changed:  # `wait_until_empty` asks whether anything is being loaded
                self._changed.notify_all()

    def take(self, found: library.Found, kind: str, context: int | None, keep_alive_s: float | None) -> Held | None:
        """As `acquire`, where nothing must be loaded for it; None where something must."""
        self._let_go_of_closed()
        with self._changed:
            for each in self._held:
                if each.found.path != found.path or each.kind != kind:
                    continue
                if context is not None and kind == TEXT and self._grows(each, context) and not each.users:
                    return None
                each.users += 1
                if keep_alive_s is not None:
                    each.keep_alive_s = keep_alive_s
                return each
        return None

    def _grows(self, each: Held, context: int) -> bool:
        """Whether loading it anew would give it more context, so that this many tokens have room."""
        longest = min(context, each.context_length or each.plan.context)
        return self._options.context is None and max(each.plan.context, each.asked_context) < longest

    def peek(self, found: library.Found) -> Held | None:
        """The model, where it is held to write, without using it."""
        return next((each for each in self.held() if each.found.path == found.path and each.kind == TEXT), None)

    def release(self, held: Held) -> None:
        """A request is done with it."""
        with self._changed:
            held.users -= 1
            held.used_at = monotonic()
            self._changed.notify_all()

    def unload(self, found: library.Found | None) -> list[str]:
        """Let go of a model, or of all, whatever they are doing; returns their names. Raises NotFound."""
        with self._changed:
            gone = [each for each in self._held if found is None or each.found.path == found.path]
            self._held = [each for each in self._held if each not in gone]
            self._changed.notify_all()
        if found is not None and not gone:
            raise NotFound(f"{found.name} is not in memory", "localai ps shows the models that are")
        for each in gone:
            each.close()
        return [each.name for each in gone]

    def let_go(self, found: library.Found) -> None:
        """Let go of a model as soon as nobody is using it, whatever its keep-alive."""
        with self._changed:
            for each in self._held:
                if each.found.path == found.path:
                    each.keep_alive_s = 0.0
        self._let_go_where_unused(lambda each: each.found.path == found.path)

    def close(self) -> None:
        """Free everything. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.unload(None)

    def wait_until_empty(self, then: Callable[[], None]) -> None:
        """Wait until no model is held any more and none is being loaded, or for `close`; then do that."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not (self._held or self._loading.locked()))
        then()

    # -------------------------------------------------------------------------------------------------- loading

    def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
        while self._options.workers and self._let_go_of_oldest():
            pass  # a worker serves one model at a time
        while True:
            try:
                return self._load_if_it_fits(found, kind, context)
            except DoesNotFit:
                if not self._let_go_of_oldest():
                    raise

    def _load_if_it_fits(self, found: library.Found, kind: str, context: int | None) -> Held:
        if kind == VECTORS:
            vectors = embeddings.prepare(found, LoadOptions(None, self._options.gpu_layers, self._options.threads))
            self._refuse_beside_others(found, vectors.plan)
            embedder = embeddings.load(vectors, cancelled=self._is_closed)
            return Held(kind, found, vectors.plan, vectors.warning, embedder=embedder)
        alone = kind == PICTURES
        sequences = 1 if alone else self._parallel
        prepared = loading.prepare(found, self._options, context, sequences, MOST_AT_ONCE)
        self._refuse_beside_others(found, prepared.plan)
        engine: BatchEngine
        if alone:
            loading.refuse_blind(prepared)  # a projector that llama.cpp crashes over must not end the server
            single = loading.load(prepared, cancelled=self._is_closed)
            engine, note = SerialEngine(single.engine), single.note
        else:
            batch = loading.load_batch(prepared, cancelled=self._is_closed)
            engine, note = recording.Recorded(batch.engine, prepared, "serve"), batch.note
        return Held(
            kind,
            found,
            prepared.plan,
            note,
            engine,
            params=prepared.params,
            context_length=prepared.context_length,
            thinks=prepared.thinks,
        )

    def _is_closed(self) -> bool:
        return self._closed

    def _refuse_beside_others(self, found: library.Found, plan: Plan) -> None:
        """The system counts the mapped weights of the models that are here as free: they are in use."""
        mapped = sum(each.plan.memory.weights_bytes for each in self.held() if each.plan.use_mmap)
        need = plan.memory.total_bytes + plan.memory.overhead_bytes
        if mapped and need + mapped > plan.available_bytes:
            raise DoesNotFit(
                f"{found.name} does not fit beside the models that are in use",
                "wait until they are done, or localai stop MODEL",
            )

    # ------------------------------------------------------------------------------------------------ letting go

    def _let_go_of_oldest(self) -> bool:
        idle = [each for each in self.held() if not each.users]
        return bool(idle) and self._let_go_where_unused(lambda each: each is idle[-1])

    def _let_go_of_closed(self) -> None:
        """Forget the engines that have closed themselves after a fault."""
        with self._changed:
            gone = [each for each in self._held if each.engine is not None and each.engine.closed]
            self._held = [each for each in self._held if each not in gone]
        for each in gone:
            each.close()  # which waits until the memory is free

    def _let_go_where_unused(self, chosen: Callable[[Held], bool]) -> bool:
        with self._changed:
            gone = [each for each in self._held if not each.users and chosen(each)]
            self._held = [each for each in self._held if each not in gone]
            self._changed.notify_all()
        for each in gone:
            each.close()
        return bool(gone)

    def _expire(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                waits = [each.expires_in_s for each in self._held if not each.users]
                due = min((wait for wait in waits if wait is not None), default=None)
                if due is None or due > 0:
                    self._changed.wait(due)
            self._let_go_where_unused(lambda each: each.expires_in_s == 0)


def _stopping() -> EngineClosed:
    return EngineClosed("the server is stopping", "start it again: localai serve")
