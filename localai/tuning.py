"""The engine's best settings for a kind of model on this machine: which to try, what counts as better, what to take.

llama.cpp's own choice is not the best everywhere: rearranging tensors (repacking) and flash attention are quicker or
slower by quantization, depth, and whether the work is reading or writing. What is adopted must win clearly in
alternating pairs; else everything stays as it is. Pure functions; `tune` takes what measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from localai.domain.machine import Machine
from localai.domain.plan import Plan, SpeedRange
from localai.domain.rates import Job, Setting, Tuned, Tuning
from localai.domain.shape import Shape, Weights
from localai.past_runs import kind_of

CLEAR_WIN = 1.05  # in the median of the pairs
_SCREENED = 1.03  # what two pairs must show for a setting to be looked at more closely
_SCREENING_PAIRS, PAIRS = 2, 5
MOST_PAIRS = 12  # where five differ among themselves by more than they win: other programs come and go
DEPTH = 1024

# Kinds of work that a setting is shown for; those that are no deeper than what is measured decide.
JOBS = {
    "prompt of 512": Job(512, 0),
    "answer at depth 0": Job(0, 64),
    "answer at depth 1,024": Job(0, 64, DEPTH),
    "answer at depth 3,072": Job(0, 64, 3072),
}
# What a setting is compared at. Ratios of whole jobs are steadier than those of slopes, which are small differences.
_READ, _READ_DEEP, _WRITE, _WRITE_DEEP = Job(512, 0), Job(512, 0, DEPTH), Job(0, 64), Job(0, 64, DEPTH)

# A setting and llama.cpp's own, measured one after the other.
Pair = tuple[Tuned, Tuned]
MeasurePair = Callable[[Setting, Setting], Pair]


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, how many times as fast as llama.cpp's own it is at each of `JOBS`, and whether that is clear.

    `gains` are the medians of the pairs in reading at depth 0 and 1,024, and in writing there.
    """

    setting: Setting
    gains: tuple[float, float, float, float]
    ratios: tuple[tuple[str, float], ...]
    pairs: int
    adopted: bool


def candidates(default: Setting, usable_cores: int, logical_cores: int, gpu: bool, quantized_kv: bool) -> list[Setting]:
    """The settings that differ in one thing from llama.cpp's own, those that matter most first."""
    found = []
    if not gpu:
        found.append(replace(default, repack=False))
    found.append(replace(default, flash=False))
    if not gpu and logical_cores > usable_cores:
        found.append(replace(default, threads=logical_cores))
    if not gpu and usable_cores > 2:
        found.append(replace(default, threads=usable_cores - 1))
    found.append(replace(default, ubatch=256))
    if gpu:
        found.append(replace(default, ubatch=1024))
    if quantized_kv:
        found.append(replace(default, kv_type="q8_0"))
    return found


def tune(
    default: Setting,
    singles: Sequence[Setting],
    pair: MeasurePair,
    tell: Callable[[str], None],
    enough: Callable[[], bool] = lambda: False,
    fits: Callable[[Setting], bool] = lambda setting: True,
) -> Iterator[Tried]:
    """Try each setting against llama.cpp's own, then those that won together. Yields what was found of each.

    What does not fit (`fits`) is left out. Once it is `enough`, because time is up, nothing further is tried.
    """
    winners: list[Setting] = []
    for setting in filter(fits, singles):
        if enough():
            return
        tried = _try(default, setting, pair, tell)
        yield tried
        if tried.adopted:
            winners.append(setting)
    for combined in filter(fits, _combined(default, winners)):
        if enough():
            return
        yield _try(default, combined, pair, tell)


def _combined(default: Setting, winners: Sequence[Setting]) -> Iterator[Setting]:
    """Each two winners together, and all of them where there are more."""
    seen = {default, *winners}
    for i, one in enumerate(winners):
        for other in winners[i + 1 :]:
            both = _changed(default, (one, other))
            if both not in seen and (both.flash or both.kv_type == "f16"):
                seen.add(both)
                yield both
    every = _changed(default, winners)
    if every not in seen and (every.flash or every.kv_type == "f16"):
        yield every


def _changed(default: Setting, winners: Sequence[Setting]) -> Setting:
    found = default
    for each in winners:
        for name in ("repack", "flash", "threads", "ubatch", "kv_type"):
            if getattr(each, name) != getattr(default, name):
                found = replace(found, **{name: getattr(each, name)})
    return found


def _try(default: Setting, setting: Setting, pair: MeasurePair, tell: Callable[[str], None]) -> Tried:
    tell(difference(default, setting))
    jobs = [job for job in JOBS.values() if job.depth <= DEPTH and _touches(default, setting, job)]
    pairs = [pair(setting, default) for _ in range(_SCREENING_PAIRS)]
    if max(median(_ratios(pairs, job)) for job in jobs) >= _SCREENED:
        pairs += [pair(setting, default) for _ in range(PAIRS - _SCREENING_PAIRS)]
        wins = [each for each in (_ratios(pairs, job) for job in jobs) if _clear(each)]
        if wins and not any(map(_steady, wins)):
            pairs += [pair(setting, default) for _ in range(MOST_PAIRS - PAIRS)]
    read, read_deep, write, write_deep = (
        median(_ratios(pairs, job)) if _touches(default, setting, job) else 1.0
        for job in (_READ, _READ_DEEP, _WRITE, _WRITE_DEEP)
    )
    gains = read, read_deep, write, write_deep
    base = typical([default for _, default in pairs])
    found = scaled(base, setting, gains)
    ratios = tuple((name, _over(base.job_s(job), found.job_s(job))) for name, job in JOBS.items())
    adopted = len(pairs) >= PAIRS and any(_clear(_ratios(pairs, job)) for job in jobs)
    return Tried(setting, gains, ratios, len(pairs), adopted)


def _touches(default: Setting, setting: Setting, job: Job) -> bool:
    """Whether a setting can matter to a job: the size of micro-batches matters to prompts only."""
    return job.prompt_tokens > 0 or replace(setting, ubatch=default.ubatch) != default


def _ratios(pairs: Sequence[Pair], job: Job) -> list[float]:
    return [_over(default.job_s(job), found.job_s(job)) for found, default in pairs]


def _over(one: float, other: float) -> float:
    return one / other if other > 0 else 1.0


def _clear(ratios: Sequence[float]) -> bool:
    """Whether a setting wins by 5 % in the median, and in all pairs but one: noise does not do that."""
    return median(ratios) >= CLEAR_WIN and sorted(ratios)[1] > 1.0


def _steady(ratios: Sequence[float]) -> bool:
    """Whether the pairs differ by less than they win."""
    return max(ratios) <= min(ratios) * median(ratios)


def typical(found: Sequence[Tuned]) -> Tuned:
    """One setting's figures from several measurements: those of the median times."""
    times = (median(each.job_s(job) for each in found) for job in (_READ, _READ_DEEP, _WRITE, _WRITE_DEEP))
    return _fitted(found[0].setting, *times)


def scaled(base: Tuned, setting: Setting, gains: tuple[float, float, float, float]) -> Tuned:
    """The figures of a setting that is so many times as fast as `base` (`Tried.gains`)."""
    jobs = (_READ, _READ_DEEP, _WRITE, _WRITE_DEEP)
    return _fitted(setting, *(base.job_s(job) / gain for job, gain in zip(jobs, gains, strict=True)))


def _fitted(setting: Setting, read: float, read_deep: float, write: float, write_deep: float) -> Tuned:
    """The figures by which those four jobs take so many seconds; nothing is quicker for being deeper."""
    prompt, prompt_slope = _line(_READ.prompt_tokens, read, read_deep)
    decode, decode_slope = _line(_WRITE.answer_tokens, write, write_deep)
    return Tuned(setting, prompt, prompt_slope, decode, decode_slope)


def _line(tokens: int, near_s: float, deep_s: float) -> tuple[float, float]:
    """Seconds a token at depth 0, and more for each token of depth: of `tokens` at depth 0 and at `DEPTH`."""
    slope = max(0.0, (deep_s - near_s) / tokens / DEPTH)
    return max(near_s / tokens - slope * tokens / 2, 0.1 * near_s / tokens), slope


def difference(default: Setting, setting: Setting) -> str:
    """What is other in a setting, in words."""
    parts = []
    if setting.repack != default.repack:
        parts.append("no repacking" if not setting.repack else "repacking")
    if setting.flash != default.flash:
        parts.append("no flash attention" if not setting.flash else "flash attention")
    if setting.threads != default.threads:
        parts.append(f"{setting.threads} threads")
    if setting.ubatch != default.ubatch:
        parts.append(f"micro-batch {setting.ubatch}")
    if setting.kv_type != default.kv_type:
        parts.append(f"KV {setting.kv_type}")
    return ", ".join(parts) or "llama.cpp's own"


# ------------------------------------------------------------------------------------------------ what to take


def found_for(machine: Machine, shape: Shape, weights: Weights, gpu: bool) -> Tuning | None:
    """What was tuned for this model here, else for one of its kind between a third and three times its size."""
    kind = kind_of(weights)
    like = [
        each
        for each in machine.experience.tunings
        if (each.architecture, each.kind, each.gpu) == (shape.architecture, kind, gpu)
        and 1 / 3 <= each.params / max(shape.params, 1) <= 3
    ]
    return min(like, key=lambda each: abs(each.params - shape.params), default=None)


def setting_of(plan: Plan) -> Setting:
    """The part of a plan that can be tuned."""
    return Setting(plan.repack, plan.flash_attention, plan.threads, plan.ubatch, plan.kv_type)


def gain(tuning: Tuning | None, setting: Setting, job: Job) -> float:
    """How many times as fast as llama.cpp's own a setting is at a job; 1 where nobody measured it."""
    if tuning is None:
        return 1.0
    found = next((each for each in tuning.settings if each.setting == setting), None)
    return 1.0 if found is None else _over(tuning.settings[0].job_s(job), found.job_s(job))


def adjusted(found: SpeedRange, tuning: Tuning | None, plan: Plan, job: Job) -> SpeedRange:
    """The speed of llama.cpp's own settings turned into that of a plan's, by what was measured of both."""
    by = gain(tuning, setting_of(plan), job)
    return found if by == 1 else replace(found, low=found.low * by, mid=found.mid * by, high=found.high * by)


def ranked(tuning: Tuning | None, job: Job) -> list[tuple[Setting, float]]:
    """The settings that are clearly better for a job than llama.cpp's own, the best first, each with its gain.

    Empty where llama.cpp's own is best, or as good.
    """
    if tuning is None:
        return []
    default, *others = tuning.settings
    gains = [(each.setting, _over(default.job_s(job), each.job_s(job))) for each in others]
    return sorted((pair for pair in gains if pair[1] >= CLEAR_WIN), key=lambda pair: -pair[1])
