"""What goes through the socket between a command and the server of the same user: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from localai import errors
from localai.domain.engine import Delivery
from localai.domain.generation import (
    AnswerEnd,
    AnswerText,
    GenerationRequest,
    Message,
    PromptProgress,
    Sampling,
    ThinkingText,
    Timings,
    Tool,
    ToolCall,
    Usage,
)
from localai.domain.plan import MemoryNeed, Placement, Plan, SpeedRange
from localai.errors import LocalaiError, UsageError

Json = dict[str, Any]
LONGEST_LINE = 64 * 1024**2  # characters, and so a conversation of a million tokens

TAKEN: Json = {"taken": True}  # before the events of an answer: nothing of the request is refused any more

_EVENTS: dict[str, Any] = {
    kind.__name__: kind for kind in (PromptProgress, ThinkingText, AnswerText, ToolCall, AnswerEnd)
}


def line(content: Json) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"


def parsed(text: bytes) -> Json:
    """The object of a line. Raises ValueError."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def of_event(event: Delivery) -> Json:
    if isinstance(event, LocalaiError):
        return of_error(event)
    return {"event": type(event).__name__, **dataclasses.asdict(event)}


def of_error(error: LocalaiError) -> Json:
    needed = getattr(error, "needed_tokens", None)
    return {"error": error.code, "message": error.message, "hint": error.hint, "needed_tokens": needed}


def to_event(told: Json) -> Delivery:
    """Raises ValueError, KeyError, TypeError for what no server of this version says."""
    if "error" in told:
        return to_error(told)
    fields = {key: value for key, value in told.items() if key not in ("event", "logprobs")}
    if told["event"] == "AnswerEnd":
        fields["usage"], fields["timings"] = Usage(**told["usage"]), Timings(**told["timings"])
        fields["tool_calls"] = tuple(ToolCall(**each) for each in told["tool_calls"])
    event: Delivery = _EVENTS[told["event"]](**fields)
    return event


def to_error(told: Json) -> LocalaiError:
    kind = next((each for each in _kinds(LocalaiError) if each.code == told["error"]), LocalaiError)
    if issubclass(kind, errors.ContextOverflow):
        return kind(told["message"], told["hint"], told["needed_tokens"])
    return kind(told["message"], told["hint"])


def _kinds(kind: type[LocalaiError]) -> Iterator[type[LocalaiError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def of_messages(messages: Any) -> list[Json]:
    """Raises UsageError for pictures, which no server of the shell is asked about."""
    if any(each.images for each in messages):
        raise UsageError("the server is not asked about images", "load the model without it: localai stop")
    return [{"role": each.role, "content": each.content} for each in messages]


def to_messages(told: list[Json]) -> tuple[Message, ...]:
    return tuple(Message(each["role"], each["content"]) for each in told)


def of_request(request: GenerationRequest) -> Json:
    fields = {each.name: getattr(request, each.name) for each in dataclasses.fields(request)}
    fields["messages"] = of_messages(request.messages)
    fields["sampling"] = dataclasses.asdict(request.sampling)
    fields["tools"] = [dataclasses.asdict(each) for each in request.tools]
    return fields


def to_request(told: Json) -> GenerationRequest:
    fields = dict(told)
    fields["messages"] = to_messages(told["messages"])
    bias = tuple((int(token), float(value)) for token, value in told["sampling"].pop("logit_bias"))
    fields["sampling"] = Sampling(**told["sampling"], logit_bias=bias)
    fields["stop"] = tuple(told["stop"])
    fields["tools"] = tuple(Tool(**each) for each in told["tools"])
    return GenerationRequest(**fields)


def of_plan(plan: Plan) -> Json:
    return dataclasses.asdict(plan)


def to_plan(told: Json) -> Plan:
    fields = dict(told)
    fields["placement"] = Placement(told["placement"])
    fields["memory"] = MemoryNeed(**told["memory"])
    for key in ("decode_tps", "prompt_tps"):
        fields[key] = SpeedRange(**told[key]) if told[key] else None
    fields["warnings"], fields["workers"] = tuple(told["warnings"]), tuple(told["workers"])
    return Plan(**fields)
