"""Machines that are not this one: those of `data/machines.toml`, one that a file describes, and one made up."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from localai import machine_file
from localai.domain.machine import Bandwidth, Cpu, Disk, EngineInfo, Gpu, Machine, Npu, SystemMemory
from localai.domain.units import GIB
from localai.errors import NotFound, UsageError
from localai.tiers import kept_by_system, kept_of_vram, tier

SPEC = "spec sheet"


@dataclass(frozen=True, slots=True)
class Listed:
    """A machine of the list and where its figures are from; `kind` is phone, single-board computer, laptop, …"""

    id: str
    name: str
    kind: str
    machine: Machine
    sources: tuple[str, ...]


def listed() -> tuple[Listed, ...]:
    """Every machine of the list, in its order."""
    return _list()


def named(text: str) -> Machine:
    """The machine that `--machine` means: an id of the list, else a file that `localai hardware --json` wrote.

    Raises NotFound with the nearest names, UsageError for a file that describes no machine.
    """
    wanted = "-".join(text.casefold().split())
    for each in _list():
        if wanted in (each.id, "-".join(each.name.casefold().split())):
            return each.machine
    path = os.path.expanduser(text)
    if os.path.exists(path) or text.lower().endswith(".json") or os.sep in text:
        return machine_file.read(Path(path))
    names = [each.id for each in _list()]
    near = difflib.get_close_matches(wanted[:100], names, n=3, cutoff=0.5)
    near += [name for name in names if wanted and wanted in name and name not in near]
    hint = f"did you mean {', '.join(near[:3])}? " if near else ""
    raise NotFound(
        f"there is no machine called {text[:100]!r}",
        f"{hint}localai hardware --machines lists them; a file ends in .json",
    )


@cache
def _list() -> tuple[Listed, ...]:
    data = tomllib.loads(resources.files("localai.data").joinpath("machines.toml").read_text("utf-8"))
    return tuple(_listed(raw, data["chips"][raw["chip"]], data["cards"]) for raw in data["machines"])


def _listed(raw: Mapping[str, Any], chip: Mapping[str, Any], cards: Mapping[str, Mapping[str, Any]]) -> Listed:
    total, free = _ram(raw["ram_gib"])
    bandwidth: float | None = chip.get("ram_gbps")
    fitted = [cards[name] for name in raw.get("cards", ())]
    gpus = [_card(card) for card in fitted]
    if "gpu" in chip:
        gpus.append(_integrated(chip["gpu"], raw.get("gpu_gib"), free, bandwidth))
    notes = [f"{raw['name']}: figures of the makers' spec sheets", _ram_note(raw["ram_gib"], free)]
    notes += [_vram_note(card["vram_gib"]) for card in {card["name"]: card for card in fitted}.values()]
    if "gpu_gib" in raw and raw["gpu_gib"] < raw["ram_gib"]:
        notes.append(f"its GPU works in the RAM and may use {raw['gpu_gib']:g} GiB of it")
    if any(gpu.usable_by_engine for gpu in gpus):
        notes.append("an engine built for its GPU is assumed")
    npu = chip.get("npu")
    machine = Machine(
        os=raw["os"],
        cpu=Cpu(chip["cpu"], chip["architecture"], chip["cores"], chip["threads"]),
        memory=SystemMemory(total, free, None, None, SPEC),
        bandwidth=_bandwidth(chip),
        disk=Disk("", None),
        engine=EngineInfo(None, (), gpu_offload=any(gpu.usable_by_engine for gpu in gpus)),
        gpus=tuple(gpus),
        npus=(Npu(npu["vendor"], npu["name"], npu.get("tops"), source=SPEC),) if npu else (),
        notes=tuple(notes),
    )
    sources = (raw["source"], chip["source"], *dict.fromkeys(card["source"] for card in fitted))
    return Listed(raw["id"], raw["name"], raw["kind"], machine, sources)


def _bandwidth(chip: Mapping[str, Any]) -> Bandwidth:
    if "decode_gbps" in chip:
        return Bandwidth(chip["decode_gbps"], f"as others measured; {chip['ram_gbps']:g} GB/s by the spec sheet")
    return Bandwidth(chip.get("ram_gbps"), SPEC if "ram_gbps" in chip else "unknown")


def _card(card: Mapping[str, Any]) -> Gpu:
    total, free = _vram(card["vram_gib"])
    return Gpu(
        card["vendor"], card["name"], total, free, usable_by_engine=True, bandwidth_gbps=card["gbps"], source=SPEC
    )


def _integrated(gpu: Mapping[str, Any], limit_gib: float | None, free: int, bandwidth: float | None) -> Gpu:
    """A GPU that works in the RAM: what it may use of it is a limit, and never more than is free."""
    limit = None if limit_gib is None else round(limit_gib * GIB)
    return Gpu(
        gpu["vendor"],
        gpu["name"],
        limit,
        None if limit is None else min(limit, free),
        shared_memory=True,
        usable_by_engine=gpu.get("usable", False),
        bandwidth_gbps=bandwidth,
        source=SPEC,
    )


# ------------------------------------------------------------------------------------- what is free of what is sold


def _ram(gib: float) -> tuple[int, int]:
    return round(gib * GIB), round((gib - kept_by_system(gib)) * GIB)


def _vram(gib: float) -> tuple[int, int]:
    return round(gib * GIB), round((gib - kept_of_vram(gib)) * GIB)


def _ram_note(gib: float, free: int) -> str:
    return f"{free / GIB:.1f} of {gib:g} GiB RAM taken as free: the system keeps 1 GiB + 15 %, at most 40 %"


def _vram_note(gib: float) -> str:
    return f"{_vram(gib)[1] / GIB:.1f} of {gib:g} GiB VRAM taken as free; the engine can use the GPU"


# ------------------------------------------------------------------------------------------- a machine made up


@dataclass(frozen=True, slots=True)
class _Range:
    name: str
    low: float
    high: float
    unit: str

    def check(self, value: float) -> None:
        if not (math.isfinite(value) and self.low < value <= self.high):
            raise UsageError(
                f"{self.name} {value:g} is not a size that a machine has",
                f"give {self.unit}, more than {self.low:g} and at most {self.high:g}",
            )


_RAM = _Range("--ram", 0, 65_536, "GiB")
_VRAM = _Range("--vram", 0, 16_384, "GiB")
_BANDWIDTH = _Range("--bandwidth", 0, 100_000, "GB/s")


def hypothetical(ram_gib: float, vram_gib: float = 0, bandwidth_gbps: float | None = None) -> Machine:
    """A machine with that much RAM and VRAM in all (GiB), free as `notes` says, its GPU usable by the engine.

    `bandwidth_gbps` is that of its RAM; without one, and always for the VRAM, the tier's typical value is taken.
    Raises UsageError for sizes that no machine has.
    """
    _RAM.check(ram_gib)
    if vram_gib != 0:
        _VRAM.check(vram_gib)
    if bandwidth_gbps is not None:
        _BANDWIDTH.check(bandwidth_gbps)
    total, free = _ram(ram_gib)
    gpus: tuple[Gpu, ...] = ()
    notes = [_ram_note(ram_gib, free)]
    if vram_gib:
        vram, vram_free = _vram(vram_gib)
        gpus = (Gpu("unknown", f"GPU with {vram_gib:g} GiB", vram, vram_free, usable_by_engine=True, source="assumed"),)
        notes.append(_vram_note(vram_gib))
    bare = Machine(
        os="another machine",
        cpu=Cpu("unknown", "unknown", 4, 4),
        memory=SystemMemory(total, free, None, None, "assumed"),
        bandwidth=Bandwidth(bandwidth_gbps, "given"),
        disk=Disk("", None),
        engine=EngineInfo(None, (), gpu_offload=bool(gpus)),
        gpus=gpus,
    )
    row = tier(bare)
    notes.append("a processor of 4 cores assumed")
    if bandwidth_gbps is None:
        bare = replace(bare, bandwidth=Bandwidth(row.typical_ram_gbps, f"typical of the tier {row.size}"))
        notes.append(
            f"RAM bandwidth {row.typical_ram_gbps:g} GB/s, typical of the tier {row.size}; --bandwidth sets it"
        )
    if gpus and row.typical_vram_gbps:
        gpus = (replace(gpus[0], bandwidth_gbps=row.typical_vram_gbps),)
        notes.append(f"VRAM bandwidth {row.typical_vram_gbps:g} GB/s, typical of the tier {row.size}")
    return replace(bare, gpus=gpus, notes=tuple(notes))
