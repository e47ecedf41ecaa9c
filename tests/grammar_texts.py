"""Texts of a GBNF grammar, drawn at random: what a model held to it may write, without a model."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:(?P<literal>"(?:\\.|[^"\\])*")|(?P<set>\[(?:\\.|[^\]\\])*\])|(?P<name>[a-zA-Z0-9_-]+)
        |(?P<times>\{\d+(?:,\d*)?\})|(?P<sign>[()|*+?]))""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:U([0-9A-F]{8})|x([0-9A-F]{2})|(.))", re.DOTALL)
MORE = 3  # repetitions beyond the least, at most


def _plain(text: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] or found[2]:
            return chr(int(found[1] or found[2], 16))
        return {"n": "\n", "r": "\r", "t": "\t"}.get(found[3], found[3])

    return _ESCAPE.sub(one, text)


def _characters(inside: str) -> tuple[bool, list[tuple[int, int]]]:
    """Whether a set is of what is not in it, and its ranges."""
    negated, inside = inside.startswith("^"), inside.removeprefix("^")
    units = [_plain(unit) for unit in re.findall(r"\\U[0-9A-F]{8}|\\x[0-9A-F]{2}|\\.|.", inside, re.DOTALL)]
    ranges, at = [], 0
    while at < len(units):
        if at + 2 < len(units) and units[at + 1] == "-":
            ranges.append((ord(units[at]), ord(units[at + 2])))
            at += 3
        else:
            ranges.append((ord(units[at]), ord(units[at])))
            at += 1
    return negated, ranges


@dataclass
class Texts:
    """Draws texts of `grammar`; `deepest` bounds how far rules nest before the shortest choices are taken."""

    grammar: str
    deepest: int = 12
    rules: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.grammar.splitlines():
            name, _, body = line.partition(" ::= ")
            self.rules[name] = self._choices(self._tokens(body))
        self.cost = dict.fromkeys(self.rules, float("inf"))
        for _ in range(len(self.rules) + 1):  # the least depth of each rule, to a fixed point
            self.cost = {name: 1 + self._least(rule) for name, rule in self.rules.items()}

    def _tokens(self, body: str) -> list[tuple[str, str]]:
        found, at = [], 0
        while body[at:].strip():
            token = _TOKEN.match(body, at)
            assert token is not None, f"no token of GBNF: {body[at : at + 40]!r}"
            found.append((token.lastgroup or "", token[token.lastgroup or 0]))
            at = token.end()
        return found[::-1]

    def _choices(self, tokens: list[tuple[str, str]]) -> Any:
        choices: list[list[Any]] = [[]]
        while tokens and tokens[-1][1] != ")":
            kind, text = tokens.pop()
            if kind == "literal":
                choices[-1].append(("literal", _plain(text[1:-1])))
            elif kind == "set":
                choices[-1].append(("set", _characters(text[1:-1])))
            elif kind == "name":
                choices[-1].append(("rule", text))
            elif text == "|":
                choices.append([])
            elif text == "(":
                choices[-1].append(self._choices(tokens))
                tokens.pop()
            else:
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(text, (0, 0))
                if kind == "times":
                    low, comma, high = text[1:-1].partition(",")
                    least, most = int(low), int(high) if high else None if comma else int(low)
                choices[-1].append(("times", choices[-1].pop(), least, most))
        return ("choices", choices)

    def _least(self, node: Any) -> float:
        kind, *rest = node
        if kind == "choices":
            return min(max((self._least(each) for each in choice), default=0) for choice in rest[0])
        if kind == "times":
            return self._least(rest[0]) if rest[1] else 0
        return self.cost[rest[0]] if kind == "rule" else 0

    def draw(self, seed: int) -> str:
        """A text of the grammar."""
        return self._draw(self.rules["root"], random.Random(seed), 0)

    def _draw(self, node: Any, chance: random.Random, depth: int) -> str:
        kind, *rest = node
        if kind == "literal":
            return str(rest[0])
        if kind == "set":
            return self._character(*rest[0], chance)
        if kind == "rule":
            return self._draw(self.rules[rest[0]], chance, depth + 1)
        if kind == "times":
            inner, least, most = rest
            top = least if depth > self.deepest else least + MORE if most is None else min(most, least + MORE)
            return "".join(self._draw(inner, chance, depth) for _ in range(chance.randint(least, top)))
        choices = rest[0]
        if depth > self.deepest:
            choices = [min(choices, key=lambda choice: max((self._least(each) for each in choice), default=0))]
        return "".join(self._draw(each, chance, depth) for each in chance.choice(choices))

    def _character(self, negated: bool, ranges: list[tuple[int, int]], chance: random.Random) -> str:
        if not negated:
            return chr(chance.randint(*chance.choice(ranges)))
        while True:
            code = chance.choice((chance.randint(0x20, 0x7E), chance.randint(0xA0, 0x24F), 0x1F600, 0x7F, 0x0A, 0x65E5))
            if not any(low <= code <= high for low, high in ranges):
                return chr(code)
