"""Answers in Ollama's form: whole, and in pieces as lines of JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from localai.domain.generation import AnswerEnd, AnswerText, ThinkingText, TokenLogprob, ToolCall
from localai.engine.call_syntax import arguments_of
from localai.errors import LocalaiError
from localai.server.answers import dumps, logprob
from localai.server.forms import Json
from localai.server.generating import Events, ended
from localai.server.vectors import Vectors


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def last(end: AnswerEnd, began: float) -> Json:
    """What the last piece tells beside the text: times in nanoseconds, those of a request that `began` then.

    Waiting for the model, and for a place in it, counts as its loading.
    """
    timings, usage = end.timings, end.usage
    # by the speed of writing, which counts from the first token on: with it the parts may be more than the whole was
    decode_ms = usage.completion_tokens / timings.decode_tps * 1000 if timings.decode_tps else 0.0
    total_ms = max((perf_counter() - began) * 1000, timings.prompt_ms + decode_ms)
    return {
        "done": True,
        "done_reason": "length" if end.finish_reason == "length" else "stop",
        "total_duration": int(total_ms * 1e6),
        "load_duration": int((total_ms - timings.prompt_ms - decode_ms) * 1e6),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(timings.prompt_ms * 1e6),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(decode_ms * 1e6),
    }


def call(found: ToolCall, index: int = 0) -> Json:
    return {"function": {"index": index, "name": found.name, "arguments": arguments_of(found)}}


def told_logprobs(found: Sequence[TokenLogprob]) -> Json:
    """The key `logprobs`, where they were asked for."""
    return {"logprobs": [logprob(each) for each in found]} if found else {}


async def pieces(events: Events, model: str, chat: bool, began: float) -> AsyncGenerator[bytes, None]:
    """A line for each piece, the last with the numbers."""

    def line(content: Json, **more: Any) -> bytes:
        body = {"message": {"role": "assistant", "content": "", **content}} if chat else {"response": "", **content}
        return dumps({"model": model, "created_at": now(), **body, "done": False, **more}) + b"\n"

    key = "content" if chat else "response"
    calls = 0
    try:
        async for event in events:
            match event:
                case ThinkingText(text):
                    yield line({"thinking": text})
                case AnswerText(text, found):
                    yield line({key: text}, **told_logprobs(found))
                case ToolCall():
                    yield line({"tool_calls": [call(event, calls)]})
                    calls += 1
                case AnswerEnd():
                    yield line({}, **last(event, began))
    except LocalaiError as error:
        yield dumps({"error": error.message}) + b"\n"


async def in_one(events: Events, model: str, chat: bool, began: float) -> Json:
    """The answer as one object, with the numbers in it."""
    end, found = await ended(events)
    more = {**told_logprobs(found), **last(end, began)}
    thoughts = {"thinking": end.thinking} if end.thinking else {}
    if not chat:
        return {"model": model, "created_at": now(), "response": end.text, **thoughts, **more}
    message: Json = {"role": "assistant", "content": end.text, **thoughts}
    if end.tool_calls:
        message["tool_calls"] = [call(each, index) for index, each in enumerate(end.tool_calls)]
    return {"model": model, "created_at": now(), "message": message, **more}


def empty(model: str, chat: bool, reason: str) -> Json:
    """The answer to a request that asks nothing but to load a model, or to let it go."""
    body = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": model, "created_at": now(), **body, "done": True, "done_reason": reason}


def embeddings(made: Vectors, model: str) -> Json:
    """A vector for each text."""
    return {
        "model": model,
        "embeddings": [row.vector for row in made.rows],
        "total_duration": int(made.total_s * 1e9),
        "load_duration": int(made.load_s * 1e9),
        "prompt_eval_count": sum(row.tokens for row in made.rows),
    }
