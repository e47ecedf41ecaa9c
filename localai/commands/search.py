"""`localai search`: models of the Hub, with what each takes and how fast it would be here, before any download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.machine import predicted_by, speed_text
from localai.commands.models import params
from localai.commands.options import JsonFlag
from localai.errors import NotFound

if TYPE_CHECKING:
    from localai.searching import FoundModel, FoundVariant


def search(
    query: Annotated[list[str], typer.Argument(metavar="QUERY", help="What to look for: a name, or parts of it.")],
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, max=50, help="Repositories to show.")] = 5,
    as_json: JsonFlag = False,
) -> None:
    """Search the Hub for GGUF models, with their speed here. And size and memory; of files only a beginning is read."""
    from localai import hardware, searching

    words = " ".join(query)
    found = searching.search(words, hardware.detect(), limit, render.note)
    if not found:
        raise NotFound(
            f"the Hub has no GGUF model for {render.safe(words)!r}",
            "try fewer words, as in: qwen3 4b; localai recommend names models that suit this machine",
        )
    if as_json:
        render.json_object({"query": words, "models": [schema.found_model(each) for each in found]})
        return
    for each in found:
        show(each)
    if any(each.best for each in found):
        render.out("* the quantization that pull takes here")
    if said := predicted_by(variant.plan.decode_tps for each in found for variant in each.variants):
        render.out(said)
    if pullable := next((each for each in found if fits(each) and not (each.gated or each.failure)), None):
        render.out(f"Next: localai pull {pullable.model}")


def fits(found: FoundModel) -> bool:
    return any(each.plan.fits for each in found.variants if each.quantization == found.best)


def show(found: FoundModel) -> None:
    """One repository: a line of facts, and a line for each quantization of at least 4 bits."""
    from localai import quantization

    facts = [
        f"{params(found.params_b)} parameters" if found.params_b else None,
        f"{found.context_length:,} tokens of context" if found.context_length else None,
        f"{downloads(found.downloads)} download{'' if found.downloads == 1 else 's'}"
        if found.downloads is not None
        else None,
    ]
    render.out(f"{found.model}{' (gated: ask for access first)' if found.gated else ''}")
    if found.model != found.repo:
        render.out(f"  {found.repo}")
    if found.failure:
        render.out(f"  ! {render.safe(found.failure)}")
    if found.variants:
        render.out(f"  {', '.join(each for each in facts if each)}")
        shown = [each for each in found.variants if not quantization.is_low_bit(each.quantization)]
        headers = ("QUANT", "SIZE", "MEMORY", "CONTEXT", "FITS", "ON", "TOKENS/S")
        table = render.columns(headers, [row(each, found.best) for each in shown or found.variants], right=(1, 2, 3, 6))
        render.out("\n".join(f"  {line}" for line in table.split("\n")))
        if shown and len(shown) < len(found.variants):
            render.out(f"  and {len(found.variants) - len(shown)} under 4 bits: localai show {found.repo}")
    render.out()


def row(variant: FoundVariant, best: str | None) -> tuple[str, ...]:
    plan = variant.plan
    return (
        variant.quantization + ("*" if variant.quantization == best else ""),
        render.size(variant.size_bytes),
        render.memory(plan.memory.total_bytes),
        f"{plan.context:,}",
        "yes" if plan.fits else "no",
        str(plan.placement),
        speed_text(plan.decode_tps),
    )


def downloads(count: int) -> str:
    """A count in three digits: `950`, `12k`, `1.2M`."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
