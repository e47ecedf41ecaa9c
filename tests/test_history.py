"""What was typed is kept for the arrow keys: for this user only, bounded, and forgotten with its conversation."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai import history


def test_entries_come_back_in_order_for_this_user_only() -> None:
    before = os.umask(0)
    try:
        history.add("first", None)
        history.add("two\nlines é", 1)
    finally:
        os.umask(before)
    assert history.load() == ["first", "two\nlines é"]
    assert stat.S_IMODE(history.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(history.path().parent.stat().st_mode) == 0o700


@given(st.text(min_size=1, max_size=50))
def test_any_text_comes_back(entry: str) -> None:
    history.add(entry, 3)
    assert history.load()[-1] == entry


def test_a_damaged_file_costs_its_damaged_lines_only() -> None:
    history.add("good", 1)
    with history.path().open("ab") as stream:
        stream.write(b'\xff\xfe\n{}\n[[[\n"a string"\n"ab"\n["x", "y"]\n[1, 2]\n[1]\n[1, "a", "b"]\n7\n')
    history.add("also good", 1)
    assert history.load() == ["good", "also good"]


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 20_000)
    for number in range(400):
        history.add(f"{number} " + "x" * 100, 1)
    assert history.path().stat().st_size <= 20_000 + 200
    assert history.load()[-1].startswith("399 ")
    history.add("y" * 30_000, 1)
    assert history.load()[-1].startswith("399 ")


def test_entries_are_forgotten_with_their_conversation() -> None:
    for entry, session in (("none's", None), ("secret", 1), ("another's", 2), ("also secret", 1)):
        history.add(entry, session)
    history.forget(1, "also secret".__eq__)
    assert history.load() == ["none's", "secret", "another's"]
    history.forget(1)
    assert history.load() == ["none's", "another's"]
    assert b"secret" not in history.path().read_bytes()


def test_what_is_typed_waits_for_its_conversation() -> None:
    typed = history.Typed(private=False)
    typed.add("/system Be brief.")
    typed.keep(None)
    assert history.load() == []
    typed.add("a question")
    typed.keep(7)
    typed.keep(7)
    typed.add("/help")
    typed.keep(None, leaving=True)
    assert history.load() == ["/system Be brief.", "a question", "/help"]
    typed.add("/edit a draft")
    typed.instead("a draft, edited")
    typed.keep(7)
    assert history.load()[-1] == "a draft, edited"
    history.forget(7)
    assert history.load() == ["/help"]
    private = history.Typed(private=True)
    private.add("secret")
    private.instead("secret")
    private.keep(None, leaving=True)
    assert history.load() == ["/help"]


def test_no_folder_no_history(isolated: Path) -> None:
    assert history.load() == []
    history.forget(1)
    assert not history.path().exists()
