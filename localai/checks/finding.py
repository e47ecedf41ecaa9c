"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but not as well as it could
    FAULT = "fault"  # something does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what is the case and what that means, and what to type to mend it (None: nothing)."""

    check: str
    status: Status
    message: str
    command: str | None = None


def ok(check: str, message: str, command: str | None = None) -> Finding:
    return Finding(check, Status.OK, message, command)


def warning(check: str, message: str, command: str | None = None) -> Finding:
    return Finding(check, Status.WARNING, message, command)


def fault(check: str, message: str, command: str | None = None) -> Finding:
    return Finding(check, Status.FAULT, message, command)
