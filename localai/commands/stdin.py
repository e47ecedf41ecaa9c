"""What is piped in, as UTF-8 whatever the locale."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from localai.errors import LocalaiError


def read_text() -> str:
    """All of stdin as UTF-8, whatever the locale; bytes that are not UTF-8 become replacement characters."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error


def lines() -> Iterator[str]:
    """The lines of stdin as they come, without their ends, as UTF-8 whatever the locale."""
    try:
        for number, line in enumerate(sys.stdin.buffer):
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").rstrip("\r\n")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error
