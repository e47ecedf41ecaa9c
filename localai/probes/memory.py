"""RAM that is really there: the system's figures, and under Linux what the control groups allow of them.

Available = min(MemAvailable, limit − usage) over the process's control group and all its parents, v1 and v2; file cache
that can be dropped (`inactive_file`) does not count as usage, as in `docker stats` and the kubelet's working set. And
over what `ulimit -v` leaves: a process that has no more addresses dies, or is refused its memory, all the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localai.domain.machine import SystemMemory
from localai.domain.units import KIB, MIB
from localai.probes import cgroups
from localai.probes.source import Source


def memory(source: Source) -> SystemMemory | None:
    """The memory of the machine behind `source`, None where it cannot be found out."""
    match source.system:
        case "Linux" | "Android":
            return _linux(source) or _counted(source)
        case "Darwin":
            return _macos(source) or _counted(source)
    return _counted(source)


def _counted(source: Source) -> SystemMemory | None:
    """What psutil counts, for systems (Windows) without a way of their own here."""
    figures = source.figures()
    total = figures.get("memory_total", 0)
    if total <= 0:
        return None
    available = min(max(figures.get("memory_available", 0), 0), total)
    return SystemMemory(total, available, None, max(figures.get("swap_total", 0), 0), "psutil")


# -------------------------------------------------------------------------------------------------------- Linux


def _linux(source: Source) -> SystemMemory | None:
    figures = {
        name: int(number) * KIB
        for name, number in re.findall(r"^(\w+):\s+(\d{1,15}) kB", source.text("/proc/meminfo") or "", re.M)
    }
    total = figures.get("MemTotal")
    if not total:
        return None
    available = figures.get("MemAvailable")
    origin = "/proc/meminfo"
    if available is None:  # kernels before 3.14
        available = sum(figures.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    available = min(available, total)
    limit = None
    for level in _levels(source):
        if level.limit >= total:
            continue
        limit = level.limit if limit is None else min(limit, level.limit)
        if level.available < available:
            available, origin = level.available, level.path
    if limit is not None and origin == "/proc/meminfo":
        origin = "/proc/meminfo, within the control group's limit"
    return SystemMemory(total, available, limit, figures.get("SwapTotal", 0), origin)


@dataclass(frozen=True, slots=True)
class _Level:
    """One control group, or this process itself, with a limit."""

    path: str
    limit: int
    available: int


def _levels(source: Source) -> Iterator[_Level]:
    """What `ulimit -v` leaves, and every limited control group from the own one up to the root, of both versions."""
    if level := _addresses(source):
        yield level
    for version, folder in cgroups.folders(source, "memory"):
        if level := (_level_v2 if version == 2 else _level_v1)(source, folder):
            yield level


def _addresses(source: Source) -> _Level | None:
    limit = re.search(r"^Max address space +(\d{1,19}) ", source.text("/proc/self/limits") or "", re.M)
    used = re.search(r"^VmSize:\s+(\d{1,15}) kB$", source.text("/proc/self/status") or "", re.M)
    if not limit:
        return None
    total = int(limit.group(1))
    return _Level("ulimit -v", total, max(total - (int(used.group(1)) * KIB if used else 0), 0))


def _level_v2(source: Source, folder: str) -> _Level | None:
    limit = source.integer(f"{folder}/memory.max")  # "max" is no number: no limit
    if limit is None:
        return None
    usage = source.integer(f"{folder}/memory.current") or 0
    cache = _statistic(source, folder, "inactive_file")
    return _Level(f"{folder}/memory.max", limit, max(limit - max(usage - cache, 0), 0))


def _level_v1(source: Source, folder: str) -> _Level | None:
    limits = [source.integer(f"{folder}/memory.limit_in_bytes")]
    # The tightest limit above, also where a container cannot see its parents.
    limits.append(_statistic(source, folder, "hierarchical_memory_limit") or None)
    known = [limit for limit in limits if limit is not None]
    if not known:
        return None
    usage = source.integer(f"{folder}/memory.usage_in_bytes") or 0
    cache = _statistic(source, folder, "total_inactive_file")
    limit = min(known)
    return _Level(f"{folder}/memory.limit_in_bytes", limit, max(limit - max(usage - cache, 0), 0))


def _statistic(source: Source, folder: str, name: str) -> int:
    found = re.search(rf"^{name} (\d{{1,19}})$", source.text(f"{folder}/memory.stat") or "", re.M)
    return int(found.group(1)) if found else 0


# -------------------------------------------------------------------------------------------------------- macOS


def _macos(source: Source) -> SystemMemory | None:
    """`hw.memsize`; available are the pages that macOS can give out without swapping (as psutil counts them)."""
    try:
        total = int(source.output("sysctl", "-n", "hw.memsize") or "")
    except ValueError:
        return None
    pages = source.output("vm_stat") or ""
    size = re.search(r"page size of (\d{1,9}) bytes", pages)
    counts = {name: int(count) for name, count in re.findall(r"^Pages ([\w -]+):\s+(\d{1,15})\.", pages, re.M)}
    if not size or "free" not in counts or not 0 < total < 2**63:
        return None
    available = (counts["free"] + counts.get("inactive", 0)) * int(size.group(1))
    swap = re.search(r"total = (\d{1,9}(?:\.\d+)?)M", source.output("sysctl", "-n", "vm.swapusage") or "")
    swap_bytes = int(float(swap.group(1)) * MIB) if swap else 0
    return SystemMemory(total, min(available, total), None, swap_bytes, "vm_stat")
