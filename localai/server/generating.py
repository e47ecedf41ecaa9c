"""From a request to an engine's events, in asyncio: the model is held, the slot is freed, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from localai import library
from localai.domain.embedding import Embedding
from localai.domain.engine import Delivery
from localai.domain.files import InstalledModel
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, TokenLogprob
from localai.errors import EngineClosed, EngineError, LocalaiError, NotFound, QueueFull, UsageError
from localai.holding import TEXT, Held, Holder
from localai.naming import Kind, parse

T = TypeVar("T")
THREADS = 16  # for what takes a moment: names, prompts
LOADING, EMBEDDING = 4, 4  # threads that load a model, one after the other, and that make vectors, one a model
MOST_EMBEDDING = 64  # requests for vectors of one model, those that wait included


@dataclass(slots=True)
class Counts:
    """What `/metrics` tells."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    under_way: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    interrupted: int = 0

    def ended(self, end: AnswerEnd) -> None:
        self.prompt_tokens += end.usage.prompt_tokens
        self.cached_tokens += end.usage.cached_tokens
        self.completion_tokens += end.usage.completion_tokens


class Events:
    """The events of an answer that has begun. Close it: a generator that was never asked would not free its slot."""

    def __init__(self, first: Delivery, rest: AsyncGenerator[Delivery, None]) -> None:
        self._first: Delivery | None = first
        self._rest = rest

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Delivery:
        if (first := self._first) is not None:
            self._first = None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        await self._rest.aclose()


async def ended(events: Events) -> tuple[AnswerEnd, list[TokenLogprob]]:
    """The end of an answer, and the probabilities of its tokens. Raises what the engine fails by."""
    found: list[TokenLogprob] = []
    end: AnswerEnd | None = None
    try:
        async for event in events:
            if isinstance(event, AnswerText):
                found += event.logprobs
            elif isinstance(event, AnswerEnd):
                end = event
    finally:
        await events.aclose()
    assert end is not None, "an engine ends with AnswerEnd"
    return end, found


async def all_ended(several: Sequence[Events]) -> list[tuple[AnswerEnd, list[TokenLogprob]]]:
    """As `ended` for each of several answers."""
    try:
        return [await ended(events) for events in several]
    finally:
        await closed(several)


async def closed(several: Iterable[Events]) -> None:
    """Free the slots of answers that nobody waits for any more."""
    for events in several:
        await events.aclose()


@dataclass(slots=True)
class Turn:
    """One model's requests for vectors: how many there are, and whose turn it is."""

    requests: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Dispatcher:
    """Takes requests to the models. `default` is the model for those that name none."""

    def __init__(self, holder: Holder, default: library.Found | None = None) -> None:
        self.holder, self.default = holder, default
        self.counts = Counts()
        # apart, so that whoever waits for a model to load, or for vectors, holds up nobody else
        self._threads = ThreadPoolExecutor(THREADS, "request")
        self._loading = ThreadPoolExecutor(LOADING, "loading")
        self._embedding = ThreadPoolExecutor(EMBEDDING, "embedding")
        self._turns: WeakKeyDictionary[Held, Turn] = WeakKeyDictionary()

    async def blocking(
        self,
        work: Callable[..., T],
        *arguments: Any,
        undo: Callable[[T], object] | None = None,
        threads: ThreadPoolExecutor | None = None,
    ) -> T:
        """What `work` gives in a thread. Where nobody waits for it any more, it is undone once it is there."""
        future = asyncio.get_running_loop().run_in_executor(threads or self._threads, work, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: _undo(done, undo))
            raise

    def find(self, name: str | None) -> library.Found:
        """The model of a request. Paths are nobody's business who asks over HTTP. Raises NotFound, UsageError."""
        if not name:
            return self.default or library.find(None)
        name = name.removesuffix(":latest")
        if self.default is not None and name in (self.default.name, str(self.default.path)):
            return self.default
        if "\0" in name or parse(name).kind is Kind.PATH:
            raise NotFound(f"there is no model called {name!r}", "GET /v1/models lists the installed ones")
        return library.find(name)

    def installed(self) -> list[tuple[str, InstalledModel]]:
        """The installed models by name, with the quantization in it where one is installed in several."""
        found = library.installed()
        times = Counter(model.model for model in found)
        return [
            (f"{model.model}:{model.quantization.lower()}" if times[model.model] > 1 else model.model, model)
            for model in found
        ]

    def unlisted(self) -> library.Found | None:
        """The model that is served, where it is a file of the user's: no list of installed models has it."""
        return self.default if self.default is not None and self.default.model is None else None

    @contextlib.asynccontextmanager
    async def hold(
        self, found: library.Found, kind: str = TEXT, context: int | None = None, keep_alive_s: float | None = None
    ) -> AsyncIterator[Held]:
        """Raises UsageError for a model that cannot be loaded: what is wrong is the choice, not the server."""
        asked, release = (found, kind, context, keep_alive_s), self.holder.release
        try:
            held = await self.blocking(self.holder.take, *asked, undo=lambda taken: taken and release(taken))
            if held is None:
                held = await self.blocking(self.holder.acquire, *asked, undo=release, threads=self._loading)
        except EngineClosed:
            raise
        except EngineError as error:
            raise UsageError(error.message, error.hint) from error
        try:
            yield held
        finally:
            self.holder.release(held)

    async def events(self, held: Held, request: GenerationRequest) -> AsyncGenerator[Delivery, None]:
        """An answer's events, the first of them once the engine has taken the request.

        Raises what the engine refuses, and what it fails by. Left early, the slot is free at once.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()

        def deliver(event: Delivery) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is ending
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        ticket = await self.blocking(held.writer.submit, request, deliver, undo=lambda ticket: ticket.cancel())
        self.counts.under_way += 1
        ended = False
        try:
            while True:
                event = await arrived.get()
                ended = isinstance(event, AnswerEnd | LocalaiError)
                if isinstance(event, LocalaiError):
                    raise event
                if isinstance(event, AnswerEnd):
                    self.counts.ended(event)
                yield event
                if ended:
                    return
        finally:
            self.counts.under_way -= 1
            self.counts.interrupted += not ended
            ticket.cancel()

    async def embedded(self, held: Held, texts: Sequence[str], truncate: bool) -> list[Embedding]:
        """A vector for each text; with `truncate` for as much of it as the context holds.

        Raises QueueFull, UsageError, ContextOverflow. Left early, what is being evaluated is the last.
        """
        embedder = held.embedder
        assert embedder is not None, "it is held for vectors"
        turn = self._turns.setdefault(held, Turn())
        if turn.requests >= MOST_EMBEDDING:
            raise QueueFull(f"{MOST_EMBEDDING} requests for vectors are under way", "try again later")
        stop = threading.Event()

        def embed() -> list[Embedding]:
            with held.one_at_a_time:
                asked = [embedder.cut(text) for text in texts] if truncate else texts
                return embedder.embed(asked, cancelled=stop.is_set)

        turn.requests += 1
        try:
            async with turn.lock:  # before a thread is taken
                return await self.blocking(embed, threads=self._embedding)
        finally:
            turn.requests -= 1
            stop.set()

    async def started(
        self, found: library.Found, kind: str, context: int | None, keep_alive_s: float | None,
        request: GenerationRequest,
    ) -> Events:  # fmt: skip
        """The events once the first is there: what is refused raises here, and not in the middle of a stream."""
        rest = self._held_events(found, kind, context, keep_alive_s, request)
        return Events(await anext(rest), rest)

    async def all_started(
        self, found: library.Found, kind: str, keep_alive_s: float | None, requests: Sequence[GenerationRequest]
    ) -> list[Events]:
        """As `started` for each request; either all are or none."""
        several: list[Events] = []
        try:
            for request in requests:
                several.append(await self.started(found, kind, None, keep_alive_s, request))
        except BaseException:
            await closed(several)
            raise
        return several

    async def _held_events(
        self, found: library.Found, kind: str, context: int | None, keep_alive_s: float | None,
        request: GenerationRequest,
    ) -> AsyncGenerator[Delivery, None]:  # fmt: skip
        async with (
            self.hold(found, kind, context, keep_alive_s) as held,
            contextlib.aclosing(self.events(held, request)) as events,
        ):
            async for event in events:
                yield event

    def close(self) -> None:
        """Take nothing more. The models are the holder's."""
        for threads in (self._threads, self._loading, self._embedding):
            threads.shutdown(wait=False, cancel_futures=True)


def _undo(done: asyncio.Future[T], undo: Callable[[T], object] | None) -> None:
    if not done.cancelled() and done.exception() is None and undo is not None:
        undo(done.result())
