"""From a JSON schema to the grammar (GBNF) that llama.cpp constrains an answer with.

Our own and not llama-cpp-python's converter, which ignores keywords such as `minimum`, leaves backslashes of names and
constants unescaped, and mixes up definitions of one name; here a keyword is honoured or refused. The grammar may be
narrower than the schema (declared properties only, in their order), never wider, except that `oneOf` is `anyOf`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from localai.engine import bounds, patterns
from localai.errors import UsageError

Json = Any
MOST_REPETITIONS = 1000  # llama.cpp takes 2,000 (MAX_REPETITION_THRESHOLD); a larger maximum is narrowed to this
DEEPEST = 60  # levels of nesting in a schema

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
    | {"$comment", "$schema", "$id", "$anchor", "$defs", "definitions", "contentMediaType", "contentEncoding"}
)
OBJECT = frozenset({"properties", "required", "additionalProperties"})
ARRAY = frozenset({"items", "prefixItems", "minItems", "maxItems"})
STRING = frozenset({"minLength", "maxLength", "format", "pattern"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
FAMILIES = {"object": OBJECT, "array": ARRAY, "string": STRING, "number": NUMBER, "integer": NUMBER}
ALTERNATIVES = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")

_HEX = "[0-9a-fA-F]"
_DAYS = (
    '(("0" [13578] | "1" [02]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
    ' | ("0" [469] | "11") "-" ("0" [1-9] | [12] [0-9] | "30")'
    ' | "02-" ("0" [1-9] | "1" [0-9] | "2" [0-8]))'
)
PRIMITIVES: dict[str, str] = {
    "ws": '" "?',  # white space without end is what small models run away in
    "char": rf'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] {_HEX}{{3}} | [dD] [0-7] {_HEX}{{2}}))',
    "string": r'"\"" char* "\""',
    "whole": '"0" | [1-9] [0-9]{0,14}',
    "integer": '"-"? whole',
    "number": '"-"? whole ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ":" ws value',
    "object": '"{" ws (pair ("," ws pair)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "date": f'[12] [0-9]{{3}} "-" {_DAYS}',
    "clock": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]',
    "time": 'clock ":" [0-5] [0-9] ("Z" | [+-] clock)',
    "uuid": f'{_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}}',
}
FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def gbnf(schema: Json) -> str:
    """The grammar whose every text is a JSON value of `schema`; its first rule is `root`.

    Raises UsageError naming what cannot be honoured and where it stands.
    """
    converter = _Converter(schema)
    root = converter.rule_of(schema, "#", 0)
    rules = {"root": root, **converter.rules, **PRIMITIVES}
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


def several(schemas: Sequence[Json]) -> tuple[list[str], str]:
    """An expression for each schema, and the rules that these stand on. Raises UsageError as `gbnf` does."""
    whole = {"$defs": {str(index): _moved(schema, f"#/$defs/{index}") for index, schema in enumerate(schemas)}}
    converter = _Converter(whole)
    expressions = [converter.rule_of(each, f"#/$defs/{index}", 0) for index, each in whole["$defs"].items()]
    rules = {**converter.rules, **PRIMITIVES}
    return expressions, "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


def _moved(schema: Json, to: str) -> Json:
    """`schema` with its references meaning the same where it stands at the pointer `to`."""
    if isinstance(schema, Mapping):
        return {
            name: to + each[1:] if name == "$ref" and isinstance(each, str) and each[:1] == "#" else _moved(each, to)
            for name, each in schema.items()
        }
    return [_moved(each, to) for each in schema] if isinstance(schema, list) else schema


def literal(text: str) -> str:
    """`text` as a literal of the grammar."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _json(value: Json) -> str:
    """`value` as JSON that every model can write: some have no token for the bytes F1 to F4 of UTF-8, none for half a
    character, and llama.cpp ends the process where no token may follow.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\ud800-\udfff\U00040000-\U0010ffff]", lambda found: json.dumps(found[0])[1:-1], text)


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    number = ord(character)
    return character if 0x20 <= number < 0x7F else f"\\U{number:08X}"


class _Converter:
    """Collects the rules that the grammar of one schema needs besides `root`."""

    def __init__(self, schema: Json) -> None:
        self._schema = schema
        self._references: dict[str, str] = {}
        self._named: dict[str, str] = {}
        self._opening: list[str] = []  # references being followed with nothing yet that stands before them
        self.rules: dict[str, str] = {}

    def _name(self, expression: str) -> str:
        """A rule for what stands in several places: written out in each, a nested schema would grow without bound."""
        if (name := self._named.get(expression)) is None:
            name = self._named[expression] = f"rule{len(self._named)}"
            self.rules[name] = expression
        return name

    def rule_of(self, schema: Json, at: str, depth: int) -> str:
        """The expression of `schema`, which stands at the pointer `at`."""
        if depth > DEEPEST:
            raise _refused(at, f"is nested more than {DEEPEST} levels deep")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise _refused(at, "allows nothing" if schema is False else "is no schema")
        keywords = {name for name in schema if name not in ANNOTATIONS and not name.startswith("x-")}
        alternative = next((name for name in ALTERNATIVES if name in keywords), None)
        if alternative in ("const", "enum"):
            _only(keywords, {alternative, "type"}, at)
            return self._constants(schema, alternative, at)
        if alternative is not None:
            _only(keywords, {alternative}, at)
            return self._alternatives(schema[alternative], alternative, at, depth)
        return self._typed(schema, keywords, at, depth)

    def _alternatives(self, found: Json, keyword: str, at: str, depth: int) -> str:
        at = f"{at}/{keyword}"
        if keyword == "$ref":
            return self._reference(found, at, depth)
        if not isinstance(found, list) or not found:
            raise _refused(at, "is no list of schemas")
        if keyword == "allOf" and len(found) > 1:
            raise _refused(at, "cannot be honoured for more than one schema")
        return _either(self.rule_of(each, f"{at}/{index}", depth + 1) for index, each in enumerate(found))

    def _reference(self, pointer: Json, at: str, depth: int) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _refused(at, f"{pointer!r} cannot be honoured: only references into the same file are followed")
        if pointer not in self._references:
            name = self._references[pointer] = f"reference{len(self._references)}"
            self._opening.append(pointer)
            self.rules[name] = self.rule_of(_target(self._schema, pointer, at), pointer, depth + 1)
            self._opening.pop()
        elif pointer in self._opening:
            raise _refused(at, f"{pointer!r} is a reference to itself")
        return self._references[pointer]

    def _constants(self, schema: Mapping[str, Json], keyword: str, at: str) -> str:
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        if not isinstance(values, list):
            raise _refused(f"{at}/enum", "is no list of values")
        if (types := _types(schema, at)) is not None:
            values = [value for value in values if any(_is(value, name) for name in types)]
        if not values:
            raise _refused(f"{at}/{keyword}", "allows nothing")
        return _either(literal(_json(value)) for value in values)

    def _typed(self, schema: Mapping[str, Json], keywords: set[str], at: str, depth: int) -> str:
        types = _types(schema, at)
        if types is None:  # what the other keywords are about
            types = [name for name, family in FAMILIES.items() if name != "integer" and keywords & family] or None
        if types is None:
            _only(keywords, set(), at)
            return "value"
        allowed = {"type"}
        for name, family in FAMILIES.items():
            allowed |= family if name in types else frozenset()
        _only(keywords, allowed, at)
        opening, self._opening = self._opening, []
        rule = _either(self._of_type(name, schema, at, depth) for name in types)
        self._opening = opening
        return rule

    def _of_type(self, name: str, schema: Mapping[str, Json], at: str, depth: int) -> str:
        if name == "object":
            return self._object(schema, at, depth)
        if name == "array":
            return self._array(schema, at, depth)
        if name == "string":
            return _string(schema, at)
        return _number(name, schema, at) if name in ("number", "integer") else name

    def _object(self, schema: Mapping[str, Json], at: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise _refused(at, "has properties that are no schemas")
        others = schema.get("additionalProperties", True)
        if not properties and not required:
            if others is True:
                return "object"
            if others is False:
                return literal("{}")
            pair = self._name(f'string ":" ws ({self.rule_of(others, f"{at}/additionalProperties", depth + 1)})')
            return rf'"{{" ws ({pair} ("," ws {pair})* ws)? "}}"'
        undeclared = {name: others for name in required if name not in properties}
        pairs = [
            (
                self._name(
                    f'{literal(_json(name))} ":" ws ({self.rule_of(each, f"{at}/properties/{name}", depth + 1)})'
                ),
                name in required,
            )
            for name, each in {**properties, **undeclared}.items()
        ]
        return f'"{{" ws {self._pairs(pairs)} "}}"'

    def _pairs(self, pairs: list[tuple[str, bool]]) -> str:
        """The members in their order, the required ones always, the others or not, commas between those there are."""
        rest = start = ""  # what may follow a member, and what may stand where none does yet
        optional = True
        for pair, required in reversed(pairs):
            after = f"{pair} {rest}".strip()
            if required:
                start, optional = after, False
                rest = self._name(f'"," ws {after}')
            else:
                start = self._name(f"{after} | {start}" if start else after)
                rest = self._name(f'("," ws {pair})? {rest}'.strip())
        return f"({start} ws)?" if optional else f"{start} ws"

    def _array(self, schema: Mapping[str, Json], at: str, depth: int) -> str:
        least, most = _bounds(schema, "minItems", "maxItems", at)
        if "prefixItems" in schema or isinstance(schema.get("items"), list):
            keyword = "prefixItems" if "prefixItems" in schema else "items"
            items = _list(schema[keyword])
            if len(items) < least or len(items) > most:
                raise _refused(f"{at}/{keyword}", "cannot be honoured beside minItems and maxItems")
            each = [self.rule_of(item, f"{at}/{keyword}/{index}", depth + 1) for index, item in enumerate(items)]
            return '"[" ws ' + ' "," ws '.join(f"({item})" for item in each) + ' ws "]"'
        item = self._name(self.rule_of(schema.get("items", True), f"{at}/items", depth + 1))
        if most == 0:
            return literal("[]")
        more = f'("," ws {item})' + _times(max(least - 1, 0), None if "maxItems" not in schema else most - 1)
        inside = f"{item} {more} ws"
        return f'"[" ws {inside if least else f"({inside})?"} "]"'


def _number(name: str, schema: Mapping[str, Json], at: str) -> str:
    """Numbers within the schema's bounds; the tighter of two that are given counts."""
    if not NUMBER & schema.keys():
        return name
    limits: dict[str, Fraction | None] = {}
    for keyword in sorted(NUMBER):
        value: Json = schema.get(keyword)
        if keyword in schema and not (_is(value, "number") and math.isfinite(value)):
            raise _refused(f"{at}/{keyword}", "is no number")
        limits[keyword] = Fraction(str(value)) if keyword in schema else None
    low, after = limits["minimum"], False
    if (beyond := limits["exclusiveMinimum"]) is not None and (low is None or beyond >= low):
        low, after = beyond, True
    high, before = limits["maximum"], False
    if (beyond := limits["exclusiveMaximum"]) is not None and (high is None or beyond <= high):
        high, before = beyond, True
    if name == "integer":
        first = None if low is None else math.floor(low) + 1 if after else math.ceil(low)
        last = None if high is None else math.ceil(high) - 1 if before else math.floor(high)
        found = bounds.integers(first, last)
    else:
        found = bounds.numbers(low, high, after, before)
    if found is None:
        raise _refused(at, "has bounds that nothing between them can be written for")
    return found


def _string(schema: Mapping[str, Json], at: str) -> str:
    if "pattern" in schema:
        _only({*schema} & STRING, {"pattern"}, at)
        if not isinstance(schema["pattern"], str):
            raise _refused(f"{at}/pattern", "is no text")
        try:
            inside = patterns.expression(schema["pattern"], lambda each: literal(_json(each)[1:-1]))
        except patterns.NotHonoured as error:
            raise _refused(f"{at}/pattern", f"{schema['pattern']!r:.100} cannot be honoured: it {error}") from error
        return rf'"\"" {inside} "\""'
    least, most = _bounds(schema, "minLength", "maxLength", at)
    if "format" in schema:
        form = FORMATS.get(str(schema["format"]))
        if form is None:
            raise _refused(f"{at}/format", f"{schema['format']!r} cannot be honoured; {', '.join(FORMATS)} can")
        if "minLength" in schema or "maxLength" in schema:
            raise _refused(f"{at}/format", "cannot be honoured beside minLength and maxLength")
        return rf'"\"" {form} "\""'
    if "minLength" not in schema and "maxLength" not in schema:
        return "string"
    return rf'"\"" char{_times(least, most if "maxLength" in schema else None)} "\""'


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _bounds(schema: Mapping[str, Json], least: str, most: str, at: str) -> tuple[int, int]:
    low, high = schema.get(least, 0), schema.get(most, MOST_REPETITIONS)
    if not _is(low, "integer") or not _is(high, "integer") or low < 0 or high < low:
        raise _refused(at, f"has a {least} or {most} that nothing can meet")
    if low > MOST_REPETITIONS:
        raise _refused(f"{at}/{least}", f"cannot be honoured above {MOST_REPETITIONS}")
    return int(low), min(int(high), MOST_REPETITIONS)


def _types(schema: Mapping[str, Json], at: str) -> list[str] | None:
    if "type" not in schema:
        return None
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not names or any(name not in TYPES for name in names):
        raise _refused(f"{at}/type", f"is none of {', '.join(TYPES)}")
    return list(dict.fromkeys(names))


def _is(value: Json, name: str) -> bool:
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


def _target(schema: Json, pointer: str, at: str) -> Json:
    """What a JSON pointer (`#/$defs/name`, RFC 6901) means in `schema`."""
    found = schema
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise _refused(at, f"{pointer!r} leads nowhere")
    return found


def _list(found: Json) -> list[Json]:
    return found if isinstance(found, list) else []


def _either(expressions: Iterable[str]) -> str:
    choices = list(dict.fromkeys(expressions))
    return choices[0] if len(choices) == 1 else "(" + " | ".join(choices) + ")"


def _only(keywords: set[str], allowed: set[str] | frozenset[str], at: str) -> None:
    if others := sorted(keywords - allowed):
        beside = f" beside {', '.join(sorted(allowed & keywords))}" if allowed & keywords else ""
        raise _refused(at, f"has {', '.join(others)}, which cannot be honoured{beside}")


def _refused(at: str, why: str) -> UsageError:
    place = at if len(at) <= 120 else f"...{at[-117:]}"
    return UsageError(
        f"the JSON schema cannot be used: {place} {why}"[:400],
        "leave that keyword out and check the answer yourself; docs/structured.md lists what is honoured",
    )
