"""What each record of a batch is asked: a text with `{fields}` that the record fills in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localai.errors import UsageError

_PARTS = re.compile(r"\{\{|\}\}|\{([^{}\n]{0,200})\}|[{}]")
_NO_NAME = re.compile(r"[\"':,\[\]]|^\s*$")


@dataclass(frozen=True, slots=True)
class Template:
    """A text in `parts`: what stands as it is, and the names of fields, in turn."""

    parts: tuple[str, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        return self.parts[1::2]

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with the values put in, which are never looked through themselves; what is no text, as JSON.

        Raises UsageError for a field that the record does not have.
        """
        filled = list(self.parts)
        for place, name in enumerate(self.fields):
            if name not in values:
                raise UsageError(f"the record has no field {name[:100]!r}", _fields_there(values))
            filled[2 * place + 1] = as_text(values[name])
        return "".join(filled)


def parse(text: str) -> Template:
    """The template that `text` is; `{{` and `}}` stand for braces. Raises UsageError for a brace that stands alone."""
    parts, literal, end = [], "", 0
    for found in _PARTS.finditer(text):
        literal += text[end : found.start()]
        end = found.end()
        name = found[1]
        if found[0] in ("{{", "}}"):
            literal += found[0][0]
        elif name is None or _NO_NAME.search(name):
            near = text[max(0, found.start() - 10) : found.end() + 10]
            raise UsageError(
                f"the template has a brace that belongs to no field, near {near!r}",
                "write {{ and }} for braces, {text} or {name} for a field",
            )
        else:
            parts += [literal, name.strip()]
            literal = ""
    return Template((*parts, literal + text[end:]))


def as_text(value: object) -> str:
    """A value as it is put in: a text as it is, nothing for null, all else as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _fields_there(values: Mapping[str, Any]) -> str:
    names = ", ".join(str(name)[:40] for name in list(values)[:10])
    return f"its fields are: {names}" if names else "it has none"
