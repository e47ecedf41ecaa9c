"""`localai pull`: what it will take, said and agreed to before the first byte, and then the download."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localai import render, schema
from localai.commands.options import JsonFlag, YesFlag, complete_known
from localai.domain.files import InstalledModel
from localai.domain.units import GIB
from localai.errors import DoesNotFit, LocalaiError, UsageError

if TYPE_CHECKING:
    from localai.domain.machine import Machine
    from localai.pulling import PullPlan

ASK_OVER_BYTES = 4_000_000_000  # asked for on a terminal when it is over 4 GB

PULL_HELP = "A catalog name (qwen3-4b) or a Hub repository (owner/repo), with :QUANT, :FILENAME or @REV."

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help=PULL_HELP, autocompletion=complete_known),
]
UpdateFlag = Annotated[
    bool, typer.Option("--update", "-u", help="Look for newer revisions of the installed models, all or the named.")
]
ManifestOption = Annotated[
    Path | None, typer.Option("--manifest", metavar="FILE", help="Pull exactly the bytes that a manifest pins.")
]
ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="FOLDER", help="Write files and hashes into FOLDER, to import on another machine."),
]


def pull(
    models: ModelNames = None,
    update: UpdateFlag = False,
    manifest: ManifestOption = None,
    to: ToOption = None,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Download models, and verify every byte. Goes on where an earlier pull was cut off."""
    if not models and not update and manifest is None:
        raise UsageError("pull needs the name of a model", "localai recommend lists what fits here")
    if update and (manifest is not None or to is not None):
        raise UsageError("--update goes with neither --manifest nor --to", "localai pull --help")
    session = Session(yes, alone=len(models or []) == 1 and not update and manifest is None)
    to = Path(os.path.expanduser(to)) if to is not None else None
    wanted = _updates(session, models) if update else _named(models or [], to)
    wanted += _pinned(manifest, to) if manifest is not None else []
    content = session.pack(wanted, to) if to is not None else schema.installed_models(session.pull(wanted))
    if as_json:
        render.json_object({**content, "errors": session.errors})
    if session.exit_code:
        raise typer.Exit(session.exit_code)


Planner = Callable[["Machine", int], "PullPlan | None"]
Wanted = tuple[str, Planner]


def _named(names: Iterable[str], disk: Path | None = None) -> list[Wanted]:
    from localai import pulling

    return [(name, partial(pulling.plan_pull, name, disk=disk, on_retry=render.note)) for name in names]


def _pinned(manifest: Path, disk: Path | None) -> list[Wanted]:
    from localai import manifests

    pinned = manifests.read(Path(os.path.expanduser(manifest)))
    return [(each.model, partial(manifests.plan_pull, each, disk=disk, on_retry=render.note)) for each in pinned]


def _updates(session: Session, names: list[str] | None) -> list[Wanted]:
    """The installed models to look up; a name that is not installed is pulled as ever."""
    from localai import library, updating

    models = library.installed()
    update = partial(updating.plan_update, on_retry=render.note)
    if not names:
        chosen = [model for model in models if updating.is_updatable(model)]
        if not chosen:
            render.note("no installed model comes from the Hub, so there is nothing to update")
        return [(f"{model.model} ({model.quantization})", partial(update, model)) for model in chosen]
    wanted: list[Wanted] = []
    for name in names:
        with session.attempt(name):
            here = library.named(name, models)
            wanted += [(name, partial(update, model)) for model in here] or _named([name])
    return wanted


class Session:
    """Several pulls as one command: all planned before the first byte, and one that fails does not stop the others.

    The error of a model that is `alone` is the command's.
    """

    def __init__(self, yes: bool, alone: bool) -> None:
        self._yes, self._alone = yes, alone
        self.errors: list[dict[str, object]] = []
        self.exit_code = 0

    def pull(self, wanted: Iterable[Wanted]) -> list[InstalledModel]:
        """Plan, show and agree on all; then download one after the other. Returns what is installed now."""
        pulled = []
        for name, plan in self.agreed(wanted):
            with self.attempt(name):
                pulled.append(carried_out(plan))
        return pulled

    def pack(self, wanted: Iterable[Wanted], folder: Path) -> dict[str, Any]:
        """The same into a folder to carry, which is complete when its manifest is written. Returns the manifest."""
        from localai import manifests, packing

        packed = []
        if plans := self.agreed(wanted, elsewhere=True):
            with packing.writing(folder, lambda: render.note(f"another process writes into {folder}; waiting for it")):
                for name, plan in plans:
                    with self.attempt(name), downloading(plan) as progress:
                        packed.append(packing.pack(plan, folder, progress, on_retry=render.note))
                path = packing.describe(folder, packed) if packed else None
        if packed:
            render.note(
                f"{path} names {render.count(len(packed), 'model')}; on the other machine: localai import {folder}"
            )
        return {"folder": str(folder), "models": manifests.as_json(packed)["models"]}

    def agreed(self, wanted: Iterable[Wanted], elsewhere: bool = False) -> list[tuple[str, PullPlan]]:
        """The plans that can be carried out and were agreed to; `elsewhere`: this machine's memory does not matter."""
        from localai import hardware

        plans: list[tuple[str, PullPlan]] = []
        machine, reserved = hardware.detect(), 0
        for name, planner in wanted:
            with self.attempt(name):
                plan = planner(machine, reserved)
                if plan is None:
                    render.note(f"{name} is up to date")
                    continue
                if elsewhere:
                    plan = replace(plan, plan=None)
                if plan.already_installed is None:
                    show_plan(plan)
                    agree(plan, self._yes)
                plans.append((name, plan))
                reserved += plan.needed_bytes
        return plans

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What fails for one model among several is told, and becomes the exit code unless there is one already."""
        try:
            yield
        except LocalaiError as error:
            if self._alone:
                raise
            render.error(f"{name}: {error.message}", error.hint)
            told = {"code": error.code, "exit_code": int(error.exit_code), "message": error.message}
            self.errors.append({"model": name, **told, "hint": error.hint or None})
            self.exit_code = self.exit_code or int(error.exit_code)
        except typer.Exit as refused:  # the user said no to this one
            if self._alone:
                raise
            self.exit_code = self.exit_code or refused.exit_code


def pull_one(name: str, yes: bool) -> InstalledModel:
    """Plan, ask where there is something to ask, download. Raises DoesNotFit, NetworkError, NotFound, AccessDenied."""
    return Session(yes, alone=True).pull(_named([name]))[0]


def carried_out(plan: PullPlan) -> InstalledModel:
    """Download what was agreed to, with progress on stderr."""
    from localai import pulling

    if (model := plan.already_installed) is not None:
        render.note(f"{model.model} ({model.quantization}, {render.size(model.size_bytes)}) is already installed")
        return model
    with downloading(plan) as progress:
        model = pulling.pull(plan, progress, on_retry=render.note)
    render.note(f"installed {model.model} ({model.quantization}, {render.size(model.size_bytes)}), SHA-256 verified")
    return model


@contextmanager
def downloading(plan: PullPlan) -> Iterator[Callable[[int], None]]:
    """Progress on stderr for what a plan brings."""
    progress = render.TransferProgress(plan.variant.quantization, plan.download_bytes)
    try:
        yield progress.update
    finally:
        progress.end()


def show_plan(plan: PullPlan) -> None:
    """Files, sizes, the disk after, memory and fit, on stderr."""
    render.note(f"{plan.repo} at {plan.commit[:12]}")
    for file in plan.files:
        render.note(f"  {file.name}  {render.size(file.size_bytes)}")
    if plan.why:
        render.note(plan.why)
    here = f", {render.size(plan.already_bytes)} of it here already" if plan.already_bytes else ""
    after = render.size(plan.free_bytes_after)
    render.note(f"to have: {render.size(plan.download_bytes)}{here}; {after} free on the disk after")
    if plan.plan is not None:
        verdict = "fits" if plan.plan.fits else "does not fit"
        render.note(f"to run: {_memory(plan)}: {verdict} ({plan.plan.placement}, context {plan.plan.context})")
    for warning in plan.warnings:
        render.note(f"warning: {warning}")


def _memory(plan: PullPlan) -> str:
    assert plan.plan is not None
    need = plan.plan.memory.total_bytes + plan.plan.memory.overhead_bytes
    return f"about {need / GIB:.1f} GiB of memory of the {plan.plan.available_bytes / GIB:.1f} GiB that are free"


def agree(plan: PullPlan, yes: bool) -> None:
    """Ask about what is large or does not fit; without a terminal what does not fit in memory needs `--yes`."""
    fits = plan.plan is None or plan.plan.fits
    if yes or not plan.missing_bytes or (fits and plan.missing_bytes <= ASK_OVER_BYTES):
        return
    size = render.size(plan.missing_bytes)
    if fits:
        question = f"Download {size}?"
    else:
        question = f"It will not run here: it needs {_memory(plan)}. Download {size} all the same?"
    answer = render.confirmed(question, default=fits)
    if answer is None and not fits:
        from localai import alternatives, hardware

        model, here = alternatives.another_model(hardware.detect())
        instead = alternatives.Alternatives(model=model, installed=here).sentence(plan.model)
        raise DoesNotFit(
            f"{plan.model} does not fit in this machine's memory: it needs {_memory(plan)}",
            f"{instead}; localai show {plan.repo} tells of its other quantizations; --yes downloads it all the same",
        )
    if answer is False:
        raise typer.Exit(1)
