"""Whatever a grammar lets a model write is JSON of its schema; llama.cpp takes every grammar that is made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from grammar_texts import Texts
from hypothesis import given, settings
from hypothesis import strategies as st
from real_model import model_file

from localai.engine import grammar, library
from localai.engine.notation import FORMATS
from localai.errors import UsageError

TEXTS = 12  # drawn of each grammar


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Any]:
    """The vocabulary of the small model, without its weights: llama.cpp parses grammars for one."""
    api = library.api()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(str(model_file()).encode(), parameters)
    yield api.llama_model_get_vocab(model)
    api.llama_model_free(model)


def taken(vocabulary: Any, text: str) -> bool:
    sampler = library.api().llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
    if sampler:
        library.api().llama_sampler_free(sampler)
    return bool(sampler)


def holds(schema: Any, vocabulary: Any) -> None:
    made = grammar.gbnf(schema)
    assert taken(vocabulary, made), made
    texts = Texts(made)
    for seed in range(TEXTS):
        text = texts.draw(seed)
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | NAMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
WHOLE = st.integers(-3000, 3000)


@st.composite
def strings(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(["plain", "length", "format", "pattern"]))
    schema: dict[str, Any] = {"type": "string"}
    if kind == "length":
        low = draw(st.integers(0, 5))
        schema |= {"minLength": low, "maxLength": draw(st.integers(low, 9))}
    elif kind == "format":
        schema["format"] = draw(st.sampled_from(sorted(FORMATS)))
    elif kind == "pattern":
        schema["pattern"] = draw(st.sampled_from(PATTERNS))
    return schema


@st.composite
def ranged(draw: st.DrawFn) -> Any:
    low, high = sorted((draw(WHOLE), draw(WHOLE)))
    schema: dict[str, Any] = {"type": draw(st.sampled_from(["integer", "number"]))}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high + 3
    return schema


PATTERNS = (
    r"^[A-Z]{2}\d{2,4}$",
    r"^\+?[0-9 ()-]{3,}$",
    r"^(rouge|vert|bleu)$",
    r"^a|b$",
    r"[^a-z]",
    r"^[^\s@]+@[^\s@]+\.[a-z]{2,6}$",
    r"^\w+(-\w+)*$",
    r'^"quoted"\\path\n?$',
    r"^[\"\\\t]x?$",
    r"^.{1,3}$",
    r"^\D\S\W$",
    r"^[é-ü日]*?$",
    r"^(?:ab)?c{0}d$",
    r"",
    r"^[\u0041-\u007f]$",
)
SCHEMAS = st.recursive(
    strings()
    | ranged()
    | st.sampled_from([{}, True, {"type": ["null", "boolean"]}, {"type": "object"}, {"type": "array"}])
    | st.builds(lambda value: {"const": value}, VALUES)
    | st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    lambda inner: st.one_of(
        st.builds(
            lambda properties, cut, closed: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:cut],
                **({"additionalProperties": False} if closed else {}),
            },
            st.dictionaries(NAMES, inner, max_size=4),
            st.integers(0, 4),
            st.booleans(),
        ),
        st.builds(lambda each: {"type": "object", "additionalProperties": each}, inner),
        st.builds(
            lambda each, low, more: {"type": "array", "items": each, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 3),
        ),
        st.builds(lambda each: {"type": "array", "prefixItems": each}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda each: {"anyOf": each, "description": "x"}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda each: {"allOf": [each]}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=120)
@given(schema=SCHEMAS)
def test_any_schema_is_kept_by_all_its_texts(schema: Any, vocabulary: Any) -> None:
    holds(schema, vocabulary)


@settings(max_examples=20)
@given(inner=SCHEMAS)
def test_definitions_recursion_included(inner: Any, vocabulary: Any) -> None:
    holds(
        {
            "$defs": {"a/b~c": inner, "list": {"type": "object", "properties": {"x": {"$ref": "#/$defs/a~1b~0c"}}}},
            "type": "object",
            "properties": {"head": {"$ref": "#/$defs/list"}, "more": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["head"],
        },
        vocabulary,
    )


@given(st.integers(-(10**16), 10**16), st.integers(0, 10**16), st.integers(0, 50))
def test_whole_numbers_keep_their_bounds(low: int, more: int, seed: int) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": low + more}
    try:
        found = int(Texts(grammar.gbnf(schema)).draw(seed))
    except UsageError:
        assert low > 10**15 - 1 or low + more < -(10**15) + 1
        return
    assert low <= found <= low + more


@pytest.mark.parametrize(("low", "high"), [(0, 9), (1, 5), (-3, 12), (95, 105), (-20, -7), (0, 0), (999, 1000)])
def test_every_whole_number_between_can_be_written(low: int, high: int) -> None:
    texts = Texts(grammar.gbnf({"type": "integer", "minimum": low, "maximum": high}))
    assert {int(texts.draw(seed)) for seed in range(60 * (high - low + 1))} == set(range(low, high + 1))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "minimum": 0},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "minimum": -1, "maximum": 1},
        {"type": "number", "minimum": 0.5, "maximum": 2.25},
        {"type": "number", "exclusiveMaximum": -1.5},
        {"type": "integer", "exclusiveMinimum": 2.5, "maximum": 4.5},
        {"type": ["integer", "null"], "minimum": 3},
        {"minimum": 3, "exclusiveMinimum": 3, "maximum": 5},
    ],
)
def test_numbers_keep_their_bounds(schema: Any, vocabulary: Any) -> None:
    made = grammar.gbnf(schema)
    assert taken(vocabulary, made)
    texts = Texts(made)
    for seed in range(200):
        jsonschema.validate(json.loads(texts.draw(seed)), schema)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_texts_of_a_pattern_match_it(pattern: str, vocabulary: Any) -> None:
    made = grammar.gbnf({"type": "string", "pattern": pattern})
    assert taken(vocabulary, made), made
    texts = Texts(made)
    found = {json.loads(texts.draw(seed)) for seed in range(100)}
    assert all(re.search(pattern, text) for text in found)
    assert len(found) > 1 or pattern in ("", r"^(?:ab)?c{0}d$", r'^"quoted"\\path\n?$')


@given(st.text(st.sampled_from('ab01[](){}|*+?.^$\\dws-,é"<>=!:'), max_size=14))
def test_any_pattern_is_kept_or_refused(pattern: str) -> None:
    try:
        made = grammar.gbnf({"type": "string", "pattern": pattern})
    except UsageError as error:
        assert "pattern" in error.message
        return
    texts = Texts(made)
    for seed in range(5):
        assert re.search(pattern, json.loads(texts.draw(seed)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(?=x)y"},
        {"type": "string", "pattern": r"(a)\1"},
        {"type": "string", "pattern": r"\bword\b"},
        {"type": "string", "pattern": "(?i)abc"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "a^b"},
        {"type": "string", "pattern": "a", "maxLength": 3},
        {"type": "string", "pattern": 3},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5},
        {"type": "number", "minimum": 0.25, "maximum": 0.75},
        {"type": "integer", "minimum": "3"},
        {"type": "integer", "exclusiveMinimum": True, "minimum": 3},
        {"type": "boolean", "minimum": 3},
    ],
)
def test_what_cannot_be_held_is_refused(schema: Any) -> None:
    with pytest.raises(UsageError):
        grammar.gbnf(schema)
