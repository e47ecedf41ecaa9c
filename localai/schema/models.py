"""The JSON of models: how one would run here, what a search finds, what is recommended."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai.domain.plan import MemoryNeed, Plan, SpeedRange

if TYPE_CHECKING:
    from localai.cards import Card
    from localai.recommend import Recommendation
    from localai.searching import FoundModel

Json = dict[str, Any]


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
    """`show --json`; the `fit` at the top is that of one file: the one asked for, else of the `best` variant."""
    best = found.best
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
        "best": None if best is None else best.quantization,
        "fit": None if best is None or best.plan is None else fit(best.plan),
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
