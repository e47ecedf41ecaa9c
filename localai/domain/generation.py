"""Asking a model and being answered: messages, how to sample, and the events of an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ANSWER_RESERVE = 512  # tokens kept free for an answer whose length nobody has said


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: three bytes a pixel (red, green, blue), a row after the other. `sha256` is that of size and pixels."""

    name: str
    width: int
    height: int
    pixels: bytes = field(repr=False, compare=False)
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to have called; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model asks to have called; `arguments` is a JSON object as text. Also an event."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user, assistant or tool. The pictures of a turn stand before its text.

    `tool_calls` are what an assistant asked for; `name` is, of a tool's turn, whose result it is.
    """

    role: str
    content: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are llama.cpp's own; temperature 0 is greedy.

    The penalties look back on `penalty_window` tokens. `seed` None draws a fresh one. `logit_bias` adds to the logits
    of single tokens: (number of the token, what to add).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` of the prompt were not evaluated again; `guessed_tokens` of the answer were
    guessed right, and so evaluated together with others.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    guessed_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Timings:
    """How long one answer took. A speed is None where too little was done to tell."""

    load_ms: float
    prompt_ms: float
    first_token_ms: float | None
    prompt_tps: float | None
    decode_tps: float | None


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """So many of the prompt's tokens are evaluated."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ThinkingText:
    """A piece of what a thinking model says to itself; never part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as bytes, the logarithm of its probability, and the likeliest tokens in its place with theirs."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer, whole characters only. `logprobs` are of the tokens since the last piece, where wanted."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """So many of the conversation's oldest turns, a question and its answer each, no longer fit and are forgotten."""

    count: int


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The last event: the whole answer. `finish_reason` is stop, length or interrupted."""

    text: str
    thinking: str
    usage: Usage
    timings: Timings
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()


Event = TurnsDropped | PromptProgress | ThinkingText | AnswerText | ToolCall | AnswerEnd


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer and how. `max_tokens` None means: until the model stops or the context is full.

    `think` None leaves it to the model's template. `grammar` (GBNF) is what the answer must be a text of. `revisable`:
    the conversation may be taken up again before this answer or its question, so keep what going back there needs.

    The rest is for a `BatchEngine`. `raw` is a text to continue, without template, instead of the messages. `tools`
    may be asked for as `tool_choice` says: auto, none, required, or the name of the one that must be; with `one_call`
    at most one. `logprobs` is how many of the likeliest tokens are told beside each token; None tells none.
    `reserve`: tokens of the context that must be left for the answer; a prompt that leaves fewer does not fit.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    grammar: str | None = None
    revisable: bool = False
    raw: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    one_call: bool = False
    logprobs: int | None = None
    reserve: int = 1
