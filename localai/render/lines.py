"""Lines of reports, notes, errors and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from localai.render.streams import flush, is_terminal, paint, width, write
from localai.render.text import LIVE, safe

SCHEMA_VERSION = 1


def out(text: str = "", end: str = "\n") -> None:
    """Write a line of a report to stdout, harmless on a terminal."""
    write(sys.stdout, (safe(text) if is_terminal(sys.stdout) else text) + end)


def emit(text: str) -> None:
    """Write to stdout, at once, what was made harmless before: an answer's lines."""
    write(sys.stdout, text)
    flush()


def plain_line(text: str) -> None:
    """Write a text as one line, at once: its line breaks and backslashes as `\\n`, `\\r` and `\\\\`."""
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
    out(escaped)
    flush()


def note(text: str) -> None:
    """Write a line to stderr, folded to the width of a terminal."""
    write(sys.stderr, _folded(safe(text)) + "\n")


def faint(text: str) -> None:
    """Write a line to stderr that is only worth a glance: dim where there are colours."""
    write(sys.stderr, "\n".join(paint(line, "2", sys.stderr) for line in _folded(safe(text)).split("\n")) + "\n")


def error(message: str, hint: str = "") -> None:
    """Say on stderr what happened, and what to do next."""
    for label, colour, text in (("error:", "1;31", message), ("hint:", "36", hint)):
        if text:
            line = _folded(f"{label} {safe(' '.join(text.split()))}")
            write(sys.stderr, paint(label, colour, sys.stderr) + line.removeprefix(label) + "\n")


def _folded(text: str) -> str:
    import textwrap

    if not is_terminal(sys.stderr):
        return text
    return "\n".join(
        textwrap.fill(line, width(), drop_whitespace=True, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


# -------------------------------------------------------------------------------------------------------- JSON


def json_object(content: Mapping[str, Any]) -> None:
    """Write one JSON object with its schema version to stdout."""
    write(sys.stdout, json_line(content, indent=2))


def line(content: Mapping[str, Any]) -> None:
    """Write one JSON object with its schema version as a line of its own."""
    out(json_line(content), end="")


def event(kind: str, content: Mapping[str, Any]) -> None:
    """Write one event of an ndjson stream, at once."""
    write(sys.stdout, json_line({"event": kind, **content}))
    flush()


def json_line(content: Mapping[str, Any], indent: int | None = None, encoding: str | None = None) -> str:
    """`content` as JSON text that stdout, or another `encoding`, can carry: non-ASCII stays readable in UTF-8, but for
    what could drive a terminal.
    """
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    utf8 = encoding.lower().replace("-", "") == "utf8"
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, ensure_ascii=not utf8, indent=indent, default=str)
    if utf8 and not text.isascii():
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # a file name need not be text
    return LIVE.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"  # stands within strings only
