"""Numbers between bounds, as expressions of llama.cpp's grammar (GBNF): digit by digit."""

from __future__ import annotations

import math
from fractions import Fraction

LARGEST = 10**15 - 1  # what a float holds exactly; larger bounds are narrowed to it
FRACTION = '"." [0-9]{1,15}'
_NOT_ZERO = '"." [0-9]{0,14} [1-9]'


def integers(low: int | None, high: int | None) -> str | None:
    """The whole numbers from `low` to `high`, None for no bound; None where there are none."""
    low = -LARGEST if low is None else max(low, -LARGEST)
    high = LARGEST if high is None else min(high, LARGEST)
    parts = []
    if low < 0 and (below := _naturals(max(1, -high), -low)):
        parts.append(f'"-" {below}')
    if high >= 0 and (above := _naturals(max(low, 0), high)):
        parts.append(above)
    return _either(parts)


def numbers(low: Fraction | None, high: Fraction | None, after: bool, before: bool) -> str | None:
    """Numbers from `low` to `high`, None for no bound; `after` and `before` leave the bounds themselves out.

    Narrower than that where a bound is no whole number: those between it and the next whole number are left out. None
    where nothing is left.
    """
    low = Fraction(-LARGEST) if low is None else max(low, Fraction(-LARGEST))
    high = Fraction(LARGEST) if high is None else min(high, Fraction(LARGEST))
    parts = []
    if low < 0 and (below := _upwards(max(-high, Fraction(0)), -low, before and high <= 0, after)):
        parts.append(f'"-" {below}')
    if high >= 0 and (above := _upwards(max(low, Fraction(0)), high, after and low >= 0, before)):
        parts.append(above)
    return _either(parts)


def _upwards(low: Fraction, high: Fraction, after: bool, before: bool) -> str | None:
    """Numbers from `low` to `high`, neither of them negative, without a sign."""
    least, most = math.ceil(low), math.floor(high)
    after, before = after and least == low, before and most == high
    parts = [_naturals(least + after, most - before)]
    if after and least < most:
        parts.append(f'"{least}" {_NOT_ZERO}')
    if whole := _naturals(least + after, most - 1):
        parts.append(f"{whole} {FRACTION}")
    return _either([part for part in parts if part])


def _naturals(low: int, high: int) -> str | None:
    """The natural numbers from `low` to `high` in decimal digits."""
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        least, most = max(low, 10 ** (digits - 1) if digits > 1 else 0), min(high, 10**digits - 1)
        if least <= most:
            parts.append(_same_length(str(least), str(most)))
    return _either(parts)


def _same_length(low: str, high: str) -> str:
    if not low:
        return ""
    rest = len(low) - 1
    if low[0] == high[0]:
        return f'"{low[0]}" {_same_length(low[1:], high[1:])}'.strip()
    first, last = int(low[0]), int(high[0])
    parts, tail = [], []
    if low[1:].strip("0"):
        parts.append(f'"{first}" {_same_length(low[1:], "9" * rest)}')
        first += 1
    if high[1:].strip("9"):
        tail.append(f'"{last}" {_same_length("0" * rest, high[1:])}')
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}]" + (f" [0-9]{{{rest}}}" if rest else ""))
    return _either([*parts, *tail]) or ""


def _either(parts: list[str]) -> str | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"
