"""The first run: what this machine is, which models suit it, and a chat; and what is said while no model is here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from localai import render, settings
from localai.domain import InstalledModel, Machine
from localai.errors import NotFound

if TYPE_CHECKING:
    from localai.recommend import Recommendation


def first_run(context: typer.Context) -> None:
    """`localai` alone: on a terminal the machine, the models for it and a chat; elsewhere the help."""
    if not (render.is_terminal(sys.stdin) and render.is_terminal(sys.stdout)):
        render.out(context.get_help())
        return
    from localai import hardware, library
    from localai.commands import answer
    from localai.commands.machine import machine_facts

    machine = hardware.detect()
    render.out(render.facts(machine_facts(machine, hardware.tier(machine))))
    render.out()
    if chosen := choose(machine, library.installed()):
        answer.chat(chosen)


def need_a_model(name: str | None) -> None:
    """Without a terminal nothing can be offered: where no model is here, the command fails and says what to pull."""
    from localai import catalog, hardware, library, recommend

    if name is None and settings.load()["model"].value is None and not library.installed():
        best = recommend.best(hardware.detect(), catalog.load())
        raise NotFound("no model is installed", f"localai pull {best.model if best else 'MODEL'}")


def offered_model() -> str | None:
    """Where no model is here and none is set, offer to download one; None leaves the choice to the library."""
    from localai import hardware, library

    if settings.load()["model"].value is not None or library.installed():
        return None
    render.note("No model is installed yet. These suit this machine:")
    chosen = choose(hardware.detect(), ())
    if chosen is None:
        raise NotFound("no model is installed", "localai recommend shows what runs here, localai pull fetches it")
    return chosen


def choose(machine: Machine, installed: tuple[InstalledModel, ...]) -> str | None:
    """Ask which model to chat with, downloading it where it is not here; None where the user would rather not."""
    from localai.commands.pull import pull_one

    offers = offered(machine)
    for number, row in enumerate(offers, 1):
        kind = "the best for this machine" if row.rank == 1 else "a light one to start with"
        render.out(f"  {number}  download {row.name} ({render.size(row.download_bytes)}): {kind}")
    for number, model in enumerate(installed, len(offers) + 1):
        render.out(f"  {number}  chat with {model.model} ({model.quantization}), installed")
    last = len(offers) + len(installed)
    if not last:
        return None
    while answer := render.ask(f"Which one? [1-{last}, Enter leaves]"):
        if answer.isdecimal() and 1 <= int(answer) <= last:
            break
        render.note(f"{answer} is none of these numbers")
    if not answer:
        return None
    index = int(answer) - 1
    if index < len(offers):
        model = pull_one(f"{offers[index].model}:{offers[index].quantization}", yes=True)
    else:
        model = installed[index - len(offers)]
    return f"{model.model}:{model.quantization}"


def offered(machine: Machine) -> list[Recommendation]:
    """The best model for the machine and a light one; nothing where downloads are forbidden."""
    from localai import catalog, measurement, recommend

    if settings.offline():
        render.note("(offline: nothing can be downloaded)")
        return []
    rows = recommend.rank(measurement.measured(machine, render.note), catalog.load(), limit=20)
    return [row for row in rows if row.rank == 1 or row.starter]
