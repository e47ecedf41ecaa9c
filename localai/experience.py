"""What running models here has taught, kept for each machine: calibration and tuned settings, in `experience.json`.

Beside `measurements.json`, and as that: what cannot be read is as if nothing had been learnt. Corrections come from the
runs that `past_runs` keeps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from localai import json_file, measurement, past_runs, settings
from localai.domain.machine import Machine
from localai.domain.rates import Calibration, DeviceRates, Experience, Setting, Tuned, Tuning
from localai.tensor_types import KV_TYPES

METHOD = 4  # another way of measuring makes what is kept that of another machine
_LARGEST_FILE_BYTES = 4_000_000
_MOST_MACHINES = 50
_MOST_TUNINGS = 50


def recalled(machine: Machine) -> Machine:
    """The machine with everything that was measured and learnt on it before."""
    machine = measurement.recalled(machine)
    kept = _of(machine, _read())
    calibration = _calibration(kept.get("calibration"))
    tunings = kept.get("tunings")
    found = tuple(each for each in map(_tuning, tunings if isinstance(tunings, list) else ()) if each is not None)
    corrections = past_runs.corrections(machine, calibration.made_at if calibration else 0)
    return replace(machine, experience=Experience(calibration, found, corrections))


def keep_calibration(machine: Machine, calibration: Calibration) -> bool:
    """Keep it for this machine; False where it cannot be written."""

    def add(kept: dict[str, Any]) -> None:
        kept["calibration"] = asdict(calibration)

    return _change(machine, add)


def keep_tuning(machine: Machine, tuning: Tuning) -> bool:
    """Keep what was found for a kind of model, in place of what was known of it; False where it cannot be written."""

    def add(kept: dict[str, Any]) -> None:
        before = kept.get("tunings")
        known = [each for each in map(_tuning, before if isinstance(before, list) else ()) if each is not None]
        others = [each for each in known if not same_kind(each, tuning)]
        kept["tunings"] = [asdict(each) for each in [*others, tuning][-_MOST_TUNINGS:]]

    return _change(machine, add)


def same_kind(one: Tuning, other: Tuning) -> bool:
    """Whether the two are of models of the same kind and size, on the same device."""
    return (one.architecture, one.kind, one.params, one.gpu) == (
        other.architecture,
        other.kind,
        other.params,
        other.gpu,
    )


def _file() -> Path:
    return settings.folders().data / "experience.json"


def _identity(machine: Machine) -> str:
    return f"{measurement.identity(machine)}|engine {machine.engine.version}|{METHOD}"


def _of(machine: Machine, content: dict[str, Any]) -> dict[str, Any]:
    found = content.get(_identity(machine))
    return found if isinstance(found, dict) else {}


def _change(machine: Machine, change: Callable[[dict[str, Any]], None]) -> bool:
    """Change what is kept of this machine, one process at a time; False where it cannot be written."""
    from filelock import FileLock

    path = _file()
    try:
        settings.private_folder(path.parent)
        with FileLock(path.with_suffix(".lock"), timeout=10, mode=0o600):
            content = _read()
            name = _identity(machine)
            own = _of(machine, content)
            change(own)
            others = [(each, known) for each, known in content.items() if each != name]
            whole = dict([*others[-_MOST_MACHINES:], (name, own)])
            settings.write_atomically(path, (json.dumps(whole, indent=1) + "\n").encode())
    except OSError:  # TimeoutError is one
        return False
    return True


def _read() -> dict[str, Any]:
    try:
        return json_file.read(_file(), _LARGEST_FILE_BYTES)
    except (OSError, ValueError):
        return {}


# ------------------------------------------------------------------------------------ from JSON, checked


def _calibration(found: object) -> Calibration | None:
    try:
        return None if not isinstance(found, dict) else Calibration(
            _rates(found["cpu"]), None if found["gpu"] is None else _rates(found["gpu"]), int(_number(found["made_at"]))
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _rates(found: dict[str, Any]) -> DeviceRates:
    def by_kind(name: str) -> tuple[tuple[str, float], ...]:
        pairs = tuple((str(kind), _number(value)) for kind, value in found[name])
        if not pairs:
            raise ValueError("no rates")
        return pairs

    lengths = sorted((int(_number(length)), _number(seconds)) for length, seconds in found["attention_decode"])
    if lengths and lengths[0][0] < 1:
        raise ValueError("a head of no numbers")
    of_experts = (found["expert_layer_s"], found["expert_prompt"])
    return DeviceRates(
        by_kind("decode"),
        by_kind("prompt"),
        by_kind("row"),
        tuple(lengths),
        *(_number(found[name]) for name in ("number_s", "norm_s", "kept_s", "attention_prompt_s")),
        *(None if each is None else _number(each) for each in of_experts),
    )


def _tuning(found: object) -> Tuning | None:
    try:
        if not isinstance(found, dict):
            return None
        settings_ = tuple(_tuned(each) for each in found["settings"])
        if not settings_:
            return None
        return Tuning(
            str(found["architecture"]), str(found["kind"]), int(_number(found["params"])), bool(found["gpu"]), settings_
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _tuned(found: dict[str, Any]) -> Tuned:
    how = found["setting"]
    threads, ubatch, kv_type = int(_number(how["threads"])), int(_number(how["ubatch"])), str(how["kv_type"])
    if not (1 <= threads <= 4096 and 1 <= ubatch <= 8192 and kv_type in KV_TYPES):
        raise ValueError("a setting out of bounds")
    setting = Setting(bool(how["repack"]), bool(how["flash"]), threads, ubatch, kv_type)
    names = ("prompt_s", "prompt_slope_s", "decode_s", "decode_slope_s")
    return Tuned(setting, *(_number(found[name]) for name in names))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is expected")
    number = float(value)
    if not (math.isfinite(number) and 0 <= number < 1e15):
        raise ValueError("out of bounds")
    return number
