"""What was typed is kept for the arrow keys: for this user only, bounded, and forgotten on demand."""

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
        history.add("first")
        history.add("two\nlines é")
    finally:
        os.umask(before)
    assert history.load() == ["first", "two\nlines é"]
    assert stat.S_IMODE(history.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(history.path().parent.stat().st_mode) == 0o700


@given(st.text(min_size=1, max_size=50))
def test_any_text_comes_back(entry: str) -> None:
    history.add(entry)
    assert history.load()[-1] == entry


def test_a_damaged_file_costs_its_damaged_lines_only() -> None:
    history.add("good")
    with history.path().open("ab") as stream:
        stream.write(b"\xff\xfe\n{}\n[[[\n")
    history.add("also good")
    assert history.load() == ["good", "also good"]


def test_it_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 20_000)
    for number in range(400):
        history.add(f"{number} " + "x" * 100)
    assert history.path().stat().st_size <= 20_000 + 200
    assert history.load()[-1].startswith("399 ")
    history.add("y" * 30_000)
    assert history.load()[-1].startswith("399 ")


def test_entries_are_forgotten() -> None:
    for entry in ("keep", "secret", "keep too"):
        history.add(entry)
    history.forget("secret".__eq__)
    assert history.load() == ["keep", "keep too"]
    assert b"secret" not in history.path().read_bytes()


def test_no_folder_no_history(isolated: Path) -> None:
    assert history.load() == []
    history.forget(bool)
    assert not history.path().exists()
