"""`localai presets`: the prompt presets there are, and the user's own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from localai import languages, presets, render
from localai.commands.options import JsonFlag, LanguageOption, YesFlag, complete_preset, confirm_removal
from localai.errors import LocalaiError, UsageError
from localai.presets import Preset, PresetText

app = typer.Typer(help="Show, make and change prompt presets.", rich_markup_mode=None)

EDITORS = ("sensible-editor", "nano", "vi", "notepad.exe")

Name = Annotated[str, typer.Argument(metavar="NAME", help="a preset", autocompletion=complete_preset)]


def row(preset: Preset, text: PresetText) -> dict[str, Any]:
    """A preset as `presets list --json` and `show --json` have it, in one language."""
    return {
        "name": preset.name,
        "description": text.description,
        "source": preset.source,
        "path": None if preset.path is None else str(preset.path),
        "language": text.language,
        "languages": list(preset.texts),
        "required": list(text.required),
        "variables": dict(text.variables),
        "sampling": dict(preset.sampling),
        "schema": preset.schema is not None,
    }


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        render.out(context.get_help())


@app.command(name="list")
def list_presets(language: LanguageOption = None, as_json: JsonFlag = False) -> None:
    """List the presets; show tells each one's variables."""
    damaged: list[str] = []
    known = presets.every(damaged.append)
    if language is not None and not any(language in each.texts for each in known):
        language = languages.code_of(language)
    found = [(each, each.text(language if language in each.texts else None)) for each in known]
    for line in damaged:
        render.note(f"warning: {line}")
    if as_json:
        render.json_object({"presets": [row(*each) for each in found], "path": str(presets.folder())})
        return
    rows = [(preset.name, ",".join(preset.texts), preset.source, text.description) for preset, text in found]
    render.out(render.columns(("PRESET", "IN", "SOURCE", "WHAT IT DOES"), rows, fold=True))


@app.command()
def show(name: Name, language: LanguageOption = None, as_json: JsonFlag = False) -> None:
    """Show a preset: its texts, variables and sampling."""
    preset = presets.find(name)
    text = preset.text(language)
    if as_json:
        render.json_object({**row(preset, text), "system": text.system, "user": text.user, "schema": preset.schema})
        return
    lines = [
        ("Preset", f"{preset.name} ({preset.source})"),
        ("Does", text.description),
        ("Languages", ", ".join(preset.texts)),
        ("Needs", ", ".join(text.required)),
        *((f"{{{variable}}}", value) for variable, value in text.variables.items()),
        ("Sampling", ", ".join(f"{key} {value:g}" for key, value in preset.sampling.items())),
        ("File", str(preset.path or "")),
    ]
    render.out(render.facts([(label, value) for label, value in lines if value]))
    parts = (("System text", text.system), ("User text", text.user), ("JSON schema", preset.schema))
    for title, part in parts:
        if part:
            render.out(f"\n{title}:\n{part.strip()}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what to call it: small letters, digits, - and _")],
    copy_of: Annotated[
        str | None, typer.Option("--from", metavar="PRESET", help="Begin with a copy of this preset.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a preset of your own. A file to fill in, or a copy of another one."""
    path = presets.create(name, presets.source_text(copy_of) if copy_of else presets.STARTER)
    if as_json:
        render.json_object({"name": name, "path": str(path)})
        return
    render.out(str(path))
    render.note(f"edit that file, or: localai presets edit {name}")


@app.command()
def edit(name: Name) -> None:
    """Open a preset in $VISUAL or $EDITOR. Of a built-in one a copy of your own is made."""
    text = presets.source_text(name) if presets.own(name) is None else ""
    command = editor_set()  # which may be a script, and need no terminal
    if not command and not (render.is_terminal(sys.stdin) and render.is_terminal(sys.stdout)):
        raise UsageError("cannot open an editor: there is no terminal", f"localai presets show {name}")
    command = command or editor_here()
    if not command:
        raise UsageError("no editor is set", "export EDITOR=nano")
    path = presets.own(name)
    if path is None:
        path = presets.create(name, text)
        render.note(f"a copy of the built-in preset: {path}")
    open_editor([*command, str(path)])
    presets.find(name)  # raises what is wrong with it now
    render.note(f"kept in {path}")


def editor_set() -> list[str]:
    """The words of $VISUAL or $EDITOR, which may be a path with spaces; [] where neither is set.

    Raises UsageError for a quote without an end.
    """
    name = "VISUAL" if os.environ.get("VISUAL") else "EDITOR"
    value = os.environ.get(name, "")
    if os.path.isfile(value):
        return [value]
    try:
        return shlex.split(value)
    except ValueError as error:
        raise UsageError(f"{name} cannot be understood: {error}", f"export {name}=nano") from error


def editor_here() -> list[str]:
    """An editor that is installed, where none is set; [] without one."""
    return [name for name in EDITORS if shutil.which(name)][:1]


def open_editor(command: list[str], failed: str = "the file is as it left it") -> None:
    """Wait for the editor. Raises UsageError where it cannot be started, LocalaiError with the hint if it `failed`."""
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UsageError(f"cannot start {command[0]}: {error.strerror}", "set EDITOR to one that is there") from error
    if code:
        raise LocalaiError(f"{Path(command[0]).name} ended with exit code {code}", failed)


@app.command(name="rm")
def remove(name: Name, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove a preset of your own."""
    if presets.own(name) and not yes:
        confirm_removal(f"Remove your preset {name}?", f"localai presets rm --yes {name}")
    path = presets.remove(name)
    if as_json:
        render.json_object({"removed": name, "path": str(path)})
        return
    render.note(f"removed {path}")
