"""A machine described by the output of `localai hardware --json`, which may come from anywhere and is not trusted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from localai.domain.machine import Bandwidth, Compute, Cpu, Disk, EngineInfo, Gpu, Machine, Npu, SystemMemory
from localai.domain.units import GIB
from localai.errors import NotFound, UsageError
from localai.tiers import kept_by_system, kept_of_vram

T = TypeVar("T")

SCHEMA_VERSION = 1
_LARGEST_FILE_BYTES = 1_000_000
_MOST_BYTES = 2**60  # of memory or disk: more is no machine, and would only overflow later
_MOST_THINGS = 256  # cards, NPUs, backends
_LONGEST_TEXT = 300
_HOW = "on that machine: localai hardware --json > machine.json"

Raw = Mapping[str, Any]


def read(path: Path) -> Machine:
    """The machine that a file of `localai hardware --json` describes.

    Raises NotFound where there is no file, UsageError naming what is wrong with it.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"there is no file {str(path)[:200]}", _HOW) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {path}: {reason}", "check the path and its permissions") from error
    try:
        if len(content) > _LARGEST_FILE_BYTES:
            raise _Wrong("it is too large")
        return _machine(json.loads(content.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Wrong) else "it is not JSON"
        raise UsageError(
            f"{path} does not describe a machine: {reason}",
            _HOW,
        ) from error


class _Wrong(ValueError):
    """What is wrong with the description, in words."""


def _machine(raw: Any) -> Machine:
    if not isinstance(raw, dict):
        raise _Wrong("it is not a JSON object")
    if isinstance(raw.get("machine"), dict) and "memory" not in raw:
        raw = {"schema_version": raw.get("schema_version"), **raw["machine"]}  # that of `recommend --json`
    if raw.get("schema_version", SCHEMA_VERSION) not in (SCHEMA_VERSION, None):
        raise _Wrong(f"its schema_version is not {SCHEMA_VERSION}")
    if "memory" not in raw:
        raise _Wrong('it has no "memory"')
    notes: list[str] = []
    return Machine(
        os=_text(raw, "os") or "another machine",
        cpu=_cpu(_object(raw, "cpu"), notes),
        memory=_memory(_object(raw, "memory"), notes),
        bandwidth=_bandwidth(_object(raw, "bandwidth")),
        disk=_disk(_object(raw, "disk")),
        engine=_engine(_object(raw, "engine")),
        gpus=_each(raw, "gpus", lambda each: _gpu(each, notes)),
        npus=_each(raw, "npus", _npu),
        notes=("the machine as it was when the file was written", *dict.fromkeys(notes)),
        compute=_compute(_object(raw, "compute")),
    )


def _cpu(raw: Raw, notes: list[str]) -> Cpu:
    physical = _count(raw, "cpu.physical_cores")
    logical = _count(raw, "cpu.logical_cores")
    if physical is None and logical is None:
        notes.append("a processor of 4 cores assumed")
        physical = 4
    return Cpu(
        _text(raw, "cpu.name") or "unknown",
        _text(raw, "cpu.architecture") or "unknown",
        physical,
        logical or physical or 1,
        _count(raw, "cpu.usable_cores"),
    )


def _memory(raw: Raw, notes: list[str]) -> SystemMemory:
    total, available = _bytes(raw, "memory.total_bytes"), _bytes(raw, "memory.available_bytes")
    limit = _bytes(raw, "memory.limit_bytes")
    if not total:
        raise _Wrong("memory.total_bytes is missing")
    if available is None:
        available = round(total - kept_by_system(total / GIB) * GIB)
        notes.append("how much of its RAM is free is not said: 1 GiB + 15 % taken as kept, at most 40 %")
    return SystemMemory(
        total,
        min(available, total, limit if limit is not None else total),
        limit,
        _bytes(raw, "memory.swap_total_bytes"),
        _text(raw, "memory.source") or "the file",
    )


def _bandwidth(raw: Raw) -> Bandwidth:
    return Bandwidth(_positive(raw, "bandwidth.gbps", 1e6), _text(raw, "bandwidth.source") or "the file")


def _compute(raw: Raw) -> Compute:
    return Compute(_positive(raw, "compute.gflops", 1e9), _text(raw, "compute.source") or "not measured")


def _disk(raw: Raw) -> Disk:
    return Disk(_text(raw, "disk.path") or "", _bytes(raw, "disk.free_bytes"), _bytes(raw, "disk.total_bytes"))


def _engine(raw: Raw) -> EngineInfo:
    backends = _each(raw, "engine.backends", lambda each: each[:_LONGEST_TEXT] if isinstance(each, str) else None)
    return EngineInfo(_text(raw, "engine.version"), backends, _flag(raw, "engine.gpu_offload"))


def _gpu(raw: Any, notes: list[str]) -> Gpu | None:
    if not isinstance(raw, dict):
        return None
    total, free = _bytes(raw, "gpus.vram_total_bytes"), _bytes(raw, "gpus.vram_free_bytes")
    name, shared = _text(raw, "gpus.name") or "unknown", _flag(raw, "gpus.shared_memory")
    if free is None and total is not None and not shared:
        free = round(total - kept_of_vram(total / GIB) * GIB)
        notes.append(f"how much of the {name}'s memory is free is not said: half a GiB taken as kept, at most a tenth")
    return Gpu(
        _text(raw, "gpus.vendor") or "unknown",
        name,
        total,
        free if free is None or total is None else min(free, total),
        shared_memory=shared,
        usable_by_engine=_flag(raw, "gpus.usable_by_engine"),
        bandwidth_gbps=_positive(raw, "gpus.bandwidth_gbps", 1e6),
        driver=_text(raw, "gpus.driver"),
        source=_text(raw, "gpus.source") or "the file",
        shared_total_bytes=_bytes(raw, "gpus.shared_total_bytes"),
    )


def _npu(raw: Any) -> Npu | None:
    if not isinstance(raw, dict):
        return None
    return Npu(
        _text(raw, "npus.vendor") or "unknown",
        _text(raw, "npus.name") or "unknown",
        _positive(raw, "npus.tops", 1e6),
        usable_by_engine=_flag(raw, "npus.usable_by_engine"),
        source=_text(raw, "npus.source") or "the file",
        driver=_text(raw, "npus.driver"),
    )


# -------------------------------------------------------------------------------- one value each, by its whole name


def _value(raw: Raw, name: str) -> Any:
    return raw.get(name.rpartition(".")[2])


def _object(raw: Raw, name: str) -> Raw:
    found = _value(raw, name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _Wrong(f"{name} is not an object")
    return found


def _each(raw: Raw, name: str, read_one: Callable[[Any], T | None]) -> tuple[T, ...]:
    found = _value(raw, name)
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > _MOST_THINGS:
        raise _Wrong(f"{name} is not a list of at most {_MOST_THINGS}")
    done = []
    for each in found:
        one = read_one(each)
        if one is None:
            raise _Wrong(f"an entry of {name} is of the wrong kind")
        done.append(one)
    return tuple(done)


def _text(raw: Raw, name: str) -> str | None:
    found = _value(raw, name)
    if found is not None and not isinstance(found, str):
        raise _Wrong(f"{name} is not a text")
    return " ".join("".join(c if c.isprintable() else " " for c in found).split())[:_LONGEST_TEXT] if found else None


def _flag(raw: Raw, name: str) -> bool:
    found = _value(raw, name)
    if found is not None and not isinstance(found, bool):
        raise _Wrong(f"{name} is not true or false")
    return bool(found)


def _count(raw: Raw, name: str) -> int | None:
    found = _value(raw, name)
    if found is not None and (type(found) is not int or not 0 < found <= 65_536):
        raise _Wrong(f"{name} is not a number of cores")
    return found


def _bytes(raw: Raw, name: str) -> int | None:
    found = _value(raw, name)
    if found is not None and (type(found) is not int or not 0 <= found <= _MOST_BYTES):
        raise _Wrong(f"{name} is not a number of bytes")
    return found


def _positive(raw: Raw, name: str, most: float) -> float | None:
    found = _value(raw, name)
    if found is None:
        return None
    if type(found) not in (int, float) or not 0 < found <= most or not math.isfinite(found):
        raise _Wrong(f"{name} is not a number above 0")
    return float(found)
