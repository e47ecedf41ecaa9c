"""Text for people: harmless on a terminal, in words, in columns. Nothing here is written anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from localai.render.streams import width

# What a terminal may obey: C0 and C1 controls but tab and newline, DEL, and the bidirectional overrides.
LIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def safe(text: str) -> str:
    """`text` with every character that could drive a terminal shown as an escape instead."""
    return text if text.isprintable() else LIVE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def size(number: int | None) -> str:
    """Bytes as files are sold, in powers of ten: `98 MB`, `2.5 GB`."""
    if number is None:
        return "unknown"
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def memory(number: int | None) -> str:
    """Bytes as memory is sold, in powers of two: `7.6 GiB`."""
    if number is None:
        return "unknown"
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def local_time(moment: str) -> str:
    """A moment in ISO 8601 as the clock of the user says it: `2026-11-24 17:05`; `--json` keeps it in UTC."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a clock that is far off
        return moment[:16]


def count(number: int, thing: str) -> str:
    """So many things: `1 record`, `2,000 records`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def columns(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), fold: bool = False
) -> str:
    """Rows under headers, aligned, two spaces between columns; numbers `right`-aligned by column index.

    With `fold` the last column is prose, folded to the width; where that leaves too little it stands below.
    """
    table = [[safe(cell).replace("\n", " ") for cell in row] for row in (headers, *rows)]
    widths = [max(cells(row[index]) for row in table) for index in range(len(headers))]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    lines = []
    for row in table:
        padded = []
        for index, cell in enumerate(row):
            padding = " " * (widths[index] - cells(cell))
            padded.append(padding + cell if index in right else cell + padding)
        line = "  ".join(padded).rstrip()
        if fold and cells(line) > width():
            beside = width() > before + 20
            indent = before if beside else 2
            parts = _wrapped(row[-1], width() - indent)
            first = line[:before] + parts.pop(0) if beside and parts else line[:before].rstrip()
            line = "\n".join([first, *(" " * indent + each for each in parts)])
        lines.append(line)
    return "\n".join(lines)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a line, the values under each other and folded to the terminal's width.

    Where the names leave too little of that a value that needs more stands below its name.
    """
    pairs = [(name, safe(value)) for name, value in pairs]
    indent = max((len(name) for name, _ in pairs), default=0) + 2
    beside = width() - indent >= 30
    lines = []
    for name, value in pairs:
        if not beside and indent + cells(value) > width():
            lines += [name, *("    " + each for each in _wrapped(value, width() - 4))]
            continue
        first, *rest = _wrapped(value, max(width() - indent, 30)) or [""]
        lines += [name.ljust(indent) + first, *(" " * indent + each for each in rest)]
    return "\n".join(line.rstrip() for line in lines)


def paragraph(text: str, indent: str = "") -> str:
    """Text folded to the terminal's width, the lines after the first indented."""
    first, *rest = _wrapped(safe(text), width()) or [""]
    return "\n".join([first, *(indent + line for line in _wrapped(" ".join(rest), width() - len(indent)))])


def _wrapped(text: str, columns: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(columns, 20), break_long_words=False, break_on_hyphens=False)
