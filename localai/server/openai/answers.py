"""Answers in OpenAI's form: whole, and in pieces as server-sent events."""

from __future__ import annotations

import base64
import itertools
import struct
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from localai.domain.embedding import Embedding
from localai.domain.generation import AnswerEnd, AnswerText, ThinkingText, TokenLogprob, ToolCall, Usage
from localai.errors import LocalaiError
from localai.server.answers import dumps, error_body, status_of
from localai.server.forms import Json
from localai.server.generating import Events, ended

DONE = b"data: [DONE]\n\n"


def usage(found: Usage) -> Json:
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.prompt_tokens + found.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
    }


def finite(logprob: float) -> float:
    """JSON has no number for a probability of 0; OpenAI tells this one."""
    return max(logprob, -9999.0)


def logprob(found: TokenLogprob) -> Json:
    def one(token: bytes, value: float) -> Json:
        return {"token": token.decode("utf-8", "replace"), "logprob": finite(value), "bytes": list(token)}

    return {**one(found.token, found.logprob), "top_logprobs": [one(*each) for each in found.top]}


def logprobs(found: tuple[TokenLogprob, ...]) -> Json | None:
    return {"content": [logprob(each) for each in found]} if found else None


def old_logprobs(found: list[TokenLogprob]) -> Json | None:
    """As /v1/completions tells them."""
    if not found:
        return None
    tokens = [each.token.decode("utf-8", "replace") for each in found]
    starts = [0, *itertools.accumulate(map(len, tokens[:-1]))]
    top = [{token.decode("utf-8", "replace"): finite(value) for token, value in each.top} for each in found]
    return {"tokens": tokens, "token_logprobs": [finite(each.logprob) for each in found], "top_logprobs": top,
            "text_offset": starts}  # fmt: skip


def call(found: ToolCall) -> Json:
    function = {"name": found.name, "arguments": found.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def reason(end: AnswerEnd) -> str:
    return "tool_calls" if end.tool_calls else "length" if end.finish_reason == "length" else "stop"


def failure(error: LocalaiError) -> bytes:
    """The piece that tells what went wrong in the middle of a stream."""
    status, code = status_of(error)
    return b"data: " + error_body("", status, error.message, error.hint, code) + b"\n\n"


class Head:
    """What every answer, and every piece of it, begins with."""

    def __init__(self, kind: str, object_: str, model: str) -> None:
        self.content = {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": object_,
            "created": int(time.time()),
            "model": model,
        }

    def piece(self, choices: list[Json], **more: Any) -> bytes:
        return b"data: " + dumps({**self.content, "choices": choices, **more}) + b"\n\n"


def chunk(delta: Json, finish: str | None = None, found: Json | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": found, "finish_reason": finish}


async def chat_pieces(events: Events, model: str, wants_usage: bool) -> AsyncGenerator[bytes, None]:
    head = Head("chatcmpl", "chat.completion.chunk", model)
    more = {"usage": None} if wants_usage else {}
    yield head.piece([chunk({"role": "assistant", "content": ""})], **more)
    calls = 0
    try:
        async for event in events:
            match event:
                case ThinkingText(text):
                    yield head.piece([chunk({"reasoning_content": text})], **more)
                case AnswerText(text, found):
                    yield head.piece([chunk({"content": text}, None, logprobs(found))], **more)
                case ToolCall():
                    whole_call = {"index": calls, **call(event)}
                    calls += 1
                    start = {**whole_call, "function": {"name": event.name, "arguments": ""}}
                    rest = {"index": whole_call["index"], "function": {"arguments": event.arguments}}
                    yield head.piece([chunk({"tool_calls": [start]})], **more)
                    yield head.piece([chunk({"tool_calls": [rest]})], **more)
                case AnswerEnd():
                    yield head.piece([chunk({}, reason(event))], **more)
                    if wants_usage:
                        yield head.piece([], usage=usage(event.usage))
    except LocalaiError as error:
        yield failure(error)
    yield DONE


async def chat_whole(events: Events, model: str) -> Json:
    end, found = await ended(events)
    message: Json = {"role": "assistant", "content": end.text or (None if end.tool_calls else "")}
    if end.thinking:
        message["reasoning_content"] = end.thinking
    if end.tool_calls:
        message["tool_calls"] = [call(each) for each in end.tool_calls]
    choice = {"index": 0, "message": message, "logprobs": logprobs(tuple(found)), "finish_reason": reason(end)}
    head = Head("chatcmpl", "chat.completion", model)
    return {**head.content, "choices": [choice], "usage": usage(end.usage)}


async def completion_pieces(events: Events, model: str, wants_usage: bool) -> AsyncGenerator[bytes, None]:
    head = Head("cmpl", "text_completion", model)
    try:
        async for event in events:
            if isinstance(event, AnswerText):
                found = old_logprobs(list(event.logprobs))
                yield head.piece([{"index": 0, "text": event.text, "logprobs": found, "finish_reason": None}])
            elif isinstance(event, AnswerEnd):
                yield head.piece([{"index": 0, "text": "", "logprobs": None, "finish_reason": reason(event)}])
                if wants_usage:
                    yield head.piece([], usage=usage(event.usage))
    except LocalaiError as error:
        yield failure(error)
    yield DONE


def completion_whole(answers: Sequence[tuple[AnswerEnd, list[TokenLogprob]]], model: str) -> Json:
    """The answers to all prompts, with what they took together."""
    choices = [
        {"index": index, "text": end.text, "logprobs": old_logprobs(found), "finish_reason": reason(end)}
        for index, (end, found) in enumerate(answers)
    ]
    took = [end.usage for end, _ in answers]
    together = Usage(
        sum(each.prompt_tokens for each in took),
        sum(each.cached_tokens for each in took),
        sum(each.completion_tokens for each in took),
    )
    return {**Head("cmpl", "text_completion", model).content, "choices": choices, "usage": usage(together)}


def embeddings(rows: Sequence[Embedding], model: str, in_base64: bool) -> Json:
    """A vector for each text."""
    data = [
        {"object": "embedding", "index": index, "embedding": packed(row.vector) if in_base64 else row.vector}
        for index, row in enumerate(rows)
    ]
    tokens = sum(row.tokens for row in rows)
    took = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": took}


def packed(vector: list[float]) -> str:
    """A vector in base64, as 32-bit floats with the low byte first."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
