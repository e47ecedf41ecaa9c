"""The slash commands about what was said: take it back, ask again, change it, copy it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from localai import clipboard, render, terminal
from localai.commands.presets import editor_here, editor_set, open_editor
from localai.errors import LocalaiError, NotFound, UsageError
from localai.slash.command import Command

if TYPE_CHECKING:
    from localai.room import Room

_CODE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)


def clear(room: Room, argument: str) -> None:
    room.forget()
    render.note("(the conversation is empty; a new one begins)")


def undo(room: Room, argument: str) -> None:
    question = room.undo()
    render.note(f"(taken back: {_shortened(question)})" if question else "(there is nothing to take back)")


def retry(room: Room, argument: str) -> None:
    if not room.conversation.turns and room.unanswered is None:
        render.note("(nothing has been asked yet)")
        return
    sampling = room.conversation.sampling
    if room.unanswered is None and (sampling.temperature == 0 or sampling.seed is not None):
        why = "the temperature is 0" if sampling.temperature == 0 else "the seed is set"
        render.note(f"({why}: the same answer is to be expected; /set changes it)")
    room.ask_instead(None)


def edit(room: Room, argument: str) -> None:
    turns = room.conversation.turns
    before = argument or room.unanswered or (turns[-2].content if turns else "")
    after = edited(before)
    if not after.strip() or (after == before and not argument):
        render.note("(nothing was changed)")
    elif before and not argument:
        render.note(f"(asked instead: {_shortened(after)})")
        room.ask_instead(after)
    else:
        room.typed.instead(after)  # so that the arrow keys bring it back, and /undo knows it
        render.note(f"(asked: {_shortened(after)})")
        room.ask(after)


def edited(text: str) -> str:
    """`text` as the user's editor leaves it. Raises UsageError where none can be started, LocalaiError if it fails."""
    command = editor_set() or editor_here()
    if not command:
        raise UsageError("no editor is set", "leave with /exit, then: export EDITOR=nano")
    try:
        with tempfile.TemporaryDirectory(prefix="localai-") as folder:  # 0700, and gone afterwards
            path = Path(folder) / "message.md"
            path.write_text(text, "utf-8", "replace")
            with terminal.cooked():
                open_editor([*command, str(path)], "nothing is asked; /edit tries again")
            try:
                return path.read_text("utf-8", "replace").strip("\n")
            except FileNotFoundError:
                return ""
    except OSError as error:
        why = f"cannot hand the message to the editor: {error.strerror}"
        raise LocalaiError(why, "make room, or set TMPDIR to a folder that can be written to") from error


def _shortened(text: str) -> str:
    line = " ".join(text[:500].split())
    return line if len(line) <= 60 else line[:59] + "…"


def system(room: Room, argument: str) -> None:
    if not argument:
        render.note(room.conversation.system or "(no system text)")
        return
    room.set_system(None if argument == "-" else argument)
    render.note("(removed)" if argument == "-" else "(set)")


def copy(room: Room, argument: str) -> None:
    what, *rest = argument.split() or [""]
    by_terminal = "osc52" in (what, *rest)
    turns = room.conversation.turns
    if not turns:
        render.note("(nothing has been answered yet)")
        return
    text = turns[-1].content
    if what == "code":
        blocks = _CODE.findall(text)
        if not blocks:
            raise NotFound("the last answer holds no code", "/copy takes all of it")
        text = blocks[-1][1]
    elif what == "all":
        text = "\n\n".join(f"## {each.role}\n\n{each.content}" for each in turns) + "\n"
    elif what and not by_terminal:
        raise UsageError(f"/copy does not know {what!r}", "/copy, /copy code, /copy all; with osc52 by the terminal")
    if by_terminal:
        render.to_terminal(clipboard.osc52(text))
        render.note(f"({len(text):,} characters handed to the terminal, which may refuse)")
        return
    try:
        program = clipboard.copy(text)
    except NotFound as error:
        raise NotFound(error.message, "/copy osc52 asks the terminal itself; /save FILE.md writes a file") from error
    render.note(f"({len(text):,} characters copied by {program})")


COMMANDS = (
    Command("clear", "", "forget the conversation and begin a new one; the system text stays", clear),
    Command("undo", "", "take the last question and its answer back", undo),
    Command("retry", "", "answer the last question again", retry),
    Command("edit", "[TEXT]", "change the last question in $EDITOR and ask it instead; or write one", edit),
    Command("system", "[TEXT|-]", "show the system text, set it, or remove it (-)", system, lambda room, typed: ("-",)),
    Command(
        "copy",
        "[code|all] [osc52]",
        "copy the last answer, its last code or everything",
        copy,
        lambda room, typed: ("code", "all", "osc52"),
    ),
)
