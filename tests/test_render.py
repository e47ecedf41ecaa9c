from __future__ import annotations

import io
import json
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai import render


@given(st.text())
def test_safe_text_drives_no_terminal(text: str) -> None:
    shown = render.safe(text)
    assert not any(ord(c) < 0x20 and c not in "\n\t" for c in shown)
    assert not any(0x7F <= ord(c) <= 0x9F for c in shown)
    assert not set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068") & set(shown)


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_safe_keeps_what_is_harmless(text: str) -> None:
    assert render.safe(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b]52;c;aGk=\x1b\\", "\\x1b]52;c;aGk=\\x1b\\"),
        ("a\rb", "a\\x0db"),
        ("\x9b31m", "\\x9b31m"),
        ("voilà\n\tça", "voilà\n\tça"),
    ],
)
def test_escape_sequences_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert render.safe(text) == shown


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (98_362_432, "98 MB"), (2_497_280_256, "2.5 GB"),
     (999_900_000, "1.0 GB"), (3 * 10**12, "3.0 TB")],
)  # fmt: skip
def test_sizes_are_decimal(number: int | None, text: str) -> None:
    assert render.size(number) == text


def test_memory_is_binary() -> None:
    assert render.memory(8 * 2**30) == "8.0 GiB"
    assert render.memory(300 * 2**20) == "300 MiB"


def test_columns_align_by_what_is_seen() -> None:
    text = render.columns(("A", "N"), [("日本", "1"), ("é", "100")], right=(1,))
    assert text.splitlines() == ["A       N", "日本    1", "é     100"]


def test_a_cell_cannot_break_the_table() -> None:
    assert len(render.columns(("A",), [("x\ny\x1b[2J",)]).splitlines()) == 2


def test_facts_fold_to_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = render.facts([("Name", "word " * 20)])
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.splitlines()[1].startswith("      word")
    text = render.facts([("a name that is long", "word " * 20), ("b", "short")])
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.splitlines()[:2] == ["a name that is long", "    word word word word word word word"]
    assert text.splitlines()[-1] == "b                    short"


def test_prose_stands_below_where_there_is_no_room_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = [("a name that is long", "en,fr", "word " * 12)]
    lines = render.columns(("NAME", "IN", "WHAT"), rows, fold=True).splitlines()
    assert lines[1] == "a name that is long  en,fr"
    assert lines[2].startswith("  word")
    assert all(len(line) <= 40 for line in lines)


def test_a_terminal_that_is_gone_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, size: int | None = -1) -> str:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", Gone())
    assert render.ask("Which one?") is None


def test_json_survives_names_that_are_not_text() -> None:
    line = render.json_line({"path": "caf\udce9"})
    line.encode()
    assert json.loads(line)["schema_version"] == 1


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("\x07\x1b\x7f\x9b\x9d\u202e\u2066é\n\t"))
def test_json_drives_no_terminal_and_says_the_same(text: str) -> None:
    for indent, encoding in ((2, "utf-8"), (None, "ascii")):
        line = render.json_line({"text": text}, indent, encoding)
        assert json.loads(line)["text"] == text
        assert not set(line) & set("\x07\x1b\x7f\x9b\x9d\u202e\u2066")
        assert render.safe(line) == line


def test_durations() -> None:
    assert [render.duration(s) for s in (5, 200, 7500)] == ["5 s", "3 min 20 s", "2 h 5 min"]


@pytest.mark.skipif(os.name == "nt", reason="Windows' terminal has no TERM")
def test_a_terminal_without_a_name_is_written_to_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for name in ("dumb", "", "xterm"):
        monkeypatch.setenv("TERM", name)
        shown[name] = render.plain()
    assert shown == {"dumb": True, "": True, "xterm": False}
