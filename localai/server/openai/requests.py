"""Requests in OpenAI's form, and what each asks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from localai.domain.generation import GenerationRequest, Message, Sampling
from localai.server import asking
from localai.server.asking import refused
from localai.server.forms import Drawing, Form, Json, KeepAlive, Said, Tokens

MOST_CHOICES = 16  # answers to one prompt
MOST_ANSWERS = 32  # to all prompts


class Common(Drawing):
    model: str | None = None
    stream: bool | None = False
    stream_options: Json | None = None
    max_tokens: Tokens = None
    n: Annotated[int | None, Field(ge=1, le=MOST_CHOICES)] = 1
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    keep_alive: KeepAlive = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatMessage(Said):
    content: str | list[Json] | None = None


class ChatRequest(Common):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: Json | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = True
    reasoning_effort: str | None = None
    chat_template_kwargs: Json | None = None


class CompletionRequest(Common):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = 1

    @property
    def prompts(self) -> list[str]:
        """Raises UsageError for tokens."""
        return only_texts(self.prompt, "prompt")


class EmbeddingsRequest(Form):
    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Tokens = None
    keep_alive: KeepAlive = None


def only_texts(given: str | Sequence[str | int | list[int]], name: str) -> list[str]:
    """A text, or each of several. Raises UsageError for none, and for tokens."""
    several = [given] if isinstance(given, str) else given
    texts = [text for text in several if isinstance(text, str)]
    if not texts or len(texts) < len(several):
        raise refused(
            f"{name} is no text, nor a list of texts",
            "send no token numbers: they are another model's (LangChain: check_embedding_ctx_length=False)",
        )
    return texts


def message_of(message: ChatMessage) -> Message:
    """A message of the request as ours. Raises UsageError."""
    content = message.content
    parts: Sequence[Json] = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
    text: list[str] = []
    seen = []
    for part in parts:
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
    """The messages of a request. Raises UsageError."""
    parts = [part for message in given if isinstance(message.content, list) for part in message.content]
    asking.check_images(sum(part.get("type") == "image_url" for part in parts))
    return tuple(map(message_of, asking.with_results_in_order(given)))


def sampling_of(asked: Common, name: str) -> Sampling:
    """How the model called `name` is to draw. Raises UsageError."""
    if not asked.logit_bias:
        return asking.sampling(name, asked)
    try:
        bias = tuple((int(token), bias) for token, bias in asked.logit_bias.items())
    except ValueError:
        raise refused("logit_bias has a key that is no token number") from None
    return asking.sampling(name, asked, logit_bias=bias)


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
        return asking.grammar(asking.ANY_OBJECT)
    if form.get("type") == "json_schema" and isinstance(form.get("json_schema"), dict):
        return asking.grammar(form["json_schema"].get("schema", asking.ANY_OBJECT))
    raise refused("response_format is none of text, json_object, json_schema")


def chat_request(asked: ChatRequest, name: str) -> GenerationRequest:
    """Raises UsageError for what cannot be honoured."""
    if (asked.model_extra or {}).get("functions"):
        raise refused("functions and function_call are not taken any more", "send tools and tool_choice")
    tools, choice, grammar = asking.tools(asked.tools), choice_of(asked), held_to(asked.response_format)
    if not tools and choice not in ("auto", "none"):
        raise refused("tool_choice asks for a tool, and there is none")
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
        one_call=asked.parallel_tool_calls is False,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )


def times(request: GenerationRequest, count: int | None) -> list[GenerationRequest]:
    """The request so often, each with a seed of its own."""
    drawn = request.sampling
    return [
        replace(request, sampling=replace(drawn, seed=None if drawn.seed is None else drawn.seed + number))
        for number in range(count or 1)
    ]


def check_completion(asked: CompletionRequest) -> None:
    """Raises UsageError for what is never taken, and for more answers than are given at once."""
    if asked.echo or asked.suffix or asked.best_of not in (None, 1):
        raise refused("echo, suffix and best_of are not taken")
    if not 1 <= len(asked.prompts) * (asked.n or 1) <= MOST_ANSWERS:
        raise refused(f"prompt is a text, or several of them; there are up to {MOST_ANSWERS} answers in all")


def completion_requests(asked: CompletionRequest, name: str) -> list[GenerationRequest]:
    """For each prompt as many as are wanted. Raises UsageError for what cannot be honoured."""
    drawn, limit, stops = sampling_of(asked, name), asked.max_tokens or 16, asking.stops(asked.stop)
    asking_for = (
        GenerationRequest((), drawn, limit, stops, raw=prompt, logprobs=asked.logprobs) for prompt in asked.prompts
    )
    return [each for request in asking_for for each in times(request, asked.n)]


def texts_of(asked: EmbeddingsRequest) -> list[str]:
    """What is to become vectors. Raises UsageError for none, and for tokens."""
    texts = only_texts(asked.input, "input")
    asking.check_texts(texts)
    return texts
