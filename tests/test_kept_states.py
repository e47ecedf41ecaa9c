"""The saved state of a conversation is taken up again, or ignored with one line; it is never in the way."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import random_models
from fake_engine import FakeEngine
from real_model import plan

from localai import kept_states, library, loading, sessions, settings
from localai.chat import Conversation
from localai.domain.generation import AnswerEnd, Message, Sampling
from localai.domain.plan import Plan
from localai.domain.units import MIB
from localai.engine import model as engine
from localai.errors import LocalaiError

MODEL = random_models.TINY["plain"]


def loaded(path: Path, plan: Plan) -> loading.Loaded:
    prepared = loading.Prepared(library.Found(None, path, "tiny"), plan, 1, 4096)
    return loading.Loaded(prepared, None, engine.load(path, plan))


def asked(model: loading.Loaded, turns: int) -> tuple[Conversation, AnswerEnd]:
    conversation = Conversation(model.engine, "s" * 100, Sampling(temperature=0), max_tokens=20)
    end = None
    for number in range(turns):
        end = list(conversation.ask(f"question {number}"))[-1]
    assert isinstance(end, AnswerEnd)
    return conversation, end


def go_on(model: loading.Loaded, before: Conversation) -> AnswerEnd:
    conversation = Conversation(model.engine, "s" * 100, Sampling(temperature=0), max_tokens=20)
    conversation.recall(before.messages[1:])
    end = list(conversation.ask("and now?"))[-1]
    assert isinstance(end, AnswerEnd)
    model.engine.close()
    return end


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return random_models.write(tmp_path, MODEL)


@pytest.fixture(params=random_models.TINY)
def each_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return random_models.write(tmp_path, random_models.TINY[request.param])


def test_a_conversation_goes_on_from_its_state_as_if_never_left(each_path: Path) -> None:
    first = loaded(each_path, plan())
    conversation, last = asked(first, 3)
    kept_states.leave(first, 7)
    with pytest.raises(RuntimeError, match="closed"):
        list(conversation.ask("x"))

    second = loaded(each_path, plan())
    assert kept_states.restore(7, second) is None
    resumed = go_on(second, conversation)
    assert resumed.usage.cached_tokens >= last.usage.prompt_tokens + last.usage.completion_tokens - 1

    third = loaded(each_path, plan())
    never_left, _ = asked(third, 3)
    assert resumed.text == go_on(third, never_left).text


def test_what_was_taken_back_or_is_of_another_conversation_is_not_in_the_state(each_path: Path) -> None:
    model = loaded(each_path, plan())
    conversation, _ = asked(model, 3)
    conversation.undo()
    model.engine.keep_only(conversation.messages)
    kept_states.save(model, 7)
    content = kept_states.path(7).read_bytes()
    assert b"question 1" in content
    assert b"question 2" not in content
    again = loaded(each_path, plan())
    assert kept_states.restore(7, again) is None
    resumed = go_on(again, conversation)
    assert resumed.usage.cached_tokens > 100
    assert resumed.text == go_on(model, conversation).text

    other = loaded(each_path, plan())
    asked(other, 1)
    other.engine.keep_only([Message("user", "something else")])
    kept_states.leave(other, 8)
    assert not kept_states.path(8).exists() or b"question" not in kept_states.path(8).read_bytes()


def test_files_are_for_this_user_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        model = loaded(path, plan())
        asked(model, 1)
        kept_states.leave(model, 1)
    finally:
        os.umask(before)
    for place, mode in ((kept_states.path(1), 0o600), (kept_states.folder(), 0o700)):
        assert stat.S_IMODE(place.stat().st_mode) == mode, place
    key = settings.folders().data / "sessions" / "state.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert [each.name for each in kept_states.folder().iterdir()] == ["1.kv"]


@pytest.fixture
def left(path: Path) -> Iterator[tuple[loading.Loaded, Path]]:
    """A model that is ready to resume conversation 1, and that conversation's state file."""
    model = loaded(path, plan())
    asked(model, 1)
    kept_states.leave(model, 1)
    again = loaded(path, plan())
    yield again, kept_states.path(1)
    again.engine.close()


def refused(model: loading.Loaded) -> str:
    cast(engine.LlamaEngine, model.engine).forget()
    problem = kept_states.restore(1, model)
    assert problem is not None
    assert "\n" not in problem
    assert "read again" in problem
    _, end = asked(model, 1)
    assert end.usage.cached_tokens == 0, "nothing of the file is in the model"
    return problem


def test_a_damaged_file_is_ignored_with_one_line(left: tuple[loading.Loaded, Path]) -> None:
    model, file = left
    good = file.read_bytes()
    draw = random.Random(1)
    places = [0, 17, 50, 90, len(good) - 1, *(draw.randrange(len(good)) for _ in range(15))]
    for place in places:
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        refused(model)
    for size in (0, 1, 40, 56, 57, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        refused(model)
    file.write_bytes(good + b"\0")
    refused(model)
    file.write_bytes(draw.randbytes(5000))
    refused(model)
    file.unlink()
    file.mkdir()
    refused(model)
    file.rmdir()
    os.mkfifo(file)
    refused(model)  # without waiting for anybody to write into it
    file.unlink()
    assert kept_states.restore(1, model) is None, "no state is nothing to speak of"
    file.write_bytes(good)
    assert kept_states.restore(1, model) is None


def test_no_damaged_file_tells_how_much_context_is_wanted(left: tuple[loading.Loaded, Path]) -> None:
    model, file = left
    good = file.read_bytes()
    wanted = model.plan.context
    assert kept_states.context(1) == wanted
    told = f'context\\": {wanted}'.encode()
    assert good.count(told) == 1
    file.write_bytes(good.replace(told, f'context\\": {"1" * len(str(wanted))}'.encode()))
    assert kept_states.context(1) is None
    for size in (0, 50, 100, 200):
        file.write_bytes(good[:size])
        assert kept_states.context(1) is None
    file.write_bytes(good)
    os.link(file, kept_states.path(2))
    assert kept_states.context(2) is None, "it is that of another conversation"


def test_a_foreign_file_is_ignored_with_the_reason(left: tuple[loading.Loaded, Path], tmp_path: Path) -> None:
    model, file = left
    os.link(file, kept_states.path(2))
    assert "another conversation" in (kept_states.restore(2, model) or "")
    key = settings.folders().data / "sessions" / "state.key"
    own = key.read_bytes()
    key.write_bytes(bytes(32))
    assert "not written here" in refused(model)
    key.write_bytes(own)
    (tmp_path / "other").mkdir()
    other = loaded(random_models.write(tmp_path / "other", MODEL, seed=2), plan())
    assert "the model is another" in refused(other)
    other.engine.close()
    for changed, because in (
        (replace(plan(), context=1024), "context"),
        (replace(plan(), kv_type="bf16"), "settings"),
        (replace(plan(), flash_attention=False), "settings"),
    ):
        other = loaded(model.prepared.found.path, changed)
        assert because in refused(other)
        other.engine.close()


def test_an_engine_that_does_not_take_it_reads_again(left: tuple[loading.Loaded, Path]) -> None:
    model, _ = left
    refusing = replace(model, engine=FakeEngine())
    assert "read again" in (kept_states.restore(1, refusing) or "")


def test_the_oldest_states_go_when_the_room_is_used_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(path, plan())
    asked(model, 1)
    kept = kept_states.snapshot(model)
    model.engine.close()
    assert kept is not None
    size = len(kept.state.data) + 10_000
    monkeypatch.setattr(kept_states, "limits_bytes", lambda: (3 * size, size))
    kept_states.folder().mkdir(parents=True)
    abandoned = kept_states.folder() / ".9.kv.123.tmp"
    abandoned.touch()
    os.utime(abandoned, (1, 1))
    for session in range(1, 7):
        assert kept_states.write(session, kept)
        os.utime(kept_states.path(session), (session, session))
        assert sum(each.stat().st_size for each in kept_states.folder().iterdir()) <= 3 * size
    assert sorted(each.name for each in kept_states.folder().iterdir()) == ["4.kv", "5.kv", "6.kv"]
    monkeypatch.setattr(kept_states, "limits_bytes", lambda: (3 * size, size // 4))
    assert not kept_states.write(7, kept)
    monkeypatch.setattr(kept_states, "limits_bytes", lambda: (3 * size, size))
    assert not kept_states.write(4, kept, cancelled=lambda: True)
    monkeypatch.setattr(kept_states, "DISK_RESERVE_BYTES", 2**62)
    assert not kept_states.write(8, kept)
    assert not list(kept_states.folder().glob(".*"))


def test_the_setting_bounds_what_is_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept_states.limits_bytes() == (4096 * MIB, 1024 * MIB)
    model = loaded(path, plan())
    asked(model, 1)
    kept_states.save(model, 2)
    assert kept_states.path(2).exists()
    monkeypatch.setenv("LOCALAI_KEPT_STATE_MB", "0")
    kept_states.leave(model, 1)
    assert list(kept_states.folder().iterdir()) == []


def test_nothing_said_and_nothing_kept_leave_no_file(path: Path) -> None:
    kept_states.leave(loaded(path, plan()), 1)
    model = loaded(path, plan())
    asked(model, 1)
    kept_states.leave(model, None)
    fake = replace(model, engine=FakeEngine())
    kept_states.leave(fake, 1)
    assert cast(FakeEngine, fake.engine).closed
    assert not kept_states.folder().exists()


def test_a_folder_that_cannot_be_written_is_no_error(path: Path) -> None:
    settings.folders().cache.parent.mkdir(parents=True, exist_ok=True)
    settings.folders().cache.write_text("a file in the way")
    model = loaded(path, plan())
    asked(model, 1)
    kept_states.leave(model, 1)


def test_removing_a_conversation_removes_its_state() -> None:
    session = sessions.keep(None, "m", None, "q", "a")
    kept_states.folder().mkdir(parents=True)
    kept_states.path(session).write_bytes(b"x")
    (kept_states.folder() / f".{session}.kv.12.tmp").write_bytes(b"x")
    sessions.remove(sessions.find(str(session)))
    assert not list(kept_states.folder().iterdir())


def test_a_state_that_cannot_be_removed_is_told_and_the_conversation_stays(isolated: Path) -> None:
    session = sessions.keep(None, "m", None, "q", "a")
    kept_states.path(session).mkdir(parents=True)
    with pytest.raises(LocalaiError, match="cannot remove"):
        sessions.remove(sessions.find(str(session)))
    assert sessions.find(str(session)).turns == 1
