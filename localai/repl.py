"""The interactive conversation: reads a line, has it answered or obeyed, survives Ctrl-C and what goes wrong."""

from __future__ import annotations

import contextlib
import re

from localai import line_editor, render, sessions, terminal
from localai.domain.generation import ANSWER_RESERVE
from localai.errors import ContextOverflow, LocalaiError, SchemaIncomplete
from localai.line_editor import Reader
from localai.loading import LoadOptions
from localai.room import Given, Room
from localai.slash import files, table

# What a hint says that is of no use within a chat: flags of ours, and commands but those that mend something meanwhile.
_FLAGS = re.compile(
    r"--(?:context|gpu-layers|threads|kv-type|rpc|draft|no-speculate|max-tokens|var|language|json-schema|image)\b"
)
_SHELL = re.compile(r"\blocalai [a-z]")
_ELSEWHERE = re.compile(r"\blocalai (?:pull|verify|doctor|import|rm|presets edit)\b")


def talk(
    model: str | None,
    given: Given,
    load_options: LoadOptions,
    private: bool = False,
    resume: sessions.Session | None = None,
) -> None:
    """Load `model` and converse until the user leaves.

    What is said is kept on this disk, as a new conversation or as more of `resume`, unless it is `private`.
    """
    room = Room(given, load_options, private)
    reader = line_editor.reader(lambda text: table.complete(room, text), room.meter)
    room.enter(model, resume)
    if given.preset is not None:
        files.told(given.preset)
    try:
        with terminal.conversing():
            if resume is not None:
                room.resume(resume)
            loop(room, reader)
    finally:
        try:
            room.leave()
        finally:
            terminal.end()


def loop(room: Room, reader: Reader) -> None:
    """Read and answer until the user leaves; what goes wrong in a turn is told, and the conversation goes on."""
    left = False
    while not left and not terminal.ending():
        try:
            left = step(room, reader)
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):
                reader.forget_ahead()
                render.note("(stopped)")


def step(room: Room, reader: Reader) -> bool:
    """One message or command; True ends the conversation."""
    try:
        line = reader.read()
    except KeyboardInterrupt:
        render.note("(Ctrl-D or /exit leaves)")
        return False
    except EOFError:
        return True
    if not line.strip():
        return False
    room.typed.add(line)
    before = room.last
    try:
        if table.is_command(line.strip()):
            with terminal.interruptible():
                return table.obey(room, line.strip())
        room.ask(line)
    except LocalaiError as error:
        render.error(error.message, hint(room, error, line))
    except OSError as error:  # what nobody thought of is no reason to end a conversation
        render.error(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), "")
    finally:
        room.typed.keep(room.session)
    if room.last is not None and room.last is not before and room.last.finish_reason == "interrupted":
        reader.forget_ahead()
    return False


def hint(room: Room, error: LocalaiError, line: str) -> str:
    """What to do next, in the words of the chat: a hint at the shell's would be of no use here."""
    if isinstance(error, ContextOverflow):
        made_for, needed = room.loaded.prepared.context_length, error.needed_tokens
        larger = -(-((needed or 0) + ANSWER_RESERVE) // 1024) * 1024
        if needed is not None and made_for is not None and larger <= made_for:
            return f"shorten it, or make room: /set context {larger}"
        return "shorten it, or take the part of it that matters"
    if isinstance(error, SchemaIncomplete):
        return "/set max_tokens allows a longer answer, /retry asks again, /preset off asks freely"
    if _FLAGS.search(error.hint) or (_SHELL.search(error.hint) and not _ELSEWHERE.search(error.hint)):
        return table.hint(line.strip())
    return f"in another terminal: {error.hint}" if _ELSEWHERE.match(error.hint) else error.hint
