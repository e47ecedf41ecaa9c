"""What would fit where a model does not: a context, a cache type, another quantization of it, or another model."""

from __future__ import annotations

from dataclasses import dataclass

from localai import catalog, estimate, library, quantization
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
            self.model and (f"{self.model} fits and is installed" if self.installed else f"localai pull {self.model}"),
        ]
        return "; or: ".join(way for way in ways if way) or "no model of the catalog fits: close other programs"


def find(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    refused: Plan,
    *,
    known: catalog.CatalogModel | None = None,
    quant: str | None = None,
    asked_gpu_layers: int | None = None,
) -> Alternatives:
    """What would fit instead of `refused`, the plan of `shape` and `weights` that does not."""
    context = refused.context
    kv_type = gpu_layers = None
    if asked_gpu_layers:
        free = estimate.plan(shape, weights, machine, context=context)
        gpu_layers = free.gpu_layers if free.fits else None
    elif refused.kv_type in ("f32", "f16", "bf16"):
        small = estimate.plan(shape, weights, machine, context=context, kv_type=estimate.SMALL_KV_TYPE)
        kv_type = estimate.SMALL_KV_TYPE if small.fits and estimate.can_shrink_cache(shape) else None
    model, installed = another_model(machine)
    return Alternatives(
        context=_longest_context(shape, weights, machine, context),
        kv_type=kv_type,
        gpu_layers=gpu_layers,
        quantization=_other_quantization(shape, machine, known, quant, weights),
        model=model,
        installed=installed,
    )


def _longest_context(shape: Shape, weights: Weights, machine: Machine, refused: int) -> int | None:
    """The most tokens under `refused` that fit, in whole steps of 256, found by halving; None where 512 do not."""

    def fits(steps: int) -> bool:
        return estimate.plan(shape, weights, machine, context=steps * CONTEXT_STEP).fits

    own = shape.context_length or refused
    low, high = SMALLEST_USEFUL // CONTEXT_STEP, min(refused - 1, own) // CONTEXT_STEP
    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low * CONTEXT_STEP


def _other_quantization(
    shape: Shape, machine: Machine, known: catalog.CatalogModel | None, quant: str | None, weights: Weights
) -> str | None:
    """The best quantization of at least 4 bits that the catalog knows of the same model, that is smaller and fits."""
    fitting = []
    for file in known.files if known else ():
        if quantization.is_low_bit(file.quantization) or file.quantization == quant:
            continue
        smaller = estimate.weights_from_catalog(known, file.quantization) if known else weights
        if smaller.total_bytes < weights.total_bytes and estimate.plan(shape, smaller, machine).fits:
            fitting.append((smaller.total_bytes, file.quantization))
    return max(fitting)[1] if fitting else None


def another_model(machine: Machine) -> tuple[str | None, bool]:
    """The best model of the catalog for this machine, or an installed one nearly as good; and whether it is here."""
    from localai import recommend

    rows = recommend.rank(machine, catalog.load(), limit=1000)
    here = {model.model for model in library.installed()}
    if not rows:
        return None, False
    good = [each for each in rows if each.score.total >= _NEARLY_AS_GOOD * rows[0].score.total]
    row = next((each for each in good if each.model in here), rows[0])
    return row.model, row.model in here
