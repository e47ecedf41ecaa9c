"""The slash commands about what comes from outside and goes there: documents, presets, kept conversations."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from localai import chat_model, documents, presets, render, sessions, terminal
from localai.commands import question
from localai.commands.sessions import write_file
from localai.domain.generation import Message
from localai.errors import UsageError
from localai.slash.command import Command, given_paths, paths

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema
    from localai.room import Room

EXPORTS = (".json", ".md", ".markdown")
LISTED = 10


def file(room: Room, argument: str) -> None:
    if argument == "-":
        room.documents.clear()
        render.note("(no file goes with the next question)")
        return
    for path in given_paths(argument) if argument else ():
        document = documents.read(path)
        room.documents.append(document)
        tokens = room.loaded.engine.count_tokens((Message("user", document.text),), room.conversation.think)
        render.note(f"({document.name}, about {tokens:,} tokens, goes with the next question; /file - takes it back)")
        if tokens >= room.loaded.engine.context:
            render.note(f"(that is more than the {room.loaded.engine.context:,} tokens of context)")
    if not argument:
        names = ", ".join(each.name for each in room.documents)
        render.note(f"(with the next question: {names})" if names else "(none; /file PATH takes one)")


def image(room: Room, argument: str) -> None:
    from localai import images

    if argument == "-":
        room.images.clear()
        render.note("(no image goes with the next question)")
    elif argument:
        chat_model.see(room)
        for path in given_paths(argument):
            picture = images.read(path)
            room.images.append(picture)
            size = f"{picture.width} x {picture.height}"
            render.note(f"({picture.name}, {size}, goes with the next question; /image - takes it back)")
    else:
        names = ", ".join(each.name for each in room.images)
        render.note(f"(with the next question: {names})" if names else "(none; /image PATH takes one)")


# ------------------------------------------------------------------------------------------------------- presets


@dataclass(frozen=True, slots=True)
class ActivePreset:
    """A preset that every question goes through until it is ended."""

    preset: presets.Preset
    text: presets.PresetText
    variables: dict[str, str]
    schema: AnswerSchema | None

    def with_system(self, text: str | None) -> ActivePreset:
        """The same with another system text."""
        return replace(self, text=replace(self.text, system=text or ""))

    def fill(self, content: str) -> presets.Filled:
        """What becomes of a question. Raises UsageError for a variable that is missing or unknown."""
        return presets.fill(self.preset, self.text, self.variables, content)


def preset(room: Room, argument: str) -> None:
    try:
        words = shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"/preset: {error}", '/preset NAME variable="some words"') from error
    if not words:
        rows = [(each.name, each.text().description) for each in presets.every()]
        render.note(render.columns(("PRESET", "WHAT IT DOES"), rows, fold=True))
        return
    if words == ["off"]:
        room.use_preset(None)
        render.note("(questions are asked as they are)")
        return
    given = variables(words[1:])
    try:
        active = activated(words[0], given)
    except UsageError as error:
        text = presets.find(words[0]).text()
        needed = " ".join(f"{name}=..." for name in (*text.required, *text.variables))
        raise UsageError(error.message, f"/preset {words[0]} {needed}") from error
    room.use_preset(active)
    told(active)


def activated(name: str, given: dict[str, str], language: str | None = None) -> ActivePreset:
    """The preset with its variables. Raises NotFound, UsageError."""
    chosen = presets.find(name)
    schema = question.schema_wanted(None, chosen)
    active = ActivePreset(chosen, chosen.text(language), given, schema)
    active.fill("")  # a missing variable is told before anything is asked
    return active


def told(active: ActivePreset) -> None:
    """Say that questions go through a preset from now on."""
    name, what = active.preset.name, active.text.description
    render.note(f"({name}: {what} Each question goes through it; /preset off ends it)")


def variables(words: list[str]) -> dict[str, str]:
    """The NAME=VALUE words. Raises UsageError for another."""
    for word in words:
        if "=" not in word:
            raise UsageError(f"/preset does not understand {word!r}", '/preset NAME variable="some words"')
    return presets.given_variables(words)


def preset_words(room: Room, typed: str) -> Iterable[str]:
    name, space, _ = typed.partition(" ")
    known = {each.name: each for each in presets.every()}
    if not space:
        return [*known, "off"]
    text = known[name].text() if name in known else None
    before = typed[: typed.rfind(" ") + 1]
    return [f"{before}{each}=" for each in (*text.required, *text.variables)] if text else []


# ------------------------------------------------------------------------------------------------ conversations


def save(room: Room, argument: str) -> None:
    if not room.conversation.turns:
        render.note("(nothing has been said yet)")
    elif not argument:
        kept = f"(kept as conversation {room.session}; /save NAME names it)"
        render.note(kept if room.session is not None else f"({unkept(room)}; /save FILE.md writes a file)")
    elif is_path(argument):
        export(room, given_paths(argument)[0])
    elif room.session is None:
        raise UsageError(f"it has no name: {unkept(room)}", "/save FILE.md writes it to a file")
    else:
        sessions.rename(room.session, argument)
        render.note(f"(conversation {room.session} is called {argument!r}: /load {argument} goes on with it)")


def unkept(room: Room) -> str:
    return "nothing is kept, this is private" if room.private else "nothing is kept, the disk refused it"


def is_path(text: str) -> bool:
    """Whether a word names a file to write or read, and not a kept conversation."""
    return text.lower().endswith(EXPORTS) or "/" in text or "\\" in text or text.startswith("~")


def export(room: Room, path: Path) -> None:
    """Write the conversation as JSON or Markdown, for this user only. Raises LocalaiError."""
    if os.path.isdir(path):  # Path.is_dir raises where a folder is closed to us
        raise UsageError(f"{path} is a folder", f"/save {path / 'conversation.md'}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is a device", "/save takes another path")
    if os.path.exists(path):
        with terminal.cooked():
            if not render.confirmed(f"{path} is there already. Write over it?", default=False):
                return
    session, said = kept_or_not(room)
    write_file(path, session, said, None, "/save takes another path")
    render.note(f"(written to {path})")


def kept_or_not(room: Room) -> tuple[sessions.Session, tuple[Message, ...]]:
    """The conversation as it is kept, with the turns that no longer fit the context; else as it is remembered."""
    if room.session is not None:
        session = sessions.find(str(room.session))
        return session, sessions.messages(session)
    said = room.conversation.turns
    now = datetime.now(UTC).isoformat(timespec="seconds")
    title = " ".join(said[0].content[:500].split())[: sessions.TITLE_LENGTH]
    made = sessions.Session(0, now, now, room.loaded.name, title, room.conversation.system, len(said) // 2)
    return made, said


def load(room: Room, argument: str) -> None:
    if not argument:
        rows = [
            (str(each.id), render.local_time(each.updated_at), each.model, each.title)
            for each in sessions.every()[:LISTED]
        ]
        if rows:
            render.note(render.columns(("ID", "LAST USED", "MODEL", "TITLE"), rows, right=(0,)))
        render.note("/load ID goes on with one" if rows else "(no conversations are kept)")
    elif is_path(argument):
        path = given_paths(argument)[0]
        text = documents.content_of(path).decode("utf-8-sig", "replace")
        system, said = sessions.from_json(text, str(path))
        room.bring_in(system, said)
        render.note(f"({render.count(len(said) // 2, 'turn')} from {path})")
    else:
        room.resume(sessions.find(argument))


def load_words(room: Room, typed: str) -> Iterable[str]:
    return [*(str(each.id) for each in sessions.every()[:LISTED]), sessions.LAST, *paths(room, typed)]


COMMANDS = (
    Command(
        "file",
        "[PATH|-]",
        "put a document (PDF, DOCX, HTML, text) into the next question",
        file,
        paths,
        "/file PATH takes one at a time",
    ),
    Command("image", "[PATH|-]", "show a picture to a model that sees, with the next question", image, paths),
    Command(
        "preset", "[NAME k=v ...|off]", "ask through a preset, or list them", preset, preset_words, "/preset lists them"
    ),
    Command("save", "[NAME|PATH]", "name the kept conversation, or write it to a .md or .json file", save, paths),
    Command(
        "load",
        "[ID|NAME|PATH]",
        "go on with a kept conversation, or with a .json file",
        load,
        load_words,
        "/load lists them",
    ),
)
