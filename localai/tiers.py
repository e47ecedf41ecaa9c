"""The hardware table: which row a machine belongs to, by the rule of docs/tiers.md. The rows: data/tiers.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from localai.domain import GIB, Machine, Tier

# Of what a machine is sold with, this much must be reported: firmware, ECC and an integrated GPU's carve-out keep the
# rest ("16 GB" laptops report 15.3 GiB, 13.7 with a carve-out of 2). No memory is sold in sizes between.
REPORTED_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class _Row:
    tier: Tier
    ram_gib: float
    vram_gib: float
    unified_gib: float


@dataclass(frozen=True, slots=True)
class _Small:
    below_gib: float
    hardware: str
    typical_ram_gbps: float


def tiers() -> tuple[Tier, ...]:
    """The rows of the hardware table, the smallest first."""
    return tuple(row.tier for row in _table()[0])


def tier(machine: Machine) -> Tier:
    """The row of the hardware table that a machine belongs to: the highest that one of these reaches.

    - The dedicated VRAM of all GPUs that the engine can use, added: 4 GB → 3B–7B, 8 → 7B–13B, 16 → 13B–30B,
      40 → 30B–70B+.
    - RAM without a GPU: a row below what the table asks beside a GPU: 16 GB → 3B–7B, 64 → 7B–13B, 128 → 13B–30B,
      256 → 30B–70B+. A control group's limit counts as the RAM.
    - Unified memory with a GPU that the engine can use (Apple silicon, NVIDIA GB10 and Jetson): 16 GB → 3B–7B,
      32 → 7B–13B, 64 → 13B–30B, 128 → 30B–70B+. Other integrated GPUs add nothing.

    A size is reached by `REPORTED_SHARE` of it. Under 8 GB of RAM and without VRAM the lowest row speaks of small
    computers.
    """
    rows, small = _table()
    limit = machine.memory.limit_bytes
    ram = min(machine.memory.total_bytes, limit) if limit is not None else machine.memory.total_bytes
    usable = [gpu for gpu in machine.gpus if gpu.usable_by_engine]
    vram = sum(gpu.vram_total_bytes or 0 for gpu in usable if not gpu.shared_memory)
    unified = ram if any(gpu.shared_memory and gpu.vendor in ("Apple", "NVIDIA") for gpu in usable) else 0
    best = rows[0]
    for row in rows[1:]:
        if _reaches(ram, row.ram_gib) or _reaches(vram, row.vram_gib) or _reaches(unified, row.unified_gib):
            best = row
    if best is rows[0] and vram == 0 and not _reaches(ram, small.below_gib):
        return replace(best.tier, hardware=small.hardware, typical_ram_gbps=small.typical_ram_gbps)
    return best.tier


def _reaches(size_bytes: int, gib: float) -> bool:
    return size_bytes >= gib * GIB * REPORTED_SHARE


@cache
def _table() -> tuple[tuple[_Row, ...], _Small]:
    data = tomllib.loads(resources.files("localai.data").joinpath("tiers.toml").read_text("utf-8"))
    rows = []
    for raw in data["tiers"]:
        needs = {name: float(raw.pop(name)) for name in ("ram_gib", "vram_gib", "unified_gib")}
        rows.append(_Row(Tier(**{**raw, "tasks": tuple(raw["tasks"])}), **needs))
    return tuple(rows), _Small(**data["small"])
