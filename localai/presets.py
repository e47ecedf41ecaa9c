"""Prompt presets: texts with variables that give a small model one narrow task, built in or the user's own.

A preset is a TOML file: `[text.en]` (and `.fr`, ...) with `description`, `system`, `user`, `required` and `variables`
(their defaults); `[sampling]`; `schema`, a JSON schema as text. `{name}` stands for a variable, `{input}` for the
input; what is put in is never looked through again.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai import languages, settings
from localai.errors import LocalaiError, NotFound, UsageError

INPUT = "input"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
LARGEST_BYTES = 1_000_000

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

STARTER = '''# {input} stands for what is piped in or asked; {tone} is a variable with a default.

[sampling]
temperature = 0.2

[text.en]
description = "What this preset does, in one line."
system = """
You do one thing: ... Answer in a {tone} tone. If you are not certain, write "I don't know"."""
user = """
{input}"""

[text.en.variables]
tone = "plain"
'''


@dataclass(frozen=True, slots=True)
class PresetText:
    """A preset in one language. `variables` are those with a default, `required` those without."""

    language: str
    description: str
    system: str
    user: str
    variables: Mapping[str, str]
    required: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset; `source` is "built-in" or "user", `path` the user's file, `schema` JSON text."""

    name: str
    source: str
    path: Path | None
    texts: Mapping[str, PresetText]
    sampling: Mapping[str, float]
    schema: str | None

    def text(self, language: str | None = None, environ: Mapping[str, str] = os.environ) -> PresetText:
        """The preset in `language` (`fr`, `fr_FR`, French), else in the locale's, else in English.

        Raises UsageError for one it lacks.
        """
        if language is not None and language not in self.texts:
            language = languages.code_of(language)
        if language is not None and language not in self.texts:
            raise UsageError(
                f"the preset {self.name} is not written in {language!r}", f"--language takes: {', '.join(self.texts)}"
            )
        wanted = (language or locale_language(environ), "en", *self.texts)
        return next(self.texts[each] for each in wanted if each in self.texts)


@dataclass(frozen=True, slots=True)
class Filled:
    """What a preset makes of an input."""

    system: str | None
    user: str


def locale_language(environ: Mapping[str, str] = os.environ) -> str:
    """The language of the user's locale, as two or three letters; "" where it says none."""
    value = next((environ[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environ.get(name)), "")
    return re.split(r"[_.@-]", value)[0].lower()


def folder() -> Path:
    """Where the user's own presets are."""
    return settings.folders().config / "presets"


def every(damaged: Callable[[str], None] = lambda line: None) -> tuple[Preset, ...]:
    """All presets by name, the user's in place of a built-in one; `damaged` is told of files that cannot be read."""
    found = {name: _parse(name, text, None) for name, text in _built_in().items()}
    for path in sorted(folder().glob("*.toml")):
        try:
            if _NAME.fullmatch(path.stem) and path.is_file():  # a pipe would never end
                found[path.stem] = _read(path)
        except LocalaiError as error:
            damaged(error.message)
    return tuple(found[name] for name in sorted(found))


def find(name: str) -> Preset:
    """The preset of that name. Raises NotFound with the nearest names, UsageError for a damaged file."""
    built_in = _built_in()
    if (path := own(name)) is not None:
        return _read(path)
    if name in built_in:
        return _parse(name, built_in[name], None)
    import difflib

    known = [each.name for each in every()]
    near = difflib.get_close_matches(name[:100].casefold(), known, n=2)
    raise NotFound(
        f"there is no preset {name[:100]!r}",
        f"did you mean {' or '.join(near)}?" if near else f"localai presets list shows them: {', '.join(known)}"[:300],
    )


def own(name: str) -> Path | None:
    """The file of the user's own preset of that name, damaged or not; None where there is none."""
    path = folder() / f"{name}.toml"
    return path if _NAME.fullmatch(name) and path.is_file() else None


def source_text(name: str) -> str:
    """The TOML of a preset, as it is written. Raises NotFound."""
    preset = find(name)
    return _built_in()[name] if preset.path is None else preset.path.read_text("utf-8")


def create(name: str, text: str) -> Path:
    """Keep a new preset of the user's; returns its file. Raises UsageError for a bad name or text, or one there is."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:100]!r} cannot be the name of a preset", "small letters, digits, - and _")
    _parse(name, text, None)
    path = folder() / f"{name}.toml"
    if path.exists():
        raise UsageError(f"there is a preset {name} of yours already", f"localai presets edit {name}")
    try:
        settings.private_folder(path.parent.parent)
        settings.private_folder(path.parent)
        settings.write_atomically(path, text.encode())
    except OSError as error:
        raise settings.not_kept(path, error) from error
    return path


def remove(name: str) -> Path:
    """Remove a preset of the user's. Raises NotFound, UsageError for a built-in one, LocalaiError if it cannot go."""
    path = own(name)
    if path is None:
        raise UsageError(f"{find(name).name} is built in and cannot be removed", "only presets of your own can be")
    try:
        path.unlink()
    except OSError as error:
        raise LocalaiError(f"cannot remove {path}: {error.strerror}", "check the folder's permissions") from error
    return path


def given_variables(pairs: Sequence[str]) -> dict[str, str]:
    """The variables of `--var NAME=VALUE`. Raises UsageError for a word without `=`."""
    given = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--var is {pair[:100]!r}", "--var NAME=VALUE")
        given[name.strip()] = value
    return given


def fill(preset: Preset, text: PresetText, given: Mapping[str, str], content: str) -> Filled:
    """Put the variables and the input into a preset's texts.

    Raises UsageError naming a variable that is missing or that the preset does not have.
    """
    known = [*text.required, *text.variables]
    folded = {name.casefold(): name for name in known}
    given = {name if name in known else folded.get(name.casefold(), name): value for name, value in given.items()}
    for name in given:
        if name not in known:
            has = f"its variables are: {', '.join(known)}" if known else "it has none"
            raise UsageError(f"the preset {preset.name} has no variable {name[:100]!r}", has)
    if missing := [name for name in text.required if name not in given]:
        flags = " ".join(f"--var {name}=..." for name in missing)
        raise UsageError(f"the preset {preset.name} needs {', '.join(missing)}", f"add {flags}")
    values = {**text.variables, **given, INPUT: content}

    def put(template: str) -> str:
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)

    user = put(text.user)
    if f"{{{INPUT}}}" not in text.user + text.system:
        user = f"{user}\n\n{content}" if user else content
    return Filled(put(text.system) or None, user)


# ------------------------------------------------------------------------------------------------------- reading


def _built_in() -> dict[str, str]:
    from importlib import resources

    files = resources.files("localai.data").joinpath("presets").iterdir()
    return {each.name.removesuffix(".toml"): each.read_text("utf-8") for each in files if each.name.endswith(".toml")}


def _read(path: Path) -> Preset:
    try:
        with path.open("rb") as stream:
            text = stream.read(LARGEST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", f"localai presets edit {path.stem}") from error
    return _parse(path.stem, text, path)


def _parse(name: str, text: str, path: Path | None) -> Preset:
    where = str(path or f"the preset {name}")
    try:
        raw = tomllib.loads(text)
        _only(raw, ("text", "sampling", "schema"), where)
        texts = {language: _text(language, each) for language, each in _table(raw, "text").items()}
        if not texts:
            raise ValueError("it has no text: [text.en] with user = ...")
        sampling = {key: _sampling(key, value) for key, value in _table(raw, "sampling").items()}
        schema = raw.get("schema")
        if schema is not None and not isinstance(schema, str):
            raise ValueError("schema: expected JSON as text")
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one
        raise UsageError(f"{where} is no preset: {error}", f"localai presets edit {name}") from error
    return Preset(name, "built-in" if path is None else "user", path, texts, sampling, schema)


def _text(language: str, raw: object) -> PresetText:
    where = f"text.{language}"
    if not _LANGUAGE.fullmatch(language) or not isinstance(raw, dict):
        raise ValueError(f"{where}: expected a language's letters and a table")
    _only(raw, ("description", "system", "user", "required", "variables"), where)
    for name in ("description", "system", "user"):
        if not isinstance(raw.get(name, ""), str):
            raise ValueError(f"{where}.{name}: expected text")
    required = raw.get("required", [])
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise ValueError(f"{where}.required: expected a list of names")
    variables = {name: str(value) for name, value in _table(raw, "variables").items()}
    known = {*required, *variables}
    if bad := [each for each in known if not _PLACEHOLDER.fullmatch(f"{{{each}}}") or each == INPUT]:
        raise ValueError(f"{where}: {bad[0]!r} cannot be the name of a variable")
    system, user = raw.get("system", "").lstrip("\n"), raw.get("user", "").lstrip("\n")
    for name in _PLACEHOLDER.findall(system + user):
        if name not in known and name != INPUT:
            raise ValueError(f"{where}: {{{name}}} is neither the input nor one of its variables")
    return PresetText(language, raw.get("description", ""), system, user, variables, tuple(required))


def _table(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = raw.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a table")
    return found


def _only(raw: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in raw:
        if name not in names:
            raise ValueError(f"{where}: there is no key {name!r}; the keys are {', '.join(names)}")


def _sampling(name: str, value: object) -> float:
    if name not in SAMPLING or isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"sampling.{name}: expected a number for one of {', '.join(SAMPLING)}")
    try:
        parsed: float = settings.KEYS[name].parse(str(value))
    except ValueError as error:
        raise ValueError(f"sampling.{name}: {error}") from error
    return parsed
