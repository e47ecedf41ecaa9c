"""All slash commands: which line is one, what it does, what Tab offers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from localai import render
from localai.slash import files, tuning, turns
from localai.slash.command import Command

if TYPE_CHECKING:
    from localai.room import Room

LEAVE = ("exit", "quit", "bye")
_NAME = re.compile(r"/([A-Za-z?]*)(?:\s+(.*))?", re.DOTALL)

KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'a new line; or put the message between """ and """'),
    ("Ctrl-X Ctrl-E", "write the message in $EDITOR"),
    ("Tab", "complete a command, a model, a path"),
    ("Ctrl-C", "stop the answer"),
    ("Ctrl-D", "leave"),
)


def help_text(room: Room, argument: str) -> None:
    wanted = argument.lstrip("/")
    if wanted in COMMANDS:
        command = COMMANDS[wanted]
        render.note(f"{usage(command)}: {command.help}")
        return
    render.note(render.facts([*((usage(each), each.help) for each in COMMANDS.values()), ("/exit", "leave")]))
    render.note("")
    render.note(render.facts(KEYS))


def usage(command: Command) -> str:
    return f"/{command.name} {command.argument}".rstrip()


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("help", "[COMMAND]", "list the commands and keys", help_text, lambda room, typed: COMMANDS),
        *turns.COMMANDS,
        *files.COMMANDS,
        *tuning.COMMANDS,
    )
}


def is_command(line: str) -> bool:
    """Whether a line is a slash command: a word of letters after the slash, so that a path may begin a message."""
    return _NAME.fullmatch(line) is not None


def obey(room: Room, line: str) -> bool:
    """Carry out a slash command; True ends the conversation. Raises LocalaiError, KeyboardInterrupt."""
    found = _NAME.fullmatch(line)
    assert found is not None, "asked by is_command"
    name, argument = found[1].lower(), (found[2] or "").strip()
    if name in LEAVE:
        return True
    command = COMMANDS.get("help" if name in ("", "?") else name)
    if command is None:
        near = difflib.get_close_matches(name, [*COMMANDS, *LEAVE], n=1)
        guess = f"did you mean /{near[0]}? " if near else ""
        render.note(f"there is no command /{name}; {guess}/help lists them")
    else:
        command.run(room, argument)
    return False


def hint(line: str) -> str:
    """What to do next where this line went wrong."""
    found = _NAME.fullmatch(line)
    command = COMMANDS.get(found[1].lower()) if found else None
    return command.hint if command else "/retry asks again, /model takes another model"


def complete(room: Room, before: str) -> tuple[int, Iterable[str]]:
    """What Tab offers after this text: names of commands, then what their argument may be."""
    if not before.startswith("/"):
        return 0, ()
    name, space, argument = before[1:].partition(" ")
    name = name.lower()
    if not space:
        return len(before), [f"/{each}" for each in (*COMMANDS, "exit") if each.startswith(name)]
    command = COMMANDS.get(name)
    words = command.words(room, argument) if command else ()
    return len(argument), [word for word in words if word.startswith(argument)]
