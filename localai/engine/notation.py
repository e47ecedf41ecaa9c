"""GBNF, the notation of llama.cpp's grammars: the rules that all our grammars stand on, literals and repetitions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

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


def literal(text: str) -> str:
    """`text` as a literal of the grammar."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    number = ord(character)
    return character if 0x20 <= number < 0x7F else f"\\U{number:08X}"


def as_json(value: Any) -> str:
    """`value` as JSON that every model can write: some have no token for the bytes F1 to F4 of UTF-8, none for half a
    character, and llama.cpp ends the process where no token may follow.
    """
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\ud800-\udfff\U00040000-\U0010ffff]", lambda found: json.dumps(found[0])[1:-1], text)


def either(expressions: Iterable[str]) -> str:
    """An expression for any of these."""
    choices = list(dict.fromkeys(expressions))
    return choices[0] if len(choices) == 1 else "(" + " | ".join(choices) + ")"


def times(least: int, most: int | None) -> str:
    """How often what stands before it repeats; `most` None is without end."""
    return f"{{{least},{'' if most is None else most}}}"
