"""A turn evaluates its new tokens alone, also after going back, whatever the model's memory can do by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import random_models
from real_model import engine_of_the_module, plan

from localai.chat import Conversation
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, PromptProgress, Sampling, Usage
from localai.engine.checkpoints import Checkpoints
from localai.engine.model import LlamaEngine, load

__all__ = ["engine_of_the_module"]  # the fixture `engine`


WINDOW_TOKENS = 100  # longer than the window of the small model, so that it has lost cells


@pytest.fixture(params=random_models.TINY)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlamaEngine]:
    """A random model of each kind of memory: plain, sliding window, recurrent, hybrid."""
    loaded = load(random_models.write(tmp_path, random_models.TINY[request.param]), plan(2048))
    yield loaded
    loaded.close()


def ask(conversation: Conversation, text: str) -> AnswerEnd:
    end = list(conversation.ask(text))[-1]
    assert isinstance(end, AnswerEnd)
    return end


def talk(engine: LlamaEngine) -> Conversation:
    engine.forget()
    return Conversation(engine, "s" * WINDOW_TOKENS, Sampling(temperature=0), max_tokens=20)


def evaluated(usage: Usage) -> int:
    return usage.prompt_tokens - usage.cached_tokens


def test_after_undo_only_the_new_question_is_read(tiny: LlamaEngine) -> None:
    conversation = talk(tiny)
    ask(conversation, "first")
    second = ask(conversation, "second")
    assert evaluated(second.usage) < 60
    conversation.undo()
    other = ask(conversation, "another")
    assert evaluated(other.usage) < 60
    conversation.undo()
    conversation.undo()
    start = ask(conversation, "anew")
    assert start.usage.cached_tokens <= WINDOW_TOKENS + 40

    fresh = talk(tiny)
    ask(fresh, "first")
    assert ask(fresh, "another").text == other.text, "what was undone leaves no trace"


def test_after_retry_only_the_opening_of_the_answer_is_read(tiny: LlamaEngine) -> None:
    conversation = talk(tiny)
    ask(conversation, "first")
    answer = ask(conversation, "second")
    for _ in range(3):
        conversation.undo()
        again = ask(conversation, "second")
        assert evaluated(again.usage) < 20
        assert again.text == answer.text


def test_an_evaluation_broken_off_is_taken_up_from_the_last_border(tiny: LlamaEngine) -> None:
    conversation = talk(tiny)
    ask(conversation, "first")
    calls = iter(range(10**6))
    events = list(conversation.ask("x" * 700, cancelled=lambda: next(calls) > 40))
    assert isinstance(events[-1], AnswerEnd)
    assert events[-1].finish_reason == "interrupted"
    second = ask(conversation, "second")
    assert second.usage.cached_tokens > WINDOW_TOKENS
    fresh = talk(tiny)
    ask(fresh, "first")
    assert ask(fresh, "second").text == second.text


def test_checkpoints_are_bounded_and_an_answer_alone_takes_none(
    tiny: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tiny._cache._checkpoints
    list(tiny.generate(GenerationRequest((Message("user", "hi"),), max_tokens=3), lambda: False))
    assert not checkpoints._kept
    conversation = talk(tiny)
    ask(conversation, "first")
    taken = checkpoints._bytes()
    assert (taken > 0) is checkpoints.needed
    monkeypatch.setattr("localai.engine.checkpoints.LIMIT_BYTES", 2 * taken)
    for number in range(6):
        ask(conversation, f"{number}")
        assert checkpoints._bytes() <= 2 * taken
    assert [each.length for each in checkpoints._kept] == sorted(each.length for each in checkpoints._kept)


def test_a_window_that_has_moved_on_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(random_models.write(tmp_path, random_models.TINY["window"]), plan(2048))

    def cached_after_fifteen_undone() -> int:
        conversation = talk(engine)
        for number in range(20):
            ask(conversation, f"{number:20}")
        for _ in range(15):
            conversation.undo()
        return ask(conversation, "other").usage.cached_tokens

    assert cached_after_fifteen_undone() > 300
    monkeypatch.setattr(Checkpoints, "take", lambda *_: None)
    assert cached_after_fifteen_undone() == 0, "without checkpoints it is lost"
    engine.close()


def test_the_real_model_reads_only_what_is_new_after_undo_of_a_sampled_answer(engine: LlamaEngine) -> None:
    engine.forget()
    conversation = Conversation(engine, sampling=Sampling(temperature=1.2, seed=11), max_tokens=40)
    first = ask(conversation, "Tell a story with strange names and an emoji.")
    ask(conversation, "Go on.")
    conversation.undo()
    second = ask(conversation, "Name three colours.")
    said = first.usage.prompt_tokens + first.usage.completion_tokens
    assert second.usage.cached_tokens >= said - 1
    conversation.undo()
    progress = [event for event in conversation.ask("Name three colours.") if isinstance(event, PromptProgress)]
    assert progress[0].done_tokens == progress[0].total_tokens - 1
