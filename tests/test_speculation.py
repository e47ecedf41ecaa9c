"""Guessed tokens change how fast an answer comes, never which one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import random_models
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from real_model import model_file, plan

from localai import hardware, loading, speculating
from localai import library as library_of_models
from localai.commands import model_loading
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Sampling
from localai.domain.plan import Placement
from localai.engine import library
from localai.engine.draft_model import DraftModel
from localai.engine.drafting import Drafts, Lookup, Pace, Price
from localai.engine.model import LlamaEngine, load
from localai.engine.speculation import ON_CPU, ON_GPU, ROWS, Speculation
from localai.errors import DoesNotFit, UsageError

TEXT = (
    "The committee met on Tuesday to discuss the annual budget for the library. Members agreed that the reading room"
    " needs new lamps and that the roof has to be repaired before winter. Mrs. Keller proposed to ask the city for"
    " help."
)
REPEAT = Message("user", f"Copy this text:\n\n{TEXT}")
TALK = Message("user", "Tell me about dragons.")
GREEDY = Sampling(temperature=0)
Q8_0 = 7  # enum llama_ftype
SPECULATING = replace(plan(1024), outputs=ROWS)
CORES = replace(SPECULATING, threads=2)  # for which guesses are worth more than for the one that the tests compute with


@pytest.fixture(scope="module")
def exact_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as Q8_0, for which llama.cpp computes the same whatever the size of a batch."""
    path = tmp_path_factory.mktemp("q8") / "smollm2-q8_0.gguf"
    api = library.api()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize, parameters.nthread = Q8_0, True, 2
    assert api.llama_model_quantize(str(model_file()).encode(), str(path).encode(), ctypes.byref(parameters)) == 0
    return path


@pytest.fixture(scope="module")
def pair(exact_file: Path) -> Iterator[tuple[LlamaEngine, LlamaEngine]]:
    """The model that guesses, and the one that does not."""
    engines = load(exact_file, SPECULATING), load(exact_file, plan(1024))
    engines[0]._speculation = Speculation(engines[0]._cache, CORES, engines[0]._drafts)
    yield engines
    for engine in engines:
        engine.close()


def ask(
    engine: LlamaEngine,
    message: Message = REPEAT,
    sampling: Sampling = GREEDY,
    limit: int | None = 60,
    stop: tuple[str, ...] = (),
    grammar: str | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> AnswerEnd:
    """The answer of a model that holds nothing: what is held already splits the prompt's evaluation elsewhere."""
    engine.forget()
    request = GenerationRequest((message,), sampling, limit, stop, grammar=grammar)
    end = list(engine.generate(request, cancelled))[-1]
    assert isinstance(end, AnswerEnd)
    return end


def evaluations(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each evaluation of guesses has from now on."""
    sizes: list[int] = []
    cache, try_out = engine._cache, engine._cache.try_out

    def counted(tokens: Sequence[int], cancelled: Callable[[], bool] | None) -> None:
        sizes.append(len(tokens))
        try_out(tokens, cancelled)

    monkeypatch.setattr(cache, "try_out", counted)
    return sizes


def test_a_repeated_text_takes_few_evaluations_and_is_the_same(
    pair: tuple[LlamaEngine, LlamaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    guessing, plain = pair
    sizes = evaluations(guessing, monkeypatch)
    end, reference = ask(guessing), ask(plain)
    assert TEXT[:70] in end.text
    assert (end.text, end.usage, end.finish_reason) == (reference.text, reference.usage, reference.finish_reason)
    assert reference.usage.guessed_tokens == 0
    # it begins once the text has been seen to repeat itself, since on a CPU short guesses hardly pay
    assert 0.2 * end.usage.completion_tokens < end.usage.guessed_tokens < end.usage.completion_tokens
    assert max(sizes) > 4
    assert len(sizes) < 0.8 * end.usage.completion_tokens
    assert guessing._cache.tokens == plain._cache.tokens
    del sizes[:]
    assert ask(guessing, TALK).text == ask(plain, TALK).text
    assert len(sizes) <= 4, "where nothing can be guessed it is hardly tried"


@pytest.mark.parametrize(
    "sampling", [Sampling(seed=3), Sampling(temperature=1.3, seed=4), Sampling(temperature=0, repeat_penalty=1.1)]
)
def test_sampled_answers_are_the_same_too(pair: tuple[LlamaEngine, LlamaEngine], sampling: Sampling) -> None:
    guessing, plain = pair
    assert ask(guessing, sampling=sampling).text == ask(plain, sampling=sampling).text


def test_limits_stop_strings_and_grammars_hold_in_the_middle_of_guesses(
    pair: tuple[LlamaEngine, LlamaEngine],
) -> None:
    guessing, plain = pair
    for limit in (1, 2, 9, 18):
        end, reference = ask(guessing, limit=limit), ask(plain, limit=limit)
        assert (end.text, end.usage, end.finish_reason) == (reference.text, reference.usage, reference.finish_reason)
    for stop in ("ual bud", "room"):
        end, reference = ask(guessing, stop=(stop,)), ask(plain, stop=(stop,))
        assert (end.text, end.usage, end.finish_reason) == (reference.text, reference.usage, reference.finish_reason)
        assert stop not in end.text
    grammar = 'root ::= "The committee " [a-zA-Z ]* "."'
    assert ask(guessing, grammar=grammar).text == ask(plain, grammar=grammar).text


def test_cancelled_and_left_in_the_middle_of_guesses_the_next_answer_is_as_ever(
    pair: tuple[LlamaEngine, LlamaEngine],
) -> None:
    guessing, plain = pair
    whole = ask(plain).text
    for calls in (33, 47):
        left = iter(range(calls * 1000))
        ask(guessing, cancelled=lambda calls=calls, left=left: next(left) > calls)  # type: ignore[misc]
        assert ask(guessing).text == whole
    events = guessing.generate(GenerationRequest((REPEAT,), GREEDY, 60), lambda: False)
    for _ in range(20):
        next(events)
    events.close()
    held = guessing._cache.tokens
    assert held == guessing._transcript.tokens[: len(held)], "nothing guessed is left behind"
    assert ask(guessing).text == whole


class Guesses(Drafts):
    """Guesses from a list, whatever was said."""

    prior = 1.0, 3.0

    def __init__(self, guesses: Iterator[list[int]], cost: float = 0.0) -> None:
        self._guesses, self.cost = guesses, cost

    def begin(self, prompt: Sequence[int], cancelled: Callable[[], bool]) -> None:
        pass

    def say(self, token: int) -> None:
        pass

    def expected(self) -> None:
        return None

    def guess(self, most: int) -> list[int]:
        return next(self._guesses)[:most]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("shape", ["plain", "window"])
def test_wrong_guesses_leave_no_trace(tmp_path: Path, shape: str) -> None:
    path = random_models.write(tmp_path, random_models.TINY[shape], "F16")
    engine = load(path, SPECULATING)
    reference = ask(engine, limit=150).text
    true = engine._transcript.tokens[-150:]

    def wrong() -> Iterator[list[int]]:
        while True:
            at = len(engine._cache.tokens) - (len(engine._transcript.tokens) - 150) + 1
            yield [*true[at : at + 2], *([7] * 10)]

    class Eager(Pace):
        def size(self, cost: float) -> int:
            return 12

    engine._speculation = Speculation(engine._cache, SPECULATING, Guesses(wrong()))
    engine._speculation._pace = Eager(ON_CPU, ROWS - 1)
    assert ask(engine, limit=150).text == reference
    engine.close()


@pytest.mark.parametrize("shape", ["recurrent", "hybrid"])
def test_a_model_that_cannot_take_back_never_guesses(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(random_models.write(tmp_path, random_models.TINY[shape]), SPECULATING)
    sizes = evaluations(engine, monkeypatch)
    engine._speculation._pace.size = lambda cost: 4  # type: ignore[method-assign]
    assert ask(engine, limit=60).usage.completion_tokens > 3
    assert not sizes
    engine.close()


@given(st.lists(st.integers(-2, 5), max_size=60), st.integers(1, 15))
def test_lookup_guesses_what_followed_the_same_tokens(tokens: list[int], most: int) -> None:
    lookup = Lookup()
    lookup.begin(tokens[: len(tokens) // 2], lambda: False)
    for token in tokens[len(tokens) // 2 :]:
        lookup.say(token)
        guesses = lookup.guess(most)
        assert len(guesses) <= most
        assert all(guess >= 0 for guess in guesses)


def test_lookup_goes_on_after_a_word_that_was_replaced() -> None:
    lookup = Lookup()
    lookup.begin(range(10, 60), lambda: False)
    for token in range(10, 13):
        lookup.say(token)
    assert lookup.guess(3) == [13, 14, 15]
    for token in (*range(13, 20), 999):
        lookup.say(token)
    assert lookup.guess(3) == [21, 22, 23]
    lookup.say(888)
    assert lookup.guess(3) == []


@given(
    st.lists(st.tuples(st.integers(0, 15), st.sampled_from([None, True, False])), max_size=200),
    st.sampled_from([ON_CPU, ON_GPU, Price(0.3, 1.0)]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([Lookup.prior, DraftModel.prior]),
)
def test_what_wrong_guesses_cost_is_bounded_whatever_happens(
    rights: list[tuple[int, bool | None]], price: Price, cost: float, prior: tuple[float, float] | None
) -> None:
    pace = Pace(price, 15)
    pace.begin(cost, prior)
    risk = max(Pace.RISK, price.of(Pace.SIZES[0]) + Pace.SIZES[0] * cost)
    said = spent = seen = 0.0
    for right, foreseen in rights:
        if foreseen is not None:
            pace.foreseen(foreseen)
            seen += foreseen
        size = pace.size(cost)
        if not size:
            pace.plain()
            said, spent = said + 1, spent + 1
            continue
        pace.tried(size, min(right, size), cost)
        said += min(right, size) + 1
        spent += 1 + price.of(size) + size * cost
    assert spent <= said * (1 + Pace.LOSS) + seen * Pace.FORESEEN + risk + 1e-6


def test_a_text_that_begins_to_repeat_is_guessed_at_even_after_wrong_guesses() -> None:
    pace = Pace(ON_CPU, 15)
    for _ in range(10):
        pace.foreseen(True)
    assert pace.size(0.0) == 3
    pace.tried(3, 0, 0.0)
    assert not pace.size(0.0)
    for _ in range(30):
        pace.foreseen(True)
        pace.plain()
    sizes = []
    for _ in range(4):
        sizes.append(pace.size(0.0))
        pace.tried(sizes[-1], sizes[-1], 0.0)
    assert sizes == [3, 7, 15, 15], "right ones pay for more"


def test_a_text_that_only_seems_to_repeat_is_not_guessed_at() -> None:
    pace = Pace(ON_CPU, 15)
    for number in range(100):
        pace.foreseen(number % 3 > 0)
        assert not pace.size(0.0), "two right of three do not pay for an evaluation of three tokens"
        pace.plain()


def test_a_gpu_takes_more_guesses(exact_file: Path) -> None:
    engine = load(exact_file, replace(SPECULATING, placement=Placement.GPU))
    sizes = []
    for where in (Placement.CPU, Placement.GPU):
        pace = Speculation(engine._cache, replace(CORES, placement=where), Lookup())._pace
        for _ in range(8):
            pace.foreseen(True)
        sizes.append(pace.size(0.0))
    assert 0 < sizes[0] < sizes[1]
    engine.close()


def test_one_core_alone_does_not_guess(exact_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(exact_file, SPECULATING)
    sizes = evaluations(engine, monkeypatch)
    ask(engine)
    assert not sizes, "several tokens together take it as long as one after the other"
    engine._speculation = Speculation(engine._cache, CORES, engine._drafts)
    ask(engine)
    assert sizes
    engine.close()


def test_a_draft_model_guesses_and_the_answer_stays(
    exact_file: Path, pair: tuple[LlamaEngine, LlamaEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(exact_file, SPECULATING)
    assert engine.draft_with(exact_file, plan(1024), cost=0.1)
    sizes = evaluations(engine, monkeypatch)
    for message in (TALK, REPEAT):
        end, reference = ask(engine, message), ask(pair[1], message)
        assert (end.text, end.usage) == (reference.text, reference.usage)
    assert len(sizes) > 5
    assert sum(sizes) > 3 * len(sizes), "a model guesses itself well"
    engine.close()
    engine.close()


def test_a_draft_model_that_is_too_large_to_pay_costs_nothing(exact_file: Path, tmp_path: Path) -> None:
    engine = load(exact_file, SPECULATING)
    before = engine._speculation
    assert not engine.draft_with(exact_file, plan(1024), cost=1.0)
    assert engine._speculation is before
    with pytest.raises(UsageError, match="vocabulary is another"):
        engine.draft_with(random_models.write(tmp_path, random_models.TINY["plain"]), plan(1024), 3.0)
    engine.close()


def test_a_draft_model_of_another_kind_is_refused(exact_file: Path, tmp_path: Path) -> None:
    engine = load(exact_file, SPECULATING)
    with pytest.raises(UsageError, match="vocabulary is another"):
        engine.draft_with(random_models.write(tmp_path, random_models.TINY["plain"]), plan(1024), 0.1)
    with pytest.raises(UsageError, match="recurrent"):
        engine.draft_with(random_models.write(tmp_path, random_models.TINY["hybrid"]), plan(1024), 0.1)
    assert "committee" in ask(engine).text
    engine.close()


# ------------------------------------------------------------------------------------------------ on the command line


def test_run_speculates_unless_told_not_to_and_counts_the_rows(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = library_of_models.find("smollm2-135m")
    plain = loading.prepare(found, loading.LoadOptions(speculate=False)).plan
    guessing = loading.prepare(found, loading.LoadOptions()).plan
    assert (plain.outputs, guessing.outputs) == (1, ROWS)
    assert guessing.memory.compute_bytes - plain.memory.compute_bytes >= 15 * 4 * 49152
    monkeypatch.setenv("LOCALAI_SPECULATE", "false")
    assert model_loading.load_options(None, None, None, None).speculate is False
    assert model_loading.load_options(None, None, None, None, speculate=True).speculate is True


def test_the_draft_option(cli: Cli, tmp_path: Path) -> None:
    usual = ("run", "-m", "smollm2-135m", "--temperature", "0", "--max-tokens", "12", "Name the capital of France.")
    done = cli(*usual, "--draft", "smollm2-135m")
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")
    assert "too large beside smollm2-135m" in done.stderr, "it would guess as slowly as the model itself writes"
    other = random_models.write(tmp_path, random_models.TINY["plain"])
    for arguments, code, message in (
        (("--draft", str(other)), 2, "vocabulary is another"),
        (("--draft", "no-such-model"), 3, "no-such-model"),
        (("--draft", "smollm2-135m", "--no-speculate"), 2, "--no-speculate"),
    ):
        done = cli(*usual, *arguments)
        assert done.returncode == code
        assert done.stdout == ""
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2, "what happened, and what to do next"


def test_a_draft_model_that_does_not_fit_beside_the_other_is_refused(isolated: Path) -> None:
    found = library_of_models.find("smollm2-135m")
    machine = hardware.detect()
    large = loading.prepare(found, loading.LoadOptions()).plan
    full = replace(machine, memory=replace(machine.memory, available_bytes=large.memory.total_bytes + 1000))
    with pytest.raises(DoesNotFit, match="draft model smollm2-135m needs"):
        speculating.draft(found, large, full)
    assert speculating.draft(found, large, machine).cost == 1.0
