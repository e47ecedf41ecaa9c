"""Thoughts are told from the answer however the text is cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import random_models
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from localai import library, loading
from localai.domain.generation import ThinkingText
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
    ("", "◁think▷a◁/think▷b", ("a", "b")),
    ("", "<|inner_prefix|>a<|inner_suffix|>b", ("a", "b")),
    ("", "<think>a</think>\n<answer>\nb </b\n</answer>\n", ("a", "b </b")),
    ("", "<think>a</think><response>b</response>", ("a", "b")),
    ("", "<think>a</think><response>cut of", ("a", "cut of")),
    ("", "<think>a</think><response>b</resp", ("a", "b</resp")),
    ("", "<think>a</think><resp", ("a", "<resp")),
    ("", "<think>a</think><resplendent>", ("a", "<resplendent>")),
    ("", "<answer>b</answer>", ("", "<answer>b</answer>")),
    ("", "<|begin_of_thought|>a<|end_of_thought|>\n\n<|begin_of_solution|>b<|end_of_solution|>", ("a", "b")),
    ("User: hi\n\nAssistant:", CHANNELS, ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("Assistant:", "<|channel|>analysis<|message|>cut of", ("cut of", "")),
    ("Assistant:", "<|start|>assistant" + CHANNELS, ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("<|start|>assistant", CHANNELS, ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("<|start|>assistant", "no channel at all", ("", "no channel at all")),
    ("<|start|>assistant", "<|channel|>analysis<|message|>cut of", ("cut of", "")),
    ("<|start|>assistant", "<|channel|>analy", ("", "")),
    ("<|start|>assistant<|channel|>analysis<|message|>", "cut of", ("cut of", "")),
    ("<|start|>assistant<|channel|>analysis<|message|>\n", CHANNELS[30:], ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("<|start|>assistant<|channel|>analysis", CHANNELS[19:], ("Hm, 2 < 3.", "Yes <|x|>.")),
    ("<|start|>assistant<|channel|>final<|message|>", "Yes.", ("", "Yes.")),
    ("<|start|>assistant<|channel|>", "analysis<|message|>cut of", ("cut of", "")),
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


def test_there_is_room_for_the_thoughts_of_a_model_that_thinks(isolated: Path) -> None:
    contexts = []
    for template in (random_models.TEMPLATE, random_models.TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")):
        path = random_models.write(isolated, random_models.TINY["plain"], template=template)
        prepared = loading.prepare(library.Found(None, path, "tiny"), loading.LoadOptions(), 512, thoughts=1024)
        contexts.append(prepared.plan.context)
    assert contexts == [512, 1536]


@pytest.mark.parametrize("output", ["text", "json", "ndjson"])
def test_thoughts_that_are_cut_off_never_reach_the_answer(cli: Cli, isolated: Path, output: str) -> None:
    opened = random_models.TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
    path = random_models.write(isolated, random_models.TINY["plain"], template=opened)
    done = cli("run", "-m", str(path), "--seed", "3", "--max-tokens", "20", "--stop", "e", "--output", output, "Hello")
    assert done.returncode == 0
    assert "--max-tokens allows more, --no-think asks for none" in done.stderr
    if output == "text":
        assert done.stdout.strip() == ""
        assert len(done.stderr.strip()) > 20
    else:
        end = json.loads(done.stdout if output == "json" else done.stdout.splitlines()[-1])
        assert end["text"] == ""
        assert end["thinking"]
