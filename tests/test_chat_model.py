"""The model of a chat is changed for another: planned without the present one, which comes back where that fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import random_models
from fake_engine import FakeEngine

from localai import chat_model, documents, history, kept_states, repl, sessions, terminal
from localai.commands import model_loading
from localai.domain.generation import AnswerEnd, Event, GenerationRequest, PromptProgress
from localai.errors import DoesNotFit, EngineError, LocalaiError, NotFound, UsageError
from localai.loading import LoadOptions
from localai.room import Given, Room
from localai.slash import files, turns

TINY = random_models.TINY["plain"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return random_models.write(tmp_path, TINY)


@pytest.fixture
def room(path: Path) -> Iterator[Room]:
    made = Room(Given(flags={"temperature": 0}, max_tokens=8), LoadOptions(context=1024), private=False)
    made.enter(str(path))
    yield made
    made.leave()


def refuse(*_: Any, **__: Any) -> Any:
    raise DoesNotFit("no memory", "a smaller one")


def test_the_next_model_is_planned_once_the_present_one_is_gone(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.ask("a")
    before, planned = room.loaded.engine, model_loading.prepare

    def prepare(*words: Any, **more: Any) -> Any:
        with pytest.raises(RuntimeError, match="closed"):
            before.count_tokens(())
        return planned(*words, **more)

    monkeypatch.setattr(model_loading, "prepare", prepare)
    chat_model.set_context(room, 512)
    assert (room.loaded.plan.context, room.load_options.context) == (512, 512)
    room.ask("b")
    assert len(room.conversation.turns) == 4


def test_what_is_no_model_costs_nothing(room: Room, tmp_path: Path) -> None:
    engine = room.loaded.engine
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    for name, error in (("nosuch", NotFound), (str(tmp_path / "broken.gguf"), EngineError)):
        with pytest.raises(error):
            chat_model.change(room, name)
    assert room.loaded.engine is engine


def test_a_model_that_fails_gives_the_present_one_back_with_its_state(
    room: Room, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.ask("a")
    with monkeypatch.context() as patched:
        patched.setattr(model_loading, "prepare", refuse)
        with pytest.raises(DoesNotFit):
            chat_model.change(room, str(path))
    room.ask("b")
    assert room.last is not None
    assert room.last.usage.cached_tokens > 10


def test_without_any_model_the_chat_goes_on_and_takes_another(
    room: Room, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(model_loading, "load_prepared", refuse)
        with pytest.raises(DoesNotFit):
            chat_model.change(room, str(path))
    assert "cannot be loaded again" in capsys.readouterr().err
    with pytest.raises(EngineError, match="no model is loaded"):
        room.ask("a")
    assert (sessions.every(), room.session) == ((), None)
    room.meter()
    chat_model.change(room, str(path))
    room.ask("a")
    assert sessions.find("last").turns == 1


def test_a_draft_model_stays_with_the_model_it_guesses_for(
    room: Room, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(path.read_bytes())
    room.load_options = LoadOptions(context=1024, draft="a-small-one")
    asked = []

    def prepare(name: str, load_options: LoadOptions, *_: Any, **__: Any) -> Any:
        asked.append(load_options.draft)
        raise DoesNotFit("no memory", "")

    for name in (path, other):
        with monkeypatch.context() as patched:
            patched.setattr(model_loading, "prepare", prepare)
            with pytest.raises(DoesNotFit):
                chat_model.change(room, str(name))
    assert asked == ["a-small-one", None]
    assert room.load_options.draft == "a-small-one"
    chat_model.change(room, str(other))
    assert room.load_options.draft is None


def test_a_state_is_saved_before_another_conversation_begins(room: Room) -> None:
    room.ask("a")
    first = room.session
    assert first is not None
    room.forget()
    assert (kept_states.path(first).exists(), kept_states.context(first)) == (True, 1024)
    room.ask("b")
    second = room.session
    assert second is not None
    room.resume(sessions.find(str(first)))
    assert kept_states.path(second).exists()
    room.undo()
    assert not kept_states.path(first).exists(), "what was taken back is in it"


def test_a_long_conversation_is_resumed_with_room_for_it(isolated: Path) -> None:
    kept = sessions.find(str(sessions.keep(None, "m", None, "word " * 20_000, "yes")))
    room = Room(Given(), LoadOptions(), private=False)
    assert room._context_for(kept) > 20_000
    kept_states.path(kept.id).parent.mkdir(parents=True)
    for damaged in (b"", b"x" * 100, b"\xff" * 100):
        kept_states.path(kept.id).write_bytes(damaged)
        assert kept_states.context(kept.id) is None


def test_an_editor_without_a_place_for_the_message_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISUAL", "true")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nosuch"))
    with pytest.raises(LocalaiError, match="cannot hand the message"):
        turns.edited("x")
    monkeypatch.undo()
    monkeypatch.setenv("VISUAL", "false")
    with pytest.raises(LocalaiError, match="exit code 1") as failed:
        turns.edited("x")
    assert failed.value.hint.startswith("nothing is asked")


def test_a_conversation_that_the_disk_refused_has_no_name(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "ask", refuse)
    monkeypatch.setattr(sessions, "keep", refuse)
    room.ask("a")
    files.save(room, "")
    assert "nothing is kept, the disk refused it" in capsys.readouterr().err
    with pytest.raises(UsageError, match="the disk refused it"):
        files.save(room, "trip")


def test_the_system_text_outlives_a_preset(room: Room) -> None:
    room.set_system("Be brief.")
    files.preset(room, "summarize")
    room.ask("a")
    assert room.conversation.system != "Be brief."
    files.preset(room, "keywords")
    files.preset(room, "off")
    assert room.conversation.system == "Be brief."


def test_a_system_text_of_the_users_goes_before_the_presets(path: Path) -> None:
    given = Given(system="Be brief.", preset=files.activated("summarize", {}), max_tokens=2)
    room = Room(given, LoadOptions(context=1024), private=True)
    room.enter(str(path))
    room.ask("a")
    assert room.conversation.system == "Be brief."
    turns.system(room, "Be long.")
    room.ask("b")
    assert room.conversation.system == "Be long."
    assert "Summarise" in room.conversation.turns[-2].content
    room.leave()


def test_a_conversation_whose_only_question_was_not_answered_is_resumed_and_left(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    question = "--- a.txt ---\n" + "word " * 300 + "\n\nWhy?"
    session = sessions.find(str(sessions.ask(None, "m", None, question)))
    room.resume(session)
    shown = capsys.readouterr().err
    assert "before this was answered" in shown
    assert len(shown) < 2000
    assert ">>> --- a.txt ---" in shown
    assert shown.rstrip().endswith("Why?")
    assert room.kept_session() is None
    chat_model.set_context(room, 2048)
    for _ in range(2):  # asked at last, and once more
        turns.retry(room, "")
        assert [each.role for each in sessions.messages(session)] == ["user", "assistant"]
        assert sessions.messages(session)[0].content == question
    assert capsys.readouterr().err.count("the same answer is to be expected") == 1
    sessions.ask(session.id, "m", None, "And why?")
    room.resume(session)
    assert room.undo() == "And why?"
    assert len(sessions.messages(session)) == 2
    assert room.undo() == question
    assert sessions.every() == ()


def test_what_is_taken_back_leaves_the_history(room: Room) -> None:
    def type_(line: str) -> None:
        room.typed.add(line)
        room.undo() if line == "/undo" else room.ask(line)
        room.typed.keep(room.session)

    type_("first")
    type_("second")
    assert history.load() == ["first", "second"]
    type_("/undo")
    assert history.load() == ["first", "/undo"]
    type_("/undo")
    assert history.load() == []


def test_a_question_outlives_a_terminal_that_goes_away_while_it_is_read(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends(FakeEngine):
        def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
            yield PromptProgress(0, 5)
            monkeypatch.setattr(terminal, "_ending", 1)
            raise terminal.Ended(129)

    room.loaded.engine.close()
    room.take(replace(room.loaded, engine=Ends()))
    with pytest.raises(terminal.Ended):
        room.ask("Why?")
    assert [each.content for each in sessions.messages(sessions.find("last"))] == ["Why?"]


def test_a_full_context_is_told_from_a_limit(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    class Cut(FakeEngine):
        def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
            *events, end = super().generate(request, cancelled)
            yield from events
            yield replace(cast(AnswerEnd, end), finish_reason="length")

    room.loaded.engine.close()
    room.take(replace(room.loaded, engine=Cut(["one two three"], context=1024)))
    room.conversation.max_tokens = None
    room.ask("a")
    assert "(cut off: the context of 1,024 tokens is full)" in capsys.readouterr().err
    room.conversation.max_tokens = 3
    room.ask("a")
    assert "(cut off: the limit of tokens is reached)" in capsys.readouterr().err


def test_only_files_are_read_and_written_over(room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LARGEST_BYTES", 1000)
    (tmp_path / "large.json").write_bytes(b" " * 2000)
    with pytest.raises(UsageError, match="larger"):
        files.load(room, str(tmp_path / "large.json"))
    room.ask("a")
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(UsageError, match="device"):
        files.save(room, str(tmp_path / "pipe.md"))


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("take its password away first: qpdf --decrypt a.pdf plain.pdf", None),
        ("localai pull qwen3-4b", "in another terminal: localai pull qwen3-4b"),
        ("the file is damaged; localai verify says how to mend it", None),
        ("ask for less (--context)", "/model lists the installed ones"),
        ("--context 512 fits; localai pull qwen3-0.6b", "/model lists the installed ones"),
        ("localai recommend names some", "/model lists the installed ones"),
    ],
)
def test_hints_are_those_that_help_in_a_chat(room: Room, hint: str, told: str | None) -> None:
    assert repl.hint(room, LocalaiError("wrong", hint), "/model x") == (told or hint)


def test_a_disk_that_refuses_is_told_and_the_turn_kept_with_the_next(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room.ask("a")
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "keep", refuse)
        room.ask("b")
    assert "no memory" in capsys.readouterr().err
    assert [each.content for each in room.conversation.turns[::2]] == ["a", "b"]
    room.ask("c")
    kept = sessions.find("last")
    assert [each.content for each in sessions.messages(kept)[::2]] == ["a", "b", "c"]
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "keep", refuse)
        room.ask_instead("d")
    assert room.undo() == "d"
    assert [each.content for each in sessions.messages(kept)[::2]] == ["a", "b"]
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "take_back", refuse)
        with pytest.raises(DoesNotFit):
            room.undo()
    assert [each.content for each in room.conversation.turns[::2]] == ["a", "b"]
