"""Linux's control groups: the folders, of both versions, in which limits on this process may stand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from localai.probes.source import Source


def folders(source: Source, controller: str) -> Iterator[tuple[int, str]]:
    """(version, folder) of this process's group and all its parents, under each mount that can limit `controller`."""
    for line in (source.text("/proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version, mounts = 2, _mounts(source, "cgroup2", controller)
        elif controller in controllers.split(","):
            version, mounts = 1, _mounts(source, "cgroup", controller)
        else:
            continue
        for folder in _levels(mounts, path):
            yield version, folder


def cpu_quota(source: Source) -> float | None:
    """How many processors' time the tightest quota allows; None where there is none."""
    quotas = []
    for version, folder in folders(source, "cpu"):
        if version == 2:
            quota, _, period = (source.text(f"{folder}/cpu.max", 4096) or "").strip().partition(" ")
        else:
            quota = str(source.integer(f"{folder}/cpu.cfs_quota_us"))  # -1: no quota
            period = str(source.integer(f"{folder}/cpu.cfs_period_us"))
        if quota.isdecimal() and period.isdecimal() and len(quota + period) < 32 and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _mounts(source: Source, kind: str, controller: str) -> list[tuple[str, str]]:
    """(mount point, which group is its root) of the hierarchies that can limit `controller`."""
    found = []
    for line in (source.text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) < 5 or tail[0] != kind:
            continue
        if kind == "cgroup" and controller not in tail[-1].split(","):
            continue
        found.append((fields[4], fields[3]))
    if found:
        return found
    if kind == "cgroup":
        return [(f"/sys/fs/cgroup/{controller}", "/")]
    return [("/sys/fs/cgroup", "/"), ("/sys/fs/cgroup/unified", "/")]


def _levels(mounts: list[tuple[str, str]], path: str) -> Iterator[str]:
    """The group's levels under each mount. A container may see its own group as the mount's root, under any name."""
    names = [name for name in path.split("/") if name not in ("", ".", "..")]
    for mount, root in mounts:
        above = [name for name in root.split("/") if name]
        inside = names[len(above) :] if names[: len(above)] == above else []
        for depth in range(min(len(inside), 64), -1, -1):
            yield str(PurePosixPath(mount, *inside[:depth]))
