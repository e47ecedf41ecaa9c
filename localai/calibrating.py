"""Calibration: small synthetic models are made, timed and fitted; speeds are then predicted for this very machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter, time
from typing import TYPE_CHECKING

from localai import fitting
from localai.buffers import UBATCH
from localai.domain.machine import Machine
from localai.domain.plan import MemoryNeed, Placement, Plan
from localai.domain.rates import Calibration, DeviceRates
from localai.domain.units import MIB
from localai.errors import DoesNotFit
from localai.estimate import BATCH
from localai.fitting import Timing
from localai.probes import bandwidth
from localai.probes.source import Source
from localai.speed import cores
from localai.tensor_types import BY_NAME

if TYPE_CHECKING:
    from localai.engine.stopwatch import Stopwatch
    from localai.engine.synthetic import Synthetic

BUDGET_S = 52.0  # of measuring, whatever the machine; what is left out counts as its like
# The types of most files, the commonest first: Q4_K_M is Q4_K and Q6_K; Q5_0 is what small models get for Q4_K; Q4_1 is
# the model's that comes with us, and reads prompts with a fifth of Q4_0's speed, which is rearranged.
KINDS = ("Q4_K", "Q8_0", "Q6_K", "Q4_0", "Q5_0", "Q4_1", "F16")
# Types of other files, by how common they are: one model of each, while there is time.
FURTHER_KINDS = ("Q5_K", "Q3_K", "IQ4_XS", "BF16", "MXFP4", "IQ4_NL", "Q5_1", "Q2_K", "IQ3_XXS", "IQ3_S")
EXPERTS_KIND = "Q4_K"
SMALLEST_BYTES, LARGEST_BYTES = 96 * MIB, 384 * MIB  # of a model: more than the caches hold
OUTPUT_KINDS = ("Q6_K", "Q8_0")  # what outputs are
# Of the smallest models much of the time is rows and layers. Q5_0 and Q8_0 are the types of SmolLM2 135M and Gemma 3
# 270M in files that are called Q4_K_M, since rows of K-quants are multiples of 256; Q4_1 is that of the one with us.
NARROW_KINDS = ("Q4_K", "Q8_0", "Q5_0", "Q4_1")
# What the caches keep of the weights from token to token shows where there are four times as many: twice, as above.
LARGE_KINDS = ("Q4_K", "Q8_0")
_LARGE = 4
DEEP_KINDS = ("Q8_0",)  # the cache is the same whatever the weights
# Few wide layers and many narrow ones, with the heads of Llama 3.2 1B and Qwen3 0.6B: width, feed-forward, heads, KV
# heads, numbers of a head.
_SHAPES = ((2048, 6144, 32, 8, 64), (1024, 3072, 16, 8, 128))
# The last two are Gemma 3 270M's and SmolLM2 135M's.
_NARROW = {"Q4_K": (512, 1536, 8, 2, 64), "Q8_0": (640, 2048, 4, 1, 256)}
_NARROWEST = (576, 1536, 9, 3, 64)
_OUTPUT_WIDTH = 768
_TOKENS, _WRITTEN = 256, 16
_CONTEXT = 2048  # where `_TOKENS` are read behind four times as many
_LONGEST_READ_S = 0.6  # fewer tokens are read at a time where it would take longer
_LONGEST_MODEL_S = 5.0  # after which there is no further repetition
_ROUNDS, _FURTHER_ROUNDS = 3, 2  # some time apart: other programs, and other virtual machines, come and go
_WRITES = 2  # in a round, since they are short
_LEAST_GBPS = 5.0  # of any machine that runs models (a Raspberry Pi 4 has 6)
_MOST_APART = 8.0  # the bytes a second of one kind over another's: 2 on a machine that nobody else uses
_TO_SPARE = 200 * MIB  # of memory, beside a model and its file
_BEFORE_EXPERTS = 3  # kinds that are measured before a mixture of experts is


def calibrate(
    machine: Machine,
    tell: Callable[[str], None],
    cancelled: Callable[[], bool] | None = None,
    clock: Callable[[], float] = perf_counter,
) -> Calibration:
    """Measure the processor, and the GPU where the engine has one; takes under a minute, needs no network.

    `tell` hears what is being measured. Raises DoesNotFit where memory or the disk's room for a temporary file is too
    small, EngineError, KeyboardInterrupt.
    """
    l3_bytes = bandwidth.l3_bytes(Source()) or bandwidth.UNKNOWN_L3
    size = min(LARGEST_BYTES, max(SMALLEST_BYTES, 2 * l3_bytes))
    if 2 * size + _TO_SPARE > machine.memory.available_bytes:
        size = SMALLEST_BYTES // 2
        if 2 * size + _TO_SPARE > machine.memory.available_bytes:
            raise DoesNotFit("there is too little free memory to calibrate", "close other programs, and try again")
    with_gpu = machine.engine.gpu_offload and any(gpu.usable_by_engine for gpu in machine.gpus)
    budget = BUDGET_S / (2 if with_gpu else 1)
    cpu = _device(machine, size, False, budget, tell, cancelled, clock)
    gpu = _device(machine, size, True, budget, tell, cancelled, clock) if with_gpu else None
    return Calibration(cpu, gpu, int(time()))


def _device(
    machine: Machine,
    size: int,
    gpu: bool,
    budget_s: float,
    tell: Callable[[str], None],
    cancelled: Callable[[], bool] | None,
    clock: Callable[[], float],
) -> DeviceRates:
    """The rates of one device, from as many kinds as the time allows, at least the commonest."""
    started, slowest = clock(), 0.0
    subjects = list(_subjects(size, 2 * _LARGE * size + _TO_SPARE <= machine.memory.available_bytes))
    further = [_Subject(_layers(kind, _SHAPES[1], size), _BOTH) for kind in FURTHER_KINDS]
    rounds: dict[_Subject, list[Timing]] = {}
    for subject in [*subjects * _ROUNDS, *further * _FURTHER_ROUNDS]:
        began = clock()
        if len(rounds) >= 2 and began - started + slowest > budget_s:
            break
        model = subject.model
        tell(f"measuring {'the GPU' if gpu else 'the processor'}: {_named(model)}")
        rounds.setdefault(subject, []).append(_timed(machine, subject, gpu, cancelled, clock))
        slowest = max(slowest, clock() - began)

    def those(*told: str) -> list[Timing]:
        return [_typical(found) for subject, found in rounds.items() if subject.told in told]

    return fitting.fit(those(_DEEP, _BOTH), next(iter(those(_EXPERTS)), None), those(_WRITING))


def _named(model: Synthetic) -> str:
    return f"{model.kind}, an output" if model.tied else f"{model.kind}, {model.layers} layers"


def _typical(found: Sequence[Timing]) -> Timing:
    """Of each figure the mean of the two quickest rounds: other programs only ever make it slower, and one quick spell
    of a memory that virtual machines share is luck.
    """
    first = found[0]
    alike = [each for each in found if each.tokens == first.tokens]
    deep = [each.deep for each in alike if each.deep is not None]
    at_depth = None
    if deep:
        at_depth = (deep[0][0], _quickest([write for _, write, _ in deep]), _quickest([read for _, _, read in deep]))
    write_s, read_s = _quickest([each.write_s for each in found]), _quickest([each.read_s for each in alike])
    return replace(first, write_s=write_s, read_s=read_s, deep=at_depth)


def _quickest(seconds: Sequence[float]) -> float:
    return fmean(sorted(seconds)[:2])


# What a model's timing tells: of reading and writing, in an empty cache and behind many tokens; of these without the
# depth; of a mixture's layers; of writing alone.
_DEEP, _BOTH, _EXPERTS, _WRITING = "deep", "both", "experts", "writing"


@dataclass(frozen=True, slots=True)
class _Subject:
    model: Synthetic
    told: str


def _subjects(size: int, large: bool) -> Iterator[_Subject]:
    """Two models of each kind, of about `size` bytes each; after the commonest kinds a mixture of experts, and those
    that have more rows and more layers than weights: outputs, and many narrow layers; and, where there is room, `large`
    ones.
    """
    from localai.engine.synthetic import Synthetic

    for number, kind in enumerate(KINDS):
        if number == _BEFORE_EXPERTS:
            mixture = Synthetic(EXPERTS_KIND, max(4, size // (12 * MIB)), 1024, 256, experts=16, used=4)
            yield _Subject(mixture, _EXPERTS)
            for each in OUTPUT_KINDS:
                yield _Subject(_output(each, size), _WRITING)
            for each in NARROW_KINDS:
                narrow = _layers(each, _NARROW.get(each, _NARROWEST), size)
                yield _Subject(narrow, _DEEP if each in DEEP_KINDS else _BOTH)
            for each in LARGE_KINDS if large else ():
                yield _Subject(_layers(each, _SHAPES[0], _LARGE * size), _WRITING)
        for shape in _SHAPES:
            yield _Subject(_layers(kind, shape, size), _DEEP if kind in DEEP_KINDS else _BOTH)


def _layers(kind: str, shape: tuple[int, int, int, int, int], size: int) -> Synthetic:
    """A model with as many layers as make up its size."""
    from localai.engine.synthetic import Synthetic

    width, feed_forward, heads, kv_heads, length = shape
    one = Synthetic(kind, 1, width, feed_forward, heads=heads, kv_heads=kv_heads, head_length=length)
    outer = replace(one, layers=0).size_bytes
    return replace(one, layers=max(1, round((size - outer) / (one.size_bytes - outer))))


def _output(kind: str, size: int) -> Synthetic:
    """A model that is hardly more than its output, which is the embedding, too."""
    from localai.engine.synthetic import Synthetic

    one = Synthetic(kind, 1, _OUTPUT_WIDTH, _OUTPUT_WIDTH, vocabulary=1024, heads=8, kv_heads=2, tied=True)
    layer = replace(one, vocabulary=0).size_bytes
    return replace(one, vocabulary=max(1, (size - layer) // (one.size_bytes - layer)) * 1024)


def _timed(
    machine: Machine,
    subject: _Subject,
    gpu: bool,
    cancelled: Callable[[], bool] | None,
    clock: Callable[[], float],
) -> Timing:
    from localai.engine import synthetic
    from localai.engine.stopwatch import Stopwatch

    model = subject.model
    try:
        with tempfile.TemporaryDirectory(prefix="localai-bench-") as folder:
            path = Path(folder) / "model.gguf"
            synthetic.write(path, model)
            stopwatch = Stopwatch(path, _plan(machine, model, gpu), cancelled, clock)
    except OSError as error:
        raise DoesNotFit(
            f"a model of {model.size_bytes // MIB} MiB cannot be written to measure with: {error.strerror}",
            f"free some room in {tempfile.gettempdir()}, or name another folder with TMPDIR",
        ) from error
    with stopwatch:
        return _timing(stopwatch, subject, clock)


def _timing(watch: Stopwatch, subject: _Subject, clock: Callable[[], float]) -> Timing:
    """One round; fewer tokens are read where they would take longer than `_LONGEST_READ_S`, and nothing at depth where
    the rest took longer than `_LONGEST_MODEL_S`.
    """
    model = subject.model
    until = clock() + _LONGEST_MODEL_S
    warm = watch.read(32) / 32
    watch.write(1)
    tokens = _TOKENS
    while tokens > 32 and warm * tokens > _LONGEST_READ_S:
        tokens //= 2
    read_s, writes = 0.0, []
    for _ in range(_WRITES):
        watch.clear()
        writes.append(watch.write(_WRITTEN) / _WRITTEN)
    if subject.told != _WRITING:
        watch.clear()
        read_s = watch.read(tokens)
    at_depth = None
    depth = 4 * tokens
    if subject.told == _DEEP and clock() < until:
        deep_writes = []
        watch.read(depth - tokens)
        for _ in range(_WRITES):
            deep_writes.append(watch.write(_WRITTEN) / _WRITTEN)
            watch.back_to(depth)
        at_depth = (depth, min(deep_writes), watch.read(tokens))
    used = model.used / model.experts if model.experts else 1.0
    matrices = {name: dimensions for name, kind, dimensions in model.tensors() if kind == model.kind}
    counted = {
        name: (_count(dimensions) * share, _count(dimensions[1:]) * share)
        for name, dimensions in matrices.items()
        if "blk" in name
        for share in (used if "_exps" in name else 1,)
    }
    norms = [name for name, _, _ in model.tensors() if "blk" in name and "_norm" in name]
    read = [each for name, each in counted.items() if not name.startswith(f"blk.{model.layers - 1}.ffn_")]
    return Timing(
        kind=model.kind,
        layers=model.layers,
        norms=len(norms),
        rows=round(sum(rows for _, rows in counted.values())) + model.vocabulary,
        numbers=round(sum(rows for _, rows in read)) + len(norms) * model.width,
        head_numbers=model.layers * model.heads * 2 * model.head_length,
        head_length=2 * model.head_length,
        weights=round(sum(weights for weights, _ in counted.values())),
        read_weights=round(sum(weights for weights, _ in read)),
        output_weights=model.width * model.vocabulary,
        tokens=tokens,
        write_s=min(writes),
        read_s=read_s,
        deep=at_depth,
    )


def _count(dimensions: tuple[int, ...]) -> int:
    count = 1
    for dimension in dimensions:
        count *= dimension
    return count


def _plan(machine: Machine, model: Synthetic, gpu: bool) -> Plan:
    """As llama.cpp loads by default, but into memory of its own: pages of a file would be read one by one."""
    need = MemoryNeed(model.size_bytes, 0, 0, 0)
    return Plan(
        context=_CONTEXT,
        placement=Placement.GPU if gpu else Placement.CPU,
        gpu_layers=model.layers + 1 if gpu else 0,
        threads=cores(machine),
        batch=BATCH,
        ubatch=UBATCH,
        kv_type="f16",
        flash_attention=True,
        use_mmap=False,
        memory=need,
        available_bytes=machine.memory.available_bytes,
        fits=True,
        decode_tps=None,
        prompt_tps=None,
    )


def plausible(found: Calibration, machine: Machine) -> bool:
    """Whether weights were read with a tenth of the memory's bandwidth at least, less being what others left of it, and
    of every common kind about as many bytes: others come and go.
    """
    memory = machine.bandwidth.gbps or _LEAST_GBPS
    read = [bandwidth_gbps(found.cpu, kind) or 0.0 for kind, _ in found.cpu.decode if kind in KINDS]
    return max(read) >= 0.1 * memory and min(read) >= max(read) / _MOST_APART


def bandwidth_gbps(rates: DeviceRates, kind: str) -> float | None:
    """Bytes of that type's weights read a second while writing, 10^9."""
    seconds = dict(rates.decode).get(kind)
    each = BY_NAME[kind]
    return each.size_bytes / each.block / seconds / 1e9 if seconds else None


def prompt_gflops(rates: DeviceRates, kind: str) -> float | None:
    """Floating-point operations a second on that type's weights while reading a prompt, 10^9."""
    seconds = dict(rates.prompt).get(kind)
    return 2 / seconds / 1e9 if seconds else None
