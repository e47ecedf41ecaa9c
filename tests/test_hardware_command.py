"""`localai hardware` on this very machine, held against /proc, lscpu and the control groups' own files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from machines import captured

from localai import boundary, hardware, schema, tiers
from localai.commands.machine import machine_facts
from localai.domain.machine import SystemMemory
from localai.domain.units import MIB
from localai.probes import nvidia
from localai.probes.source import run_command

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_it_agrees_with_what_the_system_says(cli: Cli) -> None:
    done = cli("hardware", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    total = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert total is not None
    assert found["memory"]["total_bytes"] == int(total.group(1)) * 1024
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]
    assert found["memory"]["source"]
    assert found["cpu"]["logical_cores"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert found["disk"]["free_bytes"] is not None
    assert found["engine"]["backends"]
    assert set(found["compute"]) == {"gflops", "source"}


@linux
@pytest.mark.skipif(shutil.which("lscpu") is None, reason="no lscpu")
def test_it_agrees_with_lscpu() -> None:
    answer = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"})
    said = dict(re.findall(r"^([^:]+):\s+(.*)$", answer.stdout, re.M))
    cpu = hardware.detect(engine=False).cpu
    assert cpu.architecture == said["Architecture"]
    if "Model name" in said and cpu.architecture == "x86_64":
        assert cpu.name == " ".join(said["Model name"].split())
    if "Core(s) per socket" in said and said.get("Socket(s)", "").isdigit():
        assert cpu.physical_cores == int(said["Core(s) per socket"]) * int(said["Socket(s)"])


@pytest.fixture
def limited() -> Iterator[Path]:
    """A control group that holds 512 MiB, of whichever version may be made here; skips where none may."""
    name = f"localai-test-{os.getpid()}"
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(512 * MIB))
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group may be made here")


@linux
def test_in_a_memory_limited_group_it_shows_that_limit(limited: Path) -> None:
    inside = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(limited / "cgroup.procs"), sys.executable, "-m", "localai"]
    done = subprocess.run([*inside, "hardware", "--json"], capture_output=True, text=True, timeout=90, check=True)
    memory = json.loads(done.stdout)["memory"]
    assert memory["limit_bytes"] == 512 * MIB
    assert 0 < memory["available_bytes"] < 512 * MIB
    assert memory["source"].startswith(str(limited))
    assert memory["total_bytes"] > 512 * MIB


def test_measuring_is_said_on_stderr_in_one_line_and_kept(cli: Cli) -> None:
    before = json.loads(cli("hardware", "--json").stdout)
    assert before["bandwidth"]["source"] in ("not measured", "spec sheet")
    measured = cli("hardware", "--measure", "--json")
    assert measured.stderr.count("\n") == 1
    found = json.loads(measured.stdout)
    assert found["bandwidth"]["source"] == found["compute"]["source"] == "measured"
    assert found["bandwidth"]["gbps"] > 0
    again = cli("recommend", "--json", "--limit", "1")
    assert again.stderr == ""
    assert json.loads(again.stdout)["machine"]["bandwidth"] == found["bandwidth"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "laptop-ryzen-ai",
            {
                "GPU": "AMD Radeon graphics (1002:150e): shares the system's memory, at most 15.2 GiB of it; not "
                "usable by the installed engine (/sys/class/drm/card1/device/mem_info_vram_total)",
                "NPU": "AMD XDNA 2 NPU (Strix): 50 TOPS, driver amdxdna; not usable by the installed engine",
                "Bandwidth": "90 GB/s, spec sheet; --measure measures it",
            },
        ),
        (
            "laptop-lunar-lake",
            {"NPU": "Intel NPU (Lunar Lake): 48 TOPS, no driver seen; not usable by the installed engine"},
        ),
        (
            "desktop-nvidia",
            {
                "GPU": "NVIDIA GeForce RTX 3060: 12.0 GiB, 11.5 GiB free, 360 GB/s; not usable by the installed engine "
                "(NVML)",
                "Memory": "31.3 GiB, 26.0 GiB available, no swap (/proc/meminfo)",
                "Bandwidth": "not measured; --measure measures it",
            },
        ),
        (
            "container-v2",
            {
                "Memory": "62.8 GiB, 1.2 GiB available, limited to 2.0 GiB (cgroup), no swap "
                "(/sys/fs/cgroup/memory.max)",
                "GPU": "none found",
            },
        ),
    ],
)
def test_what_is_shown_of_other_machines(name: str, shown: dict[str, str], tmp_path: Path) -> None:
    source, library = captured(name, tmp_path)
    machine = hardware.detect(engine=False, source=source, nvml=library)
    lines = dict(machine_facts(machine, tiers.tier(machine)))
    assert {label: lines[label] for label in shown} == shown


def test_memory_that_nobody_knows_is_no_number() -> None:
    found = hardware.detect(engine=False)
    unknown = replace(found, memory=SystemMemory(0, 0, None, None, "unknown"))
    told = schema.machine(unknown, tiers.tier(unknown))["memory"]
    assert (told["total_bytes"], told["available_bytes"]) == (None, None)
    assert dict(machine_facts(unknown, tiers.tier(unknown)))["Memory"] == "unknown"
    assert schema.machine(found, tiers.tier(found))["memory"]["total_bytes"] == found.memory.total_bytes


def test_a_broken_probe_is_reported_by_debug_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("the card fell out")

    monkeypatch.setattr(nvidia, "gpus", fail)
    assert boundary.run(["hardware"]) == 0
    assert "fell out" not in "".join(capsys.readouterr())
    assert boundary.run(["hardware", "--debug"]) == 0
    boundary.show_log(False)
    shown = capsys.readouterr()
    assert "debug: the NVIDIA probe failed: RuntimeError: the card fell out" in shown.err
    assert "fell out" not in shown.out


def test_a_command_that_hangs_is_reported_by_debug(capsys: pytest.CaptureFixture[str]) -> None:
    boundary.show_log(True)
    assert run_command([sys.executable, "-c", "import time; time.sleep(60)"], 0.05) is None
    boundary.show_log(False)
    assert "took longer than 0.05 s and was given up" in capsys.readouterr().err
