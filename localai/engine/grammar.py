"""From a JSON schema to the grammar (GBNF) that llama.cpp constrains an answer with.

Our own and not llama-cpp-python's converter, which ignores keywords such as `minimum`, leaves backslashes of names and
constants unescaped, and mixes up definitions of one name; here a keyword is honoured or refused. The grammar may be
narrower than the schema (declared properties only, in their order), never wider, except that `oneOf` is `anyOf`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localai.engine import scalars
from localai.engine.keywords import (
    ALTERNATIVES,
    ANNOTATIONS,
    FAMILIES,
    Json,
    as_list,
    is_a,
    least_and_most,
    only,
    refused,
    target,
    types_of,
)
from localai.engine.notation import PRIMITIVES, as_json, either, literal, times

DEEPEST = 60  # levels of nesting in a schema


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
            raise refused(at, f"is nested more than {DEEPEST} levels deep")
        if schema is True:
            return "value"
        if not isinstance(schema, Mapping):
            raise refused(at, "allows nothing" if schema is False else "is no schema")
        if "$id" in schema and at != "#" and '"$ref"' in as_json(schema):  # which would mean other places from here on
            raise refused(at, "has an $id, and references inside it, which cannot be honoured")
        keywords = {name for name in schema if name not in ANNOTATIONS and not name.startswith("x-")}
        alternative = next((name for name in ALTERNATIVES if name in keywords), None)
        if alternative in ("const", "enum"):
            only(keywords, {alternative, "type"}, at)
            return self._constants(schema, alternative, at)
        if alternative is not None:
            only(keywords, {alternative}, at)
            return self._alternatives(schema[alternative], alternative, at, depth)
        return self._typed(schema, keywords, at, depth)

    def _alternatives(self, found: Json, keyword: str, at: str, depth: int) -> str:
        at = f"{at}/{keyword}"
        if keyword == "$ref":
            return self._reference(found, at, depth)
        if not isinstance(found, list) or not found:
            raise refused(at, "is no list of schemas")
        if keyword == "allOf" and len(found) > 1:
            raise refused(at, "cannot be honoured for more than one schema")
        return either(self.rule_of(each, f"{at}/{index}", depth + 1) for index, each in enumerate(found))

    def _reference(self, pointer: Json, at: str, depth: int) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise refused(at, f"{pointer!r} cannot be honoured: only references into the same file are followed")
        if pointer not in self._references:
            name = self._references[pointer] = f"reference{len(self._references)}"
            self._opening.append(pointer)
            self.rules[name] = self.rule_of(target(self._schema, pointer, at), pointer, depth + 1)
            self._opening.pop()
        elif pointer in self._opening:
            raise refused(at, f"{pointer!r} is a reference to itself")
        return self._references[pointer]

    def _constants(self, schema: Mapping[str, Json], keyword: str, at: str) -> str:
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        if not isinstance(values, list):
            raise refused(f"{at}/enum", "is no list of values")
        if (types := types_of(schema, at)) is not None:
            values = [value for value in values if any(is_a(value, name) for name in types)]
        if not values:
            raise refused(f"{at}/{keyword}", "allows nothing")
        return either(literal(as_json(value)) for value in values)

    def _typed(self, schema: Mapping[str, Json], keywords: set[str], at: str, depth: int) -> str:
        types = types_of(schema, at)
        if types is None:  # what the other keywords are about
            types = [name for name, family in FAMILIES.items() if name != "integer" and keywords & family] or None
        if types is None:
            only(keywords, set(), at)
            return "value"
        allowed = {"type"}
        for name, family in FAMILIES.items():
            allowed |= family if name in types else frozenset()
        only(keywords, allowed, at)
        opening, self._opening = self._opening, []
        rule = either(self._of_type(name, schema, at, depth) for name in types)
        self._opening = opening
        return rule

    def _of_type(self, name: str, schema: Mapping[str, Json], at: str, depth: int) -> str:
        if name == "object":
            return self._object(schema, at, depth)
        if name == "array":
            return self._array(schema, at, depth)
        if name == "string":
            return scalars.string(schema, at)
        return scalars.number(name, schema, at) if name in ("number", "integer") else name

    def _object(self, schema: Mapping[str, Json], at: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise refused(at, "has properties that are no schemas")
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
                    f'{literal(as_json(name))} ":" ws ({self.rule_of(each, f"{at}/properties/{name}", depth + 1)})'
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
        least, most = least_and_most(schema, "minItems", "maxItems", at)
        if "prefixItems" in schema or isinstance(schema.get("items"), list):
            keyword = "prefixItems" if "prefixItems" in schema else "items"
            items = as_list(schema[keyword])
            if len(items) < least or len(items) > most:
                raise refused(f"{at}/{keyword}", "cannot be honoured beside minItems and maxItems")
            each = [self.rule_of(item, f"{at}/{keyword}/{index}", depth + 1) for index, item in enumerate(items)]
            return '"[" ws ' + ' "," ws '.join(f"({item})" for item in each) + ' ws "]"'
        item = self._name(self.rule_of(schema.get("items", True), f"{at}/items", depth + 1))
        if most == 0:
            return literal("[]")
        more = f'("," ws {item})' + times(max(least - 1, 0), None if "maxItems" not in schema else most - 1)
        inside = f"{item} {more} ws"
        return f'"[" ws {inside if least else f"({inside})?"} "]"'
