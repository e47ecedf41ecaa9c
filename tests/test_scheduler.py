"""Many requests at once: what each is answered, what is evaluated once, how it is ended, and that nobody starves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_models
from fake_engine import FakeBatchEngine
from real_model import model_file, plan

from localai.domain.engine import BatchEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, Message, PromptProgress, Sampling, Tool
from localai.engine import drawing, library
from localai.engine.answer import Answer
from localai.engine.drawing import Drawers
from localai.engine.job import Drawn, Job
from localai.engine.scheduler import Scheduler, load
from localai.engine.sequences import Sequences, common_length
from localai.errors import ContextOverflow, EngineClosed, EngineError, LocalaiError, QueueFull

GREEDY = Sampling(temperature=0)
LONG = "You answer in as few words as can be, and you never explain anything. " * 12
TOLERANCE = 0.1  # root mean square of the difference, over the logits' own deviation; a leak would make it about 1


def asks(text: str, *, system: str = "", max_tokens: int = 12, **more: Any) -> GenerationRequest:
    messages = (*([Message("system", system)] if system else []), Message("user", text))
    return GenerationRequest(messages, GREEDY, max_tokens, **more)


class Heard:
    """What was delivered of one request; `wait` gives its end, or raises its error."""

    def __init__(self, engine: BatchEngine, request: GenerationRequest) -> None:
        self.events: list[Delivery] = []
        self._end: queue.Queue[AnswerEnd | LocalaiError] = queue.Queue()
        self.ticket: Ticket = engine.submit(request, self._hear)

    def _hear(self, event: Delivery) -> None:
        self.events.append(event)
        if isinstance(event, AnswerEnd | LocalaiError):
            self._end.put(event)

    def wait(self) -> AnswerEnd:
        end = self._end.get(timeout=60)
        if isinstance(end, LocalaiError):
            raise end
        assert self.events[-1] is end
        assert end.text == "".join(each.text for each in self.events if isinstance(each, AnswerText))
        return end


def all_of(engine: BatchEngine, requests: Sequence[GenerationRequest]) -> list[AnswerEnd]:
    heard = [Heard(engine, request) for request in requests]
    return [each.wait() for each in heard]


@contextmanager
def held(engine: BatchEngine) -> Iterator[None]:
    """While entered, the engine's thread stands still in a receiver."""
    reached, go_on = threading.Event(), threading.Event()

    def receive(event: Delivery) -> None:
        if not reached.is_set():
            reached.set()
            go_on.wait(60)

    ticket = engine.submit(asks("Hold.", max_tokens=1), receive)
    reached.wait(60)
    try:
        yield
    finally:
        ticket.cancel()
        go_on.set()


@pytest.fixture(scope="module")
def engine() -> Iterator[Scheduler]:
    loaded = load(model_file(), replace(plan(1024), sequences=4), queue=8)
    yield loaded
    loaded.close()


@pytest.fixture(params=random_models.TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The file of a random model of each kind of memory: plain, sliding window, recurrent, hybrid."""
    return random_models.write(tmp_path, random_models.TINY[request.param])


def test_each_is_answered_what_it_asked(engine: BatchEngine) -> None:
    capitals = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Japan": "Tokyo"}
    ends = all_of(engine, [asks(f"Name the capital of {land}.", max_tokens=30) for land in capitals])
    for end, capital in zip(ends, capitals.values(), strict=True):
        assert capital in end.text
        assert end.usage.prompt_tokens > 10
        assert end.timings.first_token_ms is not None


def test_a_common_beginning_is_evaluated_once(engine: BatchEngine) -> None:
    ends = all_of(engine, [asks(f"Say {number}.", system=LONG, max_tokens=2) for number in range(8)])
    total = ends[0].usage.prompt_tokens
    evaluated = sum(end.usage.prompt_tokens - end.usage.cached_tokens for end in ends)
    assert total > 150
    assert evaluated < total + 8 * 20


def test_the_next_turn_goes_on_in_the_same_sequence(engine: BatchEngine) -> None:
    first = asks("Name three colours.", max_tokens=20)
    said = Heard(engine, first).wait()
    all_of(engine, [asks(f"Other {number}") for number in range(3)])
    second = replace(first, messages=(*first.messages, Message("assistant", said.text), Message("user", "Two more.")))
    end = Heard(engine, second).wait()
    # the last token of the answer was drawn and never evaluated
    assert end.usage.cached_tokens >= said.usage.prompt_tokens + said.usage.completion_tokens - 1


def test_a_grammar_holds_one_answer_and_leaves_the_others_alone(engine: BatchEngine) -> None:
    grammar = 'root ::= "yes" | "no"'
    free, bound = all_of(engine, [asks("Is the sky blue?"), asks("Is the sky blue?", grammar=grammar)])
    assert bound.text in ("yes", "no")
    assert free.text not in ("yes", "no")


def test_a_grammar_that_is_none_fails_its_own_request_only(engine: BatchEngine) -> None:
    bad, good = Heard(engine, asks("Hi", grammar="root ::= (")), Heard(engine, asks("Name the capital of France."))
    with pytest.raises(EngineError):
        bad.wait()
    assert "Paris" in good.wait().text


def test_a_fault_with_one_answer_leaves_the_others_alone(engine: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(job: Job, *arguments: Any) -> Drawn:
        if job._request.max_tokens == 1:
            raise OverflowError("a fault")
        return draw(job, *arguments)

    draw = Job.draw
    monkeypatch.setattr(Job, "draw", fails)
    bad, good = Heard(engine, asks("Hi", max_tokens=1)), Heard(engine, asks("Name the capital of France."))
    with pytest.raises(LocalaiError, match="a fault"):
        bad.wait()
    assert "Paris" in good.wait().text
    assert not engine.closed


def test_what_is_drawn_does_not_depend_on_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_models.write(tmp_path, random_models.TINY["plain"])
    requests = [
        replace(asks(f"w{number} w{7 * number}", max_tokens=20 + number), sampling=Sampling(seed=number), logprobs=2)
        for number in range(5)
    ]
    requests.append(asks("w5", grammar='root ::= "ab"{9}', max_tokens=20))

    def drawn(worth_sharing: int) -> list[list[tuple[str, object]]]:
        monkeypatch.setattr(drawing, "WORTH_SHARING", worth_sharing)
        loaded = load(model, replace(plan(512), sequences=len(requests), threads=3))
        try:
            with held(loaded):
                heard = [Heard(loaded, request) for request in requests]
            ends = [each.wait() for each in heard]
        finally:
            loaded.close()
        assert ends[-1].text == "ab" * 9
        return [[(e.text, e.logprobs) for e in each.events if isinstance(e, AnswerText)] for each in heard]

    assert drawn(0) == drawn(10**9)


def test_drawers_keep_the_order_and_tell_each_fault_in_its_place() -> None:
    def fails() -> int:
        raise OverflowError("a fault")

    both = threading.Barrier(2)
    drawers = Drawers(2)
    try:
        # each waits for the other: two threads are at work
        assert drawers.draw([lambda: both.wait(60), lambda: both.wait(60)], 10**9) in ([0, 1], [1, 0])
        for logits in (0, 10**9):
            found = drawers.draw([*(lambda n=n: n for n in range(50)), fails, lambda: 51], logits)  # type: ignore[misc]
            assert [*found[:50], found[51]] == [*range(50), 51]
            assert isinstance(found[50], OverflowError)
        caller = threading.current_thread()
        assert drawers.draw([threading.current_thread] * 9, 0) == [caller] * 9  # too few to wake anybody for
    finally:
        drawers.close()
        drawers.close()


def test_an_end_that_fails_is_told_all_the_same(engine: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(answer: Answer) -> None:
        raise ValueError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(Answer, "finish", fails)
        with pytest.raises(LocalaiError, match="a fault"):
            Heard(engine, asks("Hi", max_tokens=1)).wait()
    assert "Paris" in Heard(engine, asks("Name the capital of France.")).wait().text


def test_stop_strings_and_limits_are_each_request_s_own(engine: BatchEngine) -> None:
    requests = [asks("Name the capital of France.", stop=("Par",), max_tokens=30), asks("Tell a story.", max_tokens=3)]
    stopped, cut = all_of(engine, requests)
    assert stopped.finish_reason == "stop"
    assert "Par" not in stopped.text
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("length", 3)


def test_a_cancelled_request_ends_and_its_place_is_free_at_once(engine: BatchEngine) -> None:
    with held(engine):
        running = [Heard(engine, asks(f"Tell me story {number}.", max_tokens=900)) for number in range(4)]
        waiting = [Heard(engine, asks(f"Wait {number}")) for number in range(2)]
        waiting[1].ticket.cancel()
    assert waiting[1].wait().finish_reason == "interrupted"
    for each in running:
        each.ticket.cancel()
        each.ticket.cancel()
    assert [each.wait().finish_reason for each in running] == ["interrupted"] * 4
    assert waiting[0].wait().finish_reason in ("stop", "length")


def test_cancelling_breaks_off_a_prompt(engine: BatchEngine) -> None:
    heard: list[Heard] = []

    class Cancels(Heard):
        def _hear(self, event: Delivery) -> None:
            super()._hear(event)
            if isinstance(event, PromptProgress):
                heard.append(self)
                self.events[0] = event
                threading.Thread(target=lambda: self.ticket.cancel()).start()

    end = Cancels(engine, asks("word " * 900, max_tokens=50)).wait()
    assert end.finish_reason == "interrupted"
    assert "Paris" in Heard(engine, asks("Name the capital of France.")).wait().text


def test_more_than_the_queue_holds_is_refused(engine: BatchEngine) -> None:
    with held(engine):
        taken = [Heard(engine, asks("Hi", max_tokens=1)) for _ in range(11)]  # 4 sequences and a queue of 8
        with pytest.raises(QueueFull) as error:
            Heard(engine, asks("One more"))
        assert error.value.hint
    for each in taken:
        each.wait()
    Heard(engine, asks("Again", max_tokens=1)).wait()


def test_what_is_too_long_is_refused_before_it_waits(engine: BatchEngine) -> None:
    with pytest.raises(ContextOverflow) as error:
        engine.submit(asks("word " * 2000), lambda event: None)
    assert error.value.needed_tokens is not None
    assert error.value.needed_tokens > 2000
    with pytest.raises(ContextOverflow):
        engine.submit(asks("word " * 400_000), lambda event: None)
    with pytest.raises(ContextOverflow, match="about"):
        engine.submit(asks("", raw="word " * 400_000), lambda event: None)
    with pytest.raises(ContextOverflow, match="about"):
        engine.submit(asks("Hi", tools=(Tool("f", "word " * 400_000, {}),)), lambda event: None)


def test_a_receiver_that_fails_harms_nobody(engine: BatchEngine) -> None:
    def fails(event: Delivery) -> None:
        raise ValueError("a broken receiver")

    engine.submit(asks("Hi"), fails)
    assert "Paris" in Heard(engine, asks("Name the capital of France.")).wait().text


def test_answers_go_on_while_a_long_prompt_is_read(engine: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._prefill, "_patience_s", 0)  # the least part of a prompt in each step
    order: list[str] = []

    def receiver(name: str, kind: type, done: threading.Event) -> Callable[[Delivery], None]:
        def receive(event: Delivery) -> None:
            if isinstance(event, kind):
                order.append(name)
            if isinstance(event, AnswerEnd):
                done.set()

        return receive

    ends = threading.Event(), threading.Event()
    begun = threading.Event()
    write = receiver("text", AnswerText, ends[0])

    def writes(event: Delivery) -> None:
        write(event)
        if isinstance(event, AnswerText):
            begun.set()

    writer = engine.submit(asks("Tell me a long story.", max_tokens=400), writes)
    assert begun.wait(60)
    engine.submit(asks("pebble " * 80, max_tokens=1), receiver("read", PromptProgress, ends[1]))
    assert ends[1].wait(60)
    writer.cancel()
    assert ends[0].wait(60)
    first, last = order.index("read"), len(order) - order[::-1].index("read")
    assert order[first:last].count("read") > 2
    assert "text" in order[first:last]


def test_a_long_prompt_and_a_short_one_are_read_by_turns(engine: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._prefill, "_patience_s", 0)  # the least part of a prompt in each step
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    read: list[str] = []

    def writes(event: Delivery) -> None:
        if isinstance(event, AnswerText) and not begun.is_set():
            begun.set()
            go_on.wait(60)
        elif isinstance(event, AnswerEnd):
            over.set()

    def reads(name: str, request: GenerationRequest) -> queue.Queue[Delivery]:
        ended: queue.Queue[Delivery] = queue.Queue()

        def receive(event: Delivery) -> None:
            if isinstance(event, PromptProgress):
                read.append(name)
            elif isinstance(event, AnswerEnd):
                ended.put(event)

        engine.submit(request, receive)
        return ended

    writer = engine.submit(asks("Tell me a long story.", max_tokens=400), writes)
    assert begun.wait(60)
    long, short = reads("long", asks("granite " * 90, max_tokens=1)), reads("short", asks("brook " * 30, max_tokens=1))
    go_on.set()
    short.get(timeout=60)
    long.get(timeout=60)
    writer.cancel()
    assert over.wait(60)
    assert read[-1] == "long"  # the short one was not held up
    whole = read[read.index("short") : len(read) - read[::-1].index("short")]
    assert whole.count("short") > 2
    assert "long" in whole  # nor did it hold up the long one


def test_where_llama_cpp_fails_all_of_the_batch_are_told_and_the_next_is_answered(
    engine: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: -3) if name == "llama_decode" else getattr(library.api(), name)

    with held(engine):
        heard = [Heard(engine, asks("Hi")) for _ in range(2)]
        monkeypatch.setattr(engine._sequences, "_api", Failing())
    for each in heard:
        with pytest.raises(EngineError):
            each.wait()
    monkeypatch.undo()
    assert "Paris" in Heard(engine, asks("Name the capital of France.")).wait().text


def test_closing_fails_what_is_under_way() -> None:
    loaded = load(model_file(), replace(plan(256), sequences=2))
    heard = [Heard(loaded, asks("Tell me a story.", max_tokens=200)) for _ in range(3)]
    loaded.close()
    loaded.close()
    for each in heard:
        with pytest.raises(EngineClosed):
            each.wait()
    with pytest.raises(EngineError):
        loaded.submit(asks("Hi"), lambda event: None)
    with pytest.raises(EngineError):
        loaded.count_tokens([Message("user", "Hi")])


def test_whatever_the_model_s_memory_a_common_beginning_is_evaluated_once(tiny: Path) -> None:
    loaded = load(tiny, replace(plan(512), sequences=3))
    try:
        with held(loaded):
            heard = [Heard(loaded, asks(f"{number} w1 w2", system="w7 " * 60, max_tokens=40)) for number in range(6)]
        ends = [each.wait() for each in heard]
    finally:
        loaded.close()
    total = ends[0].usage.prompt_tokens
    assert sum(end.usage.prompt_tokens - end.usage.cached_tokens for end in ends) < 2 * total


def test_nothing_depends_on_what_came_before_where_that_is_wanted(tiny: Path) -> None:
    """A record of a map gives the same bytes in the middle of a run and as the first of a resumed one."""

    def record(number: int, length: int) -> GenerationRequest:
        return replace(
            asks(f"{number} " + f"w{number} " * length, system="w7 " * 60, max_tokens=30),
            sampling=Sampling(seed=number),
        )

    records = [record(number, length) for number, length in enumerate((1, 30, 90, 5, 61, 2))]
    other = record(9, 3)

    def answers(chosen: Sequence[GenerationRequest]) -> list[str]:
        loaded = load(tiny, plan(1024), repeatable=True)
        try:
            assert loaded.share(records[0].messages, other.messages) > 50
            return [Heard(loaded, each).wait().text for each in chosen]
        finally:
            loaded.close()

    whole = answers(records)
    assert answers(records[2:]) == whole[2:]
    assert answers([records[4], other, *records[:2]])[2:] == whole[:2]


def test_logits_alone_and_in_a_batch_agree() -> None:
    """Within TOLERANCE: floating point is not associative, and a batch adds up otherwise."""
    from localai.engine.weights import load_model

    api, planned = library.api(), plan(256)
    model = load_model(api, model_file(), planned, None, None)
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    random = np.random.default_rng(3)
    prompts = [random.integers(100, size - 100, length).tolist() for length in (40, 3, 90, 17, 64)]

    def logits(sequences: Sequences, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(api.llama_get_logits_ith(sequences.pointer, row), (size,)).copy()

    alone = Sequences(api, model, planned)
    together = Sequences(api, model, replace(planned, sequences=len(prompts)))
    try:
        rows = [together.add(number, prompt) for number, prompt in enumerate(prompts)]
        together.evaluate()
        for prompt, row in zip(prompts, rows, strict=True):
            own = alone.add(0, prompt)
            alone.evaluate()
            expected, found = logits(alone, own), logits(together, row)
            assert np.sqrt(np.square(expected - found).mean()) < TOLERANCE * expected.std()
            alone.clear(0)
    finally:
        alone.close()
        together.close()
        api.llama_model_free(model)


def test_a_sequence_that_is_moved_goes_on_as_it_was(tiny: Path) -> None:
    from localai.engine.weights import load_model

    api, planned = library.api(), replace(plan(256), sequences=3)
    model = load_model(api, tiny, planned, None, None)
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    sequences = Sequences(api, model, planned)

    def next_logits(number: int, tokens: list[int]) -> Any:
        row = sequences.add(number, tokens)
        sequences.evaluate()
        return np.ctypeslib.as_array(api.llama_get_logits_ith(sequences.pointer, row), (size,)).copy()

    try:
        text = list(range(100, 190))
        for number in (0, 2):
            next_logits(number, text)
        next_logits(1, text[:7])
        sequences.move(2, 1)
        assert sequences.held == [text, text, []]
        moved, stayed = next_logits(1, [200, 201]), next_logits(0, [200, 201])
        assert np.allclose(moved, stayed, atol=1e-3)
        assert np.allclose(next_logits(2, [*text, 200, 201]), stayed, atol=0.1)
    finally:
        sequences.close()
        api.llama_model_free(model)


def test_gaps_are_closed_where_no_conversation_is_kept(tiny: Path) -> None:
    loaded = load(tiny, replace(plan(512), sequences=6), converses=False)
    moves: list[tuple[int, int]] = []
    move = loaded._sequences.move
    loaded._sequences.move = lambda number, to: (moves.append((number, to)), move(number, to))[1]  # type: ignore[method-assign]
    try:
        with held(loaded):
            lengths = (2, 60, 3, 70, 4, 80)
            heard = [Heard(loaded, asks(f"w{n}", max_tokens=n, grammar='root ::= "a"{200}')) for n in lengths]
        ends = [each.wait() for each in heard]
    finally:
        loaded.close()
    assert moves
    assert all(number > to for number, to in moves)
    assert [end.text for end in ends] == ["a" * length for length in lengths]


def test_common_length() -> None:
    tail = [1] * 64 + [2] * 36
    for one, other, same in (([], [1], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5], [6], 0)):
        assert common_length(one, other) == common_length(other, one) == same
    assert common_length([1] * 100, tail) == 64
    assert common_length(tail, tail) == 100


def test_the_fake_keeps_to_the_protocol() -> None:
    fake = FakeBatchEngine(["one two three"], queue=2, stepping=False)
    heard = [Heard(fake, asks("Hi")) for _ in range(2)]
    with pytest.raises(QueueFull):
        Heard(fake, asks("Hi"))
    heard[1].ticket.cancel()
    for _ in range(9):
        fake.step()
    assert heard[0].wait().text == "one two three"
    assert heard[1].wait().finish_reason == "interrupted"
    fake.close()
    running = FakeBatchEngine(["by itself"])
    assert Heard(running, asks("Hi")).wait().text == "by itself"
    running.close()
