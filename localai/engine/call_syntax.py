"""The syntaxes of tool calls: reading each, and the grammar of one call. Pure functions over a model's text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localai.domain.generation import Tool, ToolCall
from localai.engine.notation import literal

LONGEST = 200_000  # characters of a call that are read
Expression = Callable[[Any], str]
Writer = Callable[[Tool, str, Expression], str]

# Rules that the grammars of calls need beside those of JSON.
EXTRA: dict[str, str] = {
    "element-text": '([^<] | "<" [^/])*',
    "gemma-string": r'"<|\"|>" [^<]* "<|\"|>"',
    "gemma-value": "gemma-string | number | boolean | null | gemma-list | gemma-object",
    "gemma-list": '"[" (gemma-value ("," gemma-value)*)? "]"',
    "gemma-key": "[A-Za-z0-9_-]+",
    "gemma-object": '"{" (gemma-key ":" gemma-value ("," gemma-key ":" gemma-value)*)? "}"',
}

# ------------------------------------------------------------------------------------------------------- reading


def tagged(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """JSON, or the elements `<function=NAME><parameter=KEY>value</parameter></function>` (Qwen3-Coder and its kin)."""
    if (found := re.match(r"\s*<function=([^>\n]{1,200})>", body)) is None:
        return json_calls(body, tools)
    if "</function>" not in body:  # cut off
        return None
    name = found[1].strip()
    types = _properties(tools, name)
    arguments: dict[str, Any] = {}
    for each in re.finditer(r"<parameter=([^>\n]{1,200})>(.*?)</parameter>", body[:LONGEST], re.DOTALL):
        key, text = each[1].strip(), each[2].removeprefix("\n").removesuffix("\n")
        arguments[key] = text if _is_text(types.get(key)) else json_or_text(text)
    return [_call(name, arguments)]


def keyed(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """`NAME<arg_key>key</arg_key><arg_value>value</arg_value>…` of GLM; or JSON."""
    name = body[:LONGEST].partition("<arg_key>")[0].strip()
    if name not in {tool.name for tool in tools}:
        return json_calls(body, tools)
    types = _properties(tools, name)
    pair = r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"
    found = [(key.strip(), text) for key, text in re.findall(pair, body[:LONGEST], re.DOTALL)]
    return [_call(name, {key: text if _is_text(types.get(key)) else json_or_text(text) for key, text in found})]


def named(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """`"NAME"><param name="KEY">value</param>…` of MiniCPM, what is no plain text in CDATA."""
    if (found := re.match(r'"([^"<>\n]{1,200})">', body)) is None:
        return None
    types, arguments = _properties(tools, found[1]), dict[str, Any]()
    for key, text in re.findall(r'<param name="([^"<>\n]{1,200})">(.*?)</param>', body[:LONGEST], re.DOTALL):
        value = text.removeprefix("<![CDATA[").removesuffix("]]>")
        arguments[key] = value if _is_text(types.get(key)) else json_or_text(value)
    return [_call(found[1], arguments)]


def json_calls(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """One call as JSON, or a list of them, or several with semicolons between."""
    text = body.strip()[:LONGEST]
    values: list[Any] = []
    decoder = json.JSONDecoder()
    at = 0
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values += value if isinstance(value, list) else [value]
            while at < len(text) and text[at] in "; \t\r\n":
                at += 1
    except (ValueError, RecursionError):
        return None
    calls = [_of_json(value) for value in values]
    return [call for call in calls if call] if calls and all(calls) else None


def bare(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """As `json_calls`, but only what names tools that there are, with arguments: other JSON is an answer."""
    calls, names = json_calls(body, tools), {tool.name for tool in tools}
    meant = calls and all(call.name in names for call in calls) and re.search(r'"(?:parameters|arguments)"\s*:', body)
    return calls if meant else None


def _of_json(value: Any) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    value = value.get("function") if isinstance(value.get("function"), dict) else value
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json_or_text(arguments)
    name = value.get("name")
    return _call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def mistral(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """A JSON list, or `NAME[ARGS]{…}` (`NAME[CALL_ID]id[ARGS]{…}`) of the newer ones."""
    head, found, rest = body.partition("[ARGS]")
    if not found:
        name, brace, arguments = body.strip().partition("{")
        if re.fullmatch(r"[\w.-]{1,200}", name) and brace:
            return _named(name, brace + arguments)
        return json_calls(body, tools)
    return _named(head.partition("[CALL_ID]")[0].strip(), rest)


def harmony(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """`NAME <|constrain|>json<|message|>{…}` of gpt-oss."""
    head, found, rest = body.partition("<|message|>")
    name = re.match(r"[\w.-]{1,200}", head.strip())
    return _named(name[0], rest) if found and name else None


def pythonic(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """`[name(key="value", …), …]` of LFM2: Python's syntax, of which only literals count; or JSON."""
    text = body.strip()[:LONGEST]
    if (found := json_calls(text, tools)) is not None:
        return found
    try:
        parsed = ast.parse(text if text.startswith("[") else f"[{text}]", mode="eval").body
        if not isinstance(parsed, ast.List):
            return None
        calls = []
        for each in parsed.elts:
            if not isinstance(each, ast.Call) or each.args:
                return None
            arguments = {str(pair.arg): ast.literal_eval(_Constants().visit(pair.value)) for pair in each.keywords}
            calls.append(_call(ast.unparse(each.func), arguments))
    except (SyntaxError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        return None
    return calls or None


class _Constants(ast.NodeTransformer):
    """JSON's names for what Python calls otherwise, wherever they stand in a value. Raises KeyError for others."""

    def visit_Name(self, node: ast.Name) -> ast.Constant:
        return ast.Constant({"true": True, "false": False, "null": None}[node.id])


def gemma(body: str, tools: Sequence[Tool]) -> list[ToolCall] | None:
    """`call:NAME{key:<|"|>text<|"|>,other:1}` of Gemma 4."""
    found = re.fullmatch(r"\s*call:([^{]{1,200})(\{.*\})\s*", body[:LONGEST], re.DOTALL)
    if found is None:
        return None
    parts = found[2].split('<|"|>')
    if len(parts) % 2 == 0:
        return None
    keyed = re.compile(r"([{,]\s*)([\w.-]+)(\s*:)")
    text = "".join(
        json.dumps(part, ensure_ascii=False) if index % 2 else keyed.sub(r'\1"\2"\3', part)
        for index, part in enumerate(parts)
    )
    return _named(found[1].strip(), text)


def _named(name: str, text: str) -> list[ToolCall] | None:
    try:
        arguments, _ = json.JSONDecoder().raw_decode(text.strip()[:LONGEST] or "{}")
    except (ValueError, RecursionError):
        return None
    return [_call(name, arguments)] if name and isinstance(arguments, dict) else None


def _call(name: str, arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False, default=str))


def json_or_text(text: str) -> Any:
    """The value that a text is as JSON; the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _properties(tools: Sequence[Tool], name: str) -> Mapping[str, Any]:
    for tool in tools:
        found = tool.parameters.get("properties")
        if tool.name == name and isinstance(found, Mapping):
            return found
    return {}


def _is_text(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """A call's arguments as values; {} where they are no JSON object."""
    found = json_or_text(call.arguments)
    return found if isinstance(found, dict) else {}


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): mapped(each, change) for key, each in value.items()}
    return [mapped(each, change) for each in value] if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------------ grammars


def renamed(rule: str, names: Mapping[str, str]) -> str:
    """A rule with other names for the rules in it; what stands in quotes or brackets is no name."""
    parts = re.split(r'("(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\])', rule)
    for index in range(0, len(parts), 2):
        parts[index] = re.sub(r"[A-Za-z][\w-]*", lambda found: names.get(found[0], found[0]), parts[index])
    return "".join(parts)


def json_call(key: str) -> Writer:
    """`{"name": NAME, KEY: arguments}`."""

    def write(tool: Tool, rule: str, expression: Expression) -> str:
        name = literal(json.dumps(tool.name, ensure_ascii=False))
        return rf'"{{\"name\":" ws {name} "," ws "\"{key}\":" ws {expression(tool.parameters)} ws "}}"'

    return write


def args_call(tool: Tool, rule: str, expression: Expression) -> str:
    return f"{literal(tool.name + '[ARGS]')} {expression(tool.parameters)}"


def harmony_call(tool: Tool, rule: str, expression: Expression) -> str:
    start = f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>"
    return f"{literal(start)} {expression(tool.parameters)}"


def element_call(tool: Tool, rule: str, expression: Expression) -> str:
    def before(key: str) -> str:
        return f"{literal(f'<parameter={key}>')} {_NEWLINE}"

    members = _marked(tool, expression, before, "\n</parameter>\n")
    return f"{literal(f'<function={tool.name}>' + chr(10))} {members} {literal('</function>')}"


def keyed_call(tool: Tool, rule: str, expression: Expression) -> str:
    def before(key: str) -> str:
        return f"{_NEWLINE}? {literal(f'<arg_key>{key}</arg_key>')} {_NEWLINE}? {literal('<arg_value>')}"

    return f"{literal(tool.name)} {_marked(tool, expression, before, '</arg_value>')}"


def named_call(tool: Tool, rule: str, expression: Expression) -> str:
    def before(key: str) -> str:
        return literal(f'<param name="{key}">')

    start = literal(f'"{tool.name}">')
    return f"{start} {_marked(tool, expression, before, '</param>')}"


def pythonic_call(tool: Tool, rule: str, expression: Expression) -> str:
    def pair(key: str, schema: Any) -> str:
        boolean = isinstance(schema, Mapping) and schema.get("type") == "boolean"
        return " ".join((literal(key + "="), '("True" | "False")' if boolean else expression(schema)))

    return " ".join((literal(tool.name + "("), _parted(tool, pair, '"," " "?'), literal(")")))


def gemma_call(tool: Tool, rule: str, expression: Expression) -> str:
    def pair(key: str, schema: Any) -> str:
        value = "gemma-value"
        if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list) and _is_text(schema):
            value = "(" + " | ".join(literal(f'<|"|>{each}<|"|>') for each in schema["enum"]) + ")"
        elif isinstance(schema, Mapping):
            of_type = {"string": "gemma-string", "integer": "integer", "number": "number", "boolean": "boolean",
                       "array": "gemma-list", "object": "gemma-object"}  # fmt: skip
            value = of_type.get(str(schema.get("type")), value)
        return f"{literal(key + ':')} {value}"

    return " ".join((literal(f"call:{tool.name}{{"), _parted(tool, pair, literal(",")), literal("}")))


_NEWLINE = literal("\n")


def _marked(tool: Tool, expression: Expression, before: Callable[[str], str], after: str) -> str:
    """The members between marks, what is a text without quotes."""

    def pair(key: str, schema: Any) -> str:
        value = "element-text" if _is_text(schema) and "enum" not in schema else _plain(schema, expression)
        return f"{before(key)} {value} {literal(after)}"

    return _pairs(tool, pair)


def _plain(schema: Any, expression: Expression) -> str:
    """A value that is written without quotes where it is a text."""
    if _is_text(schema):
        return "(" + " | ".join(literal(str(each)) for each in schema["enum"]) + ")"
    return expression(schema)


def _members(tool: Tool, pair: Callable[[str, Any], str]) -> list[tuple[str, bool]]:
    properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
    required = required if isinstance(required, list) else []
    if not isinstance(properties, Mapping):
        return []
    return [(pair(str(key), schema), key in required) for key, schema in properties.items()]


def _pairs(tool: Tool, pair: Callable[[str, Any], str]) -> str:
    return " ".join(f"({each}){'' if needed else '?'}" for each, needed in _members(tool, pair))


def _parted(tool: Tool, pair: Callable[[str, Any], str], comma: str) -> str:
    """The members in their order with commas between: those that are required first, the others after them."""
    members = sorted(_members(tool, pair), key=lambda member: not member[1])
    needed = [each for each, is_needed in members if is_needed]
    others = [each for each, is_needed in members if not is_needed]
    if needed:
        return f" {comma} ".join(needed) + "".join(f" ({comma} {each})?" for each in others)
    whole = ""
    for each in reversed(others):  # any subset, in order
        whole = f"({each}" + "".join(f" ({comma} {later})?" for later in others[others.index(each) + 1 :]) + ")" + (
            f" | {whole}" if whole else "")  # fmt: skip
    return f"({whole})?" if whole else ""
