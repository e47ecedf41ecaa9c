"""What was typed in chats, for the arrow keys: for this user alone, bounded in size, a JSON list a line.

Each entry is kept with the number of the conversation that it was typed in, and goes when that is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from localai import settings

KEPT = 1000  # entries
LARGEST_BYTES = 1_000_000  # beyond which the file is cut to the latest entries
LONGEST_CHARACTERS = 20_000  # of one entry; a pasted book is not worth keeping

Entry = tuple[int | None, str]
"""The kept conversation, None for none, and what was typed."""


def path() -> Path:
    """The file of the history."""
    return settings.folders().data / "chat" / "history.jsonl"


def load() -> list[str]:
    """What was typed, the latest last; lines that cannot be read are left out, and so is a file that cannot be."""
    return [text for _, text in _entries()]


def _entries() -> list[Entry]:
    try:
        lines = path().read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [entry for line in lines[-KEPT:] if (entry := _entry(line)) is not None]


def _entry(line: str) -> Entry | None:
    try:
        session, text = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return (session, text) if isinstance(session, int | None) and isinstance(text, str) and text else None


def add(text: str, session: int | None) -> None:
    """Append what was typed, whole even where another process appends, too. Raises OSError."""
    if len(text) > LONGEST_CHARACTERS:
        return
    file = path()
    settings.private_folder(file.parent)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, _line((session, text)))
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > LARGEST_BYTES:
        _write(_latest(_entries(), LARGEST_BYTES // 2))


def forget(session: int, which: Callable[[str], bool] = lambda text: True) -> None:
    """Take out what was typed in a conversation. Raises OSError."""
    entries = _entries()
    kept = [entry for entry in entries if entry[0] != session or not which(entry[1])]
    if len(kept) < len(entries):
        _write(kept)


class Typed:
    """What was typed in a chat: it waits until there is a conversation that it is of. Nothing where it is private."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._waiting: list[str] = []

    def add(self, line: str) -> None:
        if not self._private:
            self._waiting.append(line)

    def instead(self, text: str) -> None:
        """What was typed last has become this."""
        self._waiting[-1:] = [text] if self._waiting else []

    def keep(self, session: int | None, leaving: bool = False) -> None:
        """Have it in the history, also without a conversation when `leaving`; a full disk costs nothing but that."""
        with contextlib.suppress(OSError):
            while self._waiting and (leaving or session is not None):
                add(self._waiting[0], session)
                del self._waiting[0]


def _latest(entries: list[Entry], most_bytes: int) -> list[Entry]:
    """The latest entries that take at most so many bytes."""
    start = len(entries)
    while start and (most_bytes := most_bytes - len(_line(entries[start - 1]))) >= 0:
        start -= 1
    return entries[start:]


def _line(entry: Entry) -> bytes:
    return (json.dumps(entry) + "\n").encode()


def _write(entries: list[Entry]) -> None:
    settings.write_atomically(path(), b"".join(map(_line, entries)))
