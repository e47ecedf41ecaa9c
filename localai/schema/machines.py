"""The JSON of machines and of what `doctor` finds on one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai.domain.machine import Machine, Tier

if TYPE_CHECKING:
    from localai.checks.finding import Finding
    from localai.machines import Listed

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


def tier_row(found: Tier) -> Json:
    return {"id": found.id, "size": found.size, "hardware": found.hardware, "tasks": list(found.tasks)}


def finding(found: Finding) -> Json:
    """One entry of `doctor --json`."""
    return {"check": found.check, "status": str(found.status), "message": found.message, "command": found.command}
