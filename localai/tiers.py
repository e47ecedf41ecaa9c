"""The hardware table: which row a machine belongs to, by the rule of docs/tiers.md. The rows: data/tiers.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from localai.domain.machine import Gpu, Machine, Tier
from localai.domain.units import GIB

# Of what a machine is sold with, this much must be reported: firmware, ECC and an integrated GPU's carve-out keep the
# rest ("16 GB" laptops report 15.3 GiB, 13.7 with a carve-out of 2). No memory is sold in sizes between.
REPORTED_SHARE = 0.85

# Wider than two channels of the fastest memory there is (LPDDR5X-9600, 128 bits: 153.6 GB/s): a GPU on such a bus
# (Strix Halo: 256 bits) reads what the processor's own links do not.
WIDE_GBPS = 160.0

# A model from the middle of the row 3B – 7B, 5B at 4 bits (3 GB), is then written slower than people read: 5 tokens per
# second x 3 GB / 0.64 (what small Arm processors reach of their bandwidth, see speed.py).
SLOW_GBPS = 24.0


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


@dataclass(frozen=True, slots=True)
class _Phone:
    from_gib: float
    row: str
    hardware: str
    typical_ram_gbps: float


def tiers() -> tuple[Tier, ...]:
    """The rows of the hardware table, the smallest first."""
    return tuple(row.tier for row in _table()[0])


def unified(gpu: Gpu) -> bool:
    """Whether the engine gains by a GPU that works in the RAM: Apple silicon, GB10, Jetson, and any on a wide bus.

    Other integrated GPUs (Intel, AMD, phones') read the same memory no faster than the processor does.
    """
    wide = (gpu.bandwidth_gbps or 0) >= WIDE_GBPS
    return gpu.shared_memory and gpu.usable_by_engine and (gpu.vendor.lower() in ("apple", "nvidia") or wide)


def tier(machine: Machine) -> Tier:
    """The row of the hardware table that a machine belongs to: the highest that one of these reaches.

    - The dedicated VRAM of all GPUs that the engine can use, added: 4 GB → 3B–7B, 8 → 7B–13B, 16 → 13B–30B,
      40 → 30B–70B+.
    - RAM without a GPU: a row below what the table asks beside a GPU: 16 GB → 3B–7B, 64 → 7B–13B, 128 → 13B–30B,
      256 → 30B–70B+. A control group's limit counts as the RAM.
    - Unified memory with a GPU that the engine can use (see `unified`): 16 GB → 3B–7B, 24 → 7B–13B, 48 → 13B–30B,
      96 → 30B–70B+. Other integrated GPUs add nothing.
    - A phone of 8 GB and an NPU → 3B–7B.

    A size is reached by `REPORTED_SHARE` of it. RAM that is known (not measured) to be slower than `SLOW_GBPS` raises
    no machine. With such RAM, or under 8 GB, and without VRAM the lowest row speaks of small computers.
    """
    rows, small, phone = _table()
    limit = machine.memory.limit_bytes
    ram = min(machine.memory.total_bytes, limit) if limit is not None else machine.memory.total_bytes
    vram = sum(gpu.vram_total_bytes or 0 for gpu in machine.gpus if gpu.usable_by_engine and not gpu.shared_memory)
    shared = ram if any(unified(gpu) for gpu in machine.gpus) else 0
    slow = _is_slow(machine)
    best = rows[0]
    for row in rows[1:]:
        by_ram = _reaches(ram, row.ram_gib) and not slow
        if by_ram or _reaches(vram, row.vram_gib) or _reaches(shared, row.unified_gib):
            best = row
    if is_phone(machine) and machine.npus and _reaches(ram, phone.from_gib):
        named = next(row for row in rows if row.tier.id == phone.row)
        if rows.index(best) <= rows.index(named):
            return replace(named.tier, hardware=phone.hardware, typical_ram_gbps=phone.typical_ram_gbps)
    if best is rows[0] and vram == 0 and (slow or not _reaches(ram, small.below_gib)):
        return replace(best.tier, hardware=small.hardware, typical_ram_gbps=small.typical_ram_gbps)
    return best.tier


def _is_slow(machine: Machine) -> bool:
    """By its known speed: what a measurement found on a busy machine does not change what the machine is."""
    gbps, source = machine.bandwidth.gbps, machine.bandwidth.source.lower()
    return gbps is not None and gbps < SLOW_GBPS and not source.startswith("measured")


def is_phone(machine: Machine) -> bool:
    """Whether a machine is a phone or tablet, by its system."""
    return machine.os.lower().startswith(("ios", "android"))


def _reaches(size_bytes: int, gib: float) -> bool:
    return size_bytes >= gib * GIB * REPORTED_SHARE


@cache
def _table() -> tuple[tuple[_Row, ...], _Small, _Phone]:
    data = tomllib.loads(resources.files("localai.data").joinpath("tiers.toml").read_text("utf-8"))
    rows = []
    for raw in data["tiers"]:
        needs = {name: float(raw.pop(name)) for name in ("ram_gib", "vram_gib", "unified_gib")}
        rows.append(_Row(Tier(**{**raw, "tasks": tuple(raw["tasks"])}), **needs))
    return tuple(rows), _Small(**data["small"]), _Phone(**data["phone"])


def kept_by_system(ram_gib: float) -> float:
    """GiB of RAM that a machine's system and its everyday programs keep: 1 GiB and 15 %, at most 40 % of it all.

    A desktop at rest with a browser keeps 2 to 4 GiB of 8 to 16 (1 GiB + 15 %: 2.2 and 3.4). A Raspberry Pi OS of
    2 GiB keeps well under 1; the 40 % leave it room for a model of some hundred million parameters.
    """
    return min(1 + 0.15 * ram_gib, 0.4 * ram_gib)


def kept_of_vram(vram_gib: float) -> float:
    """GiB of VRAM that the display and the driver keep: half a GiB, at most a tenth."""
    return min(0.5, 0.1 * vram_gib)
