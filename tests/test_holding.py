"""What a server holds: engines that ended themselves, keep-alives, embedders in use, engines closed while they load."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeBatchEngine, FakeEngine
from real_model import plan

from localai import library, loading, serial_engine
from localai.domain.embedding import Embedding
from localai.domain.engine import Delivery
from localai.domain.generation import AnswerEnd, Event, GenerationRequest, Message, PromptProgress, TokenLogprob
from localai.engine import child
from localai.errors import EngineClosed, EngineError, NetworkError, QueueFull
from localai.holding import VECTORS, Held, Holder
from localai.serial_engine import SerialEngine

FOUND = library.Found(None, Path("small.gguf"), "small")
HELLO = GenerationRequest((Message("user", "Hello"),))


class FakeHolder(Holder):
    def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
        return Held(kind, found, plan(), None, FakeBatchEngine())


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = FakeHolder()
    yield made
    made.close()


def test_an_engine_that_has_ended_itself_is_loaded_anew(holder: Holder) -> None:
    broken = holder.acquire(FOUND)
    broken.writer.close()
    again = holder.acquire(FOUND)
    assert again is not broken
    assert not again.writer.closed
    assert holder.held() == [again]
    holder.release(broken)


def test_a_keep_alive_stays_until_another_is_given(holder: Holder) -> None:
    held = holder.acquire(FOUND, keep_alive_s=-1)
    assert holder.acquire(FOUND).keep_alive_s == -1
    assert holder.acquire(FOUND, keep_alive_s=7).keep_alive_s == 7
    assert held.keep_alive_s == 7


def test_a_context_that_there_is_no_room_for_is_asked_for_once() -> None:
    loads: list[int | None] = []

    class Small(Holder):
        def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
            loads.append(context)
            return Held(kind, found, plan(512), None, FakeBatchEngine(), context_length=8192)

    holder = Small()
    for context in (None, 2048, 2048, 1024, 4096, 4096):
        holder.release(holder.acquire(FOUND, context=context))
    assert loads == [None, 2048, 4096]
    holder.close()


def test_a_server_that_ends_waits_for_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(prepared: Any, *, cancelled: Any, **_: Any) -> Any:
        assert not cancelled()
        holder.close()
        assert cancelled()
        raise KeyboardInterrupt

    holder = Holder()
    monkeypatch.setattr(loading, "load_batch", load)
    with pytest.raises(EngineClosed, match="stopping"):
        holder.acquire(library.find("smollm2-135m"), context=512)


def test_who_waits_for_nothing_to_be_held_hears_of_a_load_that_failed() -> None:
    loading, done = threading.Event(), threading.Event()

    class Fails(Holder):
        def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
            loading.set()
            waits.wait(60)
            raise EngineError("it is damaged", "pull it again")

    def ask() -> None:
        with pytest.raises(EngineError):
            holder.acquire(FOUND)

    waits, holder = threading.Event(), Fails()
    asking = threading.Thread(target=ask)
    asking.start()
    assert loading.wait(60)
    waiting = threading.Thread(target=holder.wait_until_empty, args=(done.set,))
    waiting.start()
    waits.set()
    assert done.wait(60)
    asking.join()
    waiting.join()
    holder.close()


def test_an_embedder_is_freed_only_when_nobody_evaluates() -> None:
    freed = threading.Event()

    class Embedder:
        def close(self) -> None:
            freed.set()

    held = Held(VECTORS, FOUND, plan(), None, embedder=Embedder())  # type: ignore[arg-type]
    closing = threading.Thread(target=held.close)
    with held.one_at_a_time:
        closing.start()
        assert not freed.is_set()
    closing.join()
    assert freed.is_set()


def test_who_waits_for_a_load_or_for_vectors_holds_up_nobody_else() -> None:
    generating = pytest.importorskip("localai.server.generating")
    go = threading.Event()

    class Embedder:
        def embed(self, texts: list[str], **_: Any) -> list[Embedding]:
            assert go.wait(60)
            return [Embedding([1.0], 1) for _ in texts]

        def close(self) -> None:
            pass

    class Slow(FakeHolder):
        def _load(self, found: library.Found, kind: str, context: int | None) -> Held:
            if found is not FOUND:
                assert go.wait(60)
            if kind == VECTORS:
                return Held(kind, found, plan(), None, embedder=Embedder())  # type: ignore[arg-type]
            return super()._load(found, kind, context)

    async def ask() -> None:
        dispatcher = generating.Dispatcher(holder)

        async def hold(found: library.Found) -> None:
            async with dispatcher.hold(found):
                pass

        async def embed() -> int:
            async with dispatcher.hold(FOUND, VECTORS) as held:
                return len(await dispatcher.embedded(held, ["a cat"], truncate=False))

        loads = [asyncio.create_task(hold(library.Found(None, Path("large.gguf"), "large"))) for _ in range(40)]
        embeds = [asyncio.create_task(embed()) for _ in range(generating.MOST_EMBEDDING)]
        while not any(turn.requests == len(embeds) for turn in dispatcher._turns.values()):
            await asyncio.sleep(0)
        try:
            with pytest.raises(QueueFull):
                await asyncio.wait_for(embed(), 30)
            await asyncio.wait_for(hold(FOUND), 30)
        finally:
            go.set()
        assert await asyncio.gather(*embeds) == [1] * len(embeds)
        await asyncio.gather(*loads)
        dispatcher.close()

    holder = Slow()
    holder.release(holder.acquire(FOUND))
    holder.release(holder.acquire(FOUND, VECTORS))
    asyncio.run(ask())
    holder.close()


def test_what_passes_is_told_as_unavailable() -> None:
    answers = pytest.importorskip("localai.server.answers")
    assert [answers.status_of(error)[0] for error in (NetworkError("x"), EngineClosed(), EngineError("x"))] == [
        503,
        503,
        500,
    ]


def test_one_at_a_time_takes_nothing_once_it_is_closed() -> None:
    engine = SerialEngine(FakeEngine())
    engine.close()
    assert engine.closed
    with pytest.raises(EngineError, match="closed"):
        engine.submit(HELLO, lambda event: None)


def test_one_at_a_time_that_is_closed_fails_what_is_under_way() -> None:
    began, heard = threading.Event(), queue.SimpleQueue[Delivery]()

    class Slow(FakeEngine):
        def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
            began.set()
            while not cancelled():
                pass
            yield from super().generate(request, cancelled)

    engine = SerialEngine(Slow())
    for _ in range(2):
        engine.submit(HELLO, heard.put)
    assert began.wait(60)
    engine.close()
    ends = [event for event in (heard.get(timeout=60) for _ in range(4)) if not isinstance(event, PromptProgress)]
    assert [type(end) for end in ends] == [EngineClosed, EngineClosed]


def test_one_at_a_time_forgets_at_once_what_is_cancelled_before_its_turn() -> None:
    began, go, heard = threading.Event(), threading.Event(), queue.SimpleQueue[Delivery]()

    class Slow(FakeEngine):
        def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
            began.set()
            assert go.wait(60)
            yield from super().generate(request, cancelled)

    engine = SerialEngine(Slow())
    engine.submit(HELLO, lambda event: None)
    assert began.wait(60)
    for _ in range(3 * serial_engine.QUEUE):  # more than may wait
        engine.submit(HELLO, heard.put).cancel()
        end = heard.get(timeout=60)
        assert isinstance(end, AnswerEnd)
        assert end.finish_reason == "interrupted"
    tickets = [engine.submit(HELLO, lambda event: None) for _ in range(serial_engine.QUEUE)]
    with pytest.raises(QueueFull):
        engine.submit(HELLO, lambda event: None)
    for ticket in tickets:
        ticket.cancel()
    go.set()
    engine.close()


@pytest.mark.parametrize("in_time", [True, False])
def test_a_child_that_is_closed_while_it_loads_again_is_ended(monkeypatch: pytest.MonkeyPatch, in_time: bool) -> None:
    ends: list[str] = []

    class Loading:
        def __init__(self, *_: Any) -> None:
            pass

        def loaded(self, progress: Any, cancelled: Any, notice: Any) -> tuple[int, float]:
            engine.close()
            if in_time and cancelled():
                raise KeyboardInterrupt
            return 512, 1.0

        def end(self) -> None:
            ends.append("end")

        kill = end

    monkeypatch.setattr(child, "_Child", Loading)
    engine = child.ChildEngine(Path("small.gguf"), plan(), lambda text: None, {})
    with pytest.raises(EngineError, match="closed"):
        engine.submit(HELLO, lambda event: None)
    assert ends == ["end"]
    assert engine.closed


def test_the_old_logprobs_are_numbers_and_say_where_each_token_stands() -> None:
    answers = pytest.importorskip("localai.server.openai.answers")
    never = (b"c", float("-inf"))
    found = answers.old_logprobs([TokenLogprob(b"ab", -1.0, (never,)), TokenLogprob(*never, ())])
    assert found["text_offset"] == [0, 2]
    assert found["token_logprobs"] == [-1.0, -9999.0]
    assert found["top_logprobs"] == [{"c": -9999.0}, {}]
