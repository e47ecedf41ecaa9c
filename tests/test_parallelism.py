"""How many at once: as many as pay and fit, never at the cost of the context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import model_headers
import pytest
from real_model import plan

from localai import estimate, library, loading, parallelism, sizes, tuning
from localai.domain.plan import Placement, Plan, SpeedRange
from localai.domain.rates import Tuned, Tuning
from localai.domain.units import GIB
from localai.engine import library as llama
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

    assert counts(55, 360) == counts(55, 20_000) == parallelism.MOST
    assert counts(10, 12) == 1
    assert 1 < counts(55, 100) < parallelism.MOST
    assert counts(55, 360, most=5) == 5
    assert counts(55, 360, most=1) == 1


def test_memory_bounds_it_and_the_context_stays() -> None:
    shape = sizes.shape_from_params(8)
    weights = sizes.weights_from_size(5 * GIB, shape, "Q4_K_M")

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


def test_more_than_usual_never_take_most_of_the_memory() -> None:
    def chosen(available: int, context: int = 1024) -> int:
        def of(count: int) -> Plan:
            need = replace(plan().memory, kv_cache_bytes=count * GIB // 8)
            one = replace(planned(55, 360), context=context, memory=need, available_bytes=available)
            return replace(one, sequences=count)

        return parallelism.best(of).sequences

    assert chosen(16 * GIB) == 64
    assert chosen(12 * GIB) == 48
    assert chosen(9 * GIB) == 32
    assert chosen(99 * GIB, 4096) == 32  # where much is looked back at, more bring nothing


def test_fewer_than_pay_are_not_taken_because_no_more_fit() -> None:
    def of(count: int) -> Plan:
        return replace(planned(55, 360), sequences=count, fits=count <= 3)

    assert parallelism.gain(planned(55, 360), 8) > parallelism.WORTH
    assert parallelism.best(of).sequences == 1, "three together take longer than one after another"


def test_tensors_are_arranged_for_as_many_rows_as_there_are() -> None:
    """Measured: 32 rows of Q4_K take 195 ms as they are in the file where AVX-512 VNNI is, rearranged 233."""
    vnni = "CPU : AVX512 = 1 | AVX512_VNNI = 1 | "
    many = replace(plan(), sequences=32, placement=Placement.CPU)

    def repacked(found: Plan, kind: str = "Q4_K", tuned: Tuning | None = None, built: str | None = vnni) -> bool:
        return parallelism.arranged(found, kind, tuned, lambda: built).repack

    assert not repacked(many)
    assert repacked(replace(many, sequences=8))  # fewer than a tile
    assert repacked(replace(many, placement=Placement.GPU))
    assert repacked(replace(many, workers=("host:50052",)))
    assert repacked(many, "Q4_0")  # of which there are no tiles
    assert repacked(many, built="CPU : AVX2 = 1 | ")
    assert repacked(many, built=None)

    own = tuning.setting_of(many)
    quicker, default = Tuned(replace(own, repack=False), 1 / 500, 0, 1 / 55, 0), Tuned(own, 1 / 360, 0, 1 / 70, 0)
    measured = Tuning("llama", "Q4_0", 10**9, False, (default, quicker))
    assert not repacked(many, "Q4_0", measured, None)  # what was measured here goes before what is usual
    assert repacked(many, "Q4_K", replace(measured, settings=(default,)))


def test_a_model_is_prepared_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "system_info", lambda: "CPU : AVX512_VNNI = 1 | ")
    path = model_headers.write_sparse(tmp_path, model_headers.named("qwen3-0.6b"))

    def repacked(sequences: int) -> bool:
        return loading.prepare(library.Found(None, path, "qwen"), loading.LoadOptions(), 256, sequences).plan.repack

    assert [repacked(count) for count in (1, 8, 16)] == [True, True, False]
