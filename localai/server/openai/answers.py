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
from localai.server.answers import dumps, error_body, finite, logprob, status_of
from localai.server.forms import Json
from localai.server.generating import Events, all_ended

DONE = b"data: [DONE]\n\n"


def together(took: Sequence[Usage], prompts: int = 1) -> Json:
    """What several answers took, as many to each prompt: a prompt counts once."""
    read = took[:: max(len(took) // prompts, 1)]
    prompt, answers = sum(each.prompt_tokens for each in read), sum(each.completion_tokens for each in took)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in read)},
    }


def logprobs(found: tuple[TokenLogprob, ...]) -> Json | None:
    return {"content": [logprob(each) for each in found]} if found else None


def old_logprobs(found: Sequence[TokenLogprob], start: int = 0) -> Json | None:
    """As /v1/completions tells them; `start` is where the first token stands in the answer."""
    if not found:
        return None
    tokens = [each.token.decode("utf-8", "replace") for each in found]
    starts = [*itertools.accumulate(map(len, tokens[:-1]), initial=start)]
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


async def chat_pieces(several: Sequence[Events], model: str, wants_usage: bool) -> AsyncGenerator[bytes, None]:
    """The answers one after the other: they are given together, and told by their index."""
    head = Head("chatcmpl", "chat.completion.chunk", model)
    more = {"usage": None} if wants_usage else {}
    took: list[Usage] = []

    def piece(delta: Json, finish: str | None = None, found: Json | None = None) -> bytes:
        return head.piece([{"index": len(took), "delta": delta, "logprobs": found, "finish_reason": finish}], **more)

    try:
        for events in several:
            yield piece({"role": "assistant", "content": ""})
            calls = 0
            async for event in events:
                match event:
                    case ThinkingText(text):
                        yield piece({"reasoning_content": text})
                    case AnswerText(text, found):
                        yield piece({"content": text}, None, logprobs(found))
                    case ToolCall():
                        start = {"index": calls, **call(event)}
                        yield piece({"tool_calls": [{**start, "function": {"name": event.name, "arguments": ""}}]})
                        yield piece({"tool_calls": [{"index": calls, "function": {"arguments": event.arguments}}]})
                        calls += 1
                    case AnswerEnd():
                        yield piece({}, reason(event))
                        took.append(event.usage)
        if wants_usage:
            yield head.piece([], usage=together(took))
    except LocalaiError as error:
        yield failure(error)
    yield DONE


async def chat_whole(several: Sequence[Events], model: str) -> Json:
    ends = await all_ended(several)
    choices = [
        {"index": index, "message": message(end), "logprobs": logprobs(tuple(found)), "finish_reason": reason(end)}
        for index, (end, found) in enumerate(ends)
    ]
    head = Head("chatcmpl", "chat.completion", model)
    return {**head.content, "choices": choices, "usage": together([end.usage for end, _ in ends])}


def message(end: AnswerEnd) -> Json:
    """An answer as a turn of the conversation."""
    content: Json = {"role": "assistant", "content": end.text or (None if end.tool_calls else "")}
    if end.thinking:
        content["reasoning_content"] = end.thinking
    if end.tool_calls:
        content["tool_calls"] = [call(each) for each in end.tool_calls]
    return content


async def completion_pieces(
    several: Sequence[Events], model: str, prompts: int, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answers to all prompts, one after the other, told by their index."""
    head = Head("cmpl", "text_completion", model)
    took: list[Usage] = []

    def piece(text: str, finish: str | None = None, found: Json | None = None) -> bytes:
        return head.piece([{"index": len(took), "text": text, "logprobs": found, "finish_reason": finish}])

    try:
        for events in several:
            start = 0
            async for event in events:
                if isinstance(event, AnswerText):
                    yield piece(event.text, None, old_logprobs(event.logprobs, start))
                    start += sum(len(each.token.decode("utf-8", "replace")) for each in event.logprobs)
                elif isinstance(event, AnswerEnd):
                    yield piece("", reason(event))
                    took.append(event.usage)
        if wants_usage:
            yield head.piece([], usage=together(took, prompts))
    except LocalaiError as error:
        yield failure(error)
    yield DONE


async def completion_whole(several: Sequence[Events], model: str, prompts: int) -> Json:
    """The answers to all prompts, with what they took together."""
    ends = await all_ended(several)
    choices = [
        {"index": index, "text": end.text, "logprobs": old_logprobs(found), "finish_reason": reason(end)}
        for index, (end, found) in enumerate(ends)
    ]
    took = together([end.usage for end, _ in ends], prompts)
    return {**Head("cmpl", "text_completion", model).content, "choices": choices, "usage": took}


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
