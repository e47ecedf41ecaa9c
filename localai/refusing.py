"""What a user is told whose model does not fit: how much is short, and what would fit instead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from localai import alternatives, catalog, hardware
from localai.domain.plan import Plan
from localai.domain.units import GIB
from localai.errors import DoesNotFit
from localai.estimate import Measure
from localai.library import Found

if TYPE_CHECKING:
    from localai.loading import Facts, LoadOptions


def of_plan(
    found: Found,
    facts: Facts,
    plan: Plan,
    options: LoadOptions,
    again: Callable[..., Plan],
    measured: Measure | None,
) -> DoesNotFit:
    """Why the model is not loaded, and what would fit instead; `again` plans the same job with something else."""
    need, free = plan.memory.total_bytes + plan.memory.overhead_bytes, plan.available_bytes
    own = facts.shape.context_length
    message = (
        f"{found.name} needs {need / GIB:.1f} GiB of memory with {plan.context} tokens of context"
        + (f" for each of {plan.sequences} at once" if plan.sequences > 1 else "")
        + f", and {free / GIB:.1f} GiB are free"
    )
    instead = alternatives.find(
        again,
        plan,
        facts.shape,
        facts.weights,
        facts.machine,
        known=catalog.resolve_name(found.model.model) if found.model else None,
        quant=found.model.quantization if found.model else None,
        context=options.context,
        gpu_layers=options.gpu_layers,
        measured=measured,
    )
    beyond = options.context is not None and own is not None and options.context > own
    hint = f"the model is made for {own} tokens; " if beyond else ""
    exactly = partial(again, measured=measured)
    if plan.sequences > 1 and (fewer := alternatives.most_at_once(exactly, plan.sequences)) is not None:
        hint += f"--parallel {fewer} fits; or: "
    return DoesNotFit(message, hint + instead.sentence(found.name))


def of_pictures(found: Found) -> DoesNotFit:
    """Why no pictures can be looked at, and which model that sees would fit."""
    known = catalog.resolve_name(found.model.model) if found.model else None
    model, here = alternatives.another_model(hardware.detect(), None, known.id if known else None, task="vision")
    return DoesNotFit(
        f"{found.name} cannot look at images now: memory leaves no room for its projector",
        alternatives.Alternatives(model=model, installed=here).sentence(found.name),
    )


def of_texts(found: Found, plan: Plan, own: int | None, planned: Callable[[int], Plan]) -> DoesNotFit:
    """Why no vectors can be made, and what would fit: shorter texts, or another model that makes vectors.

    `planned` plans for texts of so many tokens, `own` is the most that the model was made for.
    """

    def fits(context: int) -> bool:
        return planned(context).fits

    shorter = alternatives.longest_context(fits, fits, plan.context, own)
    known = catalog.resolve_name(found.model.model) if found.model else None
    model, here = alternatives.another_model(hardware.detect(), None, known.id if known else None, task="embedding")
    total, free = plan.memory.total_bytes + plan.memory.overhead_bytes, plan.available_bytes
    return DoesNotFit(
        f"{found.name} needs {total / GIB:.1f} GiB of memory for texts of {plan.context} tokens,"
        f" and {free / GIB:.1f} GiB are free",
        alternatives.Alternatives(context=shorter, model=model, installed=here).sentence(found.name),
    )
