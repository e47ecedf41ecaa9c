"""Kept conversations: for this user only, found again, whole after `kill -9`, gone when they are removed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from localai import history, sessions
from localai.commands import chat
from localai.domain.generation import Message
from localai.errors import LocalaiError, NotFound, UsageError


def test_turns_are_kept_in_order() -> None:
    first = sessions.keep(None, "m", "Be brief.", "What is\n a river?", "Water.")
    assert sessions.keep(first, "m2", "Be brief.", "And a lake?", "Still water.") == first
    second = sessions.keep(None, "m", None, "Hello", "Hi.")
    assert [each.id for each in sessions.every()] == [second, first]
    found = sessions.find(str(first))
    assert (found.title, found.turns, found.model, found.system) == ("What is a river?", 2, "m2", "Be brief.")
    assert sessions.messages(found)[2:] == (Message("user", "And a lake?"), Message("assistant", "Still water."))
    assert sessions.find("last").id == second
    for name in ("99", "x", ""):
        with pytest.raises(NotFound):
            sessions.find(name)


def test_only_this_user_can_read_them() -> None:
    before = os.umask(0)
    try:
        sessions.keep(None, "m", None, "secret", "word")
    finally:
        os.umask(before)
    folder = sessions.database().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    sessions.database().chmod(0o644)
    sessions.keep(None, "m", None, "secret", "word")
    assert stat.S_IMODE(sessions.database().stat().st_mode) == 0o600


@pytest.mark.parametrize("full_text", [True, False])
def test_search_finds_all_of_the_words(monkeypatch: pytest.MonkeyPatch, full_text: bool) -> None:
    if not full_text:  # an SQLite that was built without FTS5
        monkeypatch.setattr(sessions, "_SEARCH", "no such statement")
    kept = sessions.keep(None, "m", None, "Où coule la Loire ?", "Through Nantes, to the ocean.")
    mountain = sessions.keep(None, "m", None, "Name a mountain.", "Etna.")
    assert [hit.session.id for hit in sessions.search("nantes OCEAN")] == [kept]
    assert sessions.search("Loire")[0].role == "user"
    assert sessions.search("Loire Etna") == ()
    assert sessions.search("  ") == ()
    other = sessions.keep(None, "m", None, "京都の川は何ですか？", "L'Élan, " + "très " * 50 + "loin.")
    parts = {"京都": other, "élan loin": other, "ÉLA": other, "moun": mountain, "?": kept}
    assert {part: sessions.search(part)[0].session.id for part in parts} == parts
    assert "loin" in sessions.search("oin.")[0].excerpt


@given(st.text())
def test_any_words_can_be_searched(words: str) -> None:
    sessions.keep(None, "m", words, words, words)
    assert isinstance(sessions.search(words), tuple)


def test_what_is_removed_is_gone_from_the_disk() -> None:
    kept = sessions.find(str(sessions.keep(None, "m", None, "the passphrase is xylophone", "noted")))
    sessions.remove(kept)
    assert sessions.every() == ()
    assert sessions.search("xylophone") == ()
    assert not any(b"passphrase is" in path.read_bytes() for path in sessions.database().parent.iterdir())


def test_finished_turns_survive_kill_9(isolated: Path) -> None:
    script = """
from localai import history, sessions
kept, number = None, 0
while True:
    kept = sessions.keep(kept, "m", None, f"question {number}", f"answer {number}")
    print(number, flush=True)
    number += 1
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    told = int(rest[-1]) if rest else told
    kept = sessions.find("last")
    said = sessions.messages(kept)
    assert said[2 * told + 1] == Message("assistant", f"answer {told}")
    assert len(said) % 2 == 0


def test_two_processes_at_once_lose_no_turn(isolated: Path) -> None:
    script = """
import sys
from localai import history, sessions
kept = None
for number in range(25):
    kept = sessions.keep(kept, "m", None, f"{sys.argv[1]} {number}", "yes")
    history.add(f"{sys.argv[1]} {number}", kept)
"""
    both = [subprocess.Popen([sys.executable, "-c", script, name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    kept = [[each.content for each in sessions.messages(session)[::2]] for session in sessions.every()]
    assert sorted(kept) == [[f"{name} {number}" for number in range(25)] for name in ("a", "b")]
    assert sorted(history.load()) == sorted(kept[0] + kept[1])


def test_a_turn_is_answered_again_or_taken_back() -> None:
    kept = sessions.keep(None, "m", None, "first", "1")
    sessions.keep(kept, "m", "New.", "second", "2")
    assert sessions.keep(kept, "m", "New.", "other", "3", instead_of="second") == kept
    found = sessions.find(str(kept))
    assert [each.content for each in sessions.messages(found)] == ["first", "1", "other", "3"]
    assert found.system == "New."
    assert [hit.excerpt for hit in sessions.search("second")] == []
    another = sessions.keep(kept, "m", "New.", "first", "of another chat")
    assert sessions.take_back(kept, "other")
    assert [each.content for each in sessions.messages(found)] == ["first", "1", "first", "of another chat"]
    assert sessions.take_back(kept, "not asked")
    assert sessions.take_back(kept, "first")
    assert [each.content for each in sessions.messages(found)] == ["first", "1"]
    assert not sessions.take_back(another, "first")
    assert sessions.every() == ()
    assert sessions.keep(kept, "m", None, "after it was removed", "4") != kept


def test_a_conversation_whose_model_is_gone_may_go_on_with_another(isolated: Path) -> None:
    kept = sessions.keep(None, str(isolated / "gone.gguf"), None, "first", "1")
    with pytest.raises(NotFound) as missing:
        chat.check_there(sessions.find(str(kept)))
    assert f"localai chat MODEL --resume {kept}" in missing.value.hint


def test_a_conversation_has_a_name() -> None:
    kept = sessions.keep(None, "m", None, "first", "1")
    sessions.rename(kept, "My Trip")
    assert sessions.find("my trip").id == kept
    said = sessions.messages(sessions.find("my trip"))
    text = json.dumps(sessions.as_json(sessions.find("my trip"), said))
    assert sessions.from_json(text, "x") == (None, said)


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_file_that_is_no_conversation_is_refused(content: object) -> None:
    for text in (json.dumps(content), json.dumps({"messages": content}), str(content)):
        with contextlib.suppress(UsageError):
            assert len(sessions.from_json(text, "x")[1]) % 2 == 0


def test_a_damaged_file_is_told(isolated: Path) -> None:
    path = sessions.database()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(LocalaiError, match="kept conversations"):
        sessions.keep(None, "m", None, "a", "b")
    assert path.read_bytes().startswith(b"no database")


def test_the_commands(in_process: Cli, isolated: Path) -> None:
    assert json.loads(in_process("sessions", "list", "--json").stdout)["sessions"] == []
    sessions.keep(None, "m", None, "What?\x1b]0;owned\x07", "That.")
    assert "What?" in in_process("sessions", "list").stdout
    listed = json.loads(in_process("sessions", "list", "--json").stdout)["sessions"]
    assert listed[0]["turns"] == 1
    assert in_process("sessions", "export").stdout.endswith("## assistant\n\nThat.\n")
    whole = json.loads(in_process("sessions", "export", "1", "--format", "json").stdout)
    assert whole["messages"][1] == {"role": "assistant", "content": "That."}
    assert json.loads(in_process("sessions", "search", "that", "--json").stdout)["hits"][0]["session"] == 1
    assert in_process("sessions", "show", "7").returncode == 3
    assert in_process("sessions", "rm", "1").returncode == 2
    history.add("/edit What?\x1b]0;owned\x07", 1)
    history.add("something else", 2)
    assert in_process("sessions", "rm", "1", "--yes").returncode == 0
    assert history.load() == ["something else"]
    assert "rm" in in_process("sessions").stdout
    assert in_process("chat", "--resume", "1").returncode == 3


def test_an_export_goes_into_a_file_that_is_not_there_yet(in_process: Cli, isolated: Path) -> None:
    sessions.keep(None, "m", None, "Où ?", "Là.")
    as_json = in_process("sessions", "export", "--json").stdout
    assert json.loads(as_json)["schema_version"] == 1
    for name, form, expected in (
        ("talk.md", (), in_process("sessions", "export").stdout),
        ("talk.json", (), as_json),
        ("talk.txt", ("--json",), as_json),
        ("other.json", ("--format", "markdown"), in_process("sessions", "export").stdout),
    ):
        done = in_process("sessions", "export", "last", *form, "--to", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"written to {name}\n")
        assert (isolated / name).read_text("utf-8") == expected
        assert stat.S_IMODE((isolated / name).stat().st_mode) == 0o600
    (isolated / "talk.md").write_text("mine")
    refused = in_process("sessions", "export", "--to", "talk.md")
    assert (refused.returncode, (isolated / "talk.md").read_text()) == (2, "mine")
    assert "talk.md is there already" in refused.stderr
    assert in_process("sessions", "export", "--to", "no/such/talk.md").returncode == 1
    assert in_process("sessions", "export", "--json", "--format", "markdown").returncode == 2


def test_a_disk_that_takes_nothing_is_still_read(cli: Cli, bound_by_permissions: list[str]) -> None:
    sessions.keep(None, "m", None, "Name a river.", "The Loire.")
    sessions.database().chmod(0o400)
    sessions.database().parent.chmod(0o500)
    try:
        assert "The Loire." in cli("sessions", "show", under=bound_by_permissions).stdout
        refused = cli("sessions", "rm", "1", "--yes", under=bound_by_permissions)
    finally:
        sessions.database().parent.chmod(0o700)
    assert (refused.returncode, len(sessions.every())) == (1, 1)
    assert "Permission denied" in refused.stderr


def test_the_file_is_what_sqlite_says_is_whole() -> None:
    sessions.keep(None, "m", None, "a", "b")
    connection = sqlite3.connect(sessions.database())
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
