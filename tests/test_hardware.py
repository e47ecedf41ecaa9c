"""The whole machine: probes together, engine devices matched, tiers, machines made up."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import NAMES, captured

from localai import hardware, tiers
from localai.domain import (
    GIB,
    Bandwidth,
    Cpu,
    Disk,
    EngineDevice,
    EngineInfo,
    Gpu,
    Machine,
    SystemMemory,
    Tier,
)
from localai.engine import library
from localai.errors import UsageError
from localai.probes import amd, memory, nvidia


def machine(ram_gib: float, *gpus: Gpu, limit_gib: float | None = None) -> Machine:
    limit = None if limit_gib is None else round(limit_gib * GIB)
    return Machine(
        os="test",
        cpu=Cpu("test", "x86_64", 4, 8),
        memory=SystemMemory(round(ram_gib * GIB), round(ram_gib * GIB / 2), limit),
        bandwidth=Bandwidth(None, "not measured"),
        disk=Disk("/", None),
        engine=EngineInfo(None),
        gpus=gpus,
    )


def card(vram_gib: float, usable: bool = True) -> Gpu:
    return Gpu("NVIDIA", "card", round(vram_gib * GIB), None, usable_by_engine=usable)


# ------------------------------------------------------------------------------------------------------- detection


def test_this_machine_is_detected(isolated: Path) -> None:
    found = hardware.detect()
    assert found.memory.total_bytes > 0
    assert found.cpu.name
    assert found.os
    assert found.disk.free_bytes
    assert Path(found.disk.path).is_relative_to(isolated)
    assert found.engine.version
    assert found.bandwidth == Bandwidth(None, "not measured")
    assert found.notes == ()
    assert hardware.detect(engine=False).engine == EngineInfo(None)


@pytest.mark.parametrize("name", NAMES)
def test_every_captured_machine_is_detected_whole(name: str, tmp_path: Path) -> None:
    source, nvml = captured(name, tmp_path)
    found = hardware.detect(engine=False, source=source, nvml=nvml)
    assert found.cpu.name
    assert hardware.tier(found).id in [row.id for row in tiers.tiers()]
    assert all(not gpu.usable_by_engine for gpu in found.gpus)


@pytest.mark.parametrize(
    ("name", "vendors"),
    [
        ("laptop-intel", ["Intel"]),
        ("desktop-nvidia", ["NVIDIA"]),
        ("two-nvidia", ["NVIDIA", "NVIDIA"]),
        ("desktop-amd", ["AMD", "AMD"]),
        ("desktop-arc", ["Intel", "Intel", "Intel"]),
        ("raspberry-pi-5", []),
    ],
)
def test_the_cards_of_captured_machines(name: str, vendors: list[str], tmp_path: Path) -> None:
    source, nvml = captured(name, tmp_path)
    assert [gpu.vendor for gpu in hardware.detect(engine=False, source=source, nvml=nvml).gpus] == vendors


def test_where_everything_fails_there_is_still_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, nvml = captured("nothing", tmp_path)

    def fail(*arguments: object) -> None:
        raise RuntimeError("the probe is broken")

    for module, name in ((memory, "memory"), (amd, "gpus"), (nvidia, "gpus"), (hardware.host, "cpu")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(library, "info", lambda: EngineInfo(None))
    found = hardware.detect(source=source, nvml=nvml)
    assert found.memory.total_bytes == 0
    assert found.cpu.name == "unknown"
    assert found.gpus == ()
    assert sum("the probe is broken" in note for note in found.notes) == 4
    assert hardware.tier(found).size == "< 3B"


def test_a_probe_that_hangs_is_named_and_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = captured("laptop-intel", tmp_path)
    release = threading.Event()
    monkeypatch.setattr(nvidia, "gpus", lambda *arguments: release.wait(60))
    monkeypatch.setattr(hardware, "PROBES_SECONDS", 0.2)
    try:
        found = hardware.detect(engine=False, source=source)
    finally:
        release.set()
    assert any("NVIDIA probe gave no answer" in note for note in found.notes)
    assert found.memory.total_bytes


def test_a_folder_of_models_that_does_not_exist_yet_has_its_parents_disk(
    monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(isolated / "not" / "there" / "yet"))
    found = hardware.detect(engine=False)
    assert found.disk.path == str(isolated / "not" / "there" / "yet")
    assert found.disk.free_bytes


# -------------------------------------------------------------------------------------------- the engine's devices


def device(name: str, description: str, kind: str = "gpu", gib: float = 0) -> EngineDevice:
    return EngineDevice(name, description, kind, round(gib * GIB), round(gib * GIB))


def test_a_cpu_build_can_use_no_card() -> None:
    cards = (card(12),)
    assert hardware.match(cards, (device("CPU", "AMD EPYC", "cpu", 64), device("BLAS", "OpenBLAS", "accel"))) == cards


def test_two_cards_are_matched_by_name_and_size() -> None:
    cards = (
        Gpu("NVIDIA", "NVIDIA GeForce RTX 3090", 24 * GIB, None),
        Gpu("NVIDIA", "NVIDIA GeForce GTX 1070", 8 * GIB, None),
    )
    only = hardware.match(cards, (device("CUDA0", "NVIDIA GeForce GTX 1070", gib=8),))
    assert [gpu.usable_by_engine for gpu in only] == [False, True]
    both = hardware.match(
        cards, (device("CUDA0", "NVIDIA GeForce GTX 1070", gib=8), device("CUDA1", "NVIDIA GeForce RTX 3090", gib=24))
    )
    assert [gpu.usable_by_engine for gpu in both] == [True, True]
    assert [gpu.name for gpu in both] == [gpu.name for gpu in cards]


def test_two_backends_of_one_card_are_one_card() -> None:
    found = hardware.match(
        (Gpu("NVIDIA", "NVIDIA GeForce RTX 3060", 12 * GIB, None),),
        (device("CUDA0", "NVIDIA GeForce RTX 3060", gib=12), device("Vulkan0", "NVIDIA GeForce RTX 3060", gib=12)),
    )
    assert len(found) == 1


def test_the_engine_knows_a_radeon_by_its_name(tmp_path: Path) -> None:
    source, _ = captured("desktop-amd", tmp_path)
    found = hardware.match(
        amd.gpus(source),
        (
            device("Vulkan0", "AMD Radeon RX 7900 XTX (RADV NAVI31)", gib=24),
            device("Vulkan1", "AMD Radeon Graphics (RADV RAPHAEL)", "igpu", gib=31),
        ),
    )
    assert [(gpu.name, gpu.usable_by_engine, gpu.shared_memory) for gpu in found] == [
        ("AMD Radeon RX 7900 XTX (RADV NAVI31)", True, False),
        ("AMD Radeon Graphics (RADV RAPHAEL)", True, True),
    ]


def test_a_card_that_only_the_engine_sees_is_added() -> None:
    (found,) = hardware.match((), (device("Metal", "Apple M2", gib=10.6),))
    assert (found.vendor, found.shared_memory, found.usable_by_engine) == ("Apple", True, True)


def test_an_arc_whose_driver_hides_its_memory_is_discrete_once_the_engine_says_so() -> None:
    hidden = Gpu("Intel", "Intel graphics (8086:56a0)", None, None, shared_memory=True)
    (found,) = hardware.match((hidden,), (device("Vulkan0", "Intel(R) Arc(tm) A770 Graphics (DG2)", gib=16),))
    assert (found.shared_memory, found.vram_total_bytes, found.name) == (
        False,
        16 * GIB,
        "Intel(R) Arc(tm) A770 Graphics (DG2)",
    )


# ---------------------------------------------------------------------------------------------------------- tiers


def test_the_table_has_the_rows_of_the_specification() -> None:
    assert [row.size for row in tiers.tiers()] == ["< 3B", "3B – 7B", "7B – 13B", "13B – 30B", "30B – 70B+"]
    for lower, higher in itertools.pairwise(tiers.tiers()):
        assert lower.max_params_b == higher.min_params_b
        assert lower.typical_ram_gbps < higher.typical_ram_gbps
        assert lower.tasks
        assert higher.tasks


@pytest.mark.parametrize(
    ("ram", "size"),
    [
        (1.8, "< 3B"),
        (7.6, "< 3B"),
        (11.5, "< 3B"),
        (13.5, "< 3B"),
        (13.7, "3B – 7B"),  # "16 GB" with 2 GiB carved out
        (15.3, "3B – 7B"),
        (31.2, "3B – 7B"),
        (47, "3B – 7B"),
        (62.7, "7B – 13B"),
        (94, "7B – 13B"),
        (125.6, "13B – 30B"),
        (251, "30B – 70B+"),
    ],
)
def test_ram_without_a_gpu(ram: float, size: str) -> None:
    assert hardware.tier(machine(ram)).size == size


@pytest.mark.parametrize(
    ("vram", "size"),
    [
        (2, "< 3B"),
        (3.9, "3B – 7B"),
        (6, "3B – 7B"),
        (7.996, "7B – 13B"),
        (12, "7B – 13B"),
        (14.9, "13B – 30B"),  # Tesla T4, "16 GB"
        (23.99, "13B – 30B"),
        (31.8, "13B – 30B"),
        (39.4, "30B – 70B+"),
        (139, "30B – 70B+"),
    ],
)
def test_vram_counts_most(vram: float, size: str) -> None:
    assert hardware.tier(machine(8, card(vram))).size == size


def test_cards_are_added_and_only_usable_ones_count() -> None:
    assert hardware.tier(machine(64, card(24), card(24))).size == "30B – 70B+"
    assert hardware.tier(machine(64, card(24), card(24, usable=False))).size == "13B – 30B"
    assert hardware.tier(machine(32, card(24, usable=False))).size == "3B – 7B"


@pytest.mark.parametrize(
    ("vendor", "ram", "size"),
    [
        ("Apple", 8, "< 3B"),
        ("Apple", 16, "3B – 7B"),
        ("Apple", 36, "7B – 13B"),
        ("Apple", 64, "13B – 30B"),
        ("NVIDIA", 119.7, "30B – 70B+"),
        ("Intel", 32, "3B – 7B"),
        ("AMD", 64, "7B – 13B"),
    ],
)
def test_unified_memory(vendor: str, ram: float, size: str) -> None:
    shared = Gpu(vendor, "unified", round(ram * GIB), None, shared_memory=True, usable_by_engine=True)
    assert hardware.tier(machine(ram, shared)).size == size


def test_a_containers_limit_counts_as_its_ram() -> None:
    assert hardware.tier(machine(128, limit_gib=4)).size == "< 3B"


def test_small_computers_are_in_the_lowest_row_with_a_text_of_their_own() -> None:
    small = hardware.tier(machine(1.8))
    assert (small.id, small.size) == ("under-3b", "< 3B")
    assert "Raspberry Pi" in small.hardware
    assert small.typical_ram_gbps < 20
    assert hardware.tier(machine(7.6)).hardware == "standard laptop (8–16 GB RAM)"


@given(
    st.floats(0.25, 1024),
    st.floats(0, 512),
    st.floats(0.25, 1024),
    st.floats(0, 512),
)
def test_more_memory_never_means_a_lower_tier(ram: float, vram: float, more_ram: float, more_vram: float) -> None:
    def rank(tier: Tier) -> int:
        return [row.id for row in tiers.tiers()].index(tier.id)

    less = hardware.tier(machine(ram, card(vram)))
    assert rank(less) <= rank(hardware.tier(machine(ram + more_ram, card(vram + more_vram))))


# ------------------------------------------------------------------------------------------------ machines made up


@pytest.mark.parametrize(
    ("ram", "vram", "size"),
    [
        (2, 0, "< 3B"),
        (8, 0, "< 3B"),
        (16, 0, "3B – 7B"),
        (32, 8, "7B – 13B"),
        (64, 24, "13B – 30B"),
        (128, 48, "30B – 70B+"),
    ],
)
def test_a_machine_made_up(ram: float, vram: float, size: str) -> None:
    found = hardware.hypothetical(ram, vram)
    tier = hardware.tier(found)
    assert tier.size == size
    assert found.memory.total_bytes == ram * GIB
    assert found.bandwidth == Bandwidth(tier.typical_ram_gbps, f"typical of the tier {size}")
    assert any("taken as free" in note for note in found.notes)
    if vram:
        (gpu,) = found.gpus
        assert gpu.usable_by_engine
        assert gpu.vram_total_bytes == vram * GIB
        assert gpu.bandwidth_gbps == tier.typical_vram_gbps
    else:
        assert found.gpus == ()


def test_two_gib_leave_room_for_a_small_model() -> None:
    assert hardware.hypothetical(2).memory.available_bytes >= 1.1 * GIB


def test_a_given_bandwidth_is_taken() -> None:
    assert hardware.hypothetical(16, bandwidth_gbps=120).bandwidth == Bandwidth(120, "given")


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, -math.inf, 1e9])
def test_sizes_that_no_machine_has_are_refused(bad: float) -> None:
    for arguments in ((bad,), (8, bad if bad else -0.5), (8, 0, bad)):
        with pytest.raises(UsageError) as caught:
            hardware.hypothetical(*arguments)
        assert caught.value.hint


@given(st.floats(0.01, 65_536), st.floats(0, 16_384))
def test_some_memory_is_always_kept_and_some_is_free(ram: float, vram: float) -> None:
    found = hardware.hypothetical(ram, vram)
    assert 0 < found.memory.available_bytes < found.memory.total_bytes
    for gpu in found.gpus:
        assert gpu.vram_free_bytes is not None
        assert gpu.vram_total_bytes is not None
        assert 0 <= gpu.vram_free_bytes <= gpu.vram_total_bytes


def test_this_machine_never_shows_through() -> None:
    found = hardware.hypothetical(8)
    assert found.disk.free_bytes is None
    assert found.engine == replace(EngineInfo(None), gpu_offload=False)
