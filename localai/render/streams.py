"""stdout and stderr: what they can show, and writing to them."""

from __future__ import annotations

import io
import os
import shutil
import sys
from typing import IO

from localai.errors import LocalaiError, PipeClosed


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
    return _plain or (os.environ.get("TERM") or ("dumb" if os.name == "posix" else "")) == "dumb"


def colour_wanted(stream: IO[str]) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and not plain()


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns


def write(stream: IO[str] | None, text: str) -> None:
    """Write `text` as it is. Raises PipeClosed if nobody reads it any more, LocalaiError if it cannot be written."""
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


def paint(text: str, code: str, stream: IO[str]) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour_wanted(stream) else text


def can_show(characters: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def to_terminal(sequence: str) -> None:
    """Send a control sequence of our own making to the terminal, where there is one."""
    stream = next((each for each in (sys.stderr, sys.stdout) if is_terminal(each)), None)
    write(stream, sequence)
    if stream is not None:
        stream.flush()
