"""Bandwidth and compute of this machine: measured once, kept, and measured again when the machine is another.

Kept in `measurements.json` beside the records, a figure for each machine that uses the folder (a home directory may be
shared); what cannot be read or written there is as if nothing had been measured.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from localai import json_file, settings
from localai.domain.machine import Bandwidth, Compute, Machine
from localai.domain.units import GIB
from localai.probes import bandwidth
from localai.probes.source import Source

MEASURED = "measured"
ATTEMPTS = 3
AGAIN_AFTER_S = 3600  # what was measured on a machine that stays busy is tried again once an hour
METHOD = 3  # another way of measuring makes the kept figures those of another machine
_MOST_MACHINES = 50


def recalled(machine: Machine) -> Machine:
    """The machine with the figures that were measured on it before, if any."""
    found = _read().get(identity(machine))
    return _with(machine, found) if isinstance(found, dict) else machine


def _with(machine: Machine, figures: dict[str, Any]) -> Machine:
    gbps, gflops = _positive(figures.get("gbps")), _positive(figures.get("gflops"))
    if gbps is not None:
        machine = replace(machine, bandwidth=Bandwidth(gbps, MEASURED))
    if gflops is not None:
        machine = replace(machine, compute=Compute(gflops, MEASURED))
    return machine


def measured(machine: Machine, announce: Callable[[str], None], again: bool = False) -> Machine:
    """The machine with measured figures: those kept, or (`again`, or the first time) new ones, which take two seconds.

    `announce` is told before it begins. Where memory is too short to measure, the figures stay as they are, and
    `announce` is told so if measuring was asked for (`again`). What was first measured while other programs had the
    processor is measured again the next times, `ATTEMPTS` in all and then once an hour, and the best is kept
    until it is quiet: what is measured then holds.
    """
    name = identity(machine)
    before = _read().get(name)
    before = before if isinstance(before, dict) else {}
    given = before.get("attempts")
    attempts = given if isinstance(given, int) else ATTEMPTS
    now = int(time.time())
    if not again and machine.bandwidth.source == MEASURED and attempts >= ATTEMPTS and not _due(before, now):
        return machine
    cores = machine.cpu.physical_cores or max(1, machine.cpu.logical_cores // 2)
    l3_bytes = bandwidth.l3_bytes(Source())
    if bandwidth.buffer_bytes(machine.memory.available_bytes, l3_bytes) is None:
        if again:
            announce("Not measured: too little memory is free to read past the processor's caches")
        return machine
    announce("Measuring this machine's memory bandwidth and compute, once (about 2 seconds)")
    found = bandwidth.measure(cores, machine.memory.available_bytes, l3_bytes)
    if found.gbps is None:
        return machine
    figures: dict[str, Any] = {"gbps": found.gbps, "gflops": found.gflops}
    if not again:
        for each in figures if not found.quiet else ():
            figures[each] = max(figures[each] or 0, _positive(before.get(each)) or 0) or None
        figures["attempts"] = ATTEMPTS if found.quiet else (attempts + 1 if before else 1)
    _keep(name, {**figures, "quiet": again or found.quiet, "measured_at": now})
    return _with(machine, figures)


def _due(kept: dict[str, Any], now: int) -> bool:
    """Whether what was measured on a busy machine is old enough to be tried again."""
    at = kept.get("measured_at")
    return kept.get("quiet") is False and isinstance(at, int) and not 0 <= now - at < AGAIN_AFTER_S


def identity(machine: Machine) -> str:
    """What makes a machine the one that was measured: its processor and its memory (to a quarter of a GiB)."""
    cpu = machine.cpu
    ram = round(machine.memory.total_bytes / GIB * 4) / 4
    return f"{cpu.name}|{cpu.architecture}|{cpu.physical_cores}|{cpu.logical_cores}|{ram:g} GiB|method {METHOD}"


def _file() -> Path:
    return settings.folders().data / "measurements.json"


def _read() -> dict[str, Any]:
    try:
        return json_file.read(_file())
    except (OSError, ValueError):
        return {}


def _keep(name: str, figures: dict[str, Any]) -> None:
    path = _file()
    others = [(each, known) for each, known in _read().items() if each != name]
    content = dict([*others[-_MOST_MACHINES:], (name, figures)])
    try:
        settings.private_folder(path.parent)
        settings.write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError:
        return  # measured again the next time; no reason to fail


def _positive(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return round(number, 1) if math.isfinite(number) and 0 < number < 1e7 else None
