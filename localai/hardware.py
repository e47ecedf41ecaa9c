"""What a machine has: the probes run together, what they find is matched with what the engine can use.

Nothing here raises because of hardware: what cannot be found is None, and a probe that failed is a line of `failures`,
which `--debug` shows.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from localai import experience, settings
from localai.domain.machine import Bandwidth, Cpu, Disk, EngineDevice, EngineInfo, Gpu, Machine, Npu, SystemMemory
from localai.errors import LocalaiError
from localai.probes import amd, apple, bandwidth, host, intel, memory, npu, nvidia, windows
from localai.probes.source import Source

_log = logging.getLogger(__name__)

PROBES_SECONDS = 3.0  # a driver that wakes a sleeping card takes over a second; more is a hang


def detect(engine: bool = True, source: Source | None = None, nvml: nvidia.Nvml | None = None) -> Machine:
    """This machine, or the one that `source` was captured from; `engine` False leaves llama.cpp alone.

    Never raises and takes under a second where no probe hangs; `failures` names the probes that failed. Bandwidth and
    compute are those that were measured here before, else the spec sheet's, else unknown.
    """
    here = source is None
    seen = source or Source()
    library = nvidia.load_nvml() if here and nvml is None else nvml
    probes = _Probes(
        {
            "operating system": lambda: host.os_name(seen),
            "processor": lambda: host.cpu(seen),
            "memory": lambda: memory.memory(seen),
            "NVIDIA": lambda: nvidia.gpus(seen, library),
            "AMD": lambda: amd.gpus(seen),
            "Intel": lambda: intel.gpus(seen),
            "Apple": lambda: apple.gpus(seen),
            "Windows": lambda: windows.gpus(seen),
            "NPU": lambda: npu.npus(seen),
            "bandwidth": lambda: bandwidth.spec_gbps(seen),
            "disk": lambda: _disk(settings.hub_cache()),
        }
    )
    info, notes = _engine() if engine else (EngineInfo(None), ())
    found, failures = probes.results(PROBES_SECONDS)
    for line in failures:
        _log.debug("%s", line)
    cpu, ram, disk, gbps = (found.get(name) for name in ("processor", "memory", "disk", "bandwidth"))
    if not isinstance(ram, SystemMemory):
        ram = SystemMemory(0, 0, None, None, "unknown")
        notes = ("how much memory there is could not be found out", *notes)
    machine = Machine(
        os=str(found.get("operating system") or seen.system or "unknown"),
        cpu=cpu if isinstance(cpu, Cpu) else Cpu("unknown", seen.architecture, None, 1),
        memory=ram,
        bandwidth=Bandwidth(gbps, "spec sheet") if isinstance(gbps, float) else Bandwidth(None, "not measured"),
        disk=disk if isinstance(disk, Disk) else Disk(str(settings.hub_cache()), None),
        engine=info,
        gpus=match(_cards(found), info.devices),
        npus=match_npus(_tuple(found.get("NPU")), info.devices, os.environ),
        notes=notes,
        failures=failures,
    )
    return experience.recalled(machine) if here else machine


def _tuple(found: object) -> tuple[Any, ...]:
    return found if isinstance(found, tuple) else ()


def _cards(found: Mapping[str, object]) -> tuple[Gpu, ...]:
    """The cards of all probes; the Windows registry's NVIDIA cards only where NVML is silent."""
    cards = [card for name in ("NVIDIA", "AMD", "Intel", "Apple") for card in _tuple(found.get(name))]
    registry = _tuple(found.get("Windows"))
    return (*cards, *(card for card in registry if not (card.vendor == "NVIDIA" and found.get("NVIDIA"))))


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
        for name, thread in self._threads.items():
            try:
                thread.start()
            except RuntimeError:  # memory is too short for its stack: then one after the other, here
                self._run(name, probes[name])

    def _run(self, name: str, probe: Callable[[], object]) -> None:
        try:
            self._found[name] = probe()
        except Exception as error:  # noqa: BLE001 - a probe is no reason to fail; the note keeps what went wrong
            self._failed[name] = f"{type(error).__name__}: {error}"

    def results(self, seconds: float) -> tuple[dict[str, object], tuple[str, ...]]:
        """What was found by probe, and a line for each that failed or has not answered `seconds` after the start."""
        for thread in self._threads.values():
            if thread.ident is not None:
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
    ("NVIDIA", re.compile(r"nvidia|geforce|\bquadro\b|\btesla\b|\brtx\b|\bgtx\b|\bCUDA\d", re.I)),
    ("AMD", re.compile(r"\bamd\b|radeon|\bati\b|\bgfx\d|instinct|\bROCm\d", re.I)),
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
        if device.kind in ("gpu", "igpu") and not _NPU_DEVICE.match(device.name):
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


# Backends that reach NPUs; llama.cpp calls their devices GPUs. OpenVINO's and Hexagon's work in the system's memory,
# and OpenVINO's even reports all of it as its own. CANN's (Ascend) have memory of their own: they stay among the GPUs.
_NPU_DEVICE = re.compile(r"(OPENVINO|HTP)\d")
_NPU_BACKENDS = {"Qualcomm": "HTP", "Huawei": "CANN", "Intel": "OPENVINO"}


def match_npus(npus: tuple[Npu, ...], devices: tuple[EngineDevice, ...], environ: Mapping[str, str]) -> tuple[Npu, ...]:
    """The NPUs with `usable_by_engine` set where a loaded backend offers them.

    OpenVINO works on the processor unless GGML_OPENVINO_DEVICE=NPU is set (ggml-openvino-extra.cpp).
    """
    loaded = {device.name.rstrip("0123456789:") for device in devices}
    if environ.get("GGML_OPENVINO_DEVICE") != "NPU":
        loaded.discard("OPENVINO")
    return tuple(replace(npu, usable_by_engine=_NPU_BACKENDS.get(npu.vendor) in loaded) for npu in npus)


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
    """The card, with what only the engine knows: its marketing name, memory the system does not tell, Metal's limit."""
    name = card.name
    if re.search(r"\([0-9a-f]{4}(?::[0-9a-f]{4})?\)$", name) and vendor_of(device.description) == card.vendor:
        name = device.description
    card = replace(card, name=name, usable_by_engine=True)
    total, free = device.memory_total_bytes, device.memory_free_bytes
    if card.vendor == "Apple" and total:  # recommendedMaxWorkingSetSize, and what of it is not taken yet
        return replace(card, vram_total_bytes=total, vram_free_bytes=free, source=f"llama.cpp ({device.name})")
    if device.kind == "igpu":
        return replace(card, shared_memory=True)
    if card.vendor == "AMD" and card.shared_memory and card.vram_total_bytes:
        # A small card in a machine with much RAM looks integrated by its sizes; its driver knows better.
        return replace(card, shared_memory=False, shared_total_bytes=None)
    if card.vram_total_bytes is None and card.vendor == "Intel" and total:
        # i915 does not publish local memory on every kernel; the engine's driver knows it.
        card = replace(card, vram_total_bytes=total, shared_memory=False, source=f"llama.cpp ({device.name})")
    if card.vram_free_bytes is None and not card.shared_memory and card.vram_total_bytes and free is not None:
        card = replace(card, vram_free_bytes=min(free, card.vram_total_bytes))
    return card


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
