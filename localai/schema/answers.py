"""The JSON of answers and errors."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai.domain.generation import AnswerEnd
from localai.errors import LocalaiError

if TYPE_CHECKING:
    from localai.batch import Result

Json = dict[str, Any]


def answer(model: str, end: AnswerEnd) -> Json:
    """`run --output json`, and the last event of `ndjson`."""
    return {
        "model": model,
        "text": end.text,
        "thinking": end.thinking or None,
        "usage": asdict(end.usage),
        "timings": {name: None if value is None else round(value, 3) for name, value in asdict(end.timings).items()},
        "finish_reason": end.finish_reason,
    }


def failure(error: LocalaiError) -> Json:
    """The `error` of any output."""
    return {
        "code": error.code,
        "exit_code": int(error.exit_code),
        "message": error.message,
        "hint": error.hint or None,
    }


def record(result: Result, fingerprint: str) -> Json:
    """A line of `map`: an answer or an error, never both."""
    end, error = result.end, result.error
    return {
        "index": result.record.index,
        "input": result.record.shown,
        "output": end.text if end is not None and error is None else None,
        # not what was cached: that depends on what was asked before, and the same record must give the same line
        "usage": {"prompt_tokens": end.usage.prompt_tokens, "completion_tokens": end.usage.completion_tokens}
        if end is not None
        else None,
        "error": None if error is None else failure(error),
        "finish_reason": end.finish_reason if end is not None else None,
        "fingerprint": fingerprint,
    }
