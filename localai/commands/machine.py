"""`localai hardware` and `localai recommend`: what a machine is, and what runs on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.options import JsonFlag
from localai.domain.machine import Gpu, Machine, Npu, Tier
from localai.domain.plan import SpeedRange
from localai.errors import NotFound, UsageError
from localai.languages import name_of
from localai.tiers import tier

if TYPE_CHECKING:
    from localai.recommend import Recommendation


def hardware(
    list_machines: Annotated[
        bool, typer.Option("--machines", help="List the machines that recommend --machine knows.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure memory bandwidth and compute anew (about 2 seconds).")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what this machine has, and what the engine uses."""
    if list_machines:
        show_machines(as_json)
        return
    from localai import hardware as service

    machine = service.detect()
    if measure:
        from localai import measurement

        machine = measurement.measured(machine, render.note, again=True)
    row = tier(machine)
    if as_json:
        render.json_object(schema.machine(machine, row))
        return
    render.out(render.facts(machine_facts(machine, row)))


def machine_facts(machine: Machine, tier: Tier) -> list[tuple[str, str]]:
    """The lines of `localai hardware`."""
    cpu, ram, engine = machine.cpu, machine.memory, machine.engine
    cores = f"{cpu.physical_cores} cores, " if cpu.physical_cores else ""
    usable = f"; {cpu.usable_cores} usable here" if cpu.usable_cores else ""
    limit = f", limited to {render.memory(ram.limit_bytes)} (cgroup)" if ram.limit_bytes is not None else ""
    swap = f", swap {render.memory(ram.swap_total_bytes)}" if ram.swap_total_bytes else ", no swap"
    if ram.swap_total_bytes is None:
        swap = ""
    origin = f" ({ram.source})" if ram.source else ""
    size = f"{render.memory(ram.total_bytes)}, {render.memory(ram.available_bytes)} available"
    gbps, gflops = machine.bandwidth.gbps, machine.compute.gflops
    speed = f"{gbps:.0f} GB/s, " if gbps else ""
    unmeasured = "" if machine.bandwidth.source == "measured" else "; --measure measures it"
    lines = [
        ("System", f"{machine.os}, {cpu.architecture}"),
        ("CPU", f"{cpu.name} ({cores}{cpu.logical_cores} threads{usable})"),
        ("Memory", f"{size}{limit}{swap}{origin}" if ram.total_bytes else "unknown"),
        ("Bandwidth", f"{speed}{machine.bandwidth.source}{unmeasured}"),
        *([("Compute", f"{gflops:.0f} GFLOP/s, {machine.compute.source}")] if gflops else []),
        *[("GPU", gpu_text(gpu)) for gpu in machine.gpus or ()],
        *([] if machine.gpus else [("GPU", "none found")]),
        *[("NPU", npu_text(npu)) for npu in machine.npus],
        ("Disk", f"{render.size(machine.disk.free_bytes)} free for models in {machine.disk.path}"),
    ]
    if engine.version is None:
        lines.append(("Engine", "llama-cpp-python is not installed or does not load"))
    else:
        offload = "can use the GPU" if engine.gpu_offload else "runs on the CPU only"
        lines.append(("Engine", f"llama-cpp-python {engine.version}: {', '.join(engine.backends)}; {offload}"))
    lines.append(("Tier", f"{tier.size} models: {'; '.join(tier.tasks)}"))
    lines += [("Note", note) for note in machine.notes]
    return lines


def npu_text(npu: Npu) -> str:
    tops = f"{npu.tops:g} TOPS" if npu.tops is not None else "TOPS unknown"
    driver = f"driver {npu.driver}" if npu.driver else "no driver seen"
    return f"{npu.name}: {tops}, {driver}; {'used' if npu.usable_by_engine else 'not usable'} by the installed engine"


def gpu_text(gpu: Gpu) -> str:
    if gpu.shared_memory:
        part = gpu.shared_total_bytes or (gpu.vram_total_bytes if gpu.vendor == "Apple" else None)
        memory = "shares the system's memory" + (f", at most {render.memory(part)} of it" if part else "")
    else:
        free = f", {render.memory(gpu.vram_free_bytes)} free" if gpu.vram_free_bytes is not None else ""
        memory = f"{render.memory(gpu.vram_total_bytes)}{free}"
    speed = f", {gpu.bandwidth_gbps:.0f} GB/s" if gpu.bandwidth_gbps else ""
    origin = f" ({gpu.source})" if gpu.source else ""
    used = "used" if gpu.usable_by_engine else "not usable"
    return f"{gpu.name}: {memory}{speed}; {used} by the installed engine{origin}"


def show_machines(as_json: bool) -> None:
    """`hardware --machines`: the machines that are known, each by the name that `--machine` takes."""
    from localai import machines

    found = machines.listed()
    if as_json:
        render.json_object({"machines": [schema.listed_machine(each) for each in found]})
        return
    rows = [
        (
            each.id,
            render.memory(each.machine.memory.total_bytes),
            tier(each.machine).size,
            ", ".join(gpu.name for gpu in each.machine.gpus if gpu.usable_by_engine) or "-",
        )
        for each in found
    ]
    render.out(render.columns(("NAME", "RAM", "TIER", "GPU"), rows, right=(1,), fold=True))
    render.out()
    render.out(f"Next: localai recommend --machine {found[0].id}")


def recommend(
    task: Annotated[
        str | None, typer.Option("--task", metavar="TASK", help="What it is for: chat, code, translation, ...")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", "-c", metavar="TOKENS", min=256, help="Tokens of context it must hold.")
    ] = None,
    min_speed: Annotated[
        float | None, typer.Option("--min-speed", metavar="N", min=0, help="Tokens per second it must at least reach.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Rows to show.")] = 10,
    language: Annotated[
        str | None, typer.Option("--language", metavar="LANGUAGE", help="Prefer models that speak it: en, fr, ...")
    ] = None,
    machine_name: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="NAME|FILE",
            help="For another machine: a name of hardware --machines, or a file of hardware --json.",
        ),
    ] = None,
    ram: Annotated[
        float | None, typer.Option("--ram", metavar="GIB", help="For another machine: its RAM, in total.")
    ] = None,
    vram: Annotated[
        float | None, typer.Option("--vram", metavar="GIB", help="For another machine: its VRAM, in total.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", metavar="GB/S", help="For another machine: its memory bandwidth.")
    ] = None,
    allow_low_bit: Annotated[
        bool, typer.Option("--allow-low-bit", help="Also quantizations under 4 bits, which hallucinate more.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each row stands where it does.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Rank the models that run well here, or elsewhere. With memory and speed, before any download."""
    from localai import catalog, library, recommend

    if min_speed is not None and not math.isfinite(min_speed):
        raise UsageError(f"--min-speed {min_speed:g} is no speed", "give tokens per second, such as 10")
    recommend.check(task, language)  # before this machine is measured
    elsewhere = another_machine(machine_name, ram, vram, bandwidth)
    machine = elsewhere or this_machine()
    rows = recommend.rank(
        machine,
        catalog.load(),
        task=task,
        context=context,
        min_speed=min_speed,
        limit=limit,
        language=language,
        allow_low_bit=allow_low_bit,
    )
    if not rows:
        where = "there" if elsewhere else "here"
        raise NotFound(
            f"no model of the catalog meets all of that {where}", "ask for less: --context, --min-speed, --task"
        )
    installed = set() if elsewhere else {(each.model, each.quantization) for each in library.installed()}
    row = tier(machine)
    if as_json:
        found = [schema.recommendation(each, (each.model, each.quantization) in installed) for each in rows]
        render.json_object(
            {"machine": schema.machine(machine, row), "tier": schema.tier_row(row), "recommendations": found}
        )
        return
    show_recommendations(machine, row, rows, installed, elsewhere is not None, marked_language(language))
    if explain:
        explain_rows(rows)


def this_machine() -> Machine:
    """This machine; its bandwidth and compute are measured the first time that something is recommended."""
    from localai import hardware as service
    from localai import measurement

    return measurement.measured(service.detect(), render.note)


def another_machine(name: str | None, ram: float | None, vram: float | None, bandwidth: float | None) -> Machine | None:
    """The machine that `--machine` or `--ram` describe; None where neither is given."""
    from localai import machines

    if name is not None:
        if not (ram is None and vram is None and bandwidth is None):
            raise UsageError(
                "--machine and --ram/--vram/--bandwidth describe one machine each", "give --machine or --ram, not both"
            )
        return machines.named(name)
    if ram is None:
        if vram is not None or bandwidth is not None:
            raise UsageError("--vram and --bandwidth describe another machine, which needs --ram too", "add --ram GIB")
        return None
    return machines.hypothetical(ram, vram or 0.0, bandwidth)


def marked_language(asked: str | None) -> str:
    """The code of the language whose speakers are marked: the one asked for, else the user's, else French."""
    from localai import languages, presets

    own = presets.locale_language()
    return languages.code_of(asked) if asked is not None else own if own in languages.CODES - {"en"} else "fr"


def show_recommendations(
    machine: Machine,
    tier: Tier,
    rows: tuple[Recommendation, ...],
    installed: set[tuple[str, str]],
    elsewhere: bool,
    language: str,
) -> None:
    """The table, and under it what the marks mean and what to type next."""
    render.out(render.facts([("Tier", f"{tier.size} models: {'; '.join(tier.tasks)}")]))
    for note in machine.notes:
        render.out(render.facts([("Note", note)]))
    render.out()
    reads = rows[0].tasks == ("embedding",)
    render.out(recommendation_table(rows, installed, language, reads))
    render.out()
    if any(row.starter for row in rows):
        render.out("* a light one to start with")
    if installed & {(row.model, row.quantization) for row in rows}:
        render.out("+ installed")
    if any(language in row.languages for row in rows):
        render.out(f"^ made to speak {name_of(language)}")
    for warning in dict.fromkeys(warning for row in rows for warning in row.warnings):
        ranks = ", ".join(str(row.rank) for row in rows if warning in row.warnings)
        render.out(render.paragraph(f"! {ranks}: {warning}", indent="  "))
    if not any(row.at_ease for row in rows):
        render.out("! none of these runs at ease there" if elsewhere else "! none of these runs at ease here")
    if said := predicted_by([rows[0].prompt_tps if reads else rows[0].decode_tps], reads):
        render.out(said)
        if not (elsewhere or machine.experience.calibration):
            render.out("localai bench --calibrate narrows them.")
    render.out(f"Next{', on that machine' if elsewhere else ''}: localai pull {rows[0].model}")


# What a row says that can be done without where the terminal is narrow, in this order.
_LESS_NEEDED = ("READS/S", "CONTEXT", "ON", "DOWNLOAD")


def recommendation_table(
    rows: tuple[Recommendation, ...], installed: set[tuple[str, str]], language: str, reads: bool
) -> str:
    """The rows in as many columns as the terminal has room for. Models that write nothing (`reads`) are told by how
    fast they read.
    """
    columns = {
        "": [str(row.rank) for row in rows],
        "MODEL": [
            row.model
            + ("*" if row.starter else "")
            + ("+" if (row.model, row.quantization) in installed else "")
            + ("^" if language in row.languages else "")
            for row in rows
        ],
        "QUANT": [row.quantization for row in rows],
        "DOWNLOAD": [render.size(row.download_bytes) for row in rows],
        "MEMORY": [render.memory(row.memory.total_bytes) for row in rows],
        "CONTEXT": [f"{row.context:,}" for row in rows],
        "ON": [str(row.placement) for row in rows],
        "TOKENS/S": [speed_text(row.decode_tps) for row in rows],
        "READS/S": [speed_text(row.prompt_tps) for row in rows],
    }
    if reads:
        del columns["TOKENS/S"]
    left = ("MODEL", "QUANT", "ON")

    def table() -> str:
        right = [number for number, name in enumerate(columns) if name not in left]
        return render.columns(tuple(columns), list(zip(*columns.values(), strict=True)), right)

    for name in _LESS_NEEDED:
        if max(map(render.cells, table().split("\n"))) > render.width() and not (reads and name == "READS/S"):
            del columns[name]
    return table()


def explain_rows(rows: tuple[Recommendation, ...]) -> None:
    """Under the table, for each row: its score, and every factor of it in words."""
    render.out()
    render.out("Why: the score is the product of these factors (docs/recommending.md).")
    for row in rows:
        render.out()
        render.out(f"{row.rank} {row.model} {row.quantization}: {row.score.total:.3f}")
        table = [(each.name, f"{each.value:.3f}", each.why) for each in row.score.factors]
        render.out(render.columns(("  FACTOR", "VALUE", "WHY"), [("  " + a, b, c) for a, b, c in table], fold=True))


def predicted_by(speeds: Iterable[SpeedRange | None], reads: bool = False) -> str:
    """What the speeds of a table are predicted by, in a sentence; "" where there are none."""
    bases = dict.fromkeys(speed.basis for speed in speeds if speed is not None)
    what = "Tokens that are read per second" if reads else "Speeds"
    return f"{what} are predicted ({' / '.join(bases)})." if bases else ""


def speed_text(speed: SpeedRange | None) -> str:
    if speed is None:
        return "unknown"
    low, high = (f"{value:.0f}" if value >= 9.5 else f"{value:.1f}" for value in (speed.low, speed.high))
    return low if low == high else f"{low}-{high}"
