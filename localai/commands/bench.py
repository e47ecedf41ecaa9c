"""`localai bench`: how fast models are here, measured, kept, and used for every later prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.options import GpuLayersOption, JsonFlag, KvTypeOption, ModelArgument, ThreadsOption
from localai.errors import LocalaiError, NotFound, UsageError
from localai.interrupt import Interrupts

if TYPE_CHECKING:
    from localai.benching import Bench
    from localai.domain.machine import Machine
    from localai.domain.rates import DeviceRates, Tuning
    from localai.library import Found
    from localai.past_runs import Run
    from localai.tuning import Tried


def bench(
    model: ModelArgument = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure this machine with small made-up models, in under a minute."),
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Find the engine's best settings for this model here (some minutes).")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show past runs: what was predicted and what was measured.")
    ] = False,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Rows of --history to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Measure how fast a model is here, and keep it. Later predictions are calibrated by it."""
    if calibrate + tune + history > 1:
        raise UsageError("--calibrate, --tune and --history are three things", "give one of them")
    if calibrate and model:
        raise UsageError("--calibrate measures the machine, with models of its own", "leave the model out")
    if (calibrate or history) and (gpu_layers, threads, kv_type) != (None, None, None):
        raise UsageError("--gpu-layers, --threads and --kv-type are for measuring a model", "leave them out")
    if tune and (threads, kv_type) != (None, None):
        raise UsageError("--tune chooses threads and the type of the cache itself", "leave --threads and --kv-type out")
    if history:
        show_history(model, limit, as_json)
    elif calibrate:
        show_calibration(as_json)
    elif tune:
        tune_model(model, gpu_layers, as_json)
    else:
        measure_model(model, gpu_layers, threads, kv_type, as_json)


def measure_model(
    model: str | None, gpu_layers: int | None, threads: int | None, kv_type: str | None, as_json: bool
) -> None:
    """`bench MODEL`."""
    from localai import benching, library
    from localai.commands import model_loading

    load_options = model_loading.load_options(None, gpu_layers, threads, kv_type)
    prepared = benching.prepare(named(library.find(model)), load_options)
    status = render.Status()
    try:
        with Interrupts() as interrupts:
            found = benching.bench(prepared, status.show, interrupts.requested)
    finally:
        status.clear()
    if as_json:
        render.json_object(schema.bench(found))
        return
    render.out(f"{found.model}: {found.setting.text}, on {found.plan.placement}")
    render.out(render.columns(("", "TOKENS", "DEPTH", "TOKENS/S", "SPREAD", "PREDICTED"), bench_rows(found), (1, 2, 3)))
    render.out()
    render.out(f"Medians of {found.repetitions}. Predictions: {found.rows[0].predicted.basis}.")


def named(found: Found) -> Found:
    """Say which model was taken, where none was named."""
    if found.why:
        render.note(found.why)
    return found


def bench_rows(found: Bench) -> list[tuple[str, ...]]:
    return [
        (
            each.work,
            f"{each.tokens:,}",
            f"{each.depth:,}",
            f"{each.median_tps:.1f}",
            f"{each.low_tps:.1f}-{each.high_tps:.1f}",
            f"{each.predicted.low:.0f}-{each.predicted.high:.0f}",
        )
        for each in found.rows
    ]


def show_calibration(as_json: bool) -> None:
    """`bench --calibrate`."""
    from time import perf_counter

    from localai import calibrating, experience, hardware, past_runs, speed

    machine = hardware.detect()
    cores = speed.cores(machine)
    busy = past_runs.busy(cores)
    status, started = render.Status(), perf_counter()
    try:
        with Interrupts() as interrupts:
            found = calibrating.calibrate(machine, status.show, interrupts.requested)
    finally:
        status.clear()
    busy = busy or past_runs.busy(cores)
    if busy and not calibrating.plausible(found, machine):
        raise LocalaiError(
            "other programs left too little of the processor: the calibration is not kept",
            "calibrate again when the machine is quiet: localai bench --calibrate",
        )
    if not experience.keep_calibration(machine, found):
        render.note("warning: it cannot be kept: the data folder cannot be written")
    seconds = perf_counter() - started
    if busy:
        render.note("warning: other programs have the processor, too: calibrate again when the machine is quiet")
    if as_json:
        render.json_object(schema.calibration(found, seconds))
        return
    for name, rates in (("processor", found.cpu), ("GPU", found.gpu)):
        if rates is not None:
            render.out(f"The {name}, by tensor type:")
            render.out(render.columns(("", "READS GB/S", "PROMPT GFLOP/S", "ROW NS"), rate_rows(rates), (1, 2, 3)))
            render.out(f"Beside its weights and their rows a layer takes {2 * rates.norm_s * 1e6:.0f} µs.")
            render.out()
    render.out(f"Calibrated in {seconds:.0f} s. Speeds are predicted from this now: localai recommend")


def rate_rows(rates: DeviceRates) -> list[tuple[str, ...]]:
    from localai import calibrating

    rows: list[tuple[str, ...]] = []
    for kind, _ in rates.decode:
        gbps, gflops = calibrating.bandwidth_gbps(rates, kind), calibrating.prompt_gflops(rates, kind)
        row = f"{dict(rates.row)[kind] * 1e9:.1f}"
        rows.append((kind, "-" if gbps is None else f"{gbps:.1f}", "-" if gflops is None else f"{gflops:.0f}", row))
    return rows


def tune_model(model: str | None, gpu_layers: int | None, as_json: bool) -> None:
    """`bench --tune MODEL`."""
    from localai import benching, library, past_runs
    from localai.commands import model_loading

    prepared = benching.prepare(named(library.find(model)), model_loading.load_options(None, gpu_layers, None, None))
    busy = past_runs.busy(prepared.plan.threads)
    status = render.Status()
    try:
        with Interrupts() as interrupts:
            found, tried = benching.tune(prepared, lambda text: status.show(f"trying {text}"), interrupts.requested)
    finally:
        status.clear()
    kept = benching.keep(prepared, found)
    if busy or past_runs.busy(prepared.plan.threads):
        render.note("warning: other programs have the processor, too: tune again when the machine is quiet")
    if not kept:
        render.note("warning: it cannot be kept: the data folder cannot be written")
    if as_json:
        render.json_object(schema.tuning(prepared.found.name, found, tried))
        return
    show_tuning(prepared.found.name, found, tried, kept)


def show_tuning(name: str, found: Tuning, tried: tuple[Tried, ...], kept: bool) -> None:
    from localai import tuning

    default = found.settings[0].setting
    render.out(f"{name} ({found.architecture}, {found.kind}), over llama.cpp's own settings:")
    headers = ("SETTING", "PROMPT 512", "DEPTH 0", "DEPTH 1,024", "DEPTH 3,072", "")
    rows = [
        (
            tuning.difference(default, each.setting),
            *(f"{ratio:.2f}" for _, ratio in each.ratios),
            ("kept" if kept else "better") if each.adopted else "",
        )
        for each in tried
    ]
    render.out(render.columns(headers, rows, right=(1, 2, 3, 4)))
    render.out()
    if len(found.settings) == 1:
        render.out("llama.cpp's own settings are best here: nothing changes.")
        return
    for what, job in tuning.JOBS.items():
        best = tuning.ranked(found, job)
        how = f"{tuning.difference(default, best[0][0])}, {best[0][1]:.2f} times as fast" if best else "as it is"
        render.out(f"{what}: {how}")
    if kept:
        render.out("From now on each job takes what suits it, where it fits.")


def show_history(model: str | None, limit: int, as_json: bool) -> None:
    """`bench --history`."""
    from localai import hardware, past_runs

    machine: Machine = hardware.detect()
    runs = past_runs.runs(machine)
    found = (runs if model is None else runs_of(model, runs))[-limit:]
    if as_json:
        render.json_object({"runs": [schema.past_run(each) for each in reversed(found)]})
        return
    if not found:
        of = f" of {model}" if model else ""
        render.out(
            f"No runs{of} are kept yet: localai run, chat and bench keep their speeds (and nothing of the text)."
        )
        return
    headers = ("WHEN", "", "MODEL", "DEPTH", "PROMPT", "PREDICTED", "DECODE", "PREDICTED", "")
    render.out(render.columns(headers, [history_row(each) for each in reversed(found)], right=(3, 4, 5, 6, 7)))
    render.out()
    render.out("Tokens per second. Past runs correct the next predictions for their model and its kind.")
    marks = {mark(each) for each in found}
    for name, means in MARKS.items():
        if name in marks:
            render.out(f"{name}: {means}; it corrects nothing.")


def runs_of(model: str, runs: Sequence[Run]) -> Sequence[Run]:
    """The runs of a model, which need not be here any more. Raises NotFound for a name that nothing was ever run by."""
    from localai import aliases, library, naming

    def named_so(name: str) -> list[Run]:
        return [each for each in runs if each.model.casefold() == name.casefold()]

    if found := named_so(model):
        return found
    try:
        return named_so(library.find(model).name)
    except NotFound:
        is_name = naming.parse(aliases.expand(model)).kind is not naming.Kind.PATH
        if not (is_name and (found := named_so(library.meaning(model).model))):
            raise
        return found


MARKS = {
    "busy": "other programs had the processor, too",
    "shared": "other answers had the model, too",
    "other": "settings that somebody asked for, or that memory forced",
    "guessed": "much of the answer was guessed ahead",
    "short": "too little was read and written to tell",
}


def mark(run: Run) -> str:
    """Why a run says nothing of how fast the machine is, as one of `MARKS`; "" where it does."""
    if run.busy or run.together:
        return "busy" if run.busy else "shared"
    if not run.usual:
        return "other"
    if run.tells_reading or run.tells_writing:
        return ""
    return "guessed" if run.guessed else "short"


def history_row(run: Run) -> tuple[str, ...]:
    from datetime import datetime

    def speed(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}" if value >= 9.5 else f"{value:.1f}"

    return (
        datetime.fromtimestamp(run.at).strftime("%m-%d %H:%M"),
        run.command,
        run.model,
        f"{run.depth:,}",
        speed(run.measured_prompt_tps),
        speed(run.predicted_prompt_tps if run.measured_prompt_tps is not None else None),
        speed(run.measured_decode_tps),
        speed(run.predicted_decode_tps if run.measured_decode_tps is not None else None),
        mark(run),
    )
