"""Readers of files from anywhere: each runs in a process of its own, which a hostile file can use up, not ours.

`in_child(KIND, content)` runs `python -m localai.readers KIND`: the file on stdin, a line of JSON on stdout with
what was read, then bytes where the kind has any. A reader is a module here with `read(content) -> (dict, bytes)`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import Any

MOST_SECONDS = 120
MOST_MEMORY_BYTES = 2 * 1024**3
MOST_CHARACTERS = 20_000_000
KINDS = {"pdf": "PDF", "html": "HTML", "docx": "DOCX", "image": "image"}


class Unreadable(Exception):
    """A file has nothing that can be read: what it is (after its name), and what to do; `{name}` stands for it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def in_child(kind: str, content: bytes) -> tuple[dict[str, Any], bytes]:
    """What the reader of that kind finds in a file. Raises Unreadable, also where it dies or takes too long."""
    command = [sys.executable, "-P", "-m", "localai.readers", kind]
    damaged = Unreadable(f"is a damaged {KINDS[kind]} file", "open it and save it again")
    try:
        done = subprocess.run(
            command, input=content, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=MOST_SECONDS, check=False
        )
        line, _, rest = done.stdout.partition(b"\n")
        told = json.loads(line)
    except subprocess.TimeoutExpired as error:
        raise Unreadable(f"takes more than {MOST_SECONDS} s to read", "take the part of it that matters") from error
    except ValueError as error:
        raise damaged from error
    if not isinstance(told, dict):
        raise damaged
    if "error" in told:
        raise Unreadable(str(told["error"]), str(told["hint"]))
    return told, rest


def decoded(content: bytes) -> str:
    """Text that says nothing of its encoding: UTF-8, also where a few bytes of it are damaged, else Windows-1252."""
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8")
    text = content.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    sound = len(text) - len(text.encode("ascii", "ignore")) - damaged
    # in Windows-1252 hardly any two letters happen to be one of UTF-8
    return text if sound >= damaged else content.decode("cp1252", "replace")


def main() -> None:
    """In the child: bound the memory, read, tell."""
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # Windows, macOS: the time limit is left
    kind = sys.argv[1]
    rest = b""
    try:
        told, rest = importlib.import_module(f"localai.readers.{kind}").read(sys.stdin.buffer.read())
        if len(told.get("text", "")) > MOST_CHARACTERS:
            raise Unreadable("has too much text", "take the part of it that matters")
    except Unreadable as error:
        told, rest = {"error": error.what, "hint": error.hint}, b""
    except (Exception, MemoryError) as error:  # noqa: BLE001  whatever a hostile file makes a reader raise
        why = "" if isinstance(error, MemoryError) else f": {error}"
        what = f"is a damaged {KINDS[kind]} file ({type(error).__name__}{why})"
        told, rest = {"error": what[:300], "hint": "open it and save it again"}, b""
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")
    sys.stdout.buffer.write(rest)
    sys.stdout.buffer.flush()
    os._exit(0)  # a large document's objects need not be freed one by one
