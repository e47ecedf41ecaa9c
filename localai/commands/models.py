"""`localai list`, `rm` and `show`: the models on this disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.machine import speed_text
from localai.commands.options import MODEL_HELP, JsonFlag, YesFlag, complete_model
from localai.errors import UsageError

if TYPE_CHECKING:
    from localai.cards import Card, CardVariant

InstalledName = Annotated[
    str, typer.Argument(metavar="MODEL", help="an installed model", autocompletion=complete_model)
]


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
