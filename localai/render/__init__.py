"""The only package that prints: answers and reports on stdout, everything else on stderr.

Nothing that comes from a model, a file or the Hub reaches a terminal with its control characters live; what is piped is
exact.
"""

from __future__ import annotations

from localai.render.answers import AnswerStream, ThinkingStream
from localai.render.lines import (
    emit,
    error,
    event,
    faint,
    json_line,
    json_object,
    line,
    note,
    out,
    plain_line,
)
from localai.render.progress import BatchProgress, Status, TransferProgress
from localai.render.questions import ask, confirmed, read_line
from localai.render.streams import (
    be_plain,
    can_show,
    cannot_write,
    colour_wanted,
    flush,
    is_terminal,
    plain,
    to_terminal,
    use_tolerant_streams,
    width,
)
from localai.render.text import cells, columns, count, duration, facts, local_time, memory, paragraph, safe, size

__all__ = [
    "AnswerStream",
    "BatchProgress",
    "Status",
    "ThinkingStream",
    "TransferProgress",
    "ask",
    "be_plain",
    "can_show",
    "cannot_write",
    "cells",
    "colour_wanted",
    "columns",
    "confirmed",
    "count",
    "duration",
    "emit",
    "error",
    "event",
    "facts",
    "faint",
    "flush",
    "is_terminal",
    "json_line",
    "json_object",
    "line",
    "local_time",
    "memory",
    "note",
    "out",
    "paragraph",
    "plain",
    "plain_line",
    "read_line",
    "safe",
    "size",
    "to_terminal",
    "use_tolerant_streams",
    "width",
]
