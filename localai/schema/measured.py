"""The JSON of what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai.schema.models import speed

if TYPE_CHECKING:
    from localai.benching import Bench
    from localai.domain.rates import Calibration, DeviceRates, Tuning
    from localai.past_runs import Run
    from localai.tuning import Tried

Json = dict[str, Any]


def bench(found: Bench) -> Json:
    """`bench MODEL --json`."""
    return {
        "model": found.model,
        "setting": asdict(found.setting),
        "placement": str(found.plan.placement),
        "gpu_layers": found.plan.gpu_layers,
        "repetitions": found.repetitions,
        "results": [
            {
                "work": each.work,
                "tokens": each.tokens,
                "depth": each.depth,
                "median_tps": round(each.median_tps, 2),
                "low_tps": round(each.low_tps, 2),
                "high_tps": round(each.high_tps, 2),
                "predicted_tps": speed(each.predicted),
            }
            for each in found.rows
        ],
    }


def calibration(found: Calibration, seconds: float) -> Json:
    """`bench --calibrate --json`."""
    return {
        "cpu": device_rates(found.cpu),
        "gpu": None if found.gpu is None else device_rates(found.gpu),
        "took_ms": round(seconds * 1000),
    }


def device_rates(found: DeviceRates) -> Json:
    """One device of `bench --calibrate --json`."""
    from localai import calibrating

    return {
        "kinds": [
            {
                "tensor_type": kind,
                "read_gbps": calibrating.bandwidth_gbps(found, kind),
                "prompt_gflops": calibrating.prompt_gflops(found, kind),
                "row_ns": round(dict(found.row)[kind] * 1e9, 2),
            }
            for kind, _ in found.decode
        ],
        "layer_us": round(2 * found.norm_s * 1e6, 2),
        "expert_layer_us": None if found.expert_layer_s is None else round(found.expert_layer_s * 1e6, 2),
    }


def tuning(model: str, found: Tuning, tried: Sequence[Tried]) -> Json:
    """`bench --tune --json`: what was tried, and what each job will take."""
    from localai import tuning as service

    best = {name: service.ranked(found, job) for name, job in service.JOBS.items()}
    return {
        "model": model,
        "architecture": found.architecture,
        "tensor_type": found.kind,
        "default": asdict(found.settings[0].setting),
        "tried": [
            {
                "setting": asdict(each.setting),
                "over_default": {name: round(ratio, 3) for name, ratio in each.ratios},
                "pairs": each.pairs,
                "kept": each.adopted,
            }
            for each in tried
        ],
        "best": {name: None if not rows else asdict(rows[0][0]) for name, rows in best.items()},
    }


def past_run(found: Run) -> Json:
    """One entry of `bench --history --json`."""
    from datetime import UTC, datetime

    return {**asdict(found), "at": datetime.fromtimestamp(found.at, UTC).isoformat(timespec="seconds")}
