"""Tools, their calls and their results in a conversation, as chat templates want them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from localai.domain.generation import Message, Tool, ToolCall
from localai.engine import call_syntax as syntax
from localai.engine.tools import LFM, Form


def safe(tool: Tool, protect: Callable[[str], str]) -> Tool:
    """A tool, every text of which is `protect`ed."""
    return Tool(protect(tool.name), protect(tool.description), syntax.mapped(tool.parameters, protect))


def safe_call(call: ToolCall, protect: Callable[[str], str]) -> ToolCall:
    arguments = syntax.mapped(syntax.arguments_of(call), protect)
    return ToolCall(protect(call.name), json.dumps(arguments, ensure_ascii=False))


def are_in(messages: Sequence[Message]) -> bool:
    """Whether a conversation has calls of tools, or results of them."""
    return any(message.tool_calls or message.role == "tool" for message in messages)


def declared(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as templates want them."""
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in tools
    ]


def said(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages' keys beside role and content, as templates want them: a result has the id of its call."""
    numbers = itertools.count()
    unanswered: list[tuple[str, str]] = []  # the calls before: id and name
    found = []
    for message in messages:
        more: dict[str, Any] = {}
        if message.tool_calls:
            # nine letters and digits: Mistral's templates insist
            unanswered = [(f"call{next(numbers):05d}", call.name) for call in message.tool_calls]
            more["tool_calls"] = [
                {
                    "type": "function",
                    "id": own,
                    "function": {"name": call.name, "arguments": syntax.arguments_of(call)},
                }
                for (own, _), call in zip(unanswered, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            place = next((index for index, (_, name) in enumerate(unanswered) if name == message.name), 0)
            own, name = unanswered.pop(place) if unanswered else ("call00000", "")
            more |= {"name": message.name or name, "tool_call_id": own}
        found.append(more)
    return found


def one_by_one(messages: Sequence[Message]) -> list[Message]:
    """The conversation with a turn for each call, its result behind it: some templates have room for no more."""
    found: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if len(message.tool_calls) < 2:
            found.append(message)
            continue
        results = list(itertools.takewhile(lambda each: each.role == "tool", rest))
        del rest[: len(results)]
        for place, call in enumerate(message.tool_calls):
            found.append(replace(message, content="" if place else message.content, tool_calls=(call,)))
            own = next((index for index, each in enumerate(results) if each.name in ("", call.name)), None)
            if own is not None:
                found.append(results.pop(own))
        found += results
    return found


def written(messages: Sequence[Message], form: Form) -> list[Message]:
    """The conversation with the calls in the text of the turns that made them, in the model's own form."""

    def with_calls(message: Message) -> Message:
        calls = [_literal(call) if form is LFM else _as_json(call) for call in message.tool_calls]
        bodies = [f"[{', '.join(calls)}]"] if form.between else calls
        text = "\n".join(f"{form.opening}{body}{form.closing}" for body in bodies)
        return replace(message, content=message.content + text, tool_calls=())

    return [with_calls(message) if message.tool_calls else message for message in messages]


def _as_json(call: ToolCall) -> str:
    return json.dumps({"name": call.name, "arguments": syntax.arguments_of(call)}, ensure_ascii=False)


def _literal(call: ToolCall) -> str:
    """A call in Python's syntax."""

    def written(value: Any) -> str:
        if isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{written(key)}: {written(each)}" for key, each in value.items()) + "}"
        return "[" + ", ".join(map(written, value)) + "]" if isinstance(value, list) else repr(value)

    return f"{call.name}({', '.join(f'{key}={written(value)}' for key, value in syntax.arguments_of(call).items())})"


ASK = (
    "You can call tools. To call one, answer with nothing but"
    ' <tool_call>{"name": NAME, "arguments": {...}}</tool_call>. Their results come in <tool_response>.'
    " The tools, as JSON:\n"
)


def in_words(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation for a template that knows no tools: they stand in the system text, their use in the turns.

    Calls are asked for, and read, in the form `IN_WORDS`.
    """
    told = ASK + "\n".join(json.dumps(each["function"], ensure_ascii=False) for each in declared(tools))
    rest = list(messages)
    system = rest.pop(0).content + "\n\n" if rest and rest[0].role == "system" else ""
    turns = [Message("system", system + told), *rest] if tools else list(messages)
    found: list[Message] = []
    for turn in map(_in_words, turns):
        if found and turn.role == found[-1].role == "user":  # roles may have to alternate
            found[-1] = replace(
                turn, content=f"{found[-1].content}\n{turn.content}", images=found[-1].images + turn.images
            )
        else:
            found.append(turn)
    return found


def _in_words(message: Message) -> Message:
    if message.tool_calls:
        calls = "\n".join(f"<tool_call>{_as_json(call)}</tool_call>" for call in message.tool_calls)
        return Message("assistant", f"{message.content}\n{calls}".strip())
    if message.role == "tool":
        return Message("user", f"<tool_response>{message.content}</tool_response>")
    return message
