"""Memory and speed of a model on a machine, and how to load it there: pure functions of shape, weights and machine.

What a model takes is in `buffers` and `sizes`, how fast it is in `speed`; here it is put together into a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from localai import quantization
from localai.buffers import CONTEXT_STEP, KV_TYPES, UBATCH, compute_bytes, kv_cache_bytes, kv_layers, padded
from localai.domain import GIB, MIB, Machine, MemoryNeed, Placement, Plan, Shape, Weights
from localai.sizes import shape_from_params, shape_from_size, weights_from_catalog, weights_from_size
from localai.speed import cores, decode_speed, engine_gpus, prompt_speed

__all__ = [
    "KV_TYPES",
    "Measure",
    "compute_bytes",
    "decode_speed",
    "engine_gpus",
    "kv_cache_bytes",
    "memory",
    "plan",
    "prompt_speed",
    "shape_from_params",
    "shape_from_size",
    "weights_from_catalog",
    "weights_from_size",
]

DEFAULT_CONTEXT = 8192
SMALLEST_CONTEXT = 2048
BATCH = 2048  # llama.cpp's default n_batch

# This program beside what llama.cpp allocates: Python and its libraries 52 MiB (unshared, measured), the vocabulary,
# the prompt and text as they grow, with room.
PROCESS_BYTES = 150 * MIB
RAM_MARGIN = 0.05  # of what is available, so that a load never swaps
GPU_MARGIN_BYTES = GIB  # the driver's context and the desktop; what llama.cpp's own fitting leaves (common/fit)


# What llama.cpp itself says that a context takes, of (context, kv_type): bytes of KV cache and of compute buffers; None
# where it cannot be asked. See `measuring`.
Measure = Callable[[int, str], tuple[int, int] | None]


def memory(
    shape: Shape,
    weights: Weights,
    context: int,
    kv_type: str = "f16",
    ubatch: int = UBATCH,
    outputs: int = 1,
    flash: bool = True,
    measured: Measure | None = None,
) -> MemoryNeed:
    """What loading takes: tensors once, KV cache, compute buffer, and this program itself as overhead.

    `measured`, where it has an answer, goes before the closed forms; it knows the default ubatch and outputs only.
    """
    asked = measured is not None and (ubatch, outputs, flash) == (UBATCH, 1, True)
    if asked and measured is not None and (found := measured(padded(context), kv_type)) is not None:
        return MemoryNeed(weights.total_bytes, *found, PROCESS_BYTES)
    return MemoryNeed(
        weights.total_bytes,
        kv_cache_bytes(shape, context, kv_type, ubatch),
        compute_bytes(shape, context, ubatch, outputs, flash),
        PROCESS_BYTES,
    )


def plan(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    *,
    context: int | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    want_context: int = DEFAULT_CONTEXT,
    quant: str | None = None,
    measured: Measure | None = None,
) -> Plan:
    """How to load the model here, with what that takes and how fast it will be; `fits` False means: do not load.

    `context` is taken as asked; without it, `want_context` or the most that fits, within the model's own. As many
    layers as fit go to the GPUs, leaving 1 GiB a device; a shorter context is preferred to leaving the GPU. `measured`
    goes before the closed forms of cache and compute buffers.
    """

    def placed_with(length: int) -> Plan:
        return _placed(shape, weights, machine, length, gpu_layers, kv_type, measured)

    if context is not None:
        best = placed_with(padded(max(context, 1)))
    else:
        tried = [placed_with(each) for each in _contexts(shape, want_context)]
        fitting = [each for each in tried if each.fits]
        on_gpu = [each for each in fitting if each.placement is Placement.GPU]
        best = (on_gpu or fitting or tried[-1:])[0]
    decode = decode_speed(shape, weights, machine, best.gpu_layers, kv_type=kv_type)
    placed = replace(
        best,
        threads=threads or cores(machine),
        decode_tps=decode,
        prompt_tps=prompt_speed(shape, weights, machine, best.gpu_layers),
    )
    return replace(placed, warnings=tuple(_warnings(placed, shape, quant, context or want_context)))


def _contexts(shape: Shape, want: int) -> list[int]:
    """The contexts to try, the longest first: `want`, then halves, down to 2,048, within the model's own."""
    own = shape.context_length or want
    longest = max(1, min(want, own))
    tried = [padded(longest) if padded(longest) <= own else longest]
    while tried[-1] > SMALLEST_CONTEXT:
        tried.append(max(SMALLEST_CONTEXT, tried[-1] // 2 // CONTEXT_STEP * CONTEXT_STEP))
    return tried


def _placed(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    context: int,
    gpu_layers: int | None,
    kv_type: str,
    measured: Measure | None,
) -> Plan:
    """The plan for one context, without speeds: layers on the GPU, memory, whether it fits."""
    gpus = engine_gpus(machine)
    unified = bool(gpus) and all(gpu.shared_memory for gpu in gpus)
    need = memory(shape, weights, context, kv_type, measured=measured)
    ram = machine.memory.available_bytes
    everything = shape.n_layers + 1
    if not gpus or gpu_layers == 0:
        layers, placement, free, fits = 0, Placement.CPU, ram, True
        overhead = PROCESS_BYTES + round(ram * RAM_MARGIN)
        fits = need.total_bytes + overhead <= ram
    elif unified:
        layers = everything if gpu_layers is None else min(gpu_layers, everything)
        placement = Placement.GPU if layers == everything else Placement.SPLIT
        limits = [gpu.vram_free_bytes or gpu.vram_total_bytes or ram for gpu in gpus]
        free = min(ram, *limits)
        overhead = PROCESS_BYTES + round(free * RAM_MARGIN)
        fits = need.total_bytes + overhead <= free
    else:
        budgets = [(gpu.vram_free_bytes or 0) - GPU_MARGIN_BYTES - need.compute_bytes for gpu in gpus]
        items = _items(shape, weights, context, kv_type)
        room = _layers_that_fit(items, budgets)
        layers = room if gpu_layers is None else min(gpu_layers, everything)
        if layers <= 1 and gpu_layers is None:  # the output alone gains nothing
            return _placed(shape, weights, machine, context, 0, kv_type, measured)
        placement = Placement.GPU if layers == everything else Placement.SPLIT
        on_cpu = weights.embedding_bytes + sum(items[: everything - layers]) + need.compute_bytes
        vram = sum(gpu.vram_free_bytes or 0 for gpu in gpus)
        margin = PROCESS_BYTES + round(ram * RAM_MARGIN)
        overhead = PROCESS_BYTES + GPU_MARGIN_BYTES * len(gpus)
        fits = layers <= room and on_cpu + margin <= ram
        free = vram if placement is Placement.GPU else vram + ram
    return Plan(
        context=context,
        placement=placement,
        gpu_layers=layers,
        threads=1,
        batch=BATCH,
        ubatch=UBATCH,
        kv_type=kv_type,
        flash_attention=True,
        # repacked copies and mapped originals together must not push other programs out (llama.cpp repacks on CPUs)
        use_mmap=placement is Placement.GPU or 2 * need.weights_bytes + need.kv_cache_bytes <= ram,
        memory=replace(need, overhead_bytes=overhead),
        available_bytes=free,
        fits=fits,
        decode_tps=None,
        prompt_tps=None,
    )


def _items(shape: Shape, weights: Weights, context: int, kv_type: str) -> list[int]:
    """Bytes of each layer with its cache, and last of the output with all that is in no layer.

    A tied output is copied to the GPU. Without a header all layers count as equal.
    """
    layers = shape.n_layers
    body = max(0, weights.total_bytes - weights.embedding_bytes - weights.output_bytes)
    each = list(weights.layer_bytes) if len(weights.layer_bytes) == layers else [body // layers] * layers
    state = shape.recurrent_state_bytes // layers
    caches = kv_layers(shape, context, kv_type, UBATCH)
    caches += [0] * (layers - len(caches))
    rest = max(0, body - sum(each)) if weights.layer_bytes else 0
    output = weights.output_bytes or weights.tied_bytes or weights.embedding_bytes
    return [own + state + cache for own, cache in zip(each, caches[:layers], strict=True)] + [output + rest]


def _layers_that_fit(items: Sequence[int], budgets: Iterable[int]) -> int:
    """How many of the last items fit into the devices, filled one after another.

    llama.cpp: layer i is on the GPU if i ≥ n_layer + 1 − n_gpu_layers; the output counts as the last layer.
    """
    rest = list(items)
    for budget in budgets:
        left = budget
        while rest and rest[-1] <= left:
            left -= rest.pop()
    return len(items) - len(rest)


def _warnings(placed: Plan, shape: Shape, quant: str | None, wanted: int) -> Iterable[str]:
    if quant is not None and quantization.is_low_bit(quant):
        yield f"{quant} is under 4 bits: expect more made-up answers"
    if shape.context_length is not None and placed.context > padded(shape.context_length):
        yield f"a context of {placed.context} tokens is beyond the {shape.context_length} that the model was made for"
    elif placed.context < min(wanted, shape.context_length or wanted):
        yield f"memory leaves room for a context of {placed.context} tokens only"
    if placed.placement is Placement.SPLIT:
        yield f"{placed.gpu_layers} of {shape.n_layers + 1} layers fit on the GPU; the rest runs on the CPU"
    if placed.decode_tps is not None and placed.decode_tps.mid < 4:
        yield f"slow here: about {placed.decode_tps.mid:.1f} tokens per second, reading speed is 5 or more"
