"""A schema is honoured or refused; what llama.cpp writes under its grammar is JSON that meets it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import Cli
from grammar_texts import Texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_model import engine_of_the_module  # noqa: F401  (the fixture `engine`)

from localai import answer_schema
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Sampling
from localai.engine import grammar, thinking
from localai.engine.model import LlamaEngine
from localai.errors import EngineError, SchemaIncomplete, UsageError

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "minimum": 3}, "minimum"),
        ({"type": "number", "multipleOf": 2}, "multipleOf"),
        ({"type": "string", "pattern": "^(?=a)"}, "pattern"),
        ({"type": "string", "format": "email"}, "email"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a has not"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"allOf": [{"type": "object"}, {"type": "object"}]}, "allOf"),
        ({"anyOf": [{"type": "object"}], "properties": {}}, "properties"),
        ({"if": {}, "then": {}}, "if, then"),
        ({"$ref": "https://example.com/s.json"}, "same file"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "array", "items": {"$id": "b", "$defs": {"x": {}}, "$ref": "#/$defs/x"}, "$defs": {"x": {}}}, "$id"),
        ({"$ref": "#"}, "itself"),
        (
            {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "itself",
        ),
        ({"type": "object", "requried": []}, "requried"),
        ({"type": "text"}, "type"),
        ({"enum": []}, "nothing"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "array", "minItems": 5000}, "minItems"),
        (False, "nothing"),
        ([], "no schema"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        answer_schema.from_text(json.dumps(schema), "s.json")
    assert named in caught.value.message
    assert caught.value.hint


def test_nesting_is_bounded() -> None:
    deep: Any = {"type": "string"}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="deep"):
        answer_schema.from_text(json.dumps(deep), "s.json")
    with pytest.raises(UsageError):
        answer_schema.from_text("[" * 100_000, "s.json")


def test_a_schema_of_many_optional_parts_has_a_small_grammar() -> None:
    schema: Any = {"type": "string"}
    for _ in range(8):
        schema = {"type": "object", "properties": dict.fromkeys("abc", schema)}
    assert len(grammar.gbnf(schema)) < 50_000


def test_a_file_that_is_no_schema_is_wrong_usage(isolated: Path) -> None:
    path = isolated / "s.json"
    for content in (b"", b"{", b"\xff\xfe", b"NaN", b'{"type": "object", "required": 3}'):
        path.write_bytes(content)
        with pytest.raises(UsageError):
            answer_schema.from_file(path)


def test_a_schema_is_a_file_or_stands_on_the_command_line(in_process: Cli, isolated: Path) -> None:
    inline = '{"type": "text"}'
    (isolated / "s.json").write_text(inline, "utf-16")
    for value, piped in (("s.json", ""), (inline, ""), ("-", inline)):
        told = in_process("run", "--json-schema", value, "Say it", input=piped)
        assert (told.returncode, told.stdout) == (2, "")
        assert "#/type is none of" in told.stderr
    assert in_process("run", "--json-schema", "none.json", "Say it").returncode == 3
    assert in_process("run", "--json-schema", ".", "Say it").returncode == 2
    told = in_process("map", "--json-schema", "-", "{text}", input="a\n")
    assert told.returncode == 2
    assert "stdin holds the records" in told.stderr


def test_an_answer_is_checked_against_the_whole_schema() -> None:
    held = answer_schema.from_text(json.dumps(CITY), "s.json")
    held.check('{"city": "Paris", "large": true}', cut=False)
    for text, cut in (('{"city": "Pa', True), ("", False), ('{"city": "Paris"}', False), ("NaN", False)):
        with pytest.raises(SchemaIncomplete):
            held.check(text, cut=cut)


def answer(engine: LlamaEngine, question: str, schema: Any, sampling: Sampling, limit: int = 28) -> AnswerEnd:
    request = GenerationRequest(
        (Message("user", question),), sampling, limit, think=False, grammar=grammar.gbnf(schema)
    )
    end = list(engine.generate(request, lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
    return end


CHAIN = {
    "type": "object",
    "properties": {"v": {"const": 1}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
    "required": ["v", "next"],
}
ODD_NAMES = {'né "x"\\': {"type": "null"}, "日本": {"const": 1}}
HARD: list[Any] = [
    CITY,
    {"const": 'a "quoted" \\ back\nslash é 😀 \x00'},
    {"enum": ["é", 'x"y', None, 3, 2.5, {"a": ["\\"]}]},
    {"type": "object", "properties": ODD_NAMES, "required": list(ODD_NAMES)},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False},
    {"type": ["boolean", "null"]},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "object", "additionalProperties": {"type": "boolean"}, "required": ["ok"]},
    {"type": "object", "additionalProperties": False},
    {"$defs": {"n": CHAIN}, "$ref": "#/$defs/n"},
    {"$defs": {"né": {"type": "boolean"}}, "$ref": "#/$defs/n%C3%A9"},
    {
        "$defs": {"a": {"x": {"const": 1}}, "b": {"x": {"const": 2}}},
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/a/x"}, {"$ref": "#/$defs/b/x"}],
        "minItems": 2,
    },
]


@pytest.mark.parametrize("schema", HARD, ids=range(len(HARD)))
def test_llama_cpp_writes_what_the_schema_allows(engine: LlamaEngine, schema: Any) -> None:
    end = answer(engine, "Give me some JSON.", schema, Sampling(temperature=1.5, seed=1))
    if end.finish_reason == "stop":
        jsonschema.validate(json.loads(end.text), schema)
    else:
        assert end.finish_reason == "length"


leaves = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "boolean"},
        {"type": "string", "maxLength": 4},
        {"enum": ["a", 1, None]},
        {"const": "é"},
    ]
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=4)


def larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(names, inner, min_size=1, max_size=3).flatmap(
        lambda properties: st.lists(st.sampled_from(sorted(properties)), unique=True).map(
            lambda required: {"type": "object", "properties": properties, "required": required}
        )
    )
    arrays = st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 2))
    unions = st.lists(inner, min_size=1, max_size=2).map(lambda each: {"anyOf": each})
    return objects | arrays | unions


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.recursive(leaves, larger, max_leaves=4), st.integers(0, 1000))
def test_any_complete_answer_meets_its_schema(engine: LlamaEngine, schema: Any, seed: int) -> None:
    sampling = Sampling(temperature=2.0, repeat_penalty=1.1, seed=seed)
    end = answer(engine, "JSON?", schema, sampling, limit=20)
    if end.finish_reason == "stop":
        jsonschema.validate(json.loads(end.text), schema)


def test_a_grammar_that_is_none_is_told(engine: LlamaEngine) -> None:
    request = GenerationRequest((Message("user", "x"),), grammar="root ::= (")
    with pytest.raises(EngineError, match="grammar"):
        list(engine.generate(request, lambda: False))


@pytest.mark.parametrize("opened", ["<think>\n", "[THINK]"])
def test_thoughts_that_the_prompt_opened_may_end_first(engine: LlamaEngine, opened: str) -> None:
    made = thinking.after_thoughts(grammar.gbnf({"const": 1}), "prompt " + opened)
    request = GenerationRequest((Message("user", "x"),), Sampling(seed=1), 20, grammar=made)
    assert list(engine.generate(request, lambda: False))  # llama.cpp takes it
    assert thinking.after_thoughts("root ::= x", "prompt") == "root ::= x"


def test_a_channel_that_the_prompt_opened_may_end_first(engine: LlamaEngine) -> None:
    wanted = grammar.gbnf({"const": 1})
    final = re.escape("<|start|>assistant<|channel|>final<|message|>1")
    for opened, before in (("<|message|>", ""), ("", re.escape("<|message|>"))):
        made = thinking.after_thoughts(wanted, f"<|start|>assistant<|channel|>analysis{opened}")
        request = GenerationRequest((Message("user", "x"),), Sampling(seed=1), 1, grammar=made)
        assert list(engine.generate(request, lambda: False))  # llama.cpp takes it
        for seed in range(20):
            assert re.fullmatch(rf"{before}.*<\|end\|>[ \n]*{final}", Texts(made).draw(seed), re.DOTALL)
    assert thinking.after_thoughts(wanted, "<|channel|>final<|message|>") == wanted


def test_a_model_may_think_first_where_that_is_asked_for(engine: LlamaEngine) -> None:
    tag = thinking.opening("{% if enable_thinking %}...</think>{% endif %}")
    made = thinking.after_thoughts(grammar.gbnf({"const": 1}), "<|im_start|>assistant\n", tag)
    request = GenerationRequest((Message("user", "x"),), Sampling(seed=1), 1, grammar=made)
    assert list(engine.generate(request, lambda: False))  # llama.cpp takes it
    texts = {Texts(made).draw(seed) for seed in range(40)}
    assert "1" in texts
    for text in texts - {"1"}:
        assert re.fullmatch(r"<think>.*</think>[ \n]*1", text, re.DOTALL)
    assert thinking.opening("{{ messages }}") == ""


def test_run_answers_with_exactly_the_json(cli: Cli, in_process: Cli, isolated: Path) -> None:
    (isolated / "s.json").write_text(json.dumps(CITY), "utf-8")
    words = ("run", "-m", "smollm2-135m", "--temperature", "0", "--json-schema", "s.json")
    told = cli(*words, "Name a city in France.")
    assert told.returncode == 0, told.stderr
    jsonschema.validate(json.loads(told.stdout), CITY)
    cut = cli(*words, "--max-tokens", "3", "Name a city in France.")
    assert (cut.returncode, cut.stdout) == (8, "")
    as_json = cli(*words, "--max-tokens", "3", "-o", "json", "Name a city in France.")
    assert json.loads(as_json.stdout)["error"]["exit_code"] == 8
    assert in_process("run", "--json-schema", "nosuch.json", "hi").returncode == 3
    (isolated / "s.json").write_text('{"type": "integer", "multipleOf": 3}', "utf-8")
    refused = in_process(*words, "hi")
    assert refused.returncode == 2
    assert "multipleOf" in refused.stderr
