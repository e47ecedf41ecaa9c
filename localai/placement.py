"""Where a model goes on a machine: which layers, which experts, on how many GPUs. Pure functions.

As llama.cpp does it (src/llama-model.cpp, load_tensors): layer i is on a GPU if i ≥ n_layer + 1 − n_gpu_layers, the
output counts as the last layer, and the GPUs share those layers in proportion to their free memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from localai import experts
from localai.buffers import kv_layers
from localai.domain.machine import Gpu, Machine
from localai.domain.plan import MemoryNeed, Placement
from localai.domain.shape import Shape, Weights
from localai.domain.units import GIB

GPU_MARGIN_BYTES = GIB  # the driver's context and the desktop; what llama.cpp's own fitting leaves (common/fit)


@dataclass(frozen=True, slots=True)
class Placed:
    """So many layers on the GPUs, the experts of the first `cpu_expert_layers` not among them.

    `ram_bytes` is what stays in system memory, `available_bytes` what there is of all the memory that is used.
    """

    placement: Placement
    gpu_layers: int
    cpu_expert_layers: int
    ram_bytes: int
    available_bytes: int
    fits_gpus: bool


def on_gpus(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    gpus: Sequence[Gpu],
    need: MemoryNeed,
    cells: tuple[int, str, int],
    gpu_layers: int | None,
    sequences: int,
) -> Placed | None:
    """The best place on GPUs with memory of their own: whole; of a mixture of experts all but the experts of the first
    layers; else as many layers as fit. None where no layer fits and none was asked for.

    `cells` is the context, type and ubatch of the cache that each of the `sequences` has. `gpu_layers` is taken as
    asked; asking for all of them leaves the experts of a mixture in RAM where they do not fit.
    """
    everything = shape.n_layers + 1
    asked = None if gpu_layers is None else min(gpu_layers, everything)
    layers = _layers(shape, weights, cells, sequences)
    budgets = _budgets(gpus, need)
    ram, vram = machine.memory.available_bytes, sum(gpu.vram_free_bytes or 0 for gpu in gpus)

    def placed(count: int, of_experts: int, fits: bool) -> Placed:
        whole = count == everything and not of_experts
        moved = sum(moving[:of_experts])
        in_ram = weights.embedding_bytes + sum(layers[: everything - count]) + moved + need.compute_bytes
        kind = Placement.GPU if whole else Placement.SPLIT
        return Placed(kind, count, of_experts, in_ram, vram if whole else vram + ram, fits)

    moving = experts.layer_bytes(shape, weights)
    if asked in (None, everything):
        if _fit(layers, everything, gpus, budgets):
            return placed(everything, 0, True)
        if moving and (few := _fewest_on_cpu(layers, moving, gpus, budgets)) is not None:
            return placed(everything, few, True)
    if asked is not None:
        return placed(asked, 0, _fit(layers, asked, gpus, budgets))
    most = next((count for count in range(everything - 1, 0, -1) if _fit(layers, count, gpus, budgets)), 0)
    return placed(most, 0, True) if most > 1 else None  # the output alone gains nothing


def _layers(shape: Shape, weights: Weights, cells: tuple[int, str, int], sequences: int) -> list[int]:
    """Bytes of each layer with its cache, and last of the output with all that is in no layer.

    A tied output is copied to the GPU. Without a header all layers count as equal.
    """
    layers = shape.n_layers
    body = max(0, weights.total_bytes - weights.embedding_bytes - weights.output_bytes)
    each = list(weights.layer_bytes) if len(weights.layer_bytes) == layers else [body // layers] * layers
    state = shape.recurrent_state_bytes // layers
    caches = kv_layers(shape, *cells)
    caches += [0] * (layers - len(caches))
    rest = max(0, body - sum(each)) if weights.layer_bytes else 0
    output = weights.output_bytes or weights.tied_bytes or weights.embedding_bytes
    return [own + (state + cache) * sequences for own, cache in zip(each, caches[:layers], strict=True)] + [
        output + rest
    ]


def _budgets(gpus: Sequence[Gpu], need: MemoryNeed) -> list[int]:
    """What each GPU has for layers: the margin and the compute buffer off, of the first the projector too."""
    room = [(gpu.vram_free_bytes or 0) - GPU_MARGIN_BYTES - need.compute_bytes for gpu in gpus]
    room[0] -= need.projector_bytes
    return room


def _fit(layers: Sequence[int], count: int, gpus: Sequence[Gpu], budgets: Sequence[int]) -> bool:
    """Whether the last `count` layers fit when the GPUs share them as llama.cpp has them do."""
    return all(held <= budget for held, budget in zip(_shares(layers, count, gpus), budgets, strict=True))


def _shares(layers: Sequence[int], count: int, gpus: Sequence[Gpu]) -> list[int]:
    """Bytes on each GPU: the last `count` layers, cut where the GPUs' free memory, added up, is cut."""
    chosen = layers[len(layers) - count :]
    if len(gpus) == 1:
        return [sum(chosen)]
    total = sum(gpu.vram_free_bytes or 0 for gpu in gpus)
    ends = [math.ceil(free / total * count - 1e-6) for free in accumulate(gpu.vram_free_bytes or 0 for gpu in gpus)]
    before = [0, *accumulate(chosen)]
    return [before[end] - before[start] for start, end in zip([0, *ends], ends, strict=False)]


def _fewest_on_cpu(
    layers: Sequence[int], moving: Sequence[int], gpus: Sequence[Gpu], budgets: Sequence[int]
) -> int | None:
    """The fewest first layers whose experts must stay in RAM for all the rest to fit; None where even all do not do.

    Found by halving: the more layers, the less is on the GPUs.
    """

    def enough(count: int) -> bool:
        left = [each - (moving[i] if i < count else 0) for i, each in enumerate(layers)]
        return _fit(left, len(left), gpus, budgets)

    low, high = 1, len(moving)
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low
