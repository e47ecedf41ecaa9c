"""How many requests to answer at once, and with which settings: what each more brings in speed, and takes in memory.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from localai import tuning
from localai.domain.plan import Placement, Plan
from localai.domain.rates import Job, Tuning

MOST = 64  # what comes beyond is little on any processor, and takes as much memory again
WORTH = 1.1  # doubling must bring as much, or it only takes memory
FEWEST = 8  # fewer hardly share anything: 4 answers together take as long as one after another
_FEWER = (48, 32, 24, 16, 12, 8, 6, 4, 3, 2)  # what is tried where more do not fit; llama.cpp computes rows by 16s
# More than so many are not to take most of the memory for their caches, and bring nothing where these are long: what
# each looks through of its own then outweighs the weights, which all share (64 write 1.26 times as much as 32 at a
# depth of 20, 1.12 at 360, 0.98 at 1,060).
_MODEST, _SHORT = 32, 2048
# A step of many answers takes so many times as long as one alone, since weights that serve many rows are unpacked
# first, and each row as long as in a prompt beside. On 2 cores a Qwen3-0.6B shape writes 1 answer in 17 ms of
# processor time a token, 16 in 136, 32 in 233, 64 in 411 (Q4_K_M rearranged); not rearranged in 19, 131, 195 and 304.
_TOGETHER = 2.6
# The tensor types that llama.cpp rearranges as it loads them though it has something quicker for 16 rows and more, its
# tiles (ggml-cpu/tiled, for rows that are as they are in the file): seen on a processor with AVX-512 VNNI.
_QUICKER_IN_TILES = ("Q4_K",)
_TILES_FROM = 16
_TILES_NEED = "AVX512_VNNI = 1"


def gain(plan: Plan, sequences: int) -> float:
    """How many times as fast `sequences` answers are written together as one alone, 1 where no speed is known.

    One alone is bound by reading the weights, which many share; each more adds its arithmetic, at the upper end of what
    is expected of prompts: too few at once would cost speed, too many only memory that is there.
    """
    if plan.decode_tps is None or plan.prompt_tps is None:
        return 1.0
    alone_s, row_s = 1 / plan.decode_tps.mid, 1 / plan.prompt_tps.high
    return max(1.0, sequences * alone_s / (_TOGETHER * alone_s + sequences * row_s))


def best(planned: Callable[[int], Plan], most: int | None = None) -> Plan:
    """The plan for as many sequences as pay and fit without a shorter context or a smaller cache than one has.

    `planned` makes the plan for so many. No more than `most`.
    """
    one = planned(1)
    limit = max(1, min(most or MOST, MOST))
    count = min(FEWEST, limit)
    if not one.fits or gain(one, count) < WORTH:
        return one
    while count < limit and gain(one, 2 * count) >= WORTH * gain(one, count):
        count *= 2
    count = min(count, limit)
    for each in (count, *(fewer for fewer in _FEWER if fewer < count)):
        if gain(one, each) < WORTH:
            break
        found = planned(each)
        same = (found.context, found.kv_type, found.gpu_layers) == (one.context, one.kv_type, one.gpu_layers)
        small = found.context <= _SHORT and 2 * found.memory.kv_cache_bytes <= found.available_bytes
        if found.fits and same and (each <= _MODEST or small):
            return found
    return one


def arranged(plan: Plan, kind: str, tuned: Tuning | None, instructions: Callable[[], str | None]) -> Plan:
    """The plan with its tensors, most of them of the type `kind`, arranged as many rows at once are computed fastest.

    What `bench --tune` has measured here of reading prompts says it, else the `instructions` that the engine was built
    for (its `library.system_info`).
    """
    if plan.sequences < _TILES_FROM or plan.placement is not Placement.CPU or plan.workers:
        return plan
    if tuned is not None:
        setting = replace(tuning.setting_of(plan), repack=False)
        pays = tuning.gain(tuned, setting, Job(plan.ubatch, 0)) >= tuning.CLEAR_WIN
    else:
        pays = kind in _QUICKER_IN_TILES and _TILES_NEED in (instructions() or "")
    return replace(plan, repack=not pays)
