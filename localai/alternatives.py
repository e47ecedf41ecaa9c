"""What would fit where a model does not: a context, a cache type, another quantization of it, or another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localai import catalog, estimate, library, quantization, sizes
from localai.buffers import CONTEXT_STEP
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.shape import Shape, Weights

_NEARLY_AS_GOOD = 0.8  # of the best score: what is here already is then better than another download
SMALLEST_USEFUL = 512  # tokens of context below which there is nothing to talk about


@dataclass(frozen=True, slots=True)
class Alternatives:
    """What would fit, each None where nothing of its kind does: `context` tokens of the same model; `kv_type` with the
    context that was asked for; `quantization` of the same model, `model` another, installed if `installed`.
    """

    context: int | None = None
    kv_type: str | None = None
    gpu_layers: int | None = None
    quantization: str | None = None
    model: str | None = None
    installed: bool = False

    def sentence(self, name: str) -> str:
        """What to do instead, in one line; `name` is the model that does not fit."""
        base = name.rpartition(":")[0] or name if self.quantization else name
        ways = [
            f"--gpu-layers {self.gpu_layers} fits" if self.gpu_layers is not None else None,
            f"--kv-type {self.kv_type} fits with that context" if self.kv_type else None,
            f"--context {self.context} fits" if self.context else None,
            f"{base}:{self.quantization.lower()} fits" if self.quantization else None,
            self.model
            and f"{self.model} fits" + (" and is installed" if self.installed else f": localai pull {self.model}"),
        ]
        return "; or: ".join(way for way in ways if way) or "no model of the catalog fits: close other programs"


def find(
    again: Callable[..., Plan],
    refused: Plan,
    shape: Shape,
    weights: Weights,
    machine: Machine,
    *,
    known: catalog.CatalogModel | None = None,
    quant: str | None = None,
    context: int | None = None,
    gpu_layers: int | None = None,
    measured: estimate.Measure | None = None,
) -> Alternatives:
    """What would fit instead of `refused`, the plan of `shape` and `weights` that does not.

    `again` plans the same job with everything else that was asked for, as `estimate.plan` does, but for the arguments
    that it is given: so what is offered fits when it is asked for. `context` and `gpu_layers` are those that the user
    asked for; `measured` has the last word, and is asked little, since that takes long.
    """

    def nearly(**change: object) -> bool:
        return again(**change).fits

    def fits(**change: object) -> bool:
        return nearly(**change) and (measured is None or again(**change, measured=measured).fits)

    free = again(gpu_layers=None).gpu_layers if gpu_layers else None
    smaller = refused.kv_type in ("f32", "f16", "bf16") and estimate.can_shrink_cache(shape)
    model, installed = another_model(machine, context, known.id if known else None)
    if model is None and context is not None:  # no model has so many: one that is there at all says more than none
        model, installed = another_model(machine, None, known.id if known else None)
    return Alternatives(
        context=longest_context(nearly, fits, refused.context, shape.context_length),
        kv_type=estimate.SMALL_KV_TYPE if smaller and fits(kv_type=estimate.SMALL_KV_TYPE) else None,
        gpu_layers=free if free is not None and fits(gpu_layers=free) else None,
        quantization=_other_quantization(fits, known, quant, weights),
        model=model,
        installed=installed,
    )


def longest_context(
    nearly: Callable[..., bool], fits: Callable[..., bool], refused: int, own: int | None
) -> int | None:
    """The most tokens under `refused` and within the model's `own` that fit, in whole steps of 256, found by halving;
    None where 512 do not. Where only `nearly` says so, a sixteenth less is tried.
    """
    least = SMALLEST_USEFUL // CONTEXT_STEP
    low, high = least, min(refused - 1, own or refused) // CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if nearly(context=middle * CONTEXT_STEP) else (low, middle - 1)
    while high >= least and not fits(context=high * CONTEXT_STEP):
        high = min(high - 1, high * 15 // 16)
    return high * CONTEXT_STEP if high >= least else None


def most_at_once(again: Callable[..., Plan], refused: int) -> int | None:
    """The most sequences under `refused` that fit; None where not even one alone does."""
    low, high = 0, refused - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if again(sequences=middle).fits else (low, middle - 1)
    return low or None


def _other_quantization(
    fits: Callable[..., bool], known: catalog.CatalogModel | None, quant: str | None, weights: Weights
) -> str | None:
    """The best quantization of at least 4 bits that the catalog knows of the same model, that is smaller and fits."""
    fitting = []
    for file in known.files if known else ():
        if quantization.is_low_bit(file.quantization) or file.quantization == quant:
            continue
        smaller = sizes.weights_from_catalog(known, file.quantization) if known else weights
        if smaller.total_bytes < weights.total_bytes and fits(weights=smaller):
            fitting.append((smaller.total_bytes, file.quantization))
    return max(fitting)[1] if fitting else None


def another_model(
    machine: Machine, context: int | None = None, but: str | None = None, task: str | None = None
) -> tuple[str | None, bool]:
    """The best model of the catalog for this machine, or an installed one nearly as good; and whether it is here.

    It holds `context` tokens, where so many are asked for, and is not the model `but`. `task` as `recommend.rank` has
    it.
    """
    from localai import recommend

    models = [model for model in catalog.load() if model.id != but]
    rows = recommend.rank(machine, models, task=task, context=context, limit=1000)
    here = {model.model for model in library.installed()}
    if not rows:
        return None, False
    good = [each for each in rows if each.score.total >= _NEARLY_AS_GOOD * rows[0].score.total]
    row = next((each for each in good if each.model in here), rows[0])
    return row.model, row.model in here
