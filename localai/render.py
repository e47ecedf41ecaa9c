"""The only module that prints: answers and reports on stdout, everything else on stderr.

Nothing that comes from a model, a file or the Hub reaches a terminal with its control characters live; what is piped is
exact.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from localai.errors import LocalaiError, PipeClosed

SCHEMA_VERSION = 1

# ------------------------------------------------------------------------------------------------------ streams


def use_tolerant_streams() -> None:
    """Make no character a reason to fail, whatever the locale: what cannot be encoded is shown escaped, and what cannot
    be decoded becomes a replacement character.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person looks at `stream` (None: it was closed before we started)."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


_plain = False


def be_plain() -> None:
    """From now on: no colour, and nothing on a terminal is written over; for screen readers."""
    global _plain
    _plain = True


def plain() -> bool:
    """Whether the terminal is only to be written to line by line: it can do no more, or it is read aloud."""
    return _plain or os.environ.get("TERM", "dumb" if os.name == "posix" else "") == "dumb"


def colour_wanted(stream: IO[str]) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and not plain()


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def _write(stream: IO[str] | None, text: str) -> None:
    if stream is None:
        return
    try:
        stream.write(text)
    except BrokenPipeError as error:
        raise PipeClosed from error
    except OSError as error:
        raise cannot_write(error) from error


def flush() -> None:
    """Hand on what is written. Raises PipeClosed if nobody reads it any more, LocalaiError if it cannot be written."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError as error:
        raise PipeClosed from error
    except OSError as error:
        _abandon_stdout()
        raise cannot_write(error) from error


def cannot_write(error: OSError) -> LocalaiError:
    return LocalaiError(f"cannot write the output: {error.strerror}", "check the disk that the output goes to")


def _abandon_stdout() -> None:
    """Point stdout nowhere: what it still holds cannot be written, and would fail again at the interpreter's end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def out(text: str = "", end: str = "\n") -> None:
    """Write a line of a report to stdout, harmless on a terminal."""
    _write(sys.stdout, (safe(text) if is_terminal(sys.stdout) else text) + end)


def note(text: str) -> None:
    """Write a line to stderr, folded to the width of a terminal."""
    _write(sys.stderr, _folded(safe(text)) + "\n")


def faint(text: str) -> None:
    """Write a line to stderr that is only worth a glance: dim where there are colours."""
    _write(sys.stderr, "\n".join(paint(line, "2", sys.stderr) for line in _folded(safe(text)).split("\n")) + "\n")


def _folded(text: str) -> str:
    import textwrap

    if not is_terminal(sys.stderr):
        return text
    return "\n".join(
        textwrap.fill(line, width(), drop_whitespace=True, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def error(message: str, hint: str = "") -> None:
    """Say on stderr what happened, and what to do next."""
    for label, colour, text in (("error:", "1;31", message), ("hint:", "36", hint)):
        if text:
            line = _folded(f"{label} {safe(' '.join(text.split()))}")
            _write(sys.stderr, paint(label, colour, sys.stderr) + line.removeprefix(label) + "\n")


def paint(text: str, code: str, stream: IO[str]) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour_wanted(stream) else text


def json_object(content: Mapping[str, Any]) -> None:
    """Write one JSON object with its schema version to stdout."""
    _write(sys.stdout, json_line(content, indent=2))


def line(content: Mapping[str, Any]) -> None:
    """Write one JSON object with its schema version as a line of its own."""
    out(json_line(content), end="")


def plain_line(text: str) -> None:
    """Write a text as one line, at once: its line breaks and backslashes as `\\n`, `\\r` and `\\\\`."""
    escaped = text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
    out(escaped)
    flush()


def can_show(characters: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def emit(text: str) -> None:
    """Write to stdout, at once, what was made harmless before: an answer's lines."""
    _write(sys.stdout, text)
    flush()


def to_terminal(sequence: str) -> None:
    """Send a control sequence of our own making to the terminal, where there is one."""
    stream = next((each for each in (sys.stderr, sys.stdout) if is_terminal(each)), None)
    _write(stream, sequence)
    if stream is not None:
        stream.flush()


def event(kind: str, content: Mapping[str, Any]) -> None:
    """Write one event of an ndjson stream, at once."""
    _write(sys.stdout, json_line({"event": kind, **content}))
    flush()


def json_line(content: Mapping[str, Any], indent: int | None = None, encoding: str | None = None) -> str:
    """`content` as JSON text that stdout, or another `encoding`, can carry: non-ASCII stays readable in UTF-8."""
    encoding = encoding or getattr(sys.stdout, "encoding", None) or "utf-8"
    utf8 = encoding.lower().replace("-", "") == "utf8"
    text = json.dumps({"schema_version": SCHEMA_VERSION, **content}, ensure_ascii=not utf8, indent=indent, default=str)
    if utf8 and not text.isascii():
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # a file name need not be text
    return text + "\n"


# --------------------------------------------------------------------------------------------------- plain text


def _is_live(character: str) -> bool:
    """Whether a terminal may obey the character: C0 and C1 controls, DEL, and the bidirectional overrides."""
    number = ord(character)
    return (
        (number < 0x20 and character not in "\n\t")
        or 0x7F <= number <= 0x9F
        or 0x202A <= number <= 0x202E
        or 0x2066 <= number <= 0x2069
    )


def safe(text: str) -> str:
    """`text` with every character that could drive a terminal shown as an escape instead."""
    if text.isprintable():
        return text
    return "".join(f"\\x{ord(c):02x}" if _is_live(c) else c for c in text)


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


def columns(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = (), fold: bool = False
) -> str:
    """Rows under headers, aligned, two spaces between columns; numbers `right`-aligned by column index.

    With `fold` the last column is prose, folded to the width.
    """
    import textwrap

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
        if fold and cells(line) > width() > before + 20:
            first, *rest = textwrap.wrap(row[-1], width() - before, break_long_words=False, break_on_hyphens=False)
            line = "\n".join([line[:before] + first, *(" " * before + each for each in rest)])
        lines.append(line)
    return "\n".join(lines)


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a line, the values under each other and folded to the terminal's width."""
    import textwrap

    pairs = [(name, safe(value)) for name, value in pairs]
    indent = max((len(name) for name, _ in pairs), default=0) + 2
    lines = []
    for name, value in pairs:
        folded = textwrap.wrap(value, max(width() - indent, 30), break_long_words=False, break_on_hyphens=False) or [""]
        lines.append(name.ljust(indent) + folded[0])
        lines.extend(" " * indent + each for each in folded[1:])
    return "\n".join(line.rstrip() for line in lines)


# ----------------------------------------------------------------------------------------------- while it runs


class AnswerStream:
    """Streams an answer to stdout, each piece at once: made harmless on a terminal, exact anywhere else."""

    held = ""  # nothing is held back here

    def __init__(self) -> None:
        self._terminal = is_terminal(sys.stdout)
        self._last = ""

    def write(self, text: str) -> None:
        _write(sys.stdout, safe(text) if self._terminal else text)
        self._last = text[-1:] or self._last
        flush()

    def end(self) -> None:
        """End the answer's last line."""
        if self._last not in ("", "\n"):
            _write(sys.stdout, "\n")
        flush()


class ThinkingStream:
    """Streams a model's thoughts to stderr, dimmed on a terminal and set off from the answer."""

    def __init__(self) -> None:
        self._open = False

    def write(self, text: str) -> None:
        if not self._open:
            self._open = True
            _write(sys.stderr, "\x1b[2m" if colour_wanted(sys.stderr) else "")
        _write(sys.stderr, safe(text) if is_terminal(sys.stderr) else text)
        if sys.stderr is not None:
            sys.stderr.flush()

    def end(self) -> None:
        if self._open:
            self._open = False
            _write(sys.stderr, "\x1b[0m\n\n" if colour_wanted(sys.stderr) else "\n\n")


class Status:
    """A line on stderr that is written over while something goes on; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = is_terminal(sys.stderr) and not plain()
        self._last_shown = 0.0
        self._dirty = False

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._shown and now - self._last_shown >= 0.1:
            self._last_shown, self._dirty = now, True
            _write(sys.stderr, "\r" + safe(text)[: width() - 1] + "\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._dirty:
            _write(sys.stderr, "\r\x1b[K")
            sys.stderr.flush()
            self._dirty = False


_RATE_SECONDS = 10  # the rate is of the last ones: what was here already, or came before a stall, says nothing


class TransferProgress:
    """Progress of a download on stderr: a bar with rate and time left on a terminal, a line each tenth elsewhere."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total, self._done = label, total_bytes, 0
        self._status = Status()
        self._terminal = is_terminal(sys.stderr)
        self._recent: deque[tuple[float, int]] = deque()  # seconds and bytes, of the last _RATE_SECONDS
        self._tenth = -1

    def update(self, done_bytes: int) -> None:
        now = time.monotonic()
        self._done = done_bytes
        if self._recent and done_bytes < self._recent[-1][1]:
            self._recent.clear()  # begun anew
        self._recent.append((now, done_bytes))
        while now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        seconds = now - self._recent[0][0]
        rate = (done_bytes - self._recent[0][1]) / seconds if seconds > 0.5 else None
        share = done_bytes / self._total if self._total else 1.0
        text = f"{self._label}: {share:4.0%} of {size(self._total)}"
        if rate:
            left = max(self._total - done_bytes, 0) / rate
            text += f", {size(int(rate))}/s, {duration(left)} left"
        if self._terminal:
            self._status.show(text)
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            note(text)

    def end(self) -> None:
        self._status.clear()


class BatchProgress:
    """How far a batch is, on stderr: with rate and time left on a terminal, a line now and then elsewhere."""

    _QUIET_S = 30.0  # between two lines where stderr is no terminal

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._first, self._done = total, done, done
        self._status = Status()
        self._started = self._told = time.monotonic()

    def update(self, done: int | None = None) -> None:
        """So many records are done; None: as before, but time has passed."""
        self._done = self._done if done is None else done
        if is_terminal(sys.stderr):
            self._status.show(self._text())
        elif time.monotonic() - self._told >= self._QUIET_S:
            self._told = time.monotonic()
            note(self._text())

    def _text(self) -> str:
        text = f"{self._done:,} records" if self._total is None else f"{self._done:,} of {self._total:,} records"
        seconds = time.monotonic() - self._started
        if self._done > self._first and seconds > 0.5:
            rate = (self._done - self._first) / seconds
            text += f", {_rate(rate)}"
            if self._total is not None:
                text += f", {duration(max(self._total - self._done, 0) / rate)} left"
        return text

    def clear(self) -> None:
        """Make room for another line."""
        self._status.clear()

    def end(self) -> None:
        """Say what was done, and how fast."""
        self._status.clear()
        seconds, count = time.monotonic() - self._started, self._done - self._first
        if count:
            note(f"{self._done:,} records, {count:,} in {duration(seconds)} ({_rate(count / max(seconds, 1e-3))})")


def _rate(a_second: float) -> str:
    return f"{a_second:.1f} a second" if a_second >= 1 else f"{a_second * 60:.1f} a minute"


def duration(seconds: float) -> str:
    """Seconds in words: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def ask(question: str) -> str | None:
    """Ask on stderr and return the answer; None where stdin is no terminal, and at its end."""
    line = read_line(question)
    return None if line is None else line.strip()


def read_line(question: str) -> str | None:
    """The same, with the line as it was typed."""
    if not is_terminal(sys.stdin):
        return None
    _write(sys.stderr, safe(question) + " ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def confirmed(question: str, default: bool = True) -> bool | None:
    """Ask a yes-or-no question; None where nobody can be asked."""
    if not is_terminal(sys.stdin):
        return None
    answer = ask(f"{question} [{'Y/n' if default else 'y/N'}]")
    if answer is None:  # Ctrl-D at a question is no consent
        note("")
        return False
    return default if not answer else answer.lower() in ("y", "yes", "o", "oui")
