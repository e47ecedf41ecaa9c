"""The command line: the Typer application, its global options, and which command is which function."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

HELP = "Run language models on your own computer: know what fits, download it safely, chat, and use it in pipelines."

EPILOG = (
    "What you ask a model stays on this computer, or with --rpc on those you name. "
    "--offline and --debug work before and after any command. "
    "Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 does not fit, 5 network, 6 engine, "
    "7 context overflow, 8 schema incomplete, 9 access denied, 130 interrupted, 141 pipe closed."
)

# In the order of the help: each command with its module and the function, or application of several, in there.
COMMANDS = {
    "hardware": "machine.hardware",
    "doctor": "doctor.doctor",
    "recommend": "machine.recommend",
    "bench": "bench.bench",
    "search": "search.search",
    "show": "models.show",
    "pull": "pull.pull",
    "list": "models.list_models",
    "rm": "models.remove",
    "import": "library.import_models",
    "verify": "library.verify",
    "prune": "library.prune",
    "alias": "library.alias",
    "export-manifest": "library.export_manifest",
    "chat": "chat.chat",
    "run": "run.run",
    "map": "map.map_records",
    "embed": "embed.embed",
    "serve": "serve.serve",
    "ps": "serve.ps",
    "stop": "serve.stop",
    "worker": "worker.worker",
    "presets": "presets.app",
    "sessions": "sessions.app",
    "config": "config.app",
}


def application(words: Sequence[str] = ()) -> typer.Typer:
    """The application that `localai WORDS` needs: with the one command they begin with, else with all.

    To import every command and describe its options takes longer than many a command itself.
    """
    app = typer.Typer(
        name="localai",
        help=HELP,
        epilog=EPILOG,
        rich_markup_mode=None,  # plain help: readable at any width, in any locale, and quick
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(main)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module, _, attribute = COMMANDS[name].partition(".")
        found = getattr(import_module(f"localai.commands.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def show_version(wanted: bool) -> None:
    if wanted:
        from localai import __version__, render

        render.out(f"localai {__version__}")
        raise typer.Exit


def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Forbid every connection.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of any error.")] = False,
) -> None:
    # --offline and --debug are taken out of the words at the boundary, wherever they stand; here they are documented.
    if context.invoked_subcommand is None:
        from localai.commands import welcome

        welcome.first_run(context)
