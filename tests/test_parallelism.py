"""How many at once: as many as pay and fit, never at the cost of the context."""

from __future__ import annotations

from dataclasses import replace

from real_model import plan

from localai import estimate, parallelism
from localai.domain.plan import Plan, SpeedRange
from localai.domain.units import GIB
from localai.machines import hypothetical


def planned(decode_tps: float, prompt_tps: float) -> Plan:
    speeds = (SpeedRange(tps, tps, tps, "") for tps in (decode_tps, prompt_tps))
    return replace(plan(), decode_tps=next(speeds), prompt_tps=next(speeds))


def test_the_gain_is_the_measured_one() -> None:
    """docs/map.md: 55 tokens per second alone, 225 in batches of 32, where 360 are read."""
    assert parallelism.gain(planned(55, 360), 1) == 1
    assert 3.8 < parallelism.gain(planned(55, 360), 32) < 4.4
    assert parallelism.gain(replace(plan(), decode_tps=None), 8) == 1


def test_more_is_taken_where_it_pays() -> None:
    def counts(decode_tps: float, prompt_tps: float, most: int | None = None) -> int:
        one = planned(decode_tps, prompt_tps)
        return parallelism.best(lambda count: replace(one, sequences=count), most).sequences

    assert counts(55, 360) == 32
    assert counts(55, 20_000) == parallelism.MOST
    assert counts(10, 12) == 1
    assert counts(55, 100) < 32
    assert counts(55, 360, most=5) == 5
    assert counts(55, 360, most=1) == 1


def test_memory_bounds_it_and_the_context_stays() -> None:
    shape = estimate.shape_from_params(8)
    weights = estimate.weights_from_size(5 * GIB, shape, "Q4_K_M")

    def chosen(ram_gib: float) -> Plan:
        machine = hypothetical(ram_gib, bandwidth_gbps=15)
        return parallelism.best(
            lambda count: estimate.plan(shape, weights, machine, want_context=4096, sequences=count)
        )

    large, small = chosen(64), chosen(12)
    assert large.sequences > small.sequences > 1
    assert large.context == small.context == 4096
    assert large.fits
    assert small.fits
    per_sequence = {each.memory.kv_cache_bytes / each.sequences for each in (large, small)}
    assert len(per_sequence) == 1
