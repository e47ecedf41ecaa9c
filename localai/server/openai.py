"""OpenAI's form: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings."""

from __future__ import annotations

import base64
import itertools
import struct
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from localai import library
from localai.domain.generation import (
    AnswerEnd,
    AnswerText,
    GenerationRequest,
    Message,
    ThinkingText,
    TokenLogprob,
    ToolCall,
    Usage,
)
from localai.errors import LocalaiError
from localai.holding import PICTURES, TEXT, VECTORS
from localai.server import asking
from localai.server.answers import Stream, dumps, error_body, status_of, while_there, whole
from localai.server.asking import refused
from localai.server.generating import Desk, Events

Temperature = Annotated[float | None, Field(ge=0, le=10)]
Share = Annotated[float | None, Field(ge=0, le=1)]
Tokens = Annotated[int | None, Field(ge=1, le=2**31 - 1)]
Json = dict[str, Any]


class Form(BaseModel):
    model_config = ConfigDict(extra="allow")


class Common(Form):
    model: str | None = None
    stream: bool | None = False
    stream_options: Json | None = None
    temperature: Temperature = None
    top_p: Share = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None
    min_p: Share = None
    repeat_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: Tokens = None
    n: int | None = 1
    presence_penalty: float | None = 0
    frequency_penalty: float | None = 0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    keep_alive: str | float | int | None = None


class ChatMessage(Form):
    role: str
    content: str | list[Json] | None = None
    name: str | None = None
    tool_calls: list[Json] | None = None
    tool_call_id: str | None = None


class ChatRequest(Common):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: Json | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Json | None = None


class CompletionRequest(Common):
    prompt: str | list[str]
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = 1


class EmbeddingsRequest(Form):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Tokens = None
    keep_alive: str | float | int | None = None


# ------------------------------------------------------------------------------------------------------- asking


def parts(message: ChatMessage) -> Message:
    """A message of the request as ours. Raises UsageError."""
    text: list[str] = []
    seen = []
    for part in (
        [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content or ()
    ):
        kind = part.get("type")
        if kind in ("text", "input_text", "refusal") and isinstance(part.get("text", part.get("refusal")), str):
            text.append(str(part.get("text", part.get("refusal"))))
        elif kind == "image_url":
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str):
                raise refused("an image_url has no url")
            seen.append(asking.picture(url))
        else:
            raise refused(f"a content part is of the type {str(kind)[:40]!r}", "text and image_url are taken")
    calls = asking.calls(message.tool_calls)
    return Message(asking.role(message.role), "\n".join(text), tuple(seen), calls, message.name or "")


def conversation(given: list[ChatMessage]) -> tuple[Message, ...]:
    """The messages; the result of a tool gets the name of the call that its id is of."""
    names = {
        str(call.get("id")): call["function"]["name"]
        for message in given
        for call in message.tool_calls or ()
        if isinstance(call.get("function"), dict) and isinstance(call["function"].get("name"), str)
    }
    found = []
    for each in given:
        if each.role == "tool" and not each.name and each.tool_call_id:
            each = each.model_copy(update={"name": names.get(each.tool_call_id, "")})
        found.append(parts(each))
    return tuple(found)


def check_common(asked: Common) -> None:
    if asked.n not in (None, 1):
        raise refused("n is not 1", "ask as often as you want answers")
    if asked.presence_penalty or asked.frequency_penalty:
        raise refused("presence_penalty and frequency_penalty are not taken", "repeat_penalty is")


def sampling_of(asked: Common, name: str) -> Any:
    given: Json = {
        key: getattr(asked, key) for key in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
    }
    if asked.logit_bias:
        try:
            given["logit_bias"] = tuple((int(token), bias) for token, bias in asked.logit_bias.items())
        except ValueError:
            raise refused("logit_bias has a key that is no token number") from None
    return asking.sampling(name, given)


def choice_of(asked: ChatRequest) -> str:
    """auto, none, required, or a tool's name."""
    given = asked.tool_choice
    if given is None or isinstance(given, str):
        if given not in (None, "auto", "none", "required"):
            raise refused(f"tool_choice is {str(given)[:40]!r}", "auto, none, required, or a function by its name")
        return given or "auto"
    function = given.get("function")
    name = function.get("name") if isinstance(function, dict) else given.get("name")
    if name not in {tool.name for tool in asking.tools(asked.tools)}:
        raise refused("tool_choice names a function that is not among the tools")
    return str(name)


def thinks(asked: ChatRequest) -> bool | None:
    kwargs = asked.chat_template_kwargs or {}
    if isinstance(wanted := kwargs.get("enable_thinking"), bool):
        return wanted
    return False if asked.reasoning_effort == "none" else None


def held_to(form: Json | None) -> str | None:
    """The grammar of a response_format."""
    if form is None or form.get("type") == "text":
        return None
    if form.get("type") == "json_object":
        return asking.grammar({"type": "object"})
    if form.get("type") == "json_schema" and isinstance(form.get("json_schema"), dict):
        return asking.grammar(form["json_schema"].get("schema", {"type": "object"}))
    raise refused("response_format is none of text, json_object, json_schema")


def chat_request(asked: ChatRequest, name: str) -> GenerationRequest:
    """Raises UsageError for what cannot be honoured."""
    check_common(asked)
    tools, choice, grammar = asking.tools(asked.tools), choice_of(asked), held_to(asked.response_format)
    if not tools and choice not in ("auto", "none"):
        raise refused("tool_choice asks for a tool, and there is none")
    if tools and choice != "none" and grammar is not None:
        raise refused("tools and response_format cannot be combined", 'ask for one of them, or say tool_choice "none"')
    think = thinks(asked)
    return GenerationRequest(
        conversation(asked.messages),
        sampling_of(asked, name),
        asked.max_completion_tokens or asked.max_tokens,
        asking.stops(asked.stop),
        False if grammar is not None and think is None else think,
        grammar,
        tools=tools,
        tool_choice=choice,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


# ---------------------------------------------------------------------------------------------------- answering


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


class Head:
    """What every piece of one answer begins with."""

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
        status, code = status_of(error)
        yield b"data: " + error_body("", status, error.message, error.hint, code) + b"\n\n"
    yield b"data: [DONE]\n\n"


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
        status, code = status_of(error)
        yield b"data: " + error_body("", status, error.message, error.hint, code) + b"\n\n"
    yield b"data: [DONE]\n\n"


async def ended(events: Events) -> tuple[AnswerEnd, list[TokenLogprob]]:
    """The end of an answer, and the probabilities of its tokens."""
    found: list[TokenLogprob] = []
    end: AnswerEnd | None = None
    try:
        async for event in events:
            if isinstance(event, AnswerText):
                found += event.logprobs
            elif isinstance(event, AnswerEnd):
                end = event
    finally:
        await events.aclose()
    assert end is not None, "an engine ends with AnswerEnd"
    return end, found


# ------------------------------------------------------------------------------------------------------- routes


def model_object(model: Any) -> Json:
    owner = model.repo.split("/")[0] if model.repo else "local"
    return {"id": names_of(model), "object": "model", "created": 0, "owned_by": owner}


def names_of(model: Any) -> str:
    """A model's name, with its quantization where it is installed in several."""
    several = sum(each.model == model.model for each in library.installed()) > 1
    return f"{model.model}:{model.quantization.lower()}" if several else str(model.model)


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"])

    @router.get("/models")
    async def models() -> Response:
        """The model that is served, where it is a file, and the installed ones."""
        listed = [model_object(each) for each in await desk.blocking(library.installed)]
        if (found := desk.unlisted()) is not None:
            listed.insert(0, {"id": found.name, "object": "model", "created": 0, "owned_by": "local"})
        return whole({"object": "list", "data": listed})

    @router.get("/models/{name:path}")
    async def model(name: str) -> Response:
        """One installed model."""
        found = await desk.blocking(desk.find, name)
        return whole({"id": name, "object": "model", "created": 0, "owned_by": "local", "path": found.name})

    @router.post("/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        found = await desk.blocking(desk.find, asked.model)
        wanted = await desk.blocking(chat_request, asked, found.name)
        kind = PICTURES if asking.check_images(wanted.messages) else TEXT
        starting = desk.started(found, kind, None, asking.keep_alive(asked.keep_alive), wanted)
        events = await while_there(request.receive, starting)
        name = asked.model or found.name
        if asked.stream:
            wants_usage = bool((asked.stream_options or {}).get("include_usage"))
            return Stream(chat_pieces(events, name, wants_usage), "text/event-stream", events)
        return whole(await while_there(request.receive, chat_whole(events, name)))

    @router.post("/completions")
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """A text, continued."""
        check_common(asked)
        if asked.echo or asked.suffix or asked.best_of not in (None, 1):
            raise refused("echo, suffix and best_of are not taken")
        prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
        if not 1 <= len(prompts) <= 32 or (asked.stream and len(prompts) > 1):
            raise refused("prompt is a text, or up to 32 of them where the answer is not streamed")
        found = await desk.blocking(desk.find, asked.model)
        drawn, limit = await desk.blocking(sampling_of, asked, found.name), asked.max_tokens or 16
        keep, name = asking.keep_alive(asked.keep_alive), asked.model or found.name

        async def begun(prompt: str) -> Events:
            wanted = GenerationRequest((), drawn, limit, asking.stops(asked.stop), raw=prompt, logprobs=asked.logprobs)
            return await desk.started(found, TEXT, None, keep, wanted)

        if asked.stream:
            events = await while_there(request.receive, begun(prompts[0]))
            wants_usage = bool((asked.stream_options or {}).get("include_usage"))
            return Stream(completion_pieces(events, name, wants_usage), "text/event-stream", events)

        async def all_of_them() -> Json:
            answers = [await ended(await begun(prompt)) for prompt in prompts]
            choices = [
                {"index": index, "text": end.text, "logprobs": old_logprobs(logs), "finish_reason": reason(end)}
                for index, (end, logs) in enumerate(answers)
            ]
            ends = [end.usage for end, _ in answers]
            total = Usage(*(sum(getattr(each, key) for each in ends) for key in
                            ("prompt_tokens", "cached_tokens", "completion_tokens")))  # fmt: skip
            return {**Head("cmpl", "text_completion", name).content, "choices": choices, "usage": usage(total)}

        return whole(await while_there(request.receive, all_of_them()))

    @router.post("/embeddings")
    async def embeddings(asked: EmbeddingsRequest, request: Request) -> Response:
        """A vector for each text."""
        texts = [asked.input] if isinstance(asked.input, str) else list(asked.input)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise refused("input is no text, nor a list of texts", "token numbers are not taken")
        name, rows = await while_there(
            request.receive,
            vectors(desk, asked.model, [str(text) for text in texts], asking.keep_alive(asked.keep_alive)),
        )
        if asked.dimensions is not None and asked.dimensions != len(rows[0].vector):
            raise refused(f"dimensions is not the {len(rows[0].vector)} that the model has")
        encoded = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": packed(row.vector) if encoded else row.vector}
            for index, row in enumerate(rows)
        ]
        tokens = sum(row.tokens for row in rows)
        told = {"prompt_tokens": tokens, "total_tokens": tokens}
        return whole({"object": "list", "data": data, "model": asked.model or name, "usage": told})

    return router


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")


async def vectors(
    desk: Desk, model: str | None, texts: list[str], keep_alive_s: float | None, truncate: bool = False
) -> tuple[str, list[Any]]:
    """The name of the model and a vector for each text; with `truncate` for as much of it as the context holds."""
    from localai import embeddings as service

    if model or desk.default is not None:
        found = await desk.blocking(desk.find, model)
    else:
        found = await desk.blocking(service.find, None)
    async with desk.hold(found, VECTORS, None, keep_alive_s) as held:
        embedder = held.embedder
        assert embedder is not None, "it is held for vectors"
        stop: list[bool] = []

        def embed() -> list[Any]:
            with held.one_at_a_time:
                asked = [embedder.cut(text) for text in texts] if truncate else texts
                return embedder.embed(asked, cancelled=lambda: bool(stop))

        try:
            rows = await desk.blocking(embed)
        finally:
            stop.append(True)
    return found.name, rows
