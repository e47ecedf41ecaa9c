"""`localai doctor`: what is wrong, and the exact command that mends it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localai import render, schema
from localai.commands.options import JsonFlag
from localai.doctor import Finding, Status, examine, healthy
from localai.errors import ExitCode

_MARKS = {Status.OK: "✓", Status.WARNING: "!", Status.FAULT: "✗"}
_ASCII_MARKS = {Status.OK: "+", Status.WARNING: "!", Status.FAULT: "x"}


def doctor(
    verify: Annotated[
        bool, typer.Option("--verify", help="Also hash every installed model, which reads all of their bytes.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what is wrong here, and the command that mends it."""
    status = render.Status()
    found = []
    for finding in examine(verify, lambda done: status.show(f"Hashing models: {render.size(done)}")):
        status.clear()
        found.append(finding)
        if not as_json:
            show(finding)
    if as_json:
        render.json_object({"ok": healthy(found), "checks": [schema.finding(each) for each in found]})
    elif not healthy(found):
        render.out(f"{render.count(sum(each.status is Status.FAULT for each in found), 'fault')} to mend")
    if not healthy(found):
        raise typer.Exit(ExitCode.FAILURE)


def show(finding: Finding) -> None:
    """A line of what was found: a mark and a word, so that neither colour nor UTF-8 is needed to read it."""
    render.out(render.facts([(f"{mark(finding.status)} {finding.status:8} {finding.check:9}", finding.message)]))
    if finding.command is not None:
        indent = 22 if render.width() >= 52 else 4  # as the message above it
        render.out(f"{'':{indent}}$ {render.safe(finding.command)}")  # never folded: it is to be copied


def mark(status: Status) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "".join(_MARKS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII_MARKS[status]
    return _MARKS[status]
