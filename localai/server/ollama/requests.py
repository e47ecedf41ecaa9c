"""Requests in Ollama's form, and what each asks of an engine."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from localai.domain.generation import GenerationRequest, Message
from localai.server import asking
from localai.server.asking import refused
from localai.server.forms import MOST_TOKENS, Drawing, Form, Json, KeepAlive, Said, Tokens

WIDEST_WINDOW = 2**16  # tokens that penalties look back on


class Options(Drawing):
    repeat_last_n: Annotated[int | None, Field(ge=-1, le=MOST_TOKENS)] = None
    num_ctx: Tokens = None
    num_predict: Annotated[int | None, Field(ge=-2, le=MOST_TOKENS)] = None


class Turn(Said):
    content: str | None = ""
    images: list[str] | None = None
    tool_name: str | None = None


class Asked(Form):
    model: str
    stream: bool | None = True
    format: str | Json | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: bool | str | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None

    @property
    def wished_context(self) -> int | None:
        """Tokens of context that the model is to have."""
        return self.options.num_ctx if self.options else None


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
    dimensions: Tokens = None
    keep_alive: KeepAlive = None


class OldEmbedRequest(Form):
    model: str
    prompt: str | None = ""
    keep_alive: KeepAlive = None


class ShowRequest(Form):
    model: str | None = None
    name: str | None = None
    verbose: bool | None = False


def request_of(asked: Asked, name: str, messages: tuple[Message, ...], raw: str | None = None) -> GenerationRequest:
    """Raises UsageError for what cannot be honoured."""
    options = asked.options or Options()
    grammar = None
    if asked.format == "json":
        grammar = asking.grammar(asking.ANY_OBJECT)
    elif isinstance(asked.format, dict):
        grammar = asking.grammar(asked.format)
    elif asked.format:
        raise refused(f"format is {str(asked.format)[:40]!r}", "json, or a JSON schema")
    tools = asking.tools(asked.tools) if isinstance(asked, ChatRequest) else ()
    last_n = options.repeat_last_n
    window = last_n if last_n is None or 0 <= last_n <= WIDEST_WINDOW else WIDEST_WINDOW
    limit = options.num_predict if options.num_predict is not None and options.num_predict > 0 else None
    think = asked.think if isinstance(asked.think, bool) or asked.think is None else True
    if grammar is not None and think is None:
        think = False
    return GenerationRequest(
        messages,
        asking.sampling(name, options, penalty_window=window),
        limit,
        asking.stops(options.stop),
        think,
        grammar,
        raw=raw,
        tools=tools,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def message_of(given: Turn) -> Message:
    """A message of the request as ours. Raises UsageError."""
    seen = tuple(map(asking.picture, given.images or ()))
    return Message(
        asking.role(given.role),
        given.content or "",
        seen,
        asking.calls(given.tool_calls),
        given.tool_name or given.name or "",
    )


def chat_messages(asked: ChatRequest) -> tuple[Message, ...]:
    """The conversation of a request. Raises UsageError."""
    turns = asked.messages or []
    asking.check_images(sum(len(each.images or ()) for each in turns))
    return tuple(map(message_of, asking.with_results_in_order(turns)))


def prompt_messages(asked: GenerateRequest) -> tuple[Message, ...]:
    """A prompt, as a conversation of one question. Raises UsageError."""
    asking.check_images(len(asked.images or ()))
    system = [Turn(role="system", content=asked.system)] if asked.system else []
    user = Turn(role="user", content=asked.prompt, images=asked.images)
    return tuple(map(message_of, [*system, user]))
