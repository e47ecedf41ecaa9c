"""Measuring an installed model here: its speed, and the settings it is fastest with. What is found is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from localai import estimate, experience, loading, recording, tuning
from localai.buffers import UBATCH
from localai.domain.plan import Placement, Plan, SpeedRange
from localai.domain.rates import Job, Setting, Tuned, Tuning
from localai.errors import DoesNotFit, UsageError
from localai.loading import Facts, LoadOptions, Prepared
from localai.past_runs import kind_of
from localai.speed import cores

if TYPE_CHECKING:
    from localai import library
    from localai.engine.stopwatch import Stopwatch

CONTEXT = 2048  # tokens: a prompt, the same again behind it, and what is written
REPETITIONS = 5
TOKENS = (512, 256, 128, 64, 32)  # of a prompt: the most that is read in `_READ_S`
_READ_S = 4.0
_WRITTEN, _WRITE_S = 32, 3.0
LONGEST_BENCH_S = 45.0  # after which there is no further repetition
LONGEST_TUNING_S = 300.0  # after which no further setting is tried

Tell = Callable[[str], None]
Cancelled = Callable[[], bool] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """A speed over some repetitions: median, slowest and quickest, and what was predicted before."""

    work: str  # prompt or decode
    tokens: int
    depth: int
    median_tps: float
    low_tps: float
    high_tps: float
    predicted: SpeedRange


@dataclass(frozen=True, slots=True)
class Bench:
    """What a model does here, as it is loaded by default."""

    model: str
    setting: Setting
    plan: Plan
    repetitions: int
    rows: tuple[Measured, ...]


def with_setting(plan: Plan, setting: Setting) -> Plan:
    return replace(
        plan,
        repack=setting.repack,
        flash_attention=setting.flash,
        threads=setting.threads,
        ubatch=setting.ubatch,
        kv_type=setting.kv_type,
    )


def prepare(found: library.Found, options: LoadOptions) -> Prepared:
    """The plan that a model is measured with. Raises as `loading.prepare`."""
    return loading.prepare(found, replace(options, context=options.context or CONTEXT))


def bench(prepared: Prepared, tell: Tell, cancelled: Cancelled = None, repetitions: int = REPETITIONS) -> Bench:
    """Measure prompts and answers, at depth 0 and deeper; the figures are kept with the past runs.

    Raises EngineError, DoesNotFit, KeyboardInterrupt.
    """
    plan = prepared.plan
    with _watch(prepared, plan, cancelled) as watch:
        size = _size(watch, plan.context)
        found = []
        started = perf_counter()
        for number in range(repetitions):
            if number and perf_counter() - started > LONGEST_BENCH_S:
                break
            tell(f"measuring {prepared.found.name}: {number + 1} of {repetitions}")
            found.append(_once(watch, size))
    works = (
        ("prompt", size.tokens, 0, [size.tokens / each.read_s for each in found]),
        ("prompt", size.tokens, size.depth - size.tokens, [size.tokens / each.deep_read_s for each in found]),
        ("decode", size.written, 0, [size.written / each.write_s for each in found]),
        ("decode", size.written, size.depth, [size.written / each.deep_write_s for each in found]),
    )
    rows = []
    for work, tokens, depth, speeds in works:
        job = Job(tokens, 0, depth) if work == "prompt" else Job(0, tokens, depth)
        predicted = recording.predicted(prepared, job)
        rows.append(Measured(work, tokens, depth, median(speeds), min(speeds), max(speeds), predicted))
    recording.keep_bench(prepared, rows[0].median_tps, rows[2].median_tps, size.tokens, size.written)
    return Bench(prepared.found.name, tuning.setting_of(plan), plan, len(found), tuple(rows))


@dataclass(frozen=True, slots=True)
class _Size:
    tokens: int
    depth: int
    written: int


@dataclass(frozen=True, slots=True)
class _Once:
    """Seconds of one round."""

    read_s: float
    deep_read_s: float
    write_s: float
    deep_write_s: float


def _size(watch: Stopwatch, context: int) -> _Size:
    """How much to read and write, so that a round takes some seconds at most; it warms up on the way."""
    watch.write(2)
    watch.clear()
    watch.read(32)
    reading, writing = watch.read(32) / 32, watch.write(2) / 2
    watch.clear()
    fits = [each for each in TOKENS if 2 * each + 2 * _WRITTEN <= context and each * reading <= _READ_S]
    tokens = fits[0] if fits else TOKENS[-1]
    return _Size(tokens, 2 * tokens, max(4, min(_WRITTEN, round(_WRITE_S / writing))))


def _once(watch: Stopwatch, size: _Size) -> _Once:
    watch.clear()
    watch.write(1)
    write = watch.write(size.written)
    watch.clear()
    read = watch.read(size.tokens)
    watch.read(size.depth - 2 * size.tokens)
    deep_read = watch.read(size.tokens)
    return _Once(read, deep_read, write, watch.write(size.written))


def _tuned(setting: Setting, found: _Once, size: _Size) -> Tuned:
    """A round as seconds a token: at depth 0, and more for each token of depth."""
    slope = max(0.0, (found.deep_read_s - found.read_s) / size.tokens / (size.depth - size.tokens))
    deeper = max(0.0, (found.deep_write_s - found.write_s) / size.written / size.depth)
    prompt = max(found.read_s / size.tokens - slope * size.tokens / 2, 0.1 * found.read_s / size.tokens)
    return Tuned(setting, prompt, slope, found.write_s / size.written, deeper)


def _watch(prepared: Prepared, plan: Plan, cancelled: Cancelled) -> Stopwatch:
    from localai.engine.stopwatch import Stopwatch

    return Stopwatch(prepared.found.path, plan, cancelled)


class _Watches:
    """Loaded models by setting: two at once where memory holds them, so that pairs alternate without loading anew."""

    def __init__(self, prepared: Prepared, cancelled: Cancelled) -> None:
        self._prepared, self._cancelled = prepared, cancelled
        need, facts = prepared.plan.memory.total_bytes, prepared.facts
        self._room = 2 if facts is None or 2.5 * need <= facts.machine.memory.available_bytes else 1
        self._open: dict[Setting, Stopwatch] = {}

    def get(self, setting: Setting, keep: Setting) -> Stopwatch:
        """The model loaded so; another goes where there is no room, never the one to `keep` if it can be helped."""
        if setting not in self._open:
            while len(self._open) >= self._room:
                others = [each for each in self._open if each != keep] or list(self._open)
                self._open.pop(others[0]).close()
            watch = _watch(self._prepared, with_setting(self._prepared.plan, setting), self._cancelled)
            self._open[setting] = watch
            watch.write(2)
            watch.read(32)
        return self._open[setting]

    def close(self) -> None:
        for each in self._open.values():
            each.close()
        self._open.clear()


def tune(prepared: Prepared, tell: Tell, cancelled: Cancelled = None) -> tuple[Tuning, tuple[tuning.Tried, ...]]:
    """Find the settings that are clearly quicker than llama.cpp's own for some kind of work; `keep` keeps them.

    Settings that do not fit are left out. Takes minutes. Raises UsageError for a model that runs on the GPU in part,
    EngineError, DoesNotFit, KeyboardInterrupt.
    """
    facts = prepared.facts
    assert facts is not None, "prepared by loading.prepare"
    machine, shape = facts.machine, facts.shape
    if prepared.plan.placement is Placement.SPLIT:  # no plan takes what would be found: see estimate
        raise UsageError(
            f"{prepared.found.name} does not fit the GPU whole: what is best for a part of it would not last",
            "tune a smaller quantization of it, or with --gpu-layers 0 what the processor does",
        )
    gpu = prepared.plan.placement is Placement.GPU
    default = Setting(True, True, cores(machine), UBATCH, "f16")
    singles = tuning.candidates(
        default, cores(machine), machine.cpu.logical_cores, gpu, quantized_kv=estimate.can_shrink_cache(shape)
    )

    def fits(setting: Setting) -> bool:
        return _fits(prepared.plan, facts, setting)

    if not fits(default):
        raise DoesNotFit(
            f"{prepared.found.name} does not fit with llama.cpp's own settings, to compare others with",
            "close other programs, or tune a smaller model of its kind",
        )
    watches = _Watches(prepared, cancelled)
    try:
        size = _size(watches.get(default, default), prepared.plan.context)
        own = [_tuned(default, _once(watches.get(default, default), size), size)]

        def pair(setting: Setting, other: Setting) -> tuning.Pair:
            first = len(own) % 2 == 0  # which one begins takes turns, too
            found = {}
            for each in (setting, other) if first else (other, setting):
                found[each] = _tuned(each, _once(watches.get(each, default), size), size)
            own.append(found[other])
            return found[setting], found[other]

        started = perf_counter()

        def late() -> bool:
            return perf_counter() - started > LONGEST_TUNING_S

        tried = tuple(tuning.tune(default, singles, pair, tell, late, fits))
    finally:
        watches.close()
    base = tuning.typical(own)
    adopted = [tuning.scaled(base, each.setting, each.gains) for each in tried if each.adopted]
    return Tuning(shape.architecture, kind_of(facts.weights), shape.params, gpu, (base, *adopted)), tried


def _fits(plan: Plan, facts: Facts, setting: Setting) -> bool:
    """Whether the model can be loaded with that setting where the plan has it."""
    need = estimate.memory(
        facts.shape,
        facts.weights,
        plan.context,
        setting.kv_type,
        setting.ubatch,
        plan.outputs,
        setting.flash,
        projector_bytes=plan.memory.projector_bytes,
    )
    return need.total_bytes + plan.memory.overhead_bytes <= plan.available_bytes


def keep(prepared: Prepared, found: Tuning) -> bool:
    """Keep what was tuned, for every later plan of the kind; False where it cannot be written."""
    assert prepared.facts is not None, "prepared by loading.prepare"
    return experience.keep_tuning(prepared.facts.machine, found)
