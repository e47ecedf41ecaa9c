"""Regular expressions of JSON schemas as expressions of llama.cpp's grammar (GBNF), for the inside of a JSON string.

The expression may be narrower than the pattern, never wider: it matches as a whole even where the pattern has no `^`
and `$`, `\\d`, `\\w` and `\\s` are those of ASCII, a space the only white space.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # the parser that `re` itself uses, so that both agree
from typing import Any

MOST_REPETITIONS = 1000
_BARE = '[^"\\\\\\x00-\\x1F\\x7F]'  # what stands for itself in a JSON string
_ASCII = [(0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E)]  # without the quotation mark and the backslash
_BARE_RANGES = [*_ASCII, (0xA0, 0xD7FF), (0xE000, 0x3FFFF)]
_ESCAPED = frozenset(map(ord, '"\\\t\n\r'))  # single ones of these are written as escapes
_DIGITS, _WORDS = [(0x30, 0x39)], [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_CLASSES = {
    "CATEGORY_DIGIT": _DIGITS,
    "CATEGORY_WORD": _WORDS,
    "CATEGORY_SPACE": [(0x20, 0x20)],
}
_NEGATED = {
    "CATEGORY_NOT_DIGIT": _DIGITS,
    "CATEGORY_NOT_WORD": _WORDS,
    "CATEGORY_NOT_SPACE": [(0x00, 0x20)],
}

Range = tuple[int, int]


class NotHonoured(Exception):
    """The pattern has something that cannot be written as a grammar; the text says what."""


def expression(pattern: str, literal: Callable[[str], str]) -> str:
    """The expression whose every text matches `pattern`; `literal` writes a character as it stands in a JSON string.

    Raises NotHonoured, also for what is no regular expression.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a set that a later Python may read otherwise
            parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise NotHonoured(f"is no regular expression: {error}") from error
    if parsed.state.flags & ~re.UNICODE:
        raise NotHonoured("has flags")
    return _Converter(literal).whole(list(parsed)) or '""'


class _Converter:
    def __init__(self, literal: Callable[[str], str]) -> None:
        self._literal = literal

    def whole(self, items: list[Any]) -> str:
        """A pattern, or an alternative of one, between its ends."""
        if len(items) == 1 and items[0][0] is _constants.BRANCH:
            return "(" + " | ".join(self.whole(list(each)) or '""' for each in items[0][1][1]) + ")"
        if items and items[0] in (
            (_constants.AT, _constants.AT_BEGINNING),
            (_constants.AT, _constants.AT_BEGINNING_STRING),
        ):
            del items[0]
        if items and items[-1] in ((_constants.AT, _constants.AT_END), (_constants.AT, _constants.AT_END_STRING)):
            del items[-1]
        return self.sequence(items)

    def sequence(self, items: Iterable[Any]) -> str:
        return " ".join(part for item in items if (part := self.one(*item)))

    def one(self, kind: Any, value: Any) -> str:
        match str(kind):
            case "LITERAL":
                return self._one_of([(value, value)])
            case "NOT_LITERAL":
                return self._one_of(list(_without(_BARE_RANGES, [(value, value)])))
            case "ANY":
                return _BARE
            case "IN":
                return self._one_of(list(_ranges(value)))
            case "BRANCH":
                return "(" + " | ".join(self.sequence(each) or '""' for each in value[1]) + ")"
            case "SUBPATTERN":
                _, added, taken, inside = value
                if added or taken:
                    raise NotHonoured("has flags")
                return f"({self.sequence(inside)})" if len(inside) else ""
            case "MAX_REPEAT" | "MIN_REPEAT":
                return self._repeated(*value)
        raise NotHonoured(f"has {str(kind).lower().replace('_', ' ')} inside it")

    def _repeated(self, least: int, most: Any, inside: Any) -> str:
        if least > MOST_REPETITIONS:
            raise NotHonoured(f"repeats more than {MOST_REPETITIONS} times")
        if not (part := self.sequence(inside)):
            return ""
        top = "" if most is _constants.MAXREPEAT else str(min(int(most), MOST_REPETITIONS))
        return f"({part}){{{least},{top}}}" if top != "0" else ""

    def _one_of(self, ranges: list[Range]) -> str:
        """One character of these ranges, as it is written in a JSON string."""
        bare = list(_within(ranges, _BARE_RANGES))
        escaped = [code for code in sorted(_ESCAPED) if any(low <= code <= high for low, high in ranges)]
        parts = [self._literal(chr(code)) for code in escaped]
        if len(bare) == 1 and bare[0][0] == bare[0][1]:
            parts.append(self._literal(chr(bare[0][0])))
        elif bare:
            parts.append("[" + "".join(map(_written, bare)) + "]")
        if not parts:
            raise NotHonoured("has a character that no answer can hold")
        return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"


def _ranges(items: list[Any]) -> Iterator[Range]:
    """The characters of a set; those that are not in it, of ASCII where it names classes, else of all."""
    negated = items[0][0] is _constants.NEGATE
    found: list[Range] = []
    classes = False
    for kind, value in items[negated:]:
        match str(kind):
            case "LITERAL":
                found.append((value, value))
            case "RANGE":
                found.append((value[0], value[1]))
            case "CATEGORY" if str(value) in _CLASSES:
                classes = True
                found += _CLASSES[str(value)]
            case "CATEGORY" if str(value) in _NEGATED:
                if negated:
                    raise NotHonoured("has a class that is negated twice")
                found += _without(_ASCII, _NEGATED[str(value)])
            case _:
                raise NotHonoured(f"has {str(value).lower()} in a set")
    if negated:  # other scripts have digits, letters and white space of their own, which `re` counts
        yield from _without(_ASCII if classes else _BARE_RANGES, found)
    else:
        yield from found


def _within(ranges: Iterable[Range], allowed: Iterable[Range]) -> Iterator[Range]:
    for low, high in ranges:
        for least, most in allowed:
            if max(low, least) <= min(high, most):
                yield max(low, least), min(high, most)


def _without(ranges: Iterable[Range], taken: Iterable[Range]) -> Iterator[Range]:
    left = list(ranges)
    for low, high in taken:
        left = [
            part
            for least, most in left
            for part in ((least, min(most, low - 1)), (max(least, high + 1), most))
            if part[0] <= part[1]
        ]
    yield from left


def _written(pair: Range) -> str:
    low, high = (f"\\U{code:08X}" for code in pair)
    return low if pair[0] == pair[1] else f"{low}-{high}"
