"""`localai pull`, `list`, `rm` and `show`: the models on this disk, and how they get there and away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.machine import speed_text
from localai.commands.options import MODEL_HELP, JsonFlag, YesFlag, complete_model
from localai.domain import GIB, InstalledModel
from localai.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from localai.cards import Card, CardVariant
    from localai.pulling import PullPlan

ASK_OVER_BYTES = 4_000_000_000  # product.md: asked for on a terminal when it is over 4 GB

ModelNames = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP.capitalize())]
InstalledName = Annotated[
    str, typer.Argument(metavar="MODEL", help="an installed model", autocompletion=complete_model)
]


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


def list_models(as_json: JsonFlag = False) -> None:
    """List the models on this disk; only verified ones are listed."""
    from localai import library

    damaged: list[str] = []
    models = library.installed(damaged.append)
    for each in damaged:
        render.note(f"warning: {each}")
    if as_json:
        render.json_object(schema.installed_models(models))
        return
    if not models:
        render.note("no models are installed; localai recommend says which would run well here")
        return
    rows = [
        (each.model, each.quantization, render.size(each.size_bytes), each.source, (each.last_used_at or "never")[:16])
        for each in models
    ]
    render.out(render.columns(("MODEL", "QUANT", "SIZE", "SOURCE", "LAST USED"), rows, right=(2,)))


def remove(model: InstalledName, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove a model from this disk."""
    from localai import library

    found = library.find(model).model
    if found is None:
        raise UsageError(
            f"{model} is a file of yours, not an installed model", "remove it with your system's own tools"
        )
    if not yes and not found.read_only:
        question = f"Remove {found.model} ({found.quantization}, {render.size(found.size_bytes)})?"
        answer = render.confirmed(question, default=False)
        if answer is None:
            raise UsageError("cannot ask whether to remove it: there is no terminal", f"localai rm --yes {model}")
        if not answer:
            raise typer.Exit(1)
    freed = library.remove(found)
    if as_json:
        render.json_object({"removed": schema.installed_model(found), "freed_bytes": freed})
        return
    render.note(f"removed {found.model} ({found.quantization}); {render.size(freed)} freed")


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP.capitalize(), autocompletion=complete_model)],
    context: Annotated[
        int | None, typer.Option("--context", "-c", min=1, help="Tokens of context to plan for.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a model's card: what it is, what it takes, and how it would run here."""
    from localai import cards

    card = cards.card(model, context)
    if as_json:
        render.json_object(schema.card(card))
        return
    render.out(render.facts(card_facts(card)))
    render.out()
    rows = [variant_row(each) for each in card.variants]
    headers = ("QUANT", "SIZE", "MEMORY", "CONTEXT", "FITS", "ON", "TOKENS/S")
    render.out(render.columns(headers, rows, right=(1, 2, 3, 6)))
    for warning in dict.fromkeys(warning for each in card.variants if each.plan for warning in each.plan.warnings):
        render.out(f"! {warning}")
    if card.basis == "catalog":
        render.out("Not installed: sizes, memory and speed are reckoned from published facts.")
        render.out(f"Next: localai pull {card.model}")


def card_facts(card: Card) -> list[tuple[str, str]]:
    """The lines of `localai show`, without those of which nothing is known."""
    params = f"{card.params_b:.3g} billion" if card.params_b else None
    if params and card.active_params_b:
        params += f", {card.active_params_b:.3g} billion active"
    template = None if card.has_chat_template is None else ("yes" if card.has_chat_template else "none in the file")
    lines = [
        ("Model", card.model if card.name == card.model else f"{card.model} ({card.name})"),
        ("Repository", card.repo),
        ("Architecture", card.architecture),
        ("Parameters", params),
        ("Context", f"{card.context_length:,} tokens" if card.context_length else None),
        ("Licence", card.license),
        ("Languages", ", ".join(card.languages)),
        ("Template", template),
        ("Source", card.source),
        ("File", card.path),
        ("Note", card.note),
    ]
    return [(name, text) for name, text in lines if text]


def variant_row(variant: CardVariant) -> tuple[str, ...]:
    plan = variant.plan
    if plan is None:
        return (variant.quantization, render.size(variant.size_bytes), *["unknown"] * 5)
    exact = variant.size_bytes is not None
    return (
        variant.quantization,
        render.size(variant.size_bytes) if exact else "~" + render.size(plan.memory.weights_bytes),
        render.memory(plan.memory.total_bytes),
        f"{plan.context:,}",
        "yes" if plan.fits else "no",
        str(plan.placement),
        speed_text(plan.decode_tps),
    )
