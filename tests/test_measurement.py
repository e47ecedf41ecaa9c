"""Bandwidth and compute: measured once, kept, measured again on another machine; and what spec sheets say."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import captured

from localai import measurement, settings
from localai.domain.machine import Bandwidth, Compute, Cpu, Disk, EngineInfo, Machine, SystemMemory
from localai.domain.units import GIB, MIB
from localai.probes import bandwidth
from localai.probes.bandwidth import Measured
from localai.probes.source import Source

MACHINE = Machine(
    os="test",
    cpu=Cpu("Some CPU", "x86_64", 4, 8),
    memory=SystemMemory(16 * GIB, 12 * GIB),
    bandwidth=Bandwidth(51.2, "spec sheet"),
    disk=Disk("/", None),
    engine=EngineInfo(None),
)
FIGURES = (Bandwidth(41.5, "measured"), Compute(230.1, "measured"))


class Measuring:
    """Stands for the measuring itself; remembers how often and with what it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Measured) -> None:
        self.calls: list[tuple[int, int]] = []
        self.answer = answer
        self.said: list[str] = []
        monkeypatch.setattr(bandwidth, "measure", self.measure)

    def measure(self, cores: int, available_bytes: int, l3_bytes: int | None) -> Measured:
        self.calls.append((cores, available_bytes))
        return self.answer


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    return Measuring(monkeypatch, Measured(41.52, 230.06))


def figures(machine: Machine) -> tuple[Bandwidth, Compute]:
    return machine.bandwidth, machine.compute


def test_measured_once_and_kept(measuring: Measuring) -> None:
    assert measurement.recalled(MACHINE) == MACHINE
    first = measurement.measured(MACHINE, measuring.said.append)
    assert figures(first) == FIGURES
    assert figures(measurement.recalled(MACHINE)) == FIGURES
    second = measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    assert figures(second) == FIGURES
    assert measuring.calls == [(4, 12 * GIB)]
    assert len(measuring.said) == 1
    assert "\n" not in measuring.said[0]


def test_measured_anew_when_asked(measuring: Measuring) -> None:
    measurement.measured(MACHINE, measuring.said.append)
    measuring.answer = Measured(50, 300)
    again = measurement.measured(measurement.recalled(MACHINE), measuring.said.append, again=True)
    assert (
        figures(again)
        == figures(measurement.recalled(MACHINE))
        == (Bandwidth(50, "measured"), Compute(300, "measured"))
    )


def test_a_busy_machine_is_measured_again_a_few_times_and_the_best_is_kept(measuring: Measuring) -> None:
    for gbps, gflops in ((20, 90), (30, 60), (25, 70), (99, 99)):
        measuring.answer = Measured(gbps, gflops, quiet=False)
        found = measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    assert len(measuring.calls) == measurement.ATTEMPTS == 3
    assert (found.bandwidth.gbps, found.compute.gflops) == (30, 90)


def test_a_machine_that_stays_busy_is_tried_again_once_an_hour(
    measuring: Measuring, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("localai.measurement.time.time", lambda: now)
    measuring.answer = Measured(20, 90, quiet=False)
    for _ in range(5):
        measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    now += measurement.AGAIN_AFTER_S
    measuring.answer = Measured(41.52, 230.06)
    for _ in range(2):
        found = measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    assert len(measuring.calls) == measurement.ATTEMPTS + 1
    assert figures(found) == FIGURES


def test_once_it_is_quiet_it_is_measured_no_more(measuring: Measuring) -> None:
    measuring.answer = Measured(20, 490, quiet=False)  # too few bytes, and a guess at the rest
    measurement.measured(MACHINE, measuring.said.append)
    measuring.answer = Measured(41.5, 230.1)
    for _ in range(3):
        found = measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    assert figures(found) == FIGURES
    assert len(measuring.calls) == 2


def test_what_was_asked_for_is_final(measuring: Measuring) -> None:
    measuring.answer = Measured(20, 90, quiet=False)
    measurement.measured(MACHINE, measuring.said.append, again=True)
    measurement.measured(measurement.recalled(MACHINE), measuring.said.append)
    assert len(measuring.calls) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(MACHINE, cpu=replace(MACHINE.cpu, name="Another CPU")),
        replace(MACHINE, cpu=replace(MACHINE.cpu, physical_cores=2)),
        replace(MACHINE, memory=replace(MACHINE.memory, total_bytes=32 * GIB)),
    ],
)
def test_another_machine_is_measured_and_the_first_is_not_forgotten(other: Machine, measuring: Measuring) -> None:
    measurement.measured(MACHINE, measuring.said.append)
    assert measurement.recalled(other) == other
    measuring.answer = Measured(10, 20)
    measurement.measured(other, measuring.said.append)
    assert measurement.recalled(other).bandwidth.gbps == 10
    assert measurement.recalled(MACHINE).bandwidth.gbps == 41.5


def test_a_kernel_that_keeps_a_little_more_is_the_same_machine(measuring: Measuring) -> None:
    measurement.measured(MACHINE, measuring.said.append)
    smaller = replace(MACHINE, memory=replace(MACHINE.memory, total_bytes=16 * GIB - 20 * MIB, available_bytes=GIB))
    assert figures(measurement.recalled(smaller)) == FIGURES


def test_too_little_memory_is_not_measured(measuring: Measuring) -> None:
    short = replace(MACHINE, memory=SystemMemory(GIB, 200 * MIB))
    assert measurement.measured(short, measuring.said.append) == short
    assert (measuring.calls, measuring.said) == ([], [])
    assert measurement.measured(short, measuring.said.append, again=True) == short
    assert "too little memory" in measuring.said[0]


def test_what_cannot_be_measured_stays_what_the_spec_sheet_says(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = Measuring(monkeypatch, Measured(None, None))
    assert measurement.measured(MACHINE, measuring.said.append) == MACHINE
    assert measurement.recalled(MACHINE) == MACHINE


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"{", b'{"a": 1}', b"[" * 100_000],
)
def test_a_damaged_file_is_as_if_nothing_were_measured(content: bytes, measuring: Measuring) -> None:
    path = settings.folders().data / "measurements.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert measurement.recalled(MACHINE) == MACHINE
    assert figures(measurement.measured(MACHINE, measuring.said.append)) == FIGURES


@pytest.mark.parametrize("gbps", ["1e400", "-1", "0", '"fast"', "null", "[]", "true", "1" + "0" * 400, "NaN"])
def test_figures_that_no_machine_has_are_not_believed(gbps: str) -> None:
    path = settings.folders().data / "measurements.json"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{{json.dumps(measurement.identity(MACHINE))}: {{"gbps": {gbps}, "gflops": {gbps}}}}}')
    assert measurement.recalled(MACHINE) == MACHINE


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(measuring: Measuring, isolated: Path) -> None:
    (isolated / "localai").write_text("in the way")
    assert figures(measurement.measured(MACHINE, measuring.said.append)) == FIGURES


# ----------------------------------------------------------------------------------------------- measuring itself


def test_reading_and_multiplying_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "READ_SECONDS", 0.02)
    monkeypatch.setattr(bandwidth, "COMPUTE_SECONDS", 0.01)
    monkeypatch.setattr(bandwidth, "SMALLEST_BYTES", 8 * MIB)
    found = bandwidth.measure(2, 4 * GIB, 0)
    assert found.gbps is not None
    assert found.gflops is not None
    assert 0.1 < found.gbps < 100_000
    assert 0.1 < found.gflops < 1_000_000


@pytest.mark.parametrize(("others", "idle", "quiet"), [(0.0, 0.0, True), (9.0, 0.0, False), (9.0, 20.0, False)])
def test_what_others_took_of_the_processor_counts_as_ours(
    others: float, idle: float, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products of a second each, in which this process had one processor: the whole machine, or what was left."""
    seconds, ours = iter((0.0, 0.0, 1.0, 1.0, 2.0, 2.0)), iter((0.0, 2.0))
    cpu = namedtuple("cpu", "user system idle guest")
    readings = iter((cpu(100.0, 1.0, 50.0, 7.0), cpu(102.0 + others, 1.0, 50.0 + idle, 9.0)))
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(bandwidth.time, "process_time", lambda: next(ours))
    monkeypatch.setattr("psutil.cpu_times", lambda: next(readings))
    monkeypatch.setattr(bandwidth, "MATRIX", 8)
    gflops, alone = bandwidth._multiply()
    whole = 2 * 8**3 / 1e9
    assert alone is quiet
    assert gflops == pytest.approx(whole * min((2 + others) / 2, 2) if not idle else whole)


def test_every_core_reads_its_own_part_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass ends only if three threads are inside it together, each with another part."""
    together, read = threading.Barrier(3), numpy.max
    sizes = []

    def meet(part: numpy.ndarray) -> object:
        sizes.append(part.nbytes)
        if len(sizes) <= 3:
            together.wait(timeout=60)
        return read(part)

    monkeypatch.setattr(numpy, "max", meet)
    monkeypatch.setattr(bandwidth, "READ_SECONDS", 0)
    gbps, _ = bandwidth._read(3, 12 * MIB)
    assert gbps > 0
    assert sizes == [4 * MIB] * 6


def test_threads_that_wait_are_not_running() -> None:
    with bandwidth._Team(2) as team:
        seconds, share = team.run(lambda index: threading.Event().wait(0.05) and None)
    assert seconds >= 0.04
    assert share < bandwidth.QUIET_SHARE


def test_a_thread_that_fails_is_heard_of() -> None:
    def fail(index: int) -> None:
        raise MemoryError

    with bandwidth._Team(2) as team, pytest.raises(MemoryError):
        team.run(fail)


@given(st.integers(0, 2**45), st.one_of(st.none(), st.integers(0, 2**32)))
def test_the_buffer_is_past_the_caches_and_never_more_than_a_third_of_what_is_free(
    available: int, l3_bytes: int | None
) -> None:
    size = bandwidth.buffer_bytes(available, l3_bytes)
    if size is not None:
        assert size <= available // 3
        assert size > 4 * (l3_bytes or 0) or size == bandwidth.LARGEST_BYTES


# ------------------------------------------------------------------------------------------------ the spec sheet


def tree(folder: Path, files: dict[str, str]) -> Source:
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return Source(folder, lambda command, seconds: None, "Linux", "x86_64", dict)


def test_the_caches_of_all_sockets_are_added(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu"
    files = {}
    for cpu, (size, shared) in enumerate((("32768K", "0-1"), ("32768K", "0-1"), ("96M", "2-3"), ("96M", "2-3"))):
        files[f"{folder}/cpu{cpu}/cache/index3/size"] = size
        files[f"{folder}/cpu{cpu}/cache/index3/shared_cpu_list"] = shared
    assert bandwidth.l3_bytes(tree(tmp_path, files)) == 128 * MIB
    assert bandwidth.l3_bytes(Source(tmp_path / "none")) is None


def modules(*places: str, speed: str = "5600", width: str = "64") -> str:
    lines = []
    for number, place in enumerate(places):
        lines += [f"E:MEMORY_DEVICE_{number}_LOCATOR={place}", f"E:MEMORY_DEVICE_{number}_DATA_WIDTH={width}"]
        lines.append(f"E:MEMORY_DEVICE_{number}_CONFIGURED_SPEED_MTS={speed}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("properties", "gbps"),
    [
        (modules("P0 CHANNEL A", "P0 CHANNEL B"), 89.6),
        (modules("ChannelA-DIMM0", "ChannelA-DIMM1"), 44.8),  # two modules on one channel
        (modules("ChannelA-DIMM0", "ChannelA-DIMM1", "ChannelB-DIMM0", "ChannelB-DIMM1"), 89.6),
        (modules("Controller0-ChannelA", "Controller1-ChannelA", width="16", speed="8533"), 34.1),
        (modules("P0 CHANNEL A", "P0 CHANNEL B", width="72", speed="3200"), 51.2),  # with error correction
        (modules("DIMM 0", "DIMM 1"), None),  # no word of channels
        (modules("P0 CHANNEL A", "DIMM 1"), None),
        (modules("P0 CHANNEL A", speed="Unknown"), None),
        (modules("P0 CHANNEL A", width="128"), None),
        (modules("P0 CHANNEL A") + "\nE:MEMORY_DEVICE_1_PRESENT=0\nE:MEMORY_DEVICE_1_LOCATOR=P0 CHANNEL B", 44.8),
        ("", None),
    ],
)
def test_memory_modules(properties: str, gbps: float | None, tmp_path: Path) -> None:
    assert bandwidth.spec_gbps(tree(tmp_path, {"run/udev/data/+dmi:id": properties})) == gbps


@pytest.mark.parametrize(
    ("model", "gbps"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", 17.1),
        ("Raspberry Pi 4 Model B Rev 1.5", 12.8),
        ("Raspberry Pi 400 Rev 1.0", 12.8),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit", 68),
        ("NVIDIA Jetson Nano Developer Kit", 25.6),
        ("Radxa ROCK 5B", 33.8),
        ("Radxa ROCK 5B+", None),  # other memory
        ("Raspberry Pi 50", None),
        ("Some other board", None),
    ],
)
def test_boards(model: str, gbps: float | None, tmp_path: Path) -> None:
    assert bandwidth.spec_gbps(tree(tmp_path, {"proc/device-tree/model": f"{model}\0"})) == gbps


@pytest.mark.parametrize(
    ("chip", "cores", "gbps"), [("Apple M4 Max", 14, 410), ("Apple M4 Max", 16, 546), ("Apple M4 Max", 7, None)]
)
def test_one_chip_may_have_several_widths(chip: str, cores: int, gbps: float | None) -> None:
    answers = {"sysctl -n machdep.cpu.brand_string": chip, "sysctl -n hw.physicalcpu": str(cores)}
    source = Source(Path("/nowhere"), lambda command, seconds: answers.get(" ".join(command)), "Darwin", "arm64", dict)
    assert bandwidth.spec_gbps(source) == gbps


def test_where_nothing_tells_nothing_is_made_up(tmp_path: Path) -> None:
    for name in ("desktop-nvidia", "phone-snapdragon", "nothing"):
        assert bandwidth.spec_gbps(captured(name, tmp_path / name)[0]) is None


# -------------------------------------------------------------------------------------------- what it is used for


def test_predictions_follow_what_was_measured() -> None:
    from localai import catalog, recommend

    def decode_and_prompt(machine: Machine) -> tuple[float, float, str, str]:
        row = next(each for each in recommend.rank(machine, catalog.load(), limit=50) if each.params_b > 2)
        assert row.decode_tps is not None
        assert row.prompt_tps is not None
        return row.decode_tps.mid, row.prompt_tps.mid, row.decode_tps.basis, row.prompt_tps.basis

    slow = replace(MACHINE, bandwidth=Bandwidth(20, "measured"), compute=Compute(50, "measured"))
    fast = replace(MACHINE, bandwidth=Bandwidth(80, "measured"), compute=Compute(800, "measured"))
    of_slow, of_fast = decode_and_prompt(slow), decode_and_prompt(fast)
    assert of_slow[0] < of_fast[0]
    assert of_slow[1] < of_fast[1]
    assert of_fast[2:] == ("measured: 80 GB/s", "measured: 800 GFLOP/s")
