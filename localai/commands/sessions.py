"""`localai sessions`: the conversations that `chat` kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localai import render
from localai.commands import options
from localai.commands.options import JsonFlag, YesFlag
from localai.errors import LocalaiError, UsageError

if TYPE_CHECKING:
    from localai.domain.generation import Message
    from localai.sessions import Session

app = typer.Typer(help="List, search, export and resume kept conversations.", rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="ID", help="a conversation's number, or last")]
FORMATS = ("markdown", "json")


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        render.out(context.get_help())


def whole(name: str) -> dict[str, Any]:
    from localai import sessions

    session = sessions.find(name)
    return sessions.as_json(session, sessions.messages(session))


@app.command(name="list")
def list_sessions(as_json: JsonFlag = False) -> None:
    """List the kept conversations, the latest first."""
    from localai import sessions

    found = sessions.every()
    if as_json:
        render.json_object({"sessions": [asdict(each) for each in found], "path": str(sessions.database())})
        return
    if not found:
        render.note("no conversations are kept; localai chat keeps them, without --private")
        return
    rows = [
        (str(each.id), render.local_time(each.updated_at), str(each.turns), each.model, each.title) for each in found
    ]
    render.out(render.columns(("ID", "LAST USED", "TURNS", "MODEL", "BEGINS WITH"), rows, right=(0, 2), fold=True))


@app.command()
def show(session: Id = "last", as_json: JsonFlag = False) -> None:
    """Show what was said in a conversation."""
    from localai import sessions

    if as_json:
        render.json_object(whole(session))
        return
    found = sessions.find(session)
    render.out(sessions.markdown(found, sessions.messages(found)), end="")


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="what to look for")], as_json: JsonFlag = False
) -> None:
    """Find messages that hold all of these words."""
    from localai import sessions

    hits = sessions.search(" ".join(words))
    if as_json:
        content = [{"session": hit.session.id, "role": hit.role, "excerpt": hit.excerpt} for hit in hits]
        render.json_object({"hits": content})
        return
    if not hits:
        render.note("nothing was found")
        return
    rows = [(str(hit.session.id), hit.role, " ".join(hit.excerpt.split())) for hit in hits]
    render.out(render.columns(("ID", "WHO", "TEXT"), rows, right=(0,), fold=True))


@app.command()
def export(
    session: Id = "last",
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="markdown or json; markdown unless FILE ends in .json."),
    ] = None,
    as_json: JsonFlag = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write it into FILE, which must not be there yet.")
    ] = None,
) -> None:
    """Write a conversation as Markdown or JSON, to stdout or a file."""
    from localai import sessions

    if form is not None:
        options.check_choice("--format", form, FORMATS)
    if as_json and form == "markdown":
        raise UsageError("--json and --format markdown exclude each other", "localai sessions export --help")
    form = "json" if as_json else form
    if to is None:
        show(session, as_json=form == "json")
        return
    found = sessions.find(session)
    if os.path.lexists(to):
        raise UsageError(f"{to} is there already", "give --to another name; nothing is written over")
    write_file(to, found, sessions.messages(found), form, "give --to another path")
    render.note(f"written to {to}")


def write_file(path: Path, session: Session, said: Sequence[Message], form: str | None, hint: str) -> None:
    """Write a conversation as JSON or Markdown, as the name tells where no form is given; for this user only.

    Raises LocalaiError with the hint.
    """
    from localai import sessions, settings

    if (path.suffix.lower() == ".json") if form is None else (form == "json"):
        text = render.json_line(sessions.as_json(session, said), indent=2, encoding="utf-8")
    else:
        text = sessions.markdown(session, said)
    try:
        settings.write_atomically(path, text.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", error)
        raise LocalaiError(f"cannot write {path}: {why}", hint) from error


@app.command()
def resume(session: Id = "last") -> None:
    """Go on with a conversation, with the model it was had with."""
    from localai import sessions
    from localai.commands import chat

    found = sessions.find(session)
    chat.chat(found.model, resume=str(found.id))


@app.command(name="rm")
def remove(session: Id, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove a conversation."""
    from localai import history, sessions

    found = sessions.find(session)
    if not yes:
        options.confirm_removal(
            f"Remove the conversation {found.id} ({found.title!r})?", f"localai sessions rm --yes {found.id}"
        )
    sessions.remove(found)
    try:
        history.forget(found.id)
    except OSError as error:
        render.note(f"warning: what was typed in it stays in {history.path()}: {error.strerror}")
    if as_json:
        render.json_object({"removed": asdict(found)})
        return
    render.note(f"removed the conversation {found.id}")
