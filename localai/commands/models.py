"""`localai list`, `rm` and `show`: the models on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.machine import predicted_by, speed_text
from localai.commands.options import (
    MODEL_HELP,
    JsonFlag,
    YesFlag,
    check_choice,
    complete_known,
    complete_model,
    confirm_removal,
    sentence,
)
from localai.errors import DoesNotFit
from localai.tensor_types import KV_TYPES

if TYPE_CHECKING:
    from localai.cards import Card, CardVariant
    from localai.inventory import Entry

InstalledName = Annotated[
    str, typer.Argument(metavar="MODEL", help="an installed model", autocompletion=complete_model)
]


def list_models(as_json: JsonFlag = False) -> None:
    """List the models on this disk, and how each would run. Only verified ones are listed."""
    from localai import hardware, inventory, library

    damaged: list[str] = []
    models = library.installed(damaged.append)
    for each in damaged:
        render.note(f"warning: {each}")
    if not models and not as_json:
        render.note("no models are installed; localai recommend says which would run well here")
        return
    entries = inventory.entries(models, hardware.detect())
    if as_json:
        render.json_object(schema.inventory(entries))
    else:
        render.out(table(entries, render.width()))


HEADERS = ("MODEL", "QUANT", "PARAMS", "SIZE", "SOURCE", "LAST USED", "FIT")


def table(entries: Sequence[Entry], width: int) -> str:
    """The rows of `list`. A name too long for the width stands on a line of its own, whole, so it can be copied."""
    rows = [row(each) for each in entries]
    rest = len(render.columns(HEADERS[1:], [each[1:] for each in rows]).split("\n")[0]) + 2
    room = max(width - rest - len(HEADERS[-1]), len(HEADERS[0]))
    short = [each if len(each[0]) <= room else ("", *each[1:]) for each in rows]
    head, *lines = render.columns(HEADERS, short, right=(2, 3)).split("\n")
    for each, line in zip(rows, lines, strict=True):
        head += f"\n{each[0]}" if len(each[0]) > room else ""
        head += f"\n{line}"
    return head


def row(entry: Entry) -> tuple[str, ...]:
    model = entry.model
    return (
        " ".join(render.safe(model.model).split()),
        model.quantization,
        params(entry.params_b),
        render.size(model.size_bytes),
        model.source,
        "never" if model.last_used_at is None else render.local_time(model.last_used_at)[:10],
        "?" if entry.plan is None else str(entry.plan.placement) if entry.plan.fits else "no",
    )


def params(billions: float | None) -> str:
    """Parameters as models are named: `135M`, `7.6B`."""
    if billions is None:
        return "?"
    return f"{billions * 1000:.0f}M" if billions < 0.9995 else f"{billions:.3g}B"


def remove(model: InstalledName, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove a model from this disk. Files that were only imported stay where they are."""
    from localai import library, removing

    found = library.to_remove(model)
    if not yes and not found.read_only:
        question = f"Remove {found.model} ({found.quantization}, {render.size(found.size_bytes)})?"
        confirm_removal(question, f"localai rm --yes {model}")
    freed = removing.remove(found)
    if as_json:
        render.json_object({"removed": schema.installed_model(found), "freed_bytes": freed})
        return
    render.note(f"removed {found.model} ({found.quantization}); {render.size(freed)} freed")
    if not freed and found.path.exists():
        render.note(f"its file stays where it is: {found.path}")


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=sentence(MODEL_HELP), autocompletion=complete_known)],
    context: Annotated[
        int | None, typer.Option("--context", "-c", metavar="TOKENS", min=1, help="Tokens of context to plan for.")
    ] = None,
    kv_type: Annotated[
        str | None,
        typer.Option(
            "--kv-type", metavar="TYPE", parser=str.lower, help="Type of the KV cache to plan with, such as q8_0."
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 4 where it does not fit here.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a model is and takes, and how it would run. Of the Hub, only headers are read."""
    from localai import cards

    if kv_type is not None:
        check_choice("--kv-type", kv_type, KV_TYPES)
    card = cards.card(model, context, kv_type, render.note)
    if card.warning:
        render.note(f"warning: {card.warning}")
    if as_json:
        render.json_object(schema.card(card))
    else:
        show_card(card, model)
    if check and not (card.plan and card.plan.fits):
        raise typer.Exit(DoesNotFit.exit_code)


def show_card(card: Card, name: str) -> None:
    """The card as lines and a table; `name` is what was asked for."""
    render.out(render.facts(card_facts(card)))
    render.out()
    rows = [variant_row(each, card.embeds) for each in card.variants]
    headers = ("QUANT", "SIZE", "MEMORY", "CONTEXT", "FITS", "ON", "READS/S" if card.embeds else "TOKENS/S")
    render.out(render.columns(headers, rows, right=(1, 2, 3, 6)))
    for warning in dict.fromkeys(warning for each in card.variants if each.plan for warning in each.plan.warnings):
        render.out(f"! {warning}")
    if card.instead:
        render.out(f"It does not fit here. Instead: {card.instead.sentence(card.model)}")
    plans = [each.plan for each in card.variants if each.plan]
    if said := predicted_by([each.prompt_tps if card.embeds else each.decode_tps for each in plans], card.embeds):
        render.out(said)
    if card.basis == "catalog":
        render.out("Not installed: sizes, memory and speed are reckoned from published facts.")
    if card.path is None and not card.instead:
        render.out(f"Next: localai pull {name}")


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
        ("Projector", f"{render.size(card.projector_bytes)}, for pictures" if card.projector_bytes else None),
        ("Licence", card.license),
        ("Languages", ", ".join(card.languages)),
        ("Template", template),
        ("Source", card.source),
        ("File", card.path),
        ("Note", card.note),
    ]
    return [(name, text) for name, text in lines if text]


def variant_row(variant: CardVariant, embeds: bool) -> tuple[str, ...]:
    """A line of `show`; of a model for embeddings with the speed that it reads with, since it writes nothing."""
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
        speed_text(plan.prompt_tps if embeds else plan.decode_tps),
    )
