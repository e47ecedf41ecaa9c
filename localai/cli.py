"""The command line: the Typer application, its global options, and which command is which function."""

from __future__ import annotations

from typing import Annotated

import typer

from localai.commands import (
    bench,
    chat,
    config,
    doctor,
    embed,
    library,
    machine,
    map,
    models,
    presets,
    pull,
    run,
    search,
    serve,
    sessions,
    welcome,
    worker,
)

HELP = "Run language models on your own computer: know what fits, download it safely, chat, and use it in pipelines."

EPILOG = (
    "What you ask a model stays on this computer, or with --rpc on those you name. "
    "--offline and --debug work before and after any command. "
    "Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 does not fit, 5 network, 6 engine, "
    "7 context overflow, 8 schema incomplete, 9 access denied, 130 interrupted, 141 pipe closed."
)

app = typer.Typer(
    name="localai",
    help=HELP,
    epilog=EPILOG,
    rich_markup_mode=None,  # plain help: readable at any width, in any locale, and quick
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        from localai import __version__, render

        render.out(f"localai {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
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
        welcome.first_run(context)


app.command()(machine.hardware)
app.command()(doctor.doctor)
app.command()(machine.recommend)
app.command()(bench.bench)
app.command()(search.search)
app.command()(models.show)
app.command()(pull.pull)
app.command(name="list")(models.list_models)
app.command(name="rm")(models.remove)
app.command(name="import")(library.import_models)
app.command()(library.verify)
app.command()(library.prune)
app.command()(library.alias)
app.command()(library.export_manifest)
app.command()(chat.chat)
app.command()(run.run)
app.command(name="map")(map.map_records)
app.command()(embed.embed)
app.command()(serve.serve)
app.command()(serve.ps)
app.command()(serve.stop)
app.command()(worker.worker)
app.add_typer(presets.app, name="presets")
app.add_typer(sessions.app, name="sessions")
app.add_typer(config.app, name="config")
