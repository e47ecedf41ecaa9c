"""The user's own names for models: one small file for each, so that two processes at once lose none.

An alias stands for what was given with it, a model's name or a file's path; it is resolved once, never in a chain.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from localai import json_file, naming, quantization, settings
from localai.errors import NotFound, UsageError

SCHEMA_VERSION = 1
_NAME = re.compile(r"\w[\w.-]{0,59}")


@dataclass(frozen=True, slots=True)
class Alias:
    """`name` stands for `target`: a MODEL argument, or the absolute path of a file."""

    name: str
    target: str


def folder() -> Path:
    """Where they are kept: with the user's choices."""
    return settings.folders().config / "aliases"


def check_name(name: str) -> str:
    """`name` as it is kept, if it can be an alias. Raises UsageError for what is, or looks like, something else."""
    name = unicodedata.normalize("NFC", name)
    if not _NAME.fullmatch(name) or name.casefold().endswith(".gguf") or name[-1] == ".":
        raise UsageError(
            f"{name[:80]!r} cannot be an alias",
            "letters, digits, '.', '_' and '-', at most 60, beginning with a letter or a digit; no path",
        )
    naming.check_filename(_file(name).name)
    return name


def _file(name: str) -> Path:
    return folder() / f"{unicodedata.normalize('NFC', name).casefold()}.json"


def find(name: str) -> Alias | None:
    """The alias of that name (case-insensitive), None where there is none that can be read."""
    if not _NAME.fullmatch(unicodedata.normalize("NFC", name)):
        return None
    return _read(_file(name))


def load() -> tuple[Alias, ...]:
    """Every alias, by name; what cannot be read is none."""
    try:
        paths = sorted(folder().glob("[!.]*.json"))
    except OSError:
        return ()
    return tuple(alias for path in paths if (alias := _read(path)) is not None)


def _read(path: Path) -> Alias | None:
    try:
        raw = json_file.read(path)
        name, target = raw["name"], raw["target"]
    except (OSError, ValueError, KeyError):
        return None
    if not isinstance(name, str) or not isinstance(target, str) or not target or _file(name) != path:
        return None
    return Alias(name, target)


def save(name: str, target: str) -> Alias:
    """Keep an alias, replacing an older one of that name. Raises UsageError for a bad name, LocalaiError."""
    alias = Alias(check_name(name), target)
    path = _file(alias.name)
    try:
        settings.private_folder(folder().parent)
        settings.private_folder(folder())
        content = {"schema_version": SCHEMA_VERSION, "name": alias.name, "target": alias.target}
        settings.write_atomically(path, json.dumps(content).encode())
    except OSError as error:
        raise settings.not_kept(path, error) from error
    return alias


def remove(name: str) -> None:
    """Forget an alias. Raises NotFound where there is none, LocalaiError."""
    if find(name) is None:
        have = ", ".join(alias.name for alias in load()[:20])
        raise NotFound(f"there is no alias {name[:80]!r}", f"the aliases are: {have}" if have else "there are none yet")
    try:
        _file(name).unlink(missing_ok=True)
    except OSError as error:
        raise settings.not_kept(_file(name), error) from error


def expand(text: str) -> str:
    """A MODEL argument with its alias replaced by what that stands for; a selector or revision after it is kept.

    `fast:q8_0` is the alias's model in that quantization, also where the alias names another one.
    """
    head, sign, rest = re.fullmatch(r"([^:@]*)([:@]?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    alias = find(head)
    if alias is None:
        return text
    if not sign or os.path.isabs(alias.target):
        return alias.target + sign + rest
    selector = naming.parse(alias.target).selector
    kept = alias.target
    # `3b` in `llama3.2:3b` is no selector but part of the name.
    if (sign == ":" or ":" in rest) and selector and quantization.of_filename(selector):
        kept = kept.replace(f":{selector}", "", 1)
    return kept + sign + rest
