"""`localai config`: the settings, what they are and where they come from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from localai import render, settings
from localai.commands.options import JsonFlag, complete_setting
from localai.errors import NotFound

app = typer.Typer(help="Show and change the settings.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="the setting", autocompletion=complete_setting)]


def text_of(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def content_of(found: settings.Setting) -> dict[str, Any]:
    return {"name": found.key.name, "value": found.value, "source": found.source, "variable": found.key.variable}


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        render.out(context.get_help())


@app.command(name="list")
def list_settings(as_json: JsonFlag = False) -> None:
    """Show every setting, its value and where the value comes from."""
    found = settings.load().values()
    if as_json:
        content = [content_of(each) for each in found]
        render.json_object({"settings": content, "path": str(settings.folders().config_file)})
        return
    rows = [(each.key.name, text_of(each.value) or "-", each.source, each.key.help) for each in found]
    render.out(render.columns(("SETTING", "VALUE", "FROM", "WHAT IT DOES"), rows, fold=True))


@app.command()
def get(name: Name, as_json: JsonFlag = False) -> None:
    """Print one setting's value; exit 3 where it is not set."""
    found = settings.load()[settings.key(name).name]
    if found.value is None:
        raise NotFound(f"{found.key.name} is not set", f"localai config set {found.key.name} VALUE")
    if as_json:
        render.json_object(content_of(found))
    else:
        render.out(text_of(found.value))


@app.command(name="set", context_settings={"ignore_unknown_options": True})  # -1 is a value, too
def set_setting(name: Name, value: Annotated[str, typer.Argument(metavar="VALUE", help="its new value")]) -> None:
    """Keep a setting in the config file."""
    path = settings.store(name, value)
    render.note(f"kept in {path}")


@app.command()
def unset(name: Name) -> None:
    """Take a setting out of the config file."""
    settings.store(name, None)


@app.command()
def path(as_json: JsonFlag = False) -> None:
    """Print where the config file is."""
    where = str(settings.folders().config_file)
    if as_json:
        render.json_object({"path": where})
    else:
        render.out(where)
