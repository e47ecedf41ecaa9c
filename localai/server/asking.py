"""What both forms of the API ask in common: from plain JSON values to a `GenerationRequest`."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from localai import answer_schema, images, settings
from localai.domain.generation import Image, Message, Sampling, Tool, ToolCall
from localai.engine.call_syntax import json_or_text
from localai.errors import UsageError
from localai.holding import PICTURES, TEXT
from localai.server.forms import Drawing, Said

Turn = TypeVar("Turn", bound=Said)
MOST_IMAGES = 16
MOST_TEXTS = 2048  # to become vectors
MOST_TOOLS = 128
MOST_STOPS = 64  # editors send whole lists of them
MOST_LEVELS = 100  # of a tool's parameters, or a call's arguments
ANY_OBJECT = {"type": "object"}
DRAWN = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed"
)  # fmt: skip
ROLES = {"developer": "system", "function": "tool"}


def refused(what: str, hint: str = "docs/server.md lists what is taken") -> UsageError:
    return UsageError(what, hint)


def sampling(name: str, asked: Drawing, **more: Any) -> Sampling:
    """How to draw: what was given, `more` of it too, else the settings, else what the model's makers recommend."""
    from localai.commands import options

    given = {key: getattr(asked, key) for key in DRAWN} | more
    return options.sampling(name, {key: value for key, value in given.items() if value is not None})


def stops(given: str | Sequence[str] | None) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given or ())
    if len(found) > MOST_STOPS:
        raise refused(f"more than {MOST_STOPS} stop texts")
    return tuple(each for each in found if each)


def grammar(schema: Any) -> str:
    """The grammar of a JSON schema given as a value. Raises UsageError."""
    return answer_schema.from_text(json.dumps(schema), "the schema").grammar


def tools(given: Sequence[Mapping[str, Any]] | None) -> tuple[Tool, ...]:
    """The tools of a request, in OpenAI's form, which is also Ollama's. Raises UsageError."""
    if len(given or ()) > MOST_TOOLS:
        raise refused(f"more than {MOST_TOOLS} tools")
    return tuple(map(_tool, given or ()))


def _tool(given: Mapping[str, Any]) -> Tool:
    function = given.get("function")
    if given.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise refused("a tool is no function")
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(name, str) or not name or len(name) > 200 or any(c in name for c in '<>"\\\n{}[]()'):
        raise refused("a tool has no usable name")
    if not isinstance(description, str) or not isinstance(parameters, dict):
        raise refused(f"the tool {name!r} has a description that is no text, or parameters that are no schema")
    if _too_deep(parameters):
        raise refused(f"the parameters of the tool {name!r} are nested more than {MOST_LEVELS} deep")
    return Tool(name, description, parameters)


def _too_deep(value: Any) -> bool:
    """Whether what walks through it might run out of stack; this walk needs none."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [child for children in inner for child in children]
    return bool(level)


def picture(given: str) -> Image:
    """The picture in a `data:` URL or in bare base64. Nothing is ever fetched. Raises UsageError."""
    head, comma, data = given.partition(",")
    if not given.startswith("data:"):
        if "://" in given[:16]:
            raise refused("an image is a URL, and nothing is fetched", "send it as data:image/png;base64,...")
        data = given
    elif not comma or not head.endswith(";base64"):
        raise refused("an image's data URL is not in base64", "send it as data:image/png;base64,...")
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused("an image is no base64", "send it as data:image/png;base64,...") from error
    return images.decoded(content, "the image")


def calls(given: Sequence[Mapping[str, Any]] | None) -> tuple[ToolCall, ...]:
    """The calls that an assistant's turn of earlier made; their arguments as text or as values. Raises UsageError."""
    found = []
    for each in given or ():
        function = each.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise refused("a tool call has no function with a name")
        arguments = function.get("arguments") or {}
        if _too_deep(json_or_text(arguments) if isinstance(arguments, str) else arguments):
            raise refused(f"the arguments of a tool call are nested more than {MOST_LEVELS} deep")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        found.append(ToolCall(function["name"], text))
    return tuple(found)


def with_results_in_order(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, each result of a tool with the name of the call that its id is of, and in the order of the calls: few
    templates write the ids. An id is that of the last call before that has it: some clients count anew in each turn.
    """
    calls: list[Mapping[str, Any]] = []
    places: dict[str, int] = {}
    found: list[Turn] = []
    for is_result, group in itertools.groupby(turns, key=lambda turn: turn.role == "tool"):
        run = list(group)
        if not is_result:
            for call in (call for turn in run for call in turn.tool_calls or ()):
                if call.get("id"):
                    places[str(call["id"])] = len(calls)
                calls.append(call)
            found += run
            continue
        for turn in sorted(run, key=lambda turn: places.get(turn.tool_call_id or "", -1)):
            place = places.get(turn.tool_call_id or "") if not turn.name else None
            function = calls[place].get("function") if place is not None else None
            name = function.get("name") if isinstance(function, dict) else None
            found.append(turn.model_copy(update={"name": name}) if isinstance(name, str) else turn)
    return found


def check_texts(texts: Sequence[str]) -> None:
    """Refuse what no vectors are made of: an empty text, and more than OpenAI takes. Raises UsageError."""
    if not all(texts):
        raise refused("a text of the input is empty", "leave it out")
    if len(texts) > MOST_TEXTS:
        raise refused(f"more than {MOST_TEXTS:,} texts", "ask for them in parts")


def check_images(count: int) -> None:
    """Refuse too many images, before any is decoded. Raises UsageError."""
    if count > MOST_IMAGES:
        raise refused(f"more than {MOST_IMAGES} images")


def kind_of(messages: Sequence[Message]) -> str:
    """The kind of model that a conversation is for."""
    return PICTURES if any(message.images for message in messages) else TEXT


def role(given: str) -> str:
    """Raises UsageError for a role that no model knows."""
    found = ROLES.get(given, given)
    if found not in ("system", "user", "assistant", "tool"):
        raise refused(f"there is no role {given[:40]!r}", "roles are system, user, assistant and tool")
    return found


def keep_alive(given: str | float | None) -> float | None:
    """Seconds that a request wants its model kept: a number, or 5m, 24h, -1. Raises UsageError."""
    if given is None:
        return None
    try:
        return settings.seconds(str(given))
    except ValueError as error:
        raise refused(f"keep_alive: {error}") from error
