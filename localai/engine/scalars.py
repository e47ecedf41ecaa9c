"""Strings and numbers of a JSON schema as expressions of a grammar."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from localai.engine import bounds, patterns
from localai.engine.keywords import NUMBER, STRING, Json, is_a, least_and_most, only, refused
from localai.engine.notation import FORMATS, as_json, literal, times


def number(name: str, schema: Mapping[str, Json], at: str) -> str:
    """Numbers within the schema's bounds; the tighter of two that are given counts. Raises UsageError."""
    if not NUMBER & schema.keys():
        return name
    limits: dict[str, Fraction | None] = {}
    for keyword in sorted(NUMBER):
        value: Json = schema.get(keyword)
        if keyword in schema and not (is_a(value, "number") and math.isfinite(value)):
            raise refused(f"{at}/{keyword}", "is no number")
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
        raise refused(at, "has bounds that nothing between them can be written for")
    return found


def string(schema: Mapping[str, Json], at: str) -> str:
    """Strings of a pattern, a format or a length. Raises UsageError."""
    if "pattern" in schema:
        only({*schema} & STRING, {"pattern"}, at)
        if not isinstance(schema["pattern"], str):
            raise refused(f"{at}/pattern", "is no text")
        try:
            inside = patterns.expression(schema["pattern"], lambda each: literal(as_json(each)[1:-1]))
        except patterns.NotHonoured as error:
            raise refused(f"{at}/pattern", f"{schema['pattern']!r:.100} cannot be honoured: it {error}") from error
        return rf'"\"" {inside} "\""'
    least, most = least_and_most(schema, "minLength", "maxLength", at)
    if "format" in schema:
        form = FORMATS.get(str(schema["format"]))
        if form is None:
            raise refused(f"{at}/format", f"{schema['format']!r} cannot be honoured; {', '.join(FORMATS)} can")
        if "minLength" in schema or "maxLength" in schema:
            raise refused(f"{at}/format", "cannot be honoured beside minLength and maxLength")
        return rf'"\"" {form} "\""'
    if "minLength" not in schema and "maxLength" not in schema:
        return "string"
    return rf'"\"" char{times(least, most if "maxLength" in schema else None)} "\""'
