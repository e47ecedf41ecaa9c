"""Markdown that arrives in pieces: however it is cut, the same is shown, and nothing of it drives the terminal."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai import render
from localai.markdown.stream import Markdown

SGR = re.compile(r"\x1b\[([0-9;]*)m")


def shown(parts: list[str], width: int = 40, styled: bool = False) -> str:
    markdown = Markdown(lambda: width, styled)
    return "".join([*map(markdown.feed, parts), markdown.finish()])


def characters(text: str) -> list[tuple[str, str]]:
    """Each character with the style it is shown in."""
    found, style, at = [], "", 0
    while at < len(text):
        if match := SGR.match(text, at):
            style, at = match[1].removeprefix("0"), match.end()
            continue
        found.append((text[at], style))
        at += 1
    return found


def cut(text: str, lengths: list[int]) -> list[str]:
    parts = []
    for length in lengths:
        parts.append(text[:length])
        text = text[length:]
    return [*parts, text]


MARKS = st.text(alphabet="*_`~#|-:>[]()!\\ \n\tab1.é日", max_size=80)


@given(MARKS, st.lists(st.integers(0, 7), max_size=40), st.booleans())
def test_the_cuts_do_not_matter(text: str, lengths: list[int], styled: bool) -> None:
    whole = shown([text], styled=styled)
    assert characters(shown(cut(text, lengths), styled=styled)) == characters(whole)
    assert characters(shown(list(text), styled=styled)) == characters(whole)


@given(st.text(), st.booleans())
def test_any_text_is_shown_without_escape_sequences_of_its_own(text: str, styled: bool) -> None:
    plain = SGR.sub("", shown([render.safe(text)], styled=styled))
    assert "\x1b" not in plain
    assert render.safe(plain) == plain


@given(st.lists(st.text("abcdéfg", min_size=1, max_size=12), min_size=1, max_size=60), st.integers(20, 60))
def test_words_wrap_and_none_is_lost(words: list[str], width: int) -> None:
    lines = shown([" ".join(words)], width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == words


CASES = [
    ("# A *title*", "A title"),
    ("Some **bold**, *italic*, `code` and ~~gone~~.", "Some bold, italic, code and gone."),
    ("snake_case_name and 2*3*4 and a * b", "snake_case_name and 2*3*4 and a * b"),
    ("never **closed", "never **closed"),
    ("[text](http://a.b) and ![x](y.png)", "text (http://a.b) and x (y.png)"),
    ("a [bracket] alone", "a [bracket] alone"),
    ("- one\n  - two\n1. three", "- one\n  - two\n1. three"),
    ("> said", "│ said"),
    ("a\n\n\n\nb", "a\n\nb"),
    ("```py\nx = '**'\n\n  `y`\n```\nafter", "```py\nx = '**'\n\n  `y`\n```\nafter"),
    ("1. item\n   ```\n   code\n   ```\nafter **b**", "1. item\n```\n   code\n```\nafter b"),
    ("| a | b |\n|---|--:|\n| long | 1 |\n", "a     b\n────  ─\nlong  1"),
    ("| no table\nat all", "| no table\nat all"),
    (r"\*no\* emphasis, C:\new", r"*no* emphasis, C:\new"),
    ("```\nnever closed", "```\nnever closed"),
    ("", ""),
]


@pytest.mark.parametrize(("source", "seen"), CASES)
def test_what_is_seen(source: str, seen: str) -> None:
    assert SGR.sub("", shown([source], 60, styled=True)).rstrip("\n") == seen


def test_text_is_shown_while_it_arrives_and_not_drawn_again() -> None:
    markdown = Markdown(lambda: 60, True)
    assert markdown.feed("The first wor") == "The first"
    assert markdown.feed("ds come at on") == " words come at"
    assert markdown.feed("ce **and bold") == " once"
    assert markdown.feed("** too ") == " \x1b[1mand\x1b[0m \x1b[1mbold\x1b[0m too"


def test_code_is_shown_as_it_arrives_and_never_folded() -> None:
    markdown = Markdown(lambda: 10, False)
    assert markdown.feed("```\nprint(") == "```\nprint("
    assert markdown.feed("'a long line of code')") == "'a long line of code')"


def test_a_resized_terminal_is_followed() -> None:
    width = 30
    markdown = Markdown(lambda: width, False)
    narrow = markdown.feed("word " * 20).splitlines()
    width = 60
    wide = (markdown.feed("word " * 40) + markdown.finish()).splitlines()
    assert max(map(len, narrow)) <= 30
    assert 30 < max(map(len, wide)) <= 60


def test_a_table_wider_than_the_terminal_is_folded_in_its_cells() -> None:
    lines = shown(["| name | note |\n|---|---|\n| a | " + "word " * 20 + "|\n"], 30).splitlines()
    assert all(len(line) <= 30 for line in lines)
    assert len(lines) > 5


def test_a_growing_table_is_told_of() -> None:
    markdown = Markdown(lambda: 40, True)
    markdown.feed("| a |\n|---|\n| b |\n")
    assert "3 rows" in markdown.held
    markdown.feed("after")
    assert markdown.held == ""


def test_wide_characters_are_counted_as_two_and_may_end_a_line() -> None:
    assert all(render.cells(line) <= 30 for line in shown(["長い文章" * 20], 30).splitlines())
