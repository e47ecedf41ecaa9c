"""The one tree of errors a user can cause, each with its exit code and a hint.

    LocalaiError                 1  failure
    ├── CheckFailed              1  check-failed       a check found a fault
    ├── QueueFull                1  queue-full         more requests than are taken at once
    ├── UsageError               2  usage              wrong usage, bad setting
    ├── NotFound                 3  not-found          model, quantization, file
    ├── DoesNotFit               4  does-not-fit       memory or disk, said beforehand
    ├── NetworkError             5  network            no network, Hub down, offline mode
    │   └── HashMismatch         5  hash-mismatch      bytes that are not the Hub's
    ├── EngineError              6  engine             corrupt or unsupported model, failed load
    │   └── EngineClosed         6  engine-closed      let go of before the answer was done
    ├── ContextOverflow          7  context-overflow   the input is longer than the context
    ├── SchemaIncomplete         8  schema-incomplete  the answer did not complete its schema
    └── AccessDenied             9  access-denied      gated repository, missing or wrong token

Everything else that is raised is a bug and keeps its traceback. `localai.boundary` catches the tree once.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a process ends with; the table of the README."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    DOES_NOT_FIT = 4
    NETWORK = 5
    ENGINE = 6
    CONTEXT_OVERFLOW = 7
    SCHEMA_INCOMPLETE = 8
    ACCESS_DENIED = 9
    INTERRUPTED = 130
    PIPE_CLOSED = 141


class LocalaiError(Exception):
    """An error with a line that says what happened and a hint that says what to do next."""

    exit_code: ExitCode = ExitCode.FAILURE
    code: str = "failure"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def unexpected(error: Exception) -> LocalaiError:
    """What is told of a fault of ours to whoever waits in another thread or process."""
    return LocalaiError(f"unexpected: {type(error).__name__}: {error}", "this is a bug in localai")


class CheckFailed(LocalaiError):
    code = "check-failed"


class QueueFull(LocalaiError):
    code = "queue-full"


class UsageError(LocalaiError):
    exit_code = ExitCode.USAGE
    code = "usage"


class NotFound(LocalaiError):
    exit_code = ExitCode.NOT_FOUND
    code = "not-found"


class DoesNotFit(LocalaiError):
    exit_code = ExitCode.DOES_NOT_FIT
    code = "does-not-fit"


class NetworkError(LocalaiError):
    exit_code = ExitCode.NETWORK
    code = "network"


class HashMismatch(NetworkError):
    code = "hash-mismatch"


class EngineError(LocalaiError):
    exit_code = ExitCode.ENGINE
    code = "engine"


class EngineClosed(EngineError):
    code = "engine-closed"

    def __init__(
        self, message: str = "the model was let go of before the answer was done", hint: str = "ask again"
    ) -> None:
        super().__init__(message, hint)


class ContextOverflow(LocalaiError):
    """`needed_tokens` is what the input takes, where that was counted and not only reckoned."""

    exit_code = ExitCode.CONTEXT_OVERFLOW
    code = "context-overflow"

    def __init__(self, message: str, hint: str = "", needed_tokens: int | None = None) -> None:
        super().__init__(message, hint)
        self.needed_tokens = needed_tokens


class SchemaIncomplete(LocalaiError):
    exit_code = ExitCode.SCHEMA_INCOMPLETE
    code = "schema-incomplete"


class AccessDenied(LocalaiError):
    exit_code = ExitCode.ACCESS_DENIED
    code = "access-denied"


class PipeClosed(Exception):
    """Whoever read our output has gone: no error to tell of, only a reason to end quietly (exit 141)."""
