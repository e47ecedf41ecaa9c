"""NVIDIA graphics through NVML (the driver's own library), else through /proc/driver/nvidia."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from localai.domain.machine import Gpu
from localai.probes import chips
from localai.probes.source import Source

MEMORY_CLOCK = 2  # NVML_CLOCK_MEM
CARDS_LIMIT = 64

# Systems on a chip whose GPU works in the system's memory.
_UNIFIED = re.compile(r"\b(GB10|Tegra|Xavier|Orin|Thor)\b")


class Nvml(Protocol):
    """The part of pynvml that is used here; captured answers stand in for it in tests. Any call may raise."""

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlShutdown(self) -> None: ...  # noqa: N802

    def nvmlSystemGetDriverVersion(self) -> str | bytes: ...  # noqa: N802

    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802

    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int: ...  # noqa: N802

    def nvmlDeviceGetMemoryBusWidth(self, device: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetMigMode(self, device: Any) -> Sequence[int]: ...  # noqa: N802

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any: ...  # noqa: N802


def gpus(source: Source, nvml: Nvml | None) -> tuple[Gpu, ...]:
    """NVIDIA's cards; `nvml` None where the library is not to be asked. May hang as long as the driver does."""
    found = _by_nvml(nvml) if nvml else ()
    return found or _by_proc(source) or _by_device_tree(source)


def load_nvml() -> Nvml | None:
    """pynvml, or None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    library: Nvml = pynvml
    return library


Answer = TypeVar("Answer")


def _ask(call: Callable[..., Answer], *arguments: Any) -> Answer | None:
    """One answer of NVML, None where this card or driver has none (pynvml raises its own errors, ctypes others)."""
    try:
        return call(*arguments)
    except Exception:  # noqa: BLE001
        return None


def _by_nvml(nvml: Nvml) -> tuple[Gpu, ...]:
    try:
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver, no library, no permission: no NVIDIA card that can be used
        return ()
    try:
        driver = _words(_ask(nvml.nvmlSystemGetDriverVersion))
        count = min(_ask(nvml.nvmlDeviceGetCount) or 0, CARDS_LIMIT)
        handles = [_ask(nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        return tuple(gpu for handle in handles if handle is not None for gpu in _card(nvml, handle, driver))
    finally:
        _ask(nvml.nvmlShutdown)


def _card(nvml: Nvml, handle: Any, driver: str | None) -> Iterator[Gpu]:
    """The card, or the instances that it is divided into (MIG): then no program can use it as a whole."""
    mode = _ask(nvml.nvmlDeviceGetMigMode, handle)
    if not isinstance(mode, list | tuple) or not mode or mode[0] != 1:
        yield _gpu(nvml, handle, driver)
        return
    count = min(_size(_ask(nvml.nvmlDeviceGetMaxMigDeviceCount, handle)) or 0, CARDS_LIMIT)
    for index in range(count):
        instance = _ask(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if instance is not None:
            # How much of the card's bandwidth an instance has is not told.
            yield replace(_gpu(nvml, instance, driver), bandwidth_gbps=None, source="NVML (MIG)")


def _gpu(nvml: Nvml, handle: Any, driver: str | None) -> Gpu:
    name = _words(_ask(nvml.nvmlDeviceGetName, handle)) or "NVIDIA graphics"
    unified = bool(_UNIFIED.search(name))
    memory = None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except Exception as error:  # noqa: BLE001
        # A card without memory of its own answers this; pynvml makes the class at run time, so it has only its name.
        unified = unified or type(error).__name__ == "NVMLError_NotSupported"
    total = _size(getattr(memory, "total", None)) or None
    free = _size(getattr(memory, "free", None))
    return Gpu(
        vendor="NVIDIA",
        name=name,
        vram_total_bytes=None if unified else total,
        vram_free_bytes=None if unified or total is None or free is None else min(free, total),
        shared_memory=unified,
        bandwidth_gbps=_bandwidth(nvml, handle) or _spec_sheet(name, total),
        driver=driver,
        source="NVML",
    )


def _bandwidth(nvml: Nvml, handle: Any) -> float | None:
    """Peak memory bandwidth, 10^9 bytes per second: clock × 2 (double data rate) × bus width.

    The formula of NVIDIA's "How to Query Device Properties and Handle Errors in CUDA C/C++"
    (2.0 * memoryClockRate * (memoryBusWidth / 8) / 1.0e6); NVML's clock is the same one, in MHz.
    """
    clock_mhz = _size(_ask(nvml.nvmlDeviceGetMaxClockInfo, handle, MEMORY_CLOCK))
    bits = _size(_ask(nvml.nvmlDeviceGetMemoryBusWidth, handle))
    if not clock_mhz or not bits or clock_mhz > 100_000 or bits > 65_536:
        return None
    return clock_mhz * 1e6 * 2 * (bits / 8) / 1e9


def _spec_sheet(name: str, total: int | None) -> float | None:
    known = chips.card_by_name(name, total)
    return known.gbps if known else None


def _size(value: object) -> int | None:
    """A whole number of the C interface; all bits set means "not available" there."""
    return value if isinstance(value, int) and 0 <= value < 2**62 else None


def _words(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value.strip() or None if isinstance(value, str) else None


def _by_proc(source: Source) -> tuple[Gpu, ...]:
    """The driver's own list: names only, memory unknown."""
    banner = source.text("/proc/driver/nvidia/version", 8192) or ""
    version = re.search(r"Kernel Module.*?\s(\d{3,4}(?:\.\d{1,4}){1,3})\s", banner)
    found = []
    for path in source.glob("/proc/driver/nvidia/gpus/*/information"):
        model = re.search(r"^Model:\s+(\S.{0,120}?)\s*$", source.text(path, 8192) or "", re.M)
        name = model.group(1) if model else "NVIDIA graphics"
        driver = version.group(1) if version else None
        unified = bool(_UNIFIED.search(name))
        found.append(Gpu("NVIDIA", name, None, None, shared_memory=unified, driver=driver, source=path))
    return tuple(found)


def _by_device_tree(source: Source) -> tuple[Gpu, ...]:
    """A Jetson, whose GPU is part of the chip: NVML knows it on newer systems only."""
    compatible = (source.text("/proc/device-tree/compatible", 1024) or "").replace("\0", "\n")
    if not re.search(r"^nvidia,tegra\d{3}", compatible, re.M):
        return ()
    board = source.text("/proc/device-tree/model", 128) or "NVIDIA Tegra"
    release = re.search(r"R(\d{2}).{0,40}?REVISION: ([\d.]{1,10})", source.text("/etc/nv_tegra_release", 512) or "")
    driver = f"L4T {release.group(1)}.{release.group(2)}" if release else None
    return (
        Gpu(
            vendor="NVIDIA",
            name=board,
            vram_total_bytes=None,
            vram_free_bytes=None,
            shared_memory=True,
            bandwidth_gbps=chips.board_gbps(board),
            driver=driver,
            source="/proc/device-tree/compatible",
        ),
    )
