"""The JSON that commands answer with: the fixed keys of `docs/json.md`, from the dataclasses. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai.domain.files import InstalledModel
from localai.domain.generation import AnswerEnd
from localai.domain.machine import Machine, Tier
from localai.domain.plan import MemoryNeed, Plan, SpeedRange
from localai.errors import LocalaiError

if TYPE_CHECKING:
    from localai.batch import Result
    from localai.benching import Bench
    from localai.cards import Card
    from localai.checks.finding import Finding
    from localai.discovering import Candidate
    from localai.domain.rates import Calibration, DeviceRates, Tuning
    from localai.importing import Duplicate
    from localai.inventory import Entry
    from localai.machines import Listed
    from localai.manifests import Pinned
    from localai.past_runs import Run
    from localai.pruning import Leftover
    from localai.recommend import Recommendation
    from localai.searching import FoundModel
    from localai.tuning import Tried
    from localai.verifying import ModelCheck

Json = dict[str, Any]


_UNKNOWN_MEMORY = {"total_bytes": None, "available_bytes": None}


def machine(found: Machine, tier: Tier) -> Json:
    """`hardware --json`."""
    return {
        "os": found.os,
        "cpu": asdict(found.cpu),
        "memory": {**asdict(found.memory), **({} if found.memory.total_bytes else _UNKNOWN_MEMORY)},
        "bandwidth": asdict(found.bandwidth),
        "compute": asdict(found.compute),
        "gpus": [asdict(gpu) for gpu in found.gpus],
        "npus": [asdict(npu) for npu in found.npus],
        "disk": asdict(found.disk),
        "engine": asdict(found.engine),
        "tier": tier_row(tier),
        "notes": list(found.notes),
    }


def listed_machine(found: Listed) -> Json:
    """One entry of `hardware --machines --json`: `id` is what `--machine` takes; the rest as `hardware --json`."""
    from localai.tiers import tier

    whole = machine(found.machine, tier(found.machine))
    return {"id": found.id, "name": found.name, "kind": found.kind, "sources": list(found.sources), **whole}


def finding(found: Finding) -> Json:
    """One entry of `doctor --json`."""
    return {"check": found.check, "status": str(found.status), "message": found.message, "command": found.command}


def tier_row(found: Tier) -> Json:
    return {"id": found.id, "size": found.size, "hardware": found.hardware, "tasks": list(found.tasks)}


def speed(found: SpeedRange | None) -> Json | None:
    if found is None:
        return None
    return {
        "low": round(found.low, 2),
        "mid": round(found.mid, 2),
        "high": round(found.high, 2),
        "basis": found.basis,
    }


def memory(need: MemoryNeed) -> Json:
    return {**asdict(need), "total_bytes": need.total_bytes}


def fit(plan: Plan) -> Json:
    """How a model would run here: the `fit` of `show --json`."""
    return {
        "context": plan.context,
        "memory": memory(plan.memory),
        "available_bytes": plan.available_bytes,
        "placement": str(plan.placement),
        "gpu_layers": plan.gpu_layers,
        "cpu_expert_layers": plan.cpu_expert_layers,
        "kv_type": plan.kv_type,
        "ubatch": plan.ubatch,
        "fits": plan.fits,
        "decode_tps": speed(plan.decode_tps),
        "prompt_tps": speed(plan.prompt_tps),
        "warnings": list(plan.warnings),
    }


def card(found: Card) -> Json:
    """`show --json`; `fit` is at the top where the card is of one file."""
    return {
        "model": found.model,
        "name": found.name,
        "repo": found.repo,
        "architecture": found.architecture,
        "params_b": found.params_b,
        "active_params_b": found.active_params_b,
        "context_length": found.context_length,
        "license": found.license,
        "languages": list(found.languages),
        "chat_template": found.has_chat_template,
        "source": found.source,
        "path": found.path,
        "basis": found.basis,
        "commit": found.commit,
        "warning": found.warning,
        "projector_bytes": found.projector_bytes,
        "instead": None if found.instead is None else asdict(found.instead),
        "variants": [
            {
                "quantization": each.quantization,
                "file": each.file,
                "size_bytes": each.size_bytes,
                "installed": each.installed,
                "fit": None if each.plan is None else fit(each.plan),
            }
            for each in found.variants
        ],
        "fit": None if found.plan is None else fit(found.plan),
    }


def found_model(found: FoundModel) -> Json:
    """One entry of `search --json`."""
    return {
        "repo": found.repo,
        "model": found.model,
        "commit": found.commit,
        "gated": found.gated,
        "downloads": found.downloads,
        "likes": found.likes,
        "architecture": found.architecture,
        "params_b": found.params_b,
        "active_params_b": found.active_params_b,
        "context_length": found.context_length,
        "basis": found.basis,
        "best": found.best,
        "failure": found.failure,
        "variants": [
            {
                "quantization": each.quantization,
                "file": each.file,
                "size_bytes": each.size_bytes,
                "fit": fit(each.plan),
            }
            for each in found.variants
        ],
    }


def recommendation(row: Recommendation, installed: bool) -> Json:
    """One row of `recommend --json`."""
    return {
        "rank": row.rank,
        "model": row.model,
        "name": row.name,
        "repo": row.repo,
        "file": row.file,
        "quantization": row.quantization,
        "bits_per_weight": row.bits_per_weight,
        "params_b": row.params_b,
        "active_params_b": row.active_params_b,
        "context": row.context,
        "download_bytes": row.download_bytes,
        "memory": memory(row.memory),
        "placement": str(row.placement),
        "gpu_layers": row.gpu_layers,
        "cpu_expert_layers": row.cpu_expert_layers,
        "kv_type": row.kv_type,
        "fits": row.fits,
        "decode_tps": speed(row.decode_tps),
        "prompt_tps": speed(row.prompt_tps),
        "tasks": list(row.tasks),
        "languages": list(row.languages),
        "warnings": list(row.warnings),
        "starter": row.starter,
        "at_ease": row.at_ease,
        "score": {
            "total": round(row.score.total, 4),
            "factors": [{**asdict(each), "value": round(each.value, 4)} for each in row.score.factors],
        },
        "installed": installed,
    }


def installed_model(model: InstalledModel) -> Json:
    """One entry of `list --json`; `sha256` is that of the first file, `files` has them all."""
    files = [*model.files, *([model.projector] if model.projector else [])]
    return {
        "model": model.model,
        "repo": model.repo,
        "commit": model.commit,
        "file": model.files[0].name,
        "path": str(model.path),
        "quantization": model.quantization,
        "size_bytes": model.size_bytes,
        "sha256": model.files[0].sha256,
        "verified_at": model.verified_at,
        "last_used_at": model.last_used_at,
        "source": model.source,
        "read_only": model.read_only,
        "files": [
            {"file": each.name, "path": str(each.path), "size_bytes": each.size_bytes, "sha256": each.sha256}
            for each in files
        ],
    }


def installed_models(models: Sequence[InstalledModel]) -> Json:
    return {"models": [installed_model(model) for model in models]}


def inventory(entries: Sequence[Entry]) -> Json:
    """`list --json`."""
    return {"models": [inventory_entry(each) for each in entries]}


def inventory_entry(entry: Entry) -> Json:
    """One entry of `list --json`: an installed model, and how it would run here."""
    return {
        **installed_model(entry.model),
        "params_b": entry.params_b,
        "active_params_b": entry.active_params_b,
        "fit": None if entry.plan is None else fit(entry.plan),
    }


def model_check(check: ModelCheck) -> Json:
    """One entry of `verify --json`."""
    return {
        "model": check.model.model,
        "repo": check.model.repo,
        "quantization": check.model.quantization,
        "source": check.model.source,
        "ok": check.sound,
        "files": [
            {
                "file": each.file.name,
                "path": str(each.file.path),
                "size_bytes": each.file.size_bytes,
                "sha256": each.file.sha256,
                "ok": each.problem is None,
                "problem": each.problem,
            }
            for each in check.files
        ],
        "remedy": check.remedy,
    }


def leftover(found: Leftover) -> Json:
    """One entry of `prune --json`."""
    return {
        "kind": found.kind.name.lower(),
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "model": found.model.model if found.model else None,
    }


def candidate(found: Candidate | Pinned) -> Json:
    """One entry of `candidates` of `import --dry-run --json`."""
    return {"model": found.model, "quantization": found.quantization, "size_bytes": found.size_bytes}


def duplicate(found: Duplicate) -> Json:
    """One entry of `duplicates` of `import --json`."""
    return {
        "model": found.model,
        "path": str(found.path),
        "same_as": found.same_as,
        "same_path": str(found.same_path),
        "costs_bytes": found.costs_bytes,
    }


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
            }
            for kind, _ in found.decode
        ],
        "layer_us": round(found.layer_s * 1e6, 2),
        "row_ns": round(found.row_s * 1e9, 2),
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
                "setting": asdict(each.tuned.setting),
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


def answer(model: str, end: AnswerEnd) -> Json:
    """`run --output json`, and the last event of `ndjson`."""
    return {
        "model": model,
        "text": end.text,
        "thinking": end.thinking or None,
        "usage": asdict(end.usage),
        "timings": {name: None if value is None else round(value, 3) for name, value in asdict(end.timings).items()},
        "finish_reason": end.finish_reason,
    }


def failure(error: LocalaiError) -> Json:
    """The `error` of any output."""
    return {
        "code": error.code,
        "exit_code": int(error.exit_code),
        "message": error.message,
        "hint": error.hint or None,
    }


def record(result: Result, fingerprint: str) -> Json:
    """A line of `map`: an answer or an error, never both."""
    end, error = result.end, result.error
    return {
        "index": result.record.index,
        "input": result.record.shown,
        "output": end.text if end is not None and error is None else None,
        # not what was cached: that depends on what was asked before, and the same record must give the same line
        "usage": {"prompt_tokens": end.usage.prompt_tokens, "completion_tokens": end.usage.completion_tokens}
        if end is not None
        else None,
        "error": None if error is None else failure(error),
        "finish_reason": end.finish_reason if end is not None else None,
        "fingerprint": fingerprint,
    }
