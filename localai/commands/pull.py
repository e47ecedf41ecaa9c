"""`localai pull`: what it will take, said and agreed to before the first byte, and then the download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.options import MODEL_HELP, JsonFlag, YesFlag
from localai.domain import GIB, InstalledModel
from localai.errors import DoesNotFit

if TYPE_CHECKING:
    from localai.pulling import PullPlan

ASK_OVER_BYTES = 4_000_000_000  # product.md: asked for on a terminal when it is over 4 GB

ModelNames = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP.capitalize())]


def pull(models: ModelNames, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Download models and verify every byte; goes on where an earlier pull was cut off."""
    pulled = [pull_one(name, yes) for name in models]
    if as_json:
        render.json_object(schema.installed_models(pulled))


def pull_one(name: str, yes: bool) -> InstalledModel:
    """Plan, ask where there is something to ask, download. Raises DoesNotFit, NetworkError, NotFound, AccessDenied."""
    from localai import hardware, pulling

    plan = pulling.plan_pull(name, hardware.detect())
    if plan.already_installed is not None:
        model = plan.already_installed
        render.note(f"{model.model} ({model.quantization}, {render.size(model.size_bytes)}) is already installed")
        return model
    show_plan(plan)
    agree(plan, yes)
    progress = render.TransferProgress(plan.variant.quantization, plan.download_bytes)
    try:
        model = pulling.pull(plan, progress.update, on_retry=render.note)
    finally:
        progress.end()
    render.note(f"installed {model.model} ({model.quantization}, {render.size(model.size_bytes)}), SHA-256 verified")
    return model


def show_plan(plan: PullPlan) -> None:
    render.note(f"{plan.repo} at {plan.commit[:12]}")
    for file in plan.files:
        render.note(f"  {file.name}  {render.size(file.size_bytes)}")
    if plan.why:
        render.note(plan.why)
    if plan.already_bytes:
        render.note(f"{render.size(plan.already_bytes)} of {render.size(plan.download_bytes)} are here already")
    for warning in plan.warnings:
        render.note(f"warning: {warning}")


def agree(plan: PullPlan, yes: bool) -> None:
    """Ask about what is large or does not fit; without a terminal what does not fit in memory needs `--yes`."""
    fits = plan.plan is None or plan.plan.fits
    if yes or (fits and plan.download_bytes <= ASK_OVER_BYTES):
        return
    if fits:
        question = f"Download {render.size(plan.download_bytes - plan.already_bytes)}?"
    else:
        assert plan.plan is not None
        need = plan.plan.memory.total_bytes + plan.plan.memory.overhead_bytes
        too_large = f"it needs about {need / GIB:.1f} GiB of memory, {plan.plan.available_bytes / GIB:.1f} GiB are free"
        question = f"It will not run here: {too_large}. Download {render.size(plan.download_bytes)} all the same?"
    answer = render.confirmed(question, default=fits)
    if answer is None and not fits:
        raise DoesNotFit(
            f"{plan.model} does not fit in this machine's memory: {too_large}",
            "localai recommend lists what fits; --yes downloads it all the same",
        )
    if answer is False:
        raise typer.Exit(1)
