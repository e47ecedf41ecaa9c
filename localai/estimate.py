"""Memory and speed of a model on a machine, and how to load it there: pure functions of shape, weights and machine.

What a model takes is in `buffers` and `sizes`, where it goes in `placement`, how fast it is in `speed`; here it is put
together into a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from localai import placement, quantization, tuning
from localai.buffers import CONTEXT_STEP, UBATCH, compute_bytes, kv_cache_bytes, padded
from localai.domain.machine import Machine
from localai.domain.plan import MemoryNeed, Placement, Plan
from localai.domain.rates import Job
from localai.domain.shape import Shape, Weights
from localai.domain.units import MIB
from localai.errors import UsageError
from localai.placement import GPU_MARGIN_BYTES
from localai.speed import cores, decode_speed, engine_gpus, prompt_speed

DEFAULT_CONTEXT = 8192
# What the two speeds of a plan are of.
_WRITING, _READING = Job(0, 64, 1024), Job(UBATCH, 0)
TYPICAL_WORK = Job(256, 256, 1024)  # a turn of a chat, where nobody has said what is to be done
SMALLEST_CONTEXT = 2048
BATCH = 2048  # llama.cpp's default n_batch
SMALL_UBATCH = 128  # where memory is short: a quarter of the compute buffer, prompts a little slower
# About half of f16's bytes, at a mean divergence of 0.001 (llama.cpp PR 7412; Q4_K_M weights: 0.031); slower on CPUs.
SMALL_KV_TYPE = "q8_0"
_WORTH_THE_GPU = 4096  # tokens of context for which more is given up, to stay on the GPU whole

# This program beside what llama.cpp allocates: Python and its libraries 52 MiB (unshared, measured), the vocabulary,
# the prompt and text as they grow, with room.
PROCESS_BYTES = 150 * MIB
RAM_MARGIN = 0.05  # of what is available, so that a load never swaps

# What llama.cpp itself says that a context takes, of (context, kv_type, ubatch): bytes of KV cache and of compute
# buffers; None where it cannot be asked. See `measuring`.
Measure = Callable[[int, str, int], tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be placed, and where: what stays the same while `plan` tries contexts and the rest."""

    shape: Shape
    weights: Weights
    machine: Machine
    gpu_layers: int | None
    measured: Measure | None
    projector_bytes: int
    sequences: int


def memory(
    shape: Shape,
    weights: Weights,
    context: int,
    kv_type: str = "f16",
    ubatch: int = UBATCH,
    outputs: int = 1,
    flash: bool = True,
    measured: Measure | None = None,
    projector_bytes: int = 0,
    sequences: int = 1,
) -> MemoryNeed:
    """What loading takes: tensors once, KV cache, compute buffer, projector, and this program itself as overhead.

    Each of several `sequences` has a cache of `context` tokens and a row of logits of its own. `measured`, where it
    has an answer, goes before the closed forms; it knows one sequence, one output row and flash attention only.
    """
    found = (
        measured(padded(context), kv_type, ubatch) if measured is not None and (outputs, flash) == (1, True) else None
    )

    def compute(rows: int) -> int:
        return compute_bytes(shape, context, ubatch, rows, flash, kv_type)

    if found is None:
        found = kv_cache_bytes(shape, context, kv_type, ubatch), compute(outputs)
    cache, buffers = found
    more_rows = compute(outputs + sequences - 1) - compute(outputs) if sequences > 1 else 0
    return MemoryNeed(weights.total_bytes, cache * sequences, buffers + more_rows, PROCESS_BYTES, projector_bytes)


def plan(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    *,
    context: int | None = None,
    gpu_layers: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    ubatch: int | None = None,
    want_context: int = DEFAULT_CONTEXT,
    quant: str | None = None,
    measured: Measure | None = None,
    projector_bytes: int = 0,
    sequences: int = 1,
    work: Job = TYPICAL_WORK,
) -> Plan:
    """How to load the model here, with what that takes and how fast it will be; `fits` False means: do not load.

    What is given is taken as asked, and what is None is chosen: of `want_context` tokens, or the most that fits within
    the model's own; an f16 cache and 512 tokens at a time, less of either where that does not fit. As much as fits goes
    to the GPUs, leaving 1 GiB a device; a smaller cache, or a context down to 4,096, is preferred to leaving the GPU.
    `measured` goes before the closed forms of cache and compute buffers. The speeds are those of one sequence.
    `work` is what is to be done, for the settings that `bench --tune` has found.
    """
    job = _Job(shape, weights, machine, gpu_layers, measured, projector_bytes, sequences)
    contexts = _contexts(shape, want_context) if context is None else [max(context, 1)]
    kv_types = [kv_type] if kv_type is not None else ["f16", *([SMALL_KV_TYPE] if can_shrink_cache(shape) else [])]
    ubatches = [ubatch] if ubatch is not None else [UBATCH, SMALL_UBATCH]
    best = _best(job, contexts, kv_types, ubatches)
    best = _tuned(job, best, work, kv_type is not None, ubatch is not None)
    placed = replace(best, threads=threads or best.threads)
    known = tuning.found_for(machine, shape, weights, best.placement is Placement.GPU)
    where = (shape, weights, machine, best.gpu_layers)
    decode = decode_speed(*where, kv_type=best.kv_type, cpu_expert_layers=best.cpu_expert_layers)
    prompt = prompt_speed(*where, cpu_expert_layers=best.cpu_expert_layers)
    placed = replace(
        placed,
        decode_tps=tuning.adjusted(decode, known, placed, _WRITING),
        prompt_tps=tuning.adjusted(prompt, known, placed, _READING),
    )
    chosen = kv_type is None and placed.fits and placed.kv_type != kv_types[0]
    return replace(placed, warnings=tuple(_warnings(placed, shape, quant, context or want_context, chosen)))


def _best(job: _Job, contexts: list[int], kv_types: list[str], ubatches: list[int]) -> Plan:
    """The first way that fits: on the GPU whole, else the longest context, else a smaller cache; else what to refuse.

    On a GPU a smaller cache comes before a shorter context; on a CPU after it, since CPUs read it slower.
    """
    if engine_gpus(job.machine) and job.gpu_layers is None:
        enough = min(contexts[0], _WORTH_THE_GPU)
        for ubatch, context, kv_type in (
            (u, c, k) for u in ubatches for c in contexts if c >= enough for k in kv_types
        ):
            found = _placed(job, context, kv_type, ubatch)
            if found.fits and found.placement is Placement.GPU:
                return found
    for kv_type, context, ubatch in ((k, c, u) for k in kv_types for c in contexts for u in ubatches):
        found = _placed(job, context, kv_type, ubatch)
        if found.fits:
            return found
    return _placed(job, contexts[-1], kv_types[0], ubatches[0])


def _tuned(job: _Job, best: Plan, work: Job, kv_type_asked: bool, ubatch_asked: bool) -> Plan:
    """The plan with the settings that `bench --tune` found best for such work here, as far as they fit.

    What was asked for stays as asked, and so does a cache or a micro-batch that is small because memory is.
    """
    if not best.fits or best.placement is Placement.SPLIT or job.sequences > 1:
        return replace(best, threads=cores(job.machine))
    found = tuning.found_for(job.machine, job.shape, job.weights, best.placement is Placement.GPU)
    for setting, _ in tuning.ranked(found, work):
        if setting.kv_type != best.kv_type and (kv_type_asked or best.kv_type != "f16"):
            continue
        if setting.ubatch != best.ubatch and (ubatch_asked or best.ubatch != UBATCH):
            continue
        tried = _placed(job, best.context, setting.kv_type, setting.ubatch, setting.flash)
        if tried.fits and (tried.placement, tried.gpu_layers) == (best.placement, best.gpu_layers):
            threads = min(setting.threads, job.machine.cpu.logical_cores)
            return replace(tried, threads=threads, repack=setting.repack)
    return replace(best, threads=cores(job.machine))


def can_shrink_cache(shape: Shape) -> bool:
    """Whether llama.cpp takes a quantized cache of this model: whole blocks of 32, and flash attention."""
    lengths = [shape.key_length, 0 if shape.latent_kv else shape.value_length]
    lengths += [shape.swa_key_length or 0, shape.swa_value_length or 0]
    return any(shape.kv_heads) and not any(each % 32 for each in lengths) and shape.architecture != "grok"


def check_kv_type(shape: Shape, kv_type: str | None) -> None:
    """Raise UsageError for a quantized cache of a model that llama.cpp refuses one of."""
    quantized = kv_type not in (None, "f32", "f16", "bf16")
    if quantized and any(shape.kv_heads) and not can_shrink_cache(shape):
        raise UsageError(
            f"this model's KV cache cannot be {kv_type}: its heads are no whole blocks of 32",
            "leave --kv-type out, or take f16",
        )


def _contexts(shape: Shape, want: int) -> list[int]:
    """The contexts to try, the longest first: `want`, then halves, down to 2,048, within the model's own."""
    own = shape.context_length or want
    longest = max(1, min(want, own))
    return halves(padded(longest) if padded(longest) <= own else longest)


def halves(context: int) -> list[int]:
    """A context and the shorter ones that a plan tries instead of it, down to 2,048 tokens."""
    tried = [context]
    while tried[-1] > SMALLEST_CONTEXT:
        tried.append(max(SMALLEST_CONTEXT, tried[-1] // 2 // CONTEXT_STEP * CONTEXT_STEP))
    return tried


def _placed(job: _Job, context: int, kv_type: str, ubatch: int, flash: bool = True) -> Plan:
    """The plan for one context, without speeds: layers on the GPU, memory, whether it fits."""
    shape, weights, machine = job.shape, job.weights, job.machine
    gpus = engine_gpus(machine)
    need = memory(
        shape,
        weights,
        context,
        kv_type,
        ubatch,
        flash=flash,
        measured=job.measured,
        projector_bytes=job.projector_bytes,
        sequences=job.sequences,
    )
    ram = machine.memory.available_bytes
    margin = PROCESS_BYTES + round(ram * RAM_MARGIN)
    everything = shape.n_layers + 1
    on_gpus = None
    if gpus and job.gpu_layers != 0:
        if all(gpu.shared_memory for gpu in gpus):
            layers = everything if job.gpu_layers is None else min(job.gpu_layers, everything)
            kind = Placement.GPU if layers == everything else Placement.SPLIT
            free = min([ram, *(gpu.vram_free_bytes or gpu.vram_total_bytes or ram for gpu in gpus)])
            on_gpus = placement.Placed(kind, layers, 0, need.total_bytes, free, True)
            margin = PROCESS_BYTES + round(free * RAM_MARGIN)
            overhead, fits = margin, need.total_bytes + margin <= free
        else:
            on_gpus = placement.on_gpus(
                shape, weights, machine, gpus, need, (context, kv_type, ubatch), job.gpu_layers, job.sequences
            )
            if on_gpus is not None:
                overhead = PROCESS_BYTES + GPU_MARGIN_BYTES * len(gpus)
                fits = on_gpus.fits_gpus and on_gpus.ram_bytes + margin <= ram
    if on_gpus is None:
        on_gpus = placement.Placed(Placement.CPU, 0, 0, need.total_bytes, ram, True)
        overhead, fits = margin, need.total_bytes + margin <= ram
    return Plan(
        context=context,
        placement=on_gpus.placement,
        gpu_layers=on_gpus.gpu_layers,
        threads=1,
        batch=BATCH,
        ubatch=ubatch,
        kv_type=kv_type,
        flash_attention=flash,
        # repacked copies and mapped originals together must not push other programs out (llama.cpp repacks on CPUs)
        # and experts that stay in RAM are computed faster from memory of the process (llama-model-loader.cpp says so)
        use_mmap=not on_gpus.cpu_expert_layers
        and (on_gpus.placement is Placement.GPU or 2 * need.weights_bytes + need.kv_cache_bytes <= ram),
        memory=replace(need, overhead_bytes=overhead),
        available_bytes=on_gpus.available_bytes,
        fits=fits,
        decode_tps=None,
        prompt_tps=None,
        cpu_expert_layers=on_gpus.cpu_expert_layers,
        sequences=job.sequences,
    )


def _warnings(placed: Plan, shape: Shape, quant: str | None, wanted: int, shrunk: bool) -> Iterator[str]:
    if quant is not None and quantization.is_low_bit(quant):
        yield f"{quant} is under 4 bits: expect more made-up answers"
    if shape.context_length is not None and placed.context > shape.context_length:
        yield f"a context of {placed.context} tokens is beyond the {shape.context_length} that the model was made for"
    elif placed.context < min(wanted, shape.context_length or wanted):
        yield f"memory leaves room for a context of {placed.context} tokens only"
    if shrunk:
        yield f"the KV cache is kept as {placed.kv_type}, about half the size of f16, so that it fits"
    if placed.cpu_expert_layers:
        yield (
            f"the experts of {placed.cpu_expert_layers} of {shape.n_layers} layers do not fit on the GPU; they run on"
            " the CPU"
        )
    elif placed.placement is Placement.SPLIT:
        yield f"{placed.gpu_layers} of {shape.n_layers + 1} layers fit on the GPU; the rest runs on the CPU"
    if placed.decode_tps is not None and placed.decode_tps.mid < 4:
        yield f"slow here: about {placed.decode_tps.mid:.1f} tokens per second, reading speed is 5 or more"
