"""Every real run's speed and memory, as predicted and as it was: one line of JSON each, nothing of what was said.

The file is appended to by one write a line and cut in half when it grows too long; a line that a crash left unfinished
is skipped. Nothing here ever fails a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from localai import measurement, settings
from localai.domain.machine import Machine
from localai.domain.rates import Correction
from localai.domain.shape import Shape, Weights

LARGEST_BYTES = 512_000  # about 1,000 runs
LEAST_READ, LEAST_WRITTEN = 64, 16  # tokens under which a speed says little
MOSTLY = 0.98  # of an answer's tokens were evaluated alone: what is guessed ahead tells nothing of the machine
_MOST_USED = 20  # the latest runs of a model that correct its predictions
_SURE_AFTER = 3  # runs


@dataclass(frozen=True, slots=True)
class Run:
    """One run. A speed is None where there is none; `basis` and `calibrated_at` say what predicted it.

    `expected_*` is what the roofline said, before past runs corrected it into `predicted_*`. Every run is kept, but not
    every one tells how fast the machine is: `tells_reading`, `tells_writing`.
    """

    at: float
    machine: str
    command: str
    model: str
    architecture: str
    kind: str
    params: int
    placement: str
    setting: str
    depth: int
    prompt_tokens: int
    answer_tokens: int
    predicted_prompt_tps: float | None
    measured_prompt_tps: float | None
    predicted_decode_tps: float | None
    measured_decode_tps: float | None
    expected_prompt_tps: float | None
    expected_decode_tps: float | None
    basis: str
    calibrated_at: int
    predicted_bytes: int | None
    peak_bytes: int | None
    busy: bool  # other programs had the processor, too: not what the machine can do
    usual: bool  # loaded with llama.cpp's own or tuned settings, which are what is predicted
    guessed_tokens: int  # of the answer, that were guessed ahead
    together: bool  # other answers shared the model meanwhile

    @property
    def tells_reading(self) -> bool:
        """Whether there is a speed of reading that can be compared with the predicted one."""
        return self._comparable and self._enough(self.measured_prompt_tps, self.prompt_tokens, LEAST_READ)

    @property
    def tells_writing(self) -> bool:
        """Whether there is a speed of writing that can be compared with the predicted one."""
        comparable = self._comparable and not self.guessed
        return comparable and self._enough(self.measured_decode_tps, self.answer_tokens, LEAST_WRITTEN)

    @property
    def guessed(self) -> bool:
        """Whether so much of the answer was guessed ahead that its speed is not that of writing."""
        return self.answer_tokens - self.guessed_tokens < MOSTLY * self.answer_tokens

    @property
    def _comparable(self) -> bool:
        return self.usual and not self.busy and not self.together

    def _enough(self, speed: float | None, tokens: int, least: int) -> bool:
        return speed is not None and (tokens >= least or self.command == "bench")  # which is a median of several


def kind_of(weights: Weights) -> str:
    """The tensor type of most of a model's weights, "" where nobody knows."""
    return max(weights.layer_kinds, key=lambda pair: pair[1])[0] if weights.layer_kinds else ""


def keep(run: Run) -> None:
    """Add a run to the file; where that cannot be done, nothing happens."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        _append(b"\n" + json.dumps(asdict(run), allow_nan=False).encode() + b"\n")


def _append(line: bytes) -> None:
    from filelock import FileLock, Timeout

    path = file()
    settings.private_folder(path.parent)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=1, mode=0o600):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line)
                size = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if size > LARGEST_BYTES:
                content = path.read_bytes()[-LARGEST_BYTES // 2 :]
                settings.write_atomically(path, content[content.find(b"\n") :])
    except Timeout:
        return


def file() -> Path:
    return settings.folders().data / "runs.jsonl"


def runs(machine: Machine | None = None) -> tuple[Run, ...]:
    """The runs that are kept, of this machine alone where one is given, the latest last."""
    name = None if machine is None else measurement.identity(machine)
    return tuple(each for each in _lines() if name is None or each.machine == name)


def _lines() -> Iterator[Run]:
    try:
        with file().open("rb") as stream:
            content = stream.read(2 * LARGEST_BYTES)
    except OSError:
        return
    for line in content.split(b"\n"):
        if line.strip():
            try:
                yield _run(json.loads(line))
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                continue


_NUMBERS = {"float": float, "int": int, "float | None": float, "int | None": int}


def _run(found: dict[str, Any]) -> Run:
    """A line as a run, each value of the type it should have. Raises KeyError, TypeError, ValueError."""
    values: dict[str, Any] = {}
    for field in fields(Run):
        value, kind = found[field.name], str(field.type)
        if value is None and kind.endswith("None"):
            values[field.name] = None
        elif kind == "bool":
            values[field.name] = value is True
        elif kind == "str":
            values[field.name] = str(value)[:500]
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(field.name)
        else:
            values[field.name] = _NUMBERS[kind](value)
    return Run(**values)


# ------------------------------------------------------------------------------------------------ what runs teach


def corrections(machine: Machine, calibrated_at: int) -> tuple[Correction, ...]:
    """Measured over expected speed of each model in its latest runs here, predicted by the present calibration."""
    by_model: dict[tuple[str, str, int], list[Run]] = {}
    for each in runs(machine):
        if each.calibrated_at == calibrated_at and (each.tells_reading or each.tells_writing):
            by_model.setdefault((each.architecture, each.kind, each.params), []).append(each)
    found = []
    for (architecture, kind, params), all_of_it in by_model.items():
        latest = all_of_it[-_MOST_USED:]
        decode = _ratios(
            [(each.measured_decode_tps, each.expected_decode_tps) for each in latest if each.tells_writing]
        )
        prompt = _ratios(
            [(each.measured_prompt_tps, each.expected_prompt_tps) for each in latest if each.tells_reading]
        )
        if decode or prompt:
            found.append(
                Correction(
                    architecture,
                    kind,
                    params,
                    median(decode) if decode else None,
                    median(prompt) if prompt else None,
                    spread(decode),
                    spread(prompt),
                    len(latest),
                )
            )
    return tuple(found)


def _ratios(pairs: Sequence[tuple[float | None, float | None]]) -> list[float]:
    return [min(max(real / said, 0.1), 10.0) for real, said in pairs if real and said]


def spread(ratios: Sequence[float]) -> float:
    """How far nine of ten ratios lie from their median, as a share of it; wide where there are few."""
    if not ratios:
        return 1.0
    middle = median(ratios)
    far = sorted(abs(ratio / middle - 1) for ratio in ratios)
    return max(far[min(len(far) - 1, math.ceil(0.9 * len(far)) - 1)], 0.1 if len(far) >= _SURE_AFTER else 0.25)


def for_model(found: Sequence[Correction], shape: Shape, weights: Weights) -> tuple[Correction | None, bool]:
    """What past runs say of a model: its own, and whether so; else its kind's, the nearest in size."""
    kind = kind_of(weights)
    like = [each for each in found if (each.architecture, each.kind) == (shape.architecture, kind)]
    own = next((each for each in like if abs(each.params - shape.params) <= 0.01 * shape.params), None)
    if own is not None:
        return own, True
    near = [each for each in like if 0.25 <= each.params / max(shape.params, 1) <= 4 and each.runs >= _SURE_AFTER]
    nearest = min(near, key=lambda each: abs(math.log(each.params / max(shape.params, 1))), default=None)
    return nearest, False


def peak_bytes() -> int | None:
    """The most memory that this process has held, where the system tells."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def busy(cores: int) -> bool:
    """Whether more wanted to run in the last minute than this program alone."""
    try:
        return os.getloadavg()[0] > cores + 1
    except (OSError, AttributeError):  # Windows has none
        return False


def now() -> float:
    return round(time.time(), 1)
