"""The whole machine: probes together, engine devices matched, tiers, machines made up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import NAMES, captured, content

from localai import hardware, tiers
from localai.domain.machine import Bandwidth, Cpu, Disk, EngineDevice, EngineInfo, Gpu, Machine, Npu, SystemMemory, Tier
from localai.domain.units import GIB
from localai.engine import library
from localai.probes import amd, apple, memory, nvidia, windows


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


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests may take longer than a user is to wait."""
    monkeypatch.setattr(hardware, "PROBES_SECONDS", 60)


def test_this_machine_is_detected(isolated: Path) -> None:
    found = hardware.detect()
    assert found.memory.total_bytes > 0
    assert found.cpu.name
    assert found.os
    assert found.disk.free_bytes
    assert Path(found.disk.path).is_relative_to(isolated)
    assert found.engine.version
    assert found.bandwidth.source in ("not measured", "spec sheet")
    assert (found.notes, found.failures) == ((), ())
    assert hardware.detect(engine=False).engine == EngineInfo(None)


def known(value: Any) -> Any:
    """`value` without what is None, which TOML cannot say; floats to a tenth."""
    if isinstance(value, Mapping):
        return {name: known(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [known(each) for each in value]
    return round(value, 1) if isinstance(value, float) else value


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_captured_machine(name: str, tmp_path: Path) -> None:
    source, nvml = captured(name, tmp_path)
    found = hardware.detect(engine=False, source=source, nvml=nvml)
    figures = {part: known(value) for part, value in asdict(found).items()}
    expected = known(content(name)["expected"])
    assert {part: figures[part] for part in expected} == expected
    assert set(expected) == {"os", "cpu", "memory", "bandwidth", "gpus", "npus"}
    assert found.failures == ()
    assert tiers.tier(found).id in [row.id for row in tiers.tiers()]


def test_the_machines_that_the_specification_names_are_captured() -> None:
    systems = {content(name)["system"] for name in NAMES}
    assert systems >= {"Linux", "Darwin", "Windows"}
    for name in (
        *("laptop-intel", "laptop-meteor-lake", "laptop-lunar-lake", "laptop-ryzen-ai", "desktop-nvidia", "two-nvidia"),
        *("desktop-amd", "desktop-arc", "macbook-air-m2", "windows-laptop", "raspberry-pi-5", "rk3588"),
        *("jetson-orin-nano", "phone-snapdragon", "container-v1", "container-v2", "container-nested", "nothing"),
    ):
        assert name in NAMES


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
    assert sum("the probe is broken" in line for line in found.failures) == 4
    assert found.notes == ("how much memory there is could not be found out",)
    assert tiers.tier(found).size == "< 3B"


def test_a_probe_that_hangs_is_named_and_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = captured("laptop-intel", tmp_path)
    release = threading.Event()
    monkeypatch.setattr(nvidia, "gpus", lambda *arguments: release.wait(60))
    monkeypatch.setattr(hardware, "PROBES_SECONDS", 0.2)
    try:
        found = hardware.detect(engine=False, source=source)
    finally:
        release.set()
    assert found.failures == ("the NVIDIA probe gave no answer within 0.2 s",)
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
        ("AMD Radeon RX 7900 XTX", True, False),
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


def test_metal_knows_its_limit_better_than_the_rule(tmp_path: Path) -> None:
    source, _ = captured("macbook-air-m2", tmp_path)
    (found,) = hardware.match(apple.gpus(source), (replace(device("MTL0", "Apple M2"), memory_total_bytes=11 * GIB),))
    assert (found.vram_total_bytes, found.shared_memory, found.usable_by_engine) == (11 * GIB, True, True)
    assert found.source == "llama.cpp (MTL0)"
    assert found.bandwidth_gbps == 100


def test_the_engine_tells_how_much_of_a_windows_card_is_free(tmp_path: Path) -> None:
    source, _ = captured("windows-desktop", tmp_path)
    offered = replace(device("Vulkan0", "Intel(R) Arc(TM) A770 Graphics", gib=15.9), memory_free_bytes=15 * GIB)
    found = hardware.match(windows.gpus(source), (offered,))
    assert [(gpu.vram_free_bytes, gpu.usable_by_engine) for gpu in found] == [(None, False), (15 * GIB, True)]


def test_what_the_engine_calls_integrated_has_no_memory_of_its_own() -> None:
    apu = Gpu("AMD", "AMD Radeon graphics (1002:1638)", 2 * GIB, GIB)  # 8 GB of RAM: too little GTT to tell by
    (found,) = hardware.match((apu,), (device("Vulkan0", "AMD Radeon Graphics (RADV RENOIR)", "igpu", 4),))
    assert (found.shared_memory, found.usable_by_engine) == (True, True)


def test_a_small_card_beside_much_memory_is_discrete_once_the_engine_says_so() -> None:
    card = Gpu(
        "AMD", "AMD Radeon graphics (1002:67df)", 4 * GIB, 3 * GIB, shared_memory=True, shared_total_bytes=32 * GIB
    )
    (found,) = hardware.match((card,), (device("Vulkan0", "AMD Radeon RX 570 Series (RADV POLARIS10)", gib=4),))
    assert (found.shared_memory, found.shared_total_bytes, found.vram_total_bytes) == (False, None, 4 * GIB)


def test_a_jetsons_gpu_is_one_whatever_cuda_calls_it(tmp_path: Path) -> None:
    source, _ = captured("jetson-orin-nano", tmp_path)
    (found,) = hardware.match(nvidia.gpus(source, None), (device("CUDA0", "Orin", "igpu", 7.4),))
    assert (found.vendor, found.shared_memory, found.usable_by_engine) == ("NVIDIA", True, True)
    assert found.vram_total_bytes is None


NPUS = (
    Npu("Intel", "Intel NPU (Lunar Lake)", 48),
    Npu("AMD", "AMD XDNA 2 NPU (Strix)", 50),
    Npu("Qualcomm", "Qualcomm Hexagon", None),
    Npu("Huawei", "Ascend 310P", None),
    Npu("Apple", "Apple M4 Neural Engine", 38),
)


def usable(*names: str, environ: Mapping[str, str] | None = None) -> list[str]:
    devices = tuple(device(name, name, gib=64) for name in names)
    return [npu.vendor for npu in hardware.match_npus(NPUS, devices, environ or {}) if npu.usable_by_engine]


def test_an_npu_is_usable_only_where_a_loaded_backend_offers_it() -> None:
    assert usable("CPU", "CUDA0", "Vulkan0", "MTL0", "BLAS") == []
    assert usable("HTP0") == usable("HTP0:1") == ["Qualcomm"]
    assert usable("CANN0") == ["Huawei"]
    assert usable("OPENVINO0") == []  # it computes on the processor unless told otherwise
    assert usable("OPENVINO0", environ={"GGML_OPENVINO_DEVICE": "NPU"}) == ["Intel"]


def test_an_npu_is_never_memory() -> None:
    """llama.cpp calls such devices GPUs, and OpenVINO's reports the whole RAM as its own."""
    assert hardware.match((), (device("OPENVINO0", "OpenVINO Runtime", gib=64), device("HTP0", "Hexagon"))) == ()
    (ascend,) = hardware.match((), (device("CANN0", "Ascend910B", gib=64),))  # that one has memory of its own
    assert ascend.vram_total_bytes == 64 * GIB


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
    assert tiers.tier(machine(ram)).size == size


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
    assert tiers.tier(machine(8, card(vram))).size == size


def test_cards_are_added_and_only_usable_ones_count() -> None:
    assert tiers.tier(machine(64, card(24), card(24))).size == "30B – 70B+"
    assert tiers.tier(machine(64, card(24), card(24, usable=False))).size == "13B – 30B"
    assert tiers.tier(machine(32, card(24, usable=False))).size == "3B – 7B"


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
    assert tiers.tier(machine(ram, shared)).size == size


def test_a_containers_limit_counts_as_its_ram() -> None:
    assert tiers.tier(machine(128, limit_gib=4)).size == "< 3B"


def test_small_computers_are_in_the_lowest_row_with_a_text_of_their_own() -> None:
    small = tiers.tier(machine(1.8))
    assert (small.id, small.size) == ("under-3b", "< 3B")
    assert "Raspberry Pi" in small.hardware
    assert small.typical_ram_gbps < 20
    assert tiers.tier(machine(7.6)).hardware == "standard laptop (8–16 GB RAM)"


@given(
    st.floats(0.25, 1024),
    st.floats(0, 512),
    st.floats(0.25, 1024),
    st.floats(0, 512),
)
def test_more_memory_never_means_a_lower_tier(ram: float, vram: float, more_ram: float, more_vram: float) -> None:
    def rank(tier: Tier) -> int:
        return [row.id for row in tiers.tiers()].index(tier.id)

    less = tiers.tier(machine(ram, card(vram)))
    assert rank(less) <= rank(tiers.tier(machine(ram + more_ram, card(vram + more_vram))))
