"""What is piped in, whatever the locale."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from localai.errors import LocalaiError


def read_text() -> str:
    """All of stdin as text, in the encodings that files are read in. Raises UsageError for what is no text."""
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error
    if not content:
        return ""
    from localai import documents

    return documents.piped(content)


def lines() -> Iterator[str]:
    """The lines of stdin as they come, without their ends, as UTF-8 whatever the locale."""
    try:
        for number, line in enumerate(sys.stdin.buffer):
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").rstrip("\r\n")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error
