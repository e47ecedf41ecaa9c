"""A conversation keeps what was said, drops what no longer fits at turn borders, and survives errors."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from localai.chat import Conversation
from localai.domain.generation import AnswerEnd, AnswerText, Message, PromptProgress, TurnsDropped
from localai.errors import ContextOverflow, EngineError


def said(conversation: Conversation, text: str) -> str:
    return "".join(event.text for event in conversation.ask(text) if isinstance(event, AnswerText))


def test_each_turn_is_asked_with_everything_before() -> None:
    engine = FakeEngine(["One.", "Two."])
    conversation = Conversation(engine, "Be brief.")
    assert said(conversation, "a") == "One."
    assert said(conversation, "b") == "Two."
    assert engine.requests[1].messages == (
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "One."),
        Message("user", "b"),
    )
    assert conversation.messages[-1] == Message("assistant", "Two.")


def test_events_come_in_order_and_end_with_the_whole() -> None:
    events = list(Conversation(FakeEngine(["a b"])).ask("hi"))
    assert [type(event) for event in events] == [PromptProgress, PromptProgress, AnswerText, AnswerText, AnswerEnd]
    assert events[-1].text == "a b"


def test_settings_reach_the_engine_and_can_change() -> None:
    engine = FakeEngine()
    conversation = Conversation(engine, max_tokens=3, stop=("x",), think=False)
    said(conversation, "a")
    conversation.think = True
    conversation.set_system("New.")
    said(conversation, "b")
    assert (engine.requests[0].max_tokens, engine.requests[0].stop, engine.requests[0].think) == (3, ("x",), False)
    assert engine.requests[1].think is True
    assert engine.requests[1].messages[0] == Message("system", "New.")


def test_clear_keeps_the_system_text() -> None:
    conversation = Conversation(FakeEngine(), "Be brief.")
    said(conversation, "a")
    conversation.clear()
    assert conversation.messages == (Message("system", "Be brief."),)
    conversation.set_system("")
    assert conversation.messages == ()


def test_undo_takes_the_last_turn_back() -> None:
    engine = FakeEngine(["One.", "Two.", "Three."])
    conversation = Conversation(engine, "Be brief.")
    assert conversation.undo() is None
    said(conversation, "a")
    said(conversation, "b")
    assert conversation.undo() == (Message("user", "b"), Message("assistant", "Two."))
    assert conversation.messages == (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "One."))
    assert said(conversation, "c") == "Three."
    assert engine.requests[-1].messages == (*conversation.messages[:-2], Message("user", "c"))
    assert conversation.undo() is not None
    assert conversation.undo() is not None
    assert conversation.undo() is None


def test_an_interrupted_answer_keeps_what_was_said() -> None:
    conversation = Conversation(FakeEngine(["one two three"]))
    answers = iter([False, False, True])
    end = list(conversation.ask("count", cancelled=lambda: next(answers)))[-1]
    assert end.finish_reason == "interrupted"
    assert conversation.messages == (Message("user", "count"), Message("assistant", "one two"))


def test_an_answer_interrupted_before_its_first_word_leaves_no_turn() -> None:
    conversation = Conversation(FakeEngine())
    list(conversation.ask("hi", cancelled=lambda: True))
    assert conversation.messages == ()


def test_an_empty_answer_leaves_no_turn() -> None:
    conversation = Conversation(FakeEngine(["", "One."]))
    assert said(conversation, "a") == ""
    assert conversation.messages == ()
    assert said(conversation, "b") == "One."
    assert conversation.turns == (Message("user", "b"), Message("assistant", "One."))


def test_a_closed_iterator_keeps_what_was_said() -> None:
    conversation = Conversation(FakeEngine(["one two three"]))
    events = conversation.ask("count")
    while not isinstance(next(events), AnswerText):
        pass
    events.close()
    assert conversation.messages == (Message("user", "count"), Message("assistant", "one"))


def test_an_error_leaves_the_conversation_as_it_was() -> None:
    conversation = Conversation(FakeEngine(["fine", EngineError("broken"), "fine again"]))
    said(conversation, "a")
    before = conversation.messages
    with pytest.raises(EngineError):
        said(conversation, "b")
    assert conversation.messages == before
    assert said(conversation, "c") == "fine again"


def test_a_question_that_does_not_fit_alone_is_refused_and_nothing_lost() -> None:
    conversation = Conversation(FakeEngine(context=20))
    said(conversation, "a")
    before = conversation.messages
    seen = []
    with pytest.raises(ContextOverflow):
        seen += conversation.ask("word " * 30)
    assert conversation.messages == before
    assert seen == [], "nothing is told to be forgotten"


def test_the_oldest_turns_go_when_the_context_is_full() -> None:
    engine = FakeEngine(["w " * 7 + "w"], context=100)
    conversation = Conversation(engine, "Be brief.")
    dropped = []
    for turn in range(12):
        dropped += [event for event in conversation.ask(f"question {turn}") if isinstance(event, TurnsDropped)]
    assert dropped
    assert conversation.messages[0] == Message("system", "Be brief.")
    assert conversation.messages[1].role == "user"
    assert len(conversation.messages) == 1 + 2 * (12 - sum(event.count for event in dropped))
    assert len(dropped) < 3, "each loss frees half of the context, so that it is rare"


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=15),
    st.integers(1, 40),
    st.integers(20, 200),
    st.sampled_from([None, 1, 10, 1000]),
)
def test_what_is_asked_always_fits_and_ends_with_the_question(
    questions: list[int], answer: int, context: int, max_tokens: int | None
) -> None:
    engine = FakeEngine([" ".join("w" * answer)], context=context)
    conversation = Conversation(engine, "s", max_tokens=max_tokens)
    for number, length in enumerate(questions):
        text = f"{number} " * length
        try:
            list(conversation.ask(text))
        except ContextOverflow:
            assert engine.count_tokens([Message("system", "s"), Message("user", text)]) >= context
            continue
        asked = engine.requests[-1].messages
        assert engine.count_tokens(asked) < context
        assert asked[0].role == "system"
        assert asked[-1] == Message("user", text)
        assert [message.role for message in asked[1:]] == ["user", "assistant"] * (len(asked) // 2 - 1) + ["user"]


def test_another_engine_takes_the_conversation_over() -> None:
    conversation = Conversation(FakeEngine(["One."]), "s")
    said(conversation, "a")
    conversation.engine = FakeEngine(["Two."])
    assert said(conversation, "b") == "Two."
    assert [message.content for message in conversation.messages] == ["s", "a", "One.", "b", "Two."]
