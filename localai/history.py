"""What was typed in chats, for the arrow keys: a JSON string a line, readable by this user alone, bounded in size."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from localai import settings

KEPT = 1000  # entries
LARGEST_BYTES = 1_000_000  # beyond which the file is cut to the latest entries
LONGEST_CHARACTERS = 20_000  # of one entry; a pasted book is not worth keeping


def path() -> Path:
    """The file of the history."""
    return settings.folders().data / "chat" / "history.jsonl"


def load() -> list[str]:
    """The entries, the latest last; lines that cannot be read are left out, and so is a file that cannot be."""
    try:
        lines = path().read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [entry for line in lines[-KEPT:] if (entry := _entry(line))]


def _entry(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, str) else None


def add(entry: str) -> None:
    """Append an entry, whole even where another process appends, too. Raises OSError."""
    if len(entry) > LONGEST_CHARACTERS:
        return
    file = path()
    settings.private_folder(file.parent)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, (json.dumps(entry) + "\n").encode())
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > LARGEST_BYTES:
        _write(_latest(load(), LARGEST_BYTES // 2))


def forget(is_secret: Callable[[str], bool]) -> None:
    """Take entries out: the questions of a conversation that is removed. Raises OSError."""
    entries = load()
    kept = [entry for entry in entries if not is_secret(entry)]
    if len(kept) < len(entries):
        _write(kept)


def _latest(entries: list[str], most_bytes: int) -> list[str]:
    """The latest entries that take at most so many bytes."""
    start = len(entries)
    while start and (most_bytes := most_bytes - len(json.dumps(entries[start - 1])) - 1) >= 0:
        start -= 1
    return entries[start:]


def _write(entries: list[str]) -> None:
    settings.write_atomically(path(), "".join(json.dumps(entry) + "\n" for entry in entries).encode())
