"""Windows: display adapters and compute accelerators in the registry, as `reg query` prints it.

WMI's AdapterRAM has 32 bits and is useless; `HardwareInformation.qwMemorySize` is the adapter's own memory. A card that
was taken out may still be listed until its driver is removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localai.domain.machine import Gpu
from localai.domain.units import GIB
from localai.probes import chips
from localai.probes.source import Source

PROCESSOR_KEY = r"HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0"
_CLASS = r"HKLM\SYSTEM\CurrentControlSet\Control\Class"
DISPLAY = "{4d36e968-e325-11ce-bfc1-08002be10318}"
ACCELERATOR = "{f01a9d53-3ff6-48d2-9f97-c8a7004be10c}"
ADAPTERS = 8  # keys looked at; drivers that were replaced leave holes in the numbering
HOLES = 2

_VENDORS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel", "4d4f4351": "Qualcomm", "qcom": "Qualcomm"}
_DISCRETE = re.compile(
    r"\bRX \d|\bRadeon (?:VII|Pro)\b|\bFirePro\b|\bInstinct\b|\bArc(?:\(TM\)| )? ?(?:Pro )?[AB]\d{2,3}\b", re.I
)
INTEGRATED_LIMIT = 4 * GIB  # as on Linux: a carve-out of more is the GPU's own, and the system counts it no more


@dataclass(frozen=True, slots=True)
class Adapter:
    """One driver's key under a device class."""

    number: str
    description: str
    vendor_id: str
    device_id: str
    driver: str | None
    memory_bytes: int | None


def adapters(source: Source, device_class: str) -> Iterator[Adapter]:
    """The devices of a class that are on PCI or (Snapdragon) ACPI."""
    holes = 0
    for number in range(ADAPTERS):
        key = rf"{_CLASS}\{device_class}\{number:04d}"
        answer = source.output("reg", "query", key)
        if answer is None:
            holes += 1
            if holes > HOLES:
                return
            continue
        values = dict(re.findall(r"^ {4}(\S+) +REG_\w+ +(\S.{0,300}?)\s*$", answer, re.M))
        device = re.match(
            r"(?:PCI\\VEN_([0-9a-f]{4})&DEV_([0-9a-f]{4})|ACPI\\(?:VEN_)?(QCOM)&?(?:DEV_)?(\w{0,8}))",
            values.get("MatchingDeviceId", ""),
            re.I,
        )
        if not device:
            continue  # the basic and the remote display
        yield Adapter(
            f"{number:04d}",
            values.get("DriverDesc", "graphics"),
            (device.group(1) or device.group(3)).lower(),
            (device.group(2) or device.group(4)).lower(),
            values.get("DriverVersion"),
            _size(values.get("HardwareInformation.qwMemorySize", "")),
        )


def _size(text: str) -> int | None:
    """A REG_QWORD (0x600000000), or the eight bytes that some drivers write instead (0000000006000000)."""
    if re.fullmatch(r"0x[0-9a-f]{1,15}", text, re.I):
        return int(text, 16) or None
    if re.fullmatch(r"[0-9a-f]{16}", text, re.I):
        size = int.from_bytes(bytes.fromhex(text), "little")
        return size if 0 < size < 2**50 else None
    return None


def gpus(source: Source) -> tuple[Gpu, ...]:
    """The display adapters."""
    return tuple(_gpu(each) for each in adapters(source, DISPLAY)) if source.system == "Windows" else ()


def _gpu(adapter: Adapter) -> Gpu:
    vendor = _VENDORS.get(adapter.vendor_id, "unknown")
    memory = adapter.memory_bytes
    discrete = vendor == "NVIDIA" or bool(_DISCRETE.search(adapter.description))
    shared = not discrete and (memory is None or memory <= INTEGRATED_LIMIT)
    known = None if shared else chips.card_by_name(adapter.description, memory)
    return Gpu(
        vendor=vendor,
        name=adapter.description,
        vram_total_bytes=memory,
        vram_free_bytes=None,
        shared_memory=shared,
        bandwidth_gbps=known.gbps if known else None,
        driver=adapter.driver,
        source=f"registry, display adapter {adapter.number}" + (", qwMemorySize" if memory else ""),
    )
