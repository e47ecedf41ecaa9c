"""Thoughts are told from the answer however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai.domain import ThinkingText
from localai.engine.thinking import Splitter, splitter


def split(parts: list[str], prompt: str = "") -> tuple[str, str]:
    made: Splitter = splitter(prompt)
    pieces = [piece for part in parts for piece in made.feed(part)] + made.finish()
    thoughts = "".join(piece.text for piece in pieces if isinstance(piece, ThinkingText))
    return thoughts, "".join(piece.text for piece in pieces if not isinstance(piece, ThinkingText))


def cut(text: str, lengths: list[int]) -> list[str]:
    """`text` in pieces of the given lengths, the rest as the last."""
    parts = []
    for length in lengths:
        parts.append(text[:length])
        text = text[length:]
    return [*parts, text]


CHANNELS = "<|channel|>analysis<|message|>Hm, 2 < 3.<|end|><|start|>assistant<|channel|>final<|message|>Yes <|x|>."

CASES = [
    ("", "plain answer", ("", "plain answer")),
    ("", "  leading space stays", ("", "  leading space stays")),
    ("", "<think>\nHm.\n</think>\n\nYes.", ("Hm.", "Yes.")),
    ("", "\n<think></think>\n\nYes.", ("", "Yes.")),
    ("", "<think>never ends", ("never ends", "")),
    ("", "<think>a </thin b</think>c", ("a </thin b", "c")),
    ("", "The tag <think> opens thoughts.", ("", "The tag <think> opens thoughts.")),
    ("", "<thin ice", ("", "<thin ice")),
    ("", "<thi", ("", "<thi")),
    ("", "[THINK]a[/THINK]b", ("a", "b")),
    ("<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes. </think>", ("Hm.", "Yes. </think>")),
    ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "Yes.", ("", "Yes.")),
    ("<|start|>assistant", CHANNELS, ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("<|start|>assistant", "no channel at all", ("", "no channel at all")),
    ("<|start|>assistant", "<|channel|>analysis<|message|>cut of", ("cut of", "")),
    ("<|start|>assistant", "<|channel|>analy", ("", "")),
]


@pytest.mark.parametrize(("prompt", "text", "expected"), CASES)
def test_thoughts_and_answer_in_one_piece(prompt: str, text: str, expected: tuple[str, str]) -> None:
    assert split([text], prompt) == expected


@pytest.mark.parametrize(("prompt", "text", "expected"), CASES)
@given(lengths=st.lists(st.integers(0, 6), max_size=60))
def test_the_cuts_do_not_matter(prompt: str, text: str, expected: tuple[str, str], lengths: list[int]) -> None:
    assert split(cut(text, lengths), prompt) == expected
    assert split(list(text), prompt) == expected


@given(st.text(alphabet="<>/think \n", max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_an_answer_without_thoughts_is_given_as_it_is(text: str, lengths: list[int]) -> None:
    if not text.lstrip().startswith("<think>"):
        assert split(cut(text, lengths)) == ("", text)
