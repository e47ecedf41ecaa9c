"""What a machine has: the probes run together, what they find is matched with what the engine can use.

Nothing here raises because of hardware: what cannot be found is None, and a probe that failed is a line of `notes`.
"""

from __future__ import annotations

import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from localai import settings
from localai.domain import (
    GIB,
    Bandwidth,
    Cpu,
    Disk,
    EngineDevice,
    EngineInfo,
    Gpu,
    Machine,
    SystemMemory,
)
from localai.errors import LocalaiError, UsageError
from localai.probes import amd, host, intel, memory, nvidia
from localai.probes.source import Source
from localai.tiers import tier

PROBES_SECONDS = 3.0  # a driver that wakes a sleeping card takes over a second; more is a hang

__all__ = ["detect", "hypothetical", "tier"]


def detect(engine: bool = True, source: Source | None = None, nvml: nvidia.Nvml | None = None) -> Machine:
    """This machine, or the one that `source` was captured from; `engine` False leaves llama.cpp alone.

    Never raises and takes under a second where no probe hangs; `notes` names the probes that failed.
    """
    here = source is None
    seen = source or Source()
    library = nvidia.load_nvml() if here and nvml is None else nvml
    probes = _Probes(
        {
            "operating system": lambda: host.os_name(seen),
            "processor": lambda: host.cpu(seen),
            "memory": lambda: memory.memory(seen) or (memory.memory_of_psutil() if here else None),
            "NVIDIA": lambda: nvidia.gpus(seen, library),
            "AMD": lambda: amd.gpus(seen),
            "Intel": lambda: intel.gpus(seen),
            "disk": lambda: _disk(settings.hub_cache()),
        }
    )
    info, notes = _engine() if engine else (EngineInfo(None), ())
    found, failures = probes.results(PROBES_SECONDS)
    cpu, ram, disk = found.get("processor"), found.get("memory"), found.get("disk")
    cards = [card for name in ("NVIDIA", "AMD", "Intel") for card in _cards(found.get(name))]
    if not isinstance(ram, SystemMemory):
        ram = SystemMemory(0, 0, None, 0, "unknown")
        failures = (*failures, "how much memory there is could not be found out")
    return Machine(
        os=str(found.get("operating system") or seen.system or "unknown"),
        cpu=cpu if isinstance(cpu, Cpu) else Cpu("unknown", seen.architecture, None, 1),
        memory=ram,
        bandwidth=Bandwidth(None, "not measured"),
        disk=disk if isinstance(disk, Disk) else Disk(str(settings.hub_cache()), None),
        engine=info,
        gpus=match(tuple(cards), info.devices),
        npus=(),  # probes/npu.py, when there is one, adds its finds here
        notes=(*failures, *notes),
    )


def _cards(found: object) -> tuple[Gpu, ...]:
    return found if isinstance(found, tuple) else ()


def _engine() -> tuple[EngineInfo, tuple[str, ...]]:
    """What the installed llama.cpp says; without one, an EngineInfo of nothing and a note."""
    try:
        from localai.engine import library

        return library.info(), ()
    except (ImportError, OSError, LocalaiError) as error:
        return EngineInfo(None), (f"the engine could not be asked: {error}",)


def _disk(folder: Path) -> Disk:
    """The file system that will hold `folder`: that of its first parent which exists."""
    for parent in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(parent)
        except OSError:
            continue
        return Disk(str(folder), usage.free, usage.total)
    return Disk(str(folder), None)


class _Probes:
    """Probes running side by side, each in a daemon thread, so that one that hangs holds up nobody, not even exit."""

    def __init__(self, probes: Mapping[str, Callable[[], object]]) -> None:
        self._found: dict[str, object] = {}
        self._failed: dict[str, str] = {}
        self._began = time.monotonic()
        self._threads = {
            name: threading.Thread(target=self._run, args=(name, probe), name=f"probe {name}", daemon=True)
            for name, probe in probes.items()
        }
        for thread in self._threads.values():
            thread.start()

    def _run(self, name: str, probe: Callable[[], object]) -> None:
        try:
            self._found[name] = probe()
        except Exception as error:  # noqa: BLE001 - a probe is no reason to fail; the note keeps what went wrong
            self._failed[name] = f"{type(error).__name__}: {error}"

    def results(self, seconds: float) -> tuple[dict[str, object], tuple[str, ...]]:
        """What was found by probe, and a line for each that failed or has not answered `seconds` after the start."""
        for thread in self._threads.values():
            thread.join(max(self._began + seconds - time.monotonic(), 0))
        found, failed = dict(self._found), dict(self._failed)
        lines = []
        for name in self._threads:
            if name in failed:
                lines.append(f"the {name} probe failed: {failed[name]}")
            elif name not in found:
                lines.append(f"the {name} probe gave no answer within {seconds:g} s")
        return found, tuple(lines)


# --------------------------------------------------------------------------------- what the engine can use of it

_VENDORS = (
    ("NVIDIA", re.compile(r"nvidia|geforce|\bquadro\b|\btesla\b|\brtx\b|\bgtx\b", re.I)),
    ("AMD", re.compile(r"\bamd\b|radeon|\bati\b|\bgfx\d|instinct", re.I)),
    ("Intel", re.compile(r"\bintel\b|\barc\b", re.I)),
    ("Apple", re.compile(r"apple", re.I)),
)


def vendor_of(description: str) -> str:
    """Who made a device, from what its driver calls it; "unknown" where that does not tell."""
    return next((vendor for vendor, pattern in _VENDORS if pattern.search(description)), "unknown")


def match(gpus: tuple[Gpu, ...], devices: tuple[EngineDevice, ...]) -> tuple[Gpu, ...]:
    """The cards with `usable_by_engine` set, plus those that only the engine knows of.

    A backend lists each card once, so each of its devices takes one card: the one of that name, else one of that
    vendor, the nearest in memory. Several backends (CUDA0, Vulkan0) may list the same card.
    """
    found = list(gpus)
    backends: dict[str, list[EngineDevice]] = {}
    for device in devices:
        if device.kind in ("gpu", "igpu"):
            backends.setdefault(device.name.rstrip("0123456789"), []).append(device)
    for listed in backends.values():
        free = set(range(len(found)))
        for device in sorted(listed, key=lambda device: device.kind != "igpu"):  # the surer matches first
            index = _same(device, [(index, found[index]) for index in sorted(free)])
            if index is None:
                found.append(_from_engine(device))
            else:
                free.discard(index)
                found[index] = _confirmed(found[index], device)
    return tuple(found)


def _same(device: EngineDevice, cards: list[tuple[int, Gpu]]) -> int | None:
    vendor = vendor_of(f"{device.description} {device.name}")
    mine = [(index, card) for index, card in cards if card.vendor == vendor]
    name = device.description.casefold()
    exact = [(index, card) for index, card in mine if card.name.casefold() in name or name in card.name.casefold()]

    def distance(candidate: tuple[int, Gpu]) -> float:
        sizes = candidate[1].vram_total_bytes, device.memory_total_bytes
        return abs(math.log(sizes[0] / sizes[1])) if sizes[0] and sizes[1] else 1.0

    alike = exact or [each for each in mine if each[1].shared_memory == (device.kind == "igpu")] or mine
    return min(alike, key=distance)[0] if alike else None


def _confirmed(card: Gpu, device: EngineDevice) -> Gpu:
    """The card, with what only the engine knows: its marketing name, and memory where sysfs had none."""
    name = card.name
    if re.search(r"\([0-9a-f]{4}(?::[0-9a-f]{4})?\)$", name) and vendor_of(device.description) == card.vendor:
        name = device.description
    if device.kind == "gpu" and card.vram_total_bytes is None and card.vendor == "Intel" and device.memory_total_bytes:
        # i915 does not publish local memory on every kernel; the engine's driver knows it.
        return replace(
            card,
            name=name,
            vram_total_bytes=device.memory_total_bytes,
            vram_free_bytes=device.memory_free_bytes,
            shared_memory=False,
            usable_by_engine=True,
            source=f"llama.cpp ({device.name})",
        )
    return replace(card, name=name, usable_by_engine=True)


def _from_engine(device: EngineDevice) -> Gpu:
    vendor = vendor_of(f"{device.description} {device.name}")
    return Gpu(
        vendor=vendor,
        name=device.description or device.name,
        vram_total_bytes=device.memory_total_bytes,
        vram_free_bytes=device.memory_free_bytes,
        shared_memory=device.kind == "igpu" or vendor == "Apple",
        usable_by_engine=True,
        source=f"llama.cpp ({device.name})",
    )


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


def kept_by_system(ram_gib: float) -> float:
    """GiB of RAM that a machine's system and its everyday programs keep: 1 GiB and 15 %, at most 40 % of it all.

    A desktop at rest with a browser keeps 2 to 4 GiB of 8 to 16 (1 GiB + 15 %: 2.2 and 3.4). A Raspberry Pi OS of
    2 GiB keeps well under 1; the 40 % leave it room for a model of some hundred million parameters.
    """
    return min(1 + 0.15 * ram_gib, 0.4 * ram_gib)


def kept_of_vram(vram_gib: float) -> float:
    """GiB of VRAM that the display and the driver keep: half a GiB, at most a tenth."""
    return min(0.5, 0.1 * vram_gib)


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
    total, free = round(ram_gib * GIB), round((ram_gib - kept_by_system(ram_gib)) * GIB)
    gpus: tuple[Gpu, ...] = ()
    notes = [f"{free / GIB:.1f} of {ram_gib:g} GiB RAM taken as free: the system keeps 1 GiB + 15 %, at most 40 %"]
    if vram_gib:
        vram, vram_free = round(vram_gib * GIB), round((vram_gib - kept_of_vram(vram_gib)) * GIB)
        gpus = (Gpu("unknown", f"GPU with {vram_gib:g} GiB", vram, vram_free, usable_by_engine=True, source="assumed"),)
        notes.append(f"{vram_free / GIB:.1f} of {vram_gib:g} GiB VRAM taken as free; the engine can use the GPU")
    bare = Machine(
        os="another machine",
        cpu=Cpu("unknown", "unknown", 4, 4),
        memory=SystemMemory(total, free, None, 0, "assumed"),
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
