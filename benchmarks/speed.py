"""Predicted against measured speed, on models of real shapes with random weights; and what tuning is worth.

    python benchmarks/speed.py                 prompt and decode speed: calibrates, measures, prints the table
    python benchmarks/speed.py --tuning        tuned settings over llama.cpp's own, on a 0.6B shape
    ... --write                                puts the table into docs/accuracy.md
    ... --json FILE                            writes the figures

Each row is measured in llama.cpp itself (bare `llama_decode` calls); beside it stand the prediction of the calibrated
machine, the range without calibration, and what two naive rules give: memory bandwidth over file size + 20 %, and over
parameters × bits; for prompts the measured matrix product over 2 × parameters. The memory of a virtual machine is as
quick as its neighbours let it be, nearly twice as quick in one quarter of an hour as in another: so each file is
measured before and after a calibration of its own, and the mean of the two loads counts.
Models are made once, in --cache (a temporary folder), and removed again unless --keep. On a machine that others use
too, --busy takes one thread and the processor's own time of it, for calibration and measurement alike.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import TypeVar

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import random_models  # noqa: E402

from localai import calibrating, estimate, gguf, hardware, measurement, quantization, shapes, speed, tuning  # noqa: E402
from localai.buffers import UBATCH  # noqa: E402
from localai.domain.machine import Compute, Machine  # noqa: E402
from localai.domain.plan import MemoryNeed, Placement, Plan, SpeedRange  # noqa: E402
from localai.domain.rates import Experience, Setting  # noqa: E402
from localai.engine.stopwatch import Stopwatch  # noqa: E402

Found = TypeVar("Found")
MODELS = ("smollm2-135m", "gemma-3-270m", "qwen2.5-0.5b", "qwen3-0.6b", "llama-3.2-1b", "smollm3-3b", "qwen3-4b")
QUANTIZATIONS = ("Q4_K_M", "Q8_0", "Q4_0")
TUNED_MODEL = "qwen3-0.6b"
PROMPT, DEPTH, WRITTEN = 512, 1024, 16
REPETITIONS = 2
PAGE = ROOT / "docs" / "accuracy.md"
TARGET = 0.15


@dataclass(frozen=True)
class Row:
    """One speed: measured, as the calibrated machine predicts it, without calibration, and by two naive rules."""

    model: str
    quant: str
    work: str
    depth: int
    measured_tps: float
    calibrated: SpeedRange
    uncalibrated: SpeedRange
    of_size_tps: float
    of_params_tps: float

    def error(self, tps: float) -> float:
        return tps / self.measured_tps - 1

    @property
    def contained(self) -> bool:
        """Whether the range without calibration holds the measured value."""
        return self.uncalibrated.low <= self.measured_tps <= self.uncalibrated.high


def plan(context: int, setting: Setting) -> Plan:
    need = MemoryNeed(0, 0, 0, 0)
    found = Plan(
        context, Placement.CPU, 0, setting.threads, estimate.BATCH, setting.ubatch, setting.kv_type, setting.flash,
        False, need, 0, True, None, None,
    )  # fmt: skip
    return replace(found, repack=setting.repack)


def rows(machine: Machine, cache: Path, names: Sequence[str], keep: bool, clock: Callable[[], float]) -> Iterator[Row]:
    """Every model at every quantization: a prompt, and decoding at two depths."""
    default = Setting(True, True, speed.cores(machine), UBATCH, "f16")
    for name in names:
        files = {quant: random_models.kept(cache, name, quant) for quant in QUANTIZATIONS}
        for quant, path in files.items():
            header = gguf.read_header(path)
            shape, weights = shapes.shape(header), shapes.weights(header)
            before = measured(path, plan(2048, default), clock)
            without = replace(measurement.measured(machine, say, again=True), experience=Experience())
            if clock is thread_time:
                without = replace(without, compute=Compute(None, "not measured"))
            machine = replace(without, experience=Experience(calibrating.calibrate(without, quietly, clock=clock)))
            after = measured(path, plan(2048, default), clock)
            read, write, deep = map(statistics.fmean, zip(before, after, strict=True))
            gbps = (machine.bandwidth.gbps or 0) * 1e9
            bits = (quantization.bits(quant) or 16) / 8 * shape.params
            flop = (machine.compute.gflops or 0) * 1e9 / 2
            for work, depth, tps in (("prompt", 0, read), ("decode", 0, write), ("decode", DEPTH, deep)):
                if work == "prompt":
                    predicted = [speed.prompt_speed(shape, weights, each, tokens=PROMPT) for each in (machine, without)]
                    naive = (flop / shape.params, flop / shape.params)
                else:
                    at = depth + WRITTEN // 2
                    predicted = [speed.decode_speed(shape, weights, each, depth=at) for each in (machine, without)]
                    naive = (gbps / (1.2 * header.file_size), gbps / bits)
                yield Row(name, quant, work, depth, tps, predicted[0], predicted[1], *naive)
            if not keep:
                path.unlink()


def measured(path: Path, how: Plan, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Tokens a second of a prompt, of decoding, and of decoding at a depth: the best of some repetitions.

    Other programs only ever make it slower.
    """
    reads, writes, deep = [], [], []
    with Stopwatch(path, how, clock=clock) as watch:
        watch.write(2)
        watch.read(64)
        for _ in range(REPETITIONS):
            watch.clear()
            writes.append(watch.write(WRITTEN))
            watch.clear()
            reads.append(watch.read(PROMPT))
        watch.read(DEPTH - PROMPT)
        for _ in range(REPETITIONS):
            deep.append(watch.write(WRITTEN))
            watch.back_to(DEPTH)
    return PROMPT / min(reads), WRITTEN / min(writes), WRITTEN / min(deep)


def speed_table(found: Sequence[Row]) -> str:
    lines = [
        "| model | file | work | depth | measured t/s | calibrated | error | without calibration | size + 20 %"
        " | parameters × bits |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        lines.append(
            f"| {row.model} | {row.quant} | {row.work} | {row.depth:,} | {row.measured_tps:.1f}"
            f" | {row.calibrated.mid:.1f} | {row.error(row.calibrated.mid):+.0%}"
            f" | {row.uncalibrated.low:.0f}–{row.uncalibrated.high:.0f}{'' if row.contained else ' (outside)'}"
            f" | {row.error(row.of_size_tps):+.0%} | {row.error(row.of_params_tps):+.0%} |"
        )
    return "\n".join([*lines, "", *speed_summary(found)])


def speed_summary(found: Sequence[Row]) -> list[str]:
    ways: dict[str, Callable[[Row], float]] = {
        "calibrated": lambda row: row.error(row.calibrated.mid),
        "without calibration, the middle": lambda row: row.error(row.uncalibrated.mid),
        "file size + 20 %": lambda row: row.error(row.of_size_tps),
        "parameters × bits": lambda row: row.error(row.of_params_tps),
    }
    lines = ["| way | work | median error | worst |", "|---|---|--:|--:|"]
    for name, error in ways.items():
        for work in ("prompt", "decode"):
            errors = [error(row) for row in found if row.work == work]
            if errors:
                median, worst = statistics.median(map(abs, errors)), max(errors, key=abs)
                lines.append(f"| {name} | {work} | {median:.1%} | {worst:+.0%} |")
    outside = sum(abs(row.error(row.calibrated.mid)) > TARGET for row in found)
    missed = sum(not row.contained for row in found)
    return [
        *lines,
        "",
        f"{len(found)} rows. More than {TARGET:.0%} off after calibration: {outside};"
        f" measured outside the range without calibration: {missed}.",
    ]


# ---------------------------------------------------------------------------------------------------- tuning


@dataclass(frozen=True)
class Cell:
    """One job: the setting that `bench --tune` chose, and its speed over llama.cpp's own, the median of pairs."""

    quant: str
    job: str
    setting: str
    ratio: float


def tuned(machine: Machine, cache: Path, pairs: int, keep: bool) -> Iterator[Cell]:
    """Tune each file, then measure every job anew in alternating pairs, apart from what the choice was made by."""
    from localai import benching, library
    from localai.loading import LoadOptions

    for quant in QUANTIZATIONS:
        path = random_models.kept(cache, TUNED_MODEL, quant)
        prepared = benching.prepare(library.find(str(path)), LoadOptions())
        found, _ = benching.tune(prepared, say)
        default = found.settings[0].setting
        for name, job in tuning.JOBS.items():
            best = tuning.ranked(found, job)
            chosen = best[0][0] if best else default
            ratio = 1.0 if chosen == default else paired(path, chosen, default, job.depth, job.prompt_tokens, pairs)
            yield Cell(quant, name, tuning.difference(default, chosen), ratio)
        if not keep:
            path.unlink()


def until_interrupted(found: Iterator[Found]) -> Iterator[Found]:
    """The rows that there are until Ctrl-C: a table of some of them is better than none."""
    try:
        yield from found
    except KeyboardInterrupt:
        say("interrupted: the table has the rows until here")


def quietly(_: str) -> None:
    """The steps of a calibration are the same each time."""


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def paired(path: Path, chosen: Setting, default: Setting, depth: int, prompt: int, pairs: int) -> float:
    """How many times as fast the one is as the other."""
    context = depth + prompt + 8 * WRITTEN + 64
    with Stopwatch(path, plan(context, chosen)) as one, Stopwatch(path, plan(context, default)) as other:
        ratios = []
        for watch in (one, other):
            watch.read(64)
            watch.back_to(0)
            watch.read(depth)
        for number in range(pairs):
            seconds = {}
            for watch in (one, other) if number % 2 else (other, one):
                seconds[watch] = watch.read(prompt) if prompt else watch.write(WRITTEN)
                watch.back_to(depth)
            ratios.append(seconds[other] / seconds[one])
    return statistics.median(ratios)


def tuning_table(cells: Sequence[Cell]) -> str:
    lines = ["| file | work | chosen | over llama.cpp's own |", "|---|---|---|--:|"]
    lines += [f"| {each.quant} | {each.job} | {each.setting} | {each.ratio:.2f} |" for each in cells]
    return "\n".join([*lines, "", *tuning_summary(cells)])


def tuning_summary(cells: Sequence[Cell]) -> list[str]:
    mean = math.exp(statistics.fmean(math.log(each.ratio) for each in cells))
    least = min(each.ratio for each in cells)
    return [f"Geometric mean {mean:.2f} (to reach: 1.20), the least {least:.2f} (0.98)."]


# --------------------------------------------------------------------------------------------------------- main


def put(name: str, heading: str, text: str) -> None:
    """Put a section into the page, between marks of its own."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text("utf-8")
    if begin not in page:
        page += f"\n{begin}\n{end}\n"
    before, after = page.split(begin)[0], page.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n{heading}\n\n{text}\n{end}{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", action="store_true", help="measure what tuning is worth instead")
    parser.add_argument("--models", default=",".join(MODELS), help="names of tests/model_headers.py")
    parser.add_argument("--pairs", type=int, default=7, help="alternating pairs of --tuning")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "localai-speed")
    parser.add_argument("--busy", action="store_true", help="one thread, by the processor's own time")
    parser.add_argument("--keep", action="store_true", help="keep the models in --cache")
    parser.add_argument("--write", action="store_true", help="put the table into docs/accuracy.md")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    machine = hardware.detect()
    clock = perf_counter
    if options.busy:
        clock = thread_time
        machine = replace(machine, cpu=replace(machine.cpu, usable_cores=1))
    where = f"{machine.cpu.name}, {speed.cores(machine)} threads, llama-cpp-python {machine.engine.version}"
    if options.tuning:
        cells = []
        for cell in until_interrupted(tuned(machine, options.cache, options.pairs, options.keep)):
            cells.append(cell)
            say(f"{cell.quant} {cell.job}: {cell.setting}, {cell.ratio:.2f}")
        text, figures = tuning_table(cells), [asdict(each) for each in cells]
        command, title = "python benchmarks/speed.py --tuning --write", "What tuning is worth"
        name = "tuning"
    else:
        found = []
        for row in until_interrupted(rows(machine, options.cache, options.models.split(","), options.keep, clock)):
            found.append(row)
            off = row.error(row.calibrated.mid)
            print(
                f"  {row.model} {row.quant} {row.work} {row.depth}: {row.measured_tps:.1f}, {off:+.0%}", file=sys.stderr
            )
        text, figures = speed_table(found), [{**asdict(row), "contained": row.contained} for row in found]
        command, title, name = "python benchmarks/speed.py --write", "Speed", "speed"
    print(text)
    busy = " (--busy: one thread's own time, while other programs ran)" if options.busy else ""
    if options.write:
        put(name, f"## {title}\n\nMade by `{command}` on {where}{busy}; how it is reckoned is in speed.md.", text)
    if options.json:
        content = {"schema_version": 1, "machine": where, name: figures}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
