"""How many requests to answer at once: what each more brings in speed, and what it takes in memory. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

from localai.domain.plan import Plan

MOST = 32  # what comes beyond is little on any processor, and takes as much memory again
WORTH = 1.05  # doubling must bring as much, or it only takes memory
# Arithmetic of a token in a batch of tens, over that in a prompt's batch of hundreds: on 2 cores a Qwen3-0.6B shape
# reads 360 tokens per second (2.8 ms each) and writes 225 in batches of 32, where one alone takes 18 ms (4.0 ms for
# each of the other 31).
_SMALL_BATCH = 1.43


def gain(plan: Plan, sequences: int) -> float:
    """How many times as fast `sequences` answers are written together as one alone, 1 where no speed is known.

    One alone is bound by reading the weights, which many share; each more adds its arithmetic, at the upper end of what
    is expected of prompts: too few at once would cost speed, too many only memory that is there.
    """
    if plan.decode_tps is None or plan.prompt_tps is None:
        return 1.0
    alone_s, more_s = 1 / plan.decode_tps.mid, _SMALL_BATCH / plan.prompt_tps.high
    return sequences * alone_s / (alone_s + (sequences - 1) * min(more_s, alone_s))


def best(planned: Callable[[int], Plan], most: int | None = None) -> Plan:
    """The plan for as many sequences as pay and fit without a shorter context or a smaller cache than one has.

    `planned` makes the plan for so many. No more than `most`.
    """
    one = planned(1)
    limit = max(1, min(most or MOST, MOST))
    count = 1
    while count < limit and gain(one, 2 * count) >= WORTH * gain(one, count):
        count *= 2
    count = min(count, limit)
    while one.fits and count > 1:
        found = planned(count)
        if found.fits and (found.context, found.kv_type, found.gpu_layers) == (
            one.context,
            one.kv_type,
            one.gpu_layers,
        ):
            return found
        count = count * 3 // 4
    return one
