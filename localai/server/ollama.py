"""Ollama's form: /api/chat, /api/generate, /api/embed and what their clients ask beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from localai import catalog, gguf, library
from localai.domain.files import InstalledModel
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, Message, ThinkingText, ToolCall
from localai.errors import LocalaiError, NotFound
from localai.holding import PICTURES, TEXT, Held
from localai.server import asking
from localai.server.answers import Stream, dumps, while_there, whole
from localai.server.asking import refused
from localai.server.generating import Desk, Events
from localai.server.openai import ended, names_of, vectors

API_VERSION = "0.12.0"  # of Ollama's API whose form this is: clients look whether it is new enough
Json = dict[str, Any]
KeepAlive = str | float | int | None


class Form(BaseModel):
    model_config = ConfigDict(extra="allow")


class Options(Form):
    num_ctx: Annotated[int | None, Field(ge=1, le=2**31 - 1)] = None
    num_predict: Annotated[int | None, Field(ge=-2, le=2**31 - 1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=10)] = None
    top_k: Annotated[int | None, Field(ge=0, le=2**31 - 1)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repeat_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    seed: int | None = None
    stop: str | list[str] | None = None


class Turn(Form):
    role: str
    content: str | None = ""
    images: list[str] | None = None
    tool_calls: list[Json] | None = None
    tool_name: str | None = None
    name: str | None = None


class Asked(Form):
    model: str
    stream: bool | None = True
    format: str | Json | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | str | None = None


class ChatRequest(Asked):
    messages: list[Turn] | None = None
    tools: list[Json] | None = None


class GenerateRequest(Asked):
    prompt: str | None = ""
    system: str | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    raw: bool | None = False


class EmbedRequest(Form):
    model: str
    input: str | list[str]
    truncate: bool | None = True
    keep_alive: KeepAlive = None


class OldEmbedRequest(Form):
    model: str
    prompt: str | None = ""
    keep_alive: KeepAlive = None


class ShowRequest(Form):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = False


# ------------------------------------------------------------------------------------------------------- asking


def request_of(asked: Asked, name: str, messages: tuple[Message, ...], raw: str | None = None) -> GenerationRequest:
    """Raises UsageError for what cannot be honoured."""
    options = asked.options or Options()
    given = {key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")}
    grammar = None
    if asked.format == "json":
        grammar = asking.grammar({"type": "object"})
    elif isinstance(asked.format, dict):
        grammar = asking.grammar(asked.format)
    elif asked.format:
        raise refused(f"format is {str(asked.format)[:40]!r}", "json, or a JSON schema")
    tools = asking.tools(asked.tools) if isinstance(asked, ChatRequest) else ()
    if tools and grammar is not None:
        raise refused("tools and format cannot be combined", "ask for one of them")
    limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    think = asked.think if isinstance(asked.think, bool) or asked.think is None else True
    if grammar is not None and think is None:
        think = False
    return GenerationRequest(
        messages, asking.sampling(name, given), limit, asking.stops(options.stop), think, grammar, raw=raw, tools=tools
    )


def turn(given: Turn) -> Message:
    seen = tuple(map(asking.picture, given.images or ()))
    return Message(
        asking.role(given.role),
        given.content or "",
        seen,
        asking.calls(given.tool_calls),
        given.tool_name or given.name or "",
    )


# ---------------------------------------------------------------------------------------------------- answering


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def last(end: AnswerEnd) -> Json:
    """What the last piece tells beside the text: times in nanoseconds."""
    timings, usage = end.timings, end.usage
    decode_ms = usage.completion_tokens / timings.decode_tps * 1000 if timings.decode_tps else 0.0
    return {
        "done": True,
        "done_reason": "length" if end.finish_reason == "length" else "stop",
        "total_duration": int((timings.prompt_ms + decode_ms) * 1e6),
        "load_duration": int(timings.load_ms * 1e6),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": int(timings.prompt_ms * 1e6),
        "eval_count": usage.completion_tokens,
        "eval_duration": int(decode_ms * 1e6),
    }


def call(found: ToolCall, index: int = 0) -> Json:
    from localai.engine.call_syntax import arguments_of

    return {"function": {"index": index, "name": found.name, "arguments": arguments_of(found)}}


async def pieces(events: Events, model: str, chat: bool) -> AsyncGenerator[bytes, None]:
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
                case AnswerText(text):
                    yield line({key: text})
                case ToolCall():
                    yield line({"tool_calls": [call(event, calls)]})
                    calls += 1
                case AnswerEnd():
                    yield line({}, **last(event))
    except LocalaiError as error:
        yield dumps({"error": error.message}) + b"\n"


async def whole_answer(events: Events, model: str, chat: bool) -> Json:
    end, _ = await ended(events)
    thoughts = {"thinking": end.thinking} if end.thinking else {}
    if not chat:
        return {"model": model, "created_at": now(), "response": end.text, **thoughts, **last(end)}
    message: Json = {"role": "assistant", "content": end.text, **thoughts}
    if end.tool_calls:
        message["tool_calls"] = [call(each, index) for index, each in enumerate(end.tool_calls)]
    return {"model": model, "created_at": now(), "message": message, **last(end)}


# ---------------------------------------------------------------------------------------------- facts of models


def facts(model: InstalledModel) -> Json:
    known = catalog.resolve_name(model.model)
    return {
        "format": "gguf",
        "family": known.architecture if known else "",
        "families": [known.architecture] if known else [],
        "parameter_size": f"{known.params_b:.3g}B" if known else "",
        "quantization_level": model.quantization,
        "parent_model": "",
    }


def listed(model: InstalledModel) -> Json:
    name = names_of(model)
    return {
        "name": name,
        "model": name,
        "modified_at": model.verified_at or "1970-01-01T00:00:00Z",
        "size": model.size_bytes,
        "digest": model.files[0].sha256,
        "details": facts(model),
    }


def listed_file(found: library.Found) -> Json:
    size = sum(path.stat().st_size for path in found.paths if path.exists())
    return {
        "name": found.name,
        "model": found.name,
        "modified_at": "1970-01-01T00:00:00Z",
        "size": size,
        "digest": "",
        "details": {"format": "gguf"},
    }


def held(each: Held) -> Json:
    left = each.expires_in_s
    until = datetime.now(UTC) + timedelta(seconds=3.15e9 if left is None else left)
    model = each.found.model
    return {
        "name": each.name,
        "model": each.name,
        "size": each.memory_bytes,
        "size_vram": each.memory_bytes if each.plan.gpu_layers else 0,
        "digest": model.files[0].sha256 if model else "",
        "details": facts(model) if model else {"format": "gguf"},
        "expires_at": until.isoformat().replace("+00:00", "Z"),
        "context_length": each.plan.context,
    }


def shown(found: library.Found) -> Json:
    model = found.model
    header = gguf.read_model(found.paths)
    known = catalog.resolve_name(model.model) if model else None
    simple = {
        key: value
        for key, value in header.metadata.items()
        if isinstance(value, str | int | float | bool) and not key.startswith("tokenizer.")
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": str(header.metadata.get("tokenizer.chat_template", "")),
        "license": known.license if known else str(header.metadata.get("general.license", "")),
        "details": facts(model) if model else {"format": "gguf"},
        "model_info": simple,
        "capabilities": sorted({"completion", *(["vision"] if model and model.projector else []), "tools"}),
        "modified_at": (model.verified_at if model else None) or "1970-01-01T00:00:00Z",
    }


# ------------------------------------------------------------------------------------------------------- routes


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["ollama"])

    async def answer(
        asked: Asked, request: Request, found: library.Found, wanted: GenerationRequest, chat: bool
    ) -> Response:
        kind = PICTURES if asking.check_images(wanted.messages) else TEXT
        context = asked.options.num_ctx if asked.options else None
        keep = asking.keep_alive(asked.keep_alive)
        events = await while_there(request.receive, desk.started(found, kind, context, keep, wanted))
        if asked.stream is not False:
            return Stream(pieces(events, asked.model, chat), "application/x-ndjson", events)
        return whole(await while_there(request.receive, whole_answer(events, asked.model, chat)))

    async def only_load(asked: Asked, found: library.Found, chat: bool) -> Response:
        """An empty request loads a model, or lets it go where it is to be kept for no time."""
        keep = asking.keep_alive(asked.keep_alive)
        if keep == 0:
            with contextlib.suppress(NotFound):
                await desk.blocking(desk.holder.unload, found)
        else:
            async with desk.hold(found, TEXT, asked.options.num_ctx if asked.options else None, keep):
                pass
        body = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        reason = "unload" if keep == 0 else "load"
        return whole({"model": asked.model, "created_at": now(), **body, "done": True, "done_reason": reason})

    @router.post("/chat")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        found = await desk.blocking(desk.find, asked.model)
        if not asked.messages:
            return await only_load(asked, found, True)
        messages = await desk.blocking(lambda: tuple(map(turn, asked.messages or ())))
        wanted = await desk.blocking(request_of, asked, found.name, messages)
        return await answer(asked, request, found, wanted, True)

    @router.post("/generate")
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        """An answer to a prompt."""
        if asked.suffix or asked.template or asked.context:
            raise refused("suffix, template and context are not taken", "/api/chat takes a whole conversation")
        found = await desk.blocking(desk.find, asked.model)
        if not asked.prompt and not asked.images:
            return await only_load(asked, found, False)
        if asked.raw:
            wanted = await desk.blocking(request_of, asked, found.name, (), asked.prompt)
            return await answer(asked, request, found, wanted, False)
        user = Turn(role="user", content=asked.prompt, images=asked.images)
        system = [Turn(role="system", content=asked.system)] if asked.system else []
        messages = await desk.blocking(lambda: tuple(map(turn, [*system, user])))
        wanted = await desk.blocking(request_of, asked, found.name, messages)
        return await answer(asked, request, found, wanted, False)

    @router.post("/embed")
    async def embed(asked: EmbedRequest, request: Request) -> Response:
        """A vector for each text."""
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not texts:
            return whole({"model": asked.model, "embeddings": []})
        keep = asking.keep_alive(asked.keep_alive)
        _, rows = await while_there(
            request.receive, vectors(desk, asked.model, texts, keep, asked.truncate is not False)
        )
        tokens = sum(row.tokens for row in rows)
        return whole(
            {
                "model": asked.model,
                "embeddings": [row.vector for row in rows],
                "total_duration": 0,
                "load_duration": 0,
                "prompt_eval_count": tokens,
            }
        )

    @router.post("/embeddings")
    async def embeddings(asked: OldEmbedRequest, request: Request) -> Response:
        """A vector for one text, as older clients ask."""
        keep = asking.keep_alive(asked.keep_alive)
        if not asked.prompt:
            return whole({"embedding": []})
        _, rows = await while_there(request.receive, vectors(desk, asked.model, [asked.prompt], keep))
        return whole({"embedding": rows[0].vector})

    @router.get("/tags")
    async def tags() -> Response:
        """The model that is served, where it is a file, and the installed ones."""
        models = [listed(each) for each in await desk.blocking(library.installed)]
        if (found := desk.unlisted()) is not None:
            models.insert(0, listed_file(found))
        return whole({"models": models})

    @router.post("/show")
    async def show(asked: ShowRequest) -> Response:
        """What a model's header says."""
        found = await desk.blocking(desk.find, asked.model or asked.name)
        return whole(await desk.blocking(shown, found))

    @router.get("/ps")
    async def ps() -> Response:
        """The models in memory."""
        return whole({"models": [held(each) for each in desk.holder.held()]})

    @router.get("/version")
    async def version() -> Response:
        """The version of the API."""
        return whole({"version": API_VERSION})

    return router
