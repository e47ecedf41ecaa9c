"""The keywords of a JSON schema that are honoured, their values read, and the refusal of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localai.errors import UsageError

Json = Any
MOST_REPETITIONS = 1000  # llama.cpp takes 2,000 (MAX_REPETITION_THRESHOLD); a larger maximum is narrowed to this

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
    | {"$comment", "$schema", "$id", "$anchor", "$defs", "definitions", "contentMediaType", "contentEncoding"}
)
OBJECT = frozenset({"properties", "required", "additionalProperties"})
ARRAY = frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems"})
STRING = frozenset({"minLength", "maxLength", "format", "pattern"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
FAMILIES = {"object": OBJECT, "array": ARRAY, "string": STRING, "number": NUMBER, "integer": NUMBER}
ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")


def types_of(schema: Mapping[str, Json], at: str) -> list[str] | None:
    """The types that a schema names, None where it names none. `at` is its pointer. Raises UsageError."""
    if "type" not in schema:
        return None
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not names or any(name not in TYPES for name in names):
        raise refused(f"{at}/type", f"is none of {', '.join(TYPES)}")
    return list(dict.fromkeys(names))


def is_a(value: Json, name: str) -> bool:
    """Whether a value is of a type of JSON schemas."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "number": number,
        "integer": number and float(value).is_integer(),
        "boolean": isinstance(value, bool),
        "null": value is None,
    }[name]


def least_and_most(schema: Mapping[str, Json], least: str, most: str, at: str) -> tuple[int, int]:
    """How often something may repeat, by the keywords `least` and `most`. Raises UsageError."""
    low, high = schema.get(least, 0), schema.get(most, MOST_REPETITIONS)
    if not is_a(low, "integer") or not is_a(high, "integer") or low < 0 or high < low:
        raise refused(at, f"has a {least} or {most} that nothing can meet")
    if low > MOST_REPETITIONS:
        raise refused(f"{at}/{least}", f"cannot be honoured above {MOST_REPETITIONS}")
    return int(low), min(int(high), MOST_REPETITIONS)


def target(schema: Json, pointer: str, at: str) -> Json:
    """What a JSON pointer (`#/$defs/name`, RFC 6901, percent-encoded as any address) means in `schema`."""
    from urllib.parse import unquote

    found = schema
    for part in unquote(pointer).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise refused(at, f"{pointer!r} leads nowhere")
    return found


def as_list(found: Json) -> list[Json]:
    """A list as it is, [] for anything else."""
    return found if isinstance(found, list) else []


def only(keywords: set[str], allowed: set[str] | frozenset[str], at: str) -> None:
    """Raise UsageError where there are other keywords than those that are allowed together."""
    if others := sorted(keywords - allowed):
        beside = f" beside {', '.join(sorted(allowed & keywords))}" if allowed & keywords else ""
        raise refused(at, f"has {', '.join(others)}, which cannot be honoured{beside}")


def refused(at: str, why: str) -> UsageError:
    """The error for what stands at the pointer `at`."""
    place = at if len(at) <= 120 else f"...{at[-117:]}"
    return UsageError(
        f"the JSON schema cannot be used: {place} {why}"[:400],
        "leave that keyword out and check the answer yourself; docs/structured.md lists what is honoured",
    )
