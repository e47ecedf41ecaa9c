"""The first run: what this machine is, which models suit it, and a chat; and what is said while no model is here."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import typer

from localai import render, settings
from localai.domain.files import InstalledModel
from localai.domain.machine import Machine
from localai.errors import LocalaiError, NotFound


def first_run(context: typer.Context) -> None:
    """`localai` alone: on a terminal the machine, the models for it and a chat; elsewhere the help."""
    if not (render.is_terminal(sys.stdin) and render.is_terminal(sys.stdout)):
        render.out(context.get_help())
        return
    from localai import library, tiers
    from localai.commands import chat
    from localai.commands.machine import machine_facts

    machine = machine_to_choose_for()
    render.out(render.facts(machine_facts(machine, tiers.tier(machine))))
    render.out()
    if chosen := choose(machine, library.writing()):
        chat.chat(chosen)


def need_a_model(name: str | None) -> None:
    """Without a terminal nothing can be offered: where no model is here, the command fails and says what to pull."""
    from localai import hardware, library, recommend

    if name is None and settings.load()["model"].value is None and not library.writing():
        best = recommend.best(hardware.detect())
        raise NotFound("no model is installed", f"localai pull {best.model if best else 'MODEL'}")


def offered_model() -> str | None:
    """Where no model is here and none is set, offer to download one; None leaves the choice to the library."""
    from localai import library

    if settings.load()["model"].value is not None or library.writing():
        return None
    render.note("No model is installed yet. These suit this machine:")
    chosen = choose(machine_to_choose_for(), ())
    if chosen is None:
        raise NotFound("no model is installed", "localai recommend shows what runs here, localai pull fetches it")
    return chosen


def machine_to_choose_for() -> Machine:
    """This machine, measured where that tells which models to download."""
    from localai import hardware
    from localai.commands.machine import this_machine

    return hardware.detect() if settings.offline() else this_machine()


@dataclass(frozen=True, slots=True)
class Offer:
    """A model to begin with: `name` is a MODEL argument, `cells` what the table says of it.

    `usual`: Enter takes it before others, a model that the user has chosen before.
    """

    name: str
    installed: bool
    usual: bool
    cells: tuple[str, ...]


NO = ("n", "no", "non", "q", "quit", "exit")


def choose(machine: Machine, installed: tuple[InstalledModel, ...]) -> str | None:
    """Ask which model to chat with, downloading it where it is not here; None where the user would rather not.

    Where the download fails, the chat goes on with what is here, and that is told. Raises what the download raises
    where nothing is, NotFound where there is nothing to offer.
    """
    offers = [*downloads(machine), *here(installed)]
    if not offers:
        raise NotFound("no model is here, and none can be downloaded", "localai import takes in a .gguf file")
    usual = next((number for number, each in enumerate(offers, 1) if each.usual), 1)
    rows = [(str(number), *each.cells) for number, each in enumerate(offers, 1)]
    render.out(render.columns(("", "MODEL", "DOWNLOAD", "TOKENS/S", ""), rows, right=(2, 3), fold=True))
    render.out()
    chosen = asked(offers, usual)
    if chosen is None or chosen.installed:
        return chosen.name if chosen else None
    return downloaded(chosen, next((each for each in offers if each.installed), None))


def asked(offers: list[Offer], usual: int) -> Offer | None:
    """The offer that the user takes; Enter takes the `usual` one, Ctrl-D and no take none."""
    last = len(offers)
    numbers = "1" if last == 1 else f"1-{last}"
    while (answer := render.ask(f"Which one? [{numbers}; Enter takes {usual}, n leaves]")) is not None:
        if answer.lower() in NO:
            return None
        if not answer or (answer.isdecimal() and 1 <= int(answer) <= last):
            return offers[int(answer or usual) - 1]
        render.note(f"{answer} is none of these")
    render.note("")  # Ctrl-D leaves the cursor behind the question
    return None


def downloaded(offer: Offer, otherwise: Offer | None) -> str:
    """Pull what was chosen; where that fails, what is here already."""
    from localai.commands.pull import pull_one

    try:
        model = pull_one(offer.name, yes=True)
    except LocalaiError as error:
        if otherwise is None:
            raise
        render.error(error.message, f"localai pull {offer.name} tries it again, and goes on where it was cut off")
        render.note(f"Going on with {otherwise.name}, which is here already.")
        return otherwise.name
    return f"{model.model}:{model.quantization}"


def downloads(machine: Machine) -> list[Offer]:
    """The best model for the machine and a light one; nothing where downloads are forbidden."""
    from localai import catalog, recommend
    from localai.commands.machine import speed_text

    if settings.offline():
        render.note("(offline: nothing can be downloaded)")
        return []
    rows = recommend.rank(machine, catalog.load(), limit=20)
    offers = []
    for row in rows:
        if row.rank != 1 and not row.starter:
            continue
        kind = "the best for this machine" if row.rank == 1 else "a light one to start with"
        if row.rank == 1 and row.starter:
            kind += ", and a light one"
        name = f"{row.model}:{row.quantization}"
        cells = (f"{row.model} ({row.quantization})", render.size(row.download_bytes), speed_text(row.decode_tps), kind)
        offers.append(Offer(name, False, False, cells))
    return offers


def here(installed: tuple[InstalledModel, ...]) -> list[Offer]:
    """The installed models, the last used first, the embedded one at the end."""
    ordered = sorted(installed, key=lambda each: each.last_used_at or "", reverse=True)
    ordered.sort(key=lambda each: each.source == "embedded")
    offers = []
    for each in ordered:
        small = each.source == "embedded"
        cells = (f"{each.model} ({each.quantization})", "none", "", "here; very small" if small else "here")
        offers.append(Offer(f"{each.model}:{each.quantization}", True, not small, cells))
    return offers
