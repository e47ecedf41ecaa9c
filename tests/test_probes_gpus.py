"""Graphics cards, on captured machines: NVIDIA by NVML and by /proc, AMD and Intel by sysfs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import CapturedNvml, captured

from localai.domain.machine import Gpu
from localai.domain.units import GIB
from localai.probes import amd, apple, chips, intel, nvidia, windows
from localai.probes.source import Source


def test_an_nvidia_card_by_nvml(tmp_path: Path) -> None:
    source, nvml = captured("desktop-nvidia", tmp_path)
    (card,) = nvidia.gpus(source, nvml)
    assert card == Gpu(
        "NVIDIA",
        "NVIDIA GeForce RTX 3060",
        12884901888,
        12348030976,
        bandwidth_gbps=pytest.approx(360, rel=0.001),  # the maker's figure
        driver="550.90.07",
        source="NVML",
    )
    assert not nvml.open


def test_two_cards_of_different_sizes(tmp_path: Path) -> None:
    source, nvml = captured("two-nvidia", tmp_path)
    cards = nvidia.gpus(source, nvml)
    assert [card.vram_total_bytes for card in cards] == [24 * GIB, 8 * GIB]
    assert [card.bandwidth_gbps for card in cards] == [pytest.approx(936, rel=0.001), pytest.approx(256, rel=0.002)]


def test_a_gpu_in_the_systems_memory_has_none_of_its_own(tmp_path: Path) -> None:
    source, nvml = captured("nvidia-gb10", tmp_path)
    (card,) = nvidia.gpus(source, nvml)
    assert (card.vram_total_bytes, card.vram_free_bytes, card.shared_memory) == (None, None, True)


def test_without_nvml_the_driver_names_its_cards(tmp_path: Path) -> None:
    source, _ = captured("desktop-nvidia", tmp_path)
    for library in (None, CapturedNvml(None)):
        (card,) = nvidia.gpus(source, library)
        assert (card.name, card.driver) == ("NVIDIA GeForce RTX 3060", "550.90.07")
        assert card.vram_total_bytes is None
        assert not card.shared_memory


@pytest.mark.parametrize("broken", ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName", "nvmlSystemGetDriverVersion"])
def test_a_question_that_nvml_refuses_costs_one_answer_only(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, nvml = captured("two-nvidia", tmp_path)

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("GPU is lost")

    monkeypatch.setattr(nvml, broken, refuse)
    cards = nvidia.gpus(source, nvml)
    assert len(cards) == 2
    assert all(card.bandwidth_gbps and not card.shared_memory for card in cards)


@given(answer=st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.floats()))
def test_nonsense_from_nvml_is_unknown(answer: Any) -> None:
    class Nonsense(CapturedNvml):
        def __getattribute__(self, name: str) -> Any:
            if name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByIndex"):
                return lambda *arguments: 0
            return (lambda *arguments: 1) if name == "nvmlDeviceGetCount" else lambda *arguments: answer

    (card,) = nvidia.gpus(Source(Path("/nowhere"), lambda command, seconds: None), Nonsense({}))
    assert card.vram_total_bytes is None
    assert card.bandwidth_gbps is None or card.bandwidth_gbps > 0


def test_amd_discrete_and_integrated(tmp_path: Path) -> None:
    source, _ = captured("desktop-amd", tmp_path)
    discrete, integrated = amd.gpus(source)
    assert (discrete.name, discrete.bandwidth_gbps) == ("AMD Radeon RX 7900 XTX", 960)
    assert discrete.shared_total_bytes is None
    assert discrete.vram_total_bytes == 25753026560
    assert discrete.vram_free_bytes == 25753026560 - 1073741824
    assert (discrete.shared_memory, discrete.driver) == (False, "amdgpu")
    assert (integrated.shared_memory, integrated.vram_total_bytes) == (True, GIB // 2)
    assert integrated.shared_total_bytes == 33280000000
    assert intel.gpus(source) == ()


@pytest.mark.parametrize(
    ("vram_gib", "gtt_gib", "integrated"),
    [(0.5, 8, True), (0.5, 7.9, False), (2, 8, True), (4, 16, True), (4, 15, False), (4.1, 64, False), (24, 32, False)],
)
def test_the_rule_for_integrated_radeons(vram_gib: float, gtt_gib: float, integrated: bool) -> None:
    assert amd.is_integrated(int(vram_gib * GIB), int(gtt_gib * GIB)) is integrated


def test_intel_integrated_and_arc(tmp_path: Path) -> None:
    source, _ = captured("desktop-arc", tmp_path)
    integrated, by_xe, by_i915 = intel.gpus(source)
    assert (integrated.shared_memory, integrated.vram_total_bytes) == (True, None)
    assert integrated.name == "Intel graphics (8086:a780)"
    assert (by_xe.shared_memory, by_xe.vram_total_bytes, by_xe.driver) == (False, 0x2FA000000, "xe")
    assert (by_xe.name, by_xe.bandwidth_gbps) == ("Intel Arc B580", 456)
    assert (by_i915.vram_total_bytes, by_i915.vram_free_bytes) == (17079205888, 16900000000)


def test_a_laptop_has_its_integrated_graphics_only(tmp_path: Path) -> None:
    source, _ = captured("laptop-intel", tmp_path)
    (card,) = intel.gpus(source)
    assert card == Gpu(
        "Intel",
        "Intel graphics (8086:9a49)",
        None,
        None,
        shared_memory=True,
        driver="i915",
        source="/sys/class/drm/card1/device",
    )
    assert amd.gpus(source) == ()
    assert nvidia.gpus(source, None) == ()


def test_a_divided_card_is_its_instances(tmp_path: Path) -> None:
    source, nvml = captured("server-mig", tmp_path)
    large, small, whole = nvidia.gpus(source, nvml)
    assert [card.vram_total_bytes for card in (large, small, whole)] == [20937965568, 5100273664, 42949672960]
    assert (large.bandwidth_gbps, large.source) == (None, "NVML (MIG)")
    assert whole.bandwidth_gbps == pytest.approx(1555, rel=0.001)


def test_a_jetson_without_nvml(tmp_path: Path) -> None:
    source, nvml = captured("jetson-orin-nano", tmp_path)
    for library in (None, nvml):
        (card,) = nvidia.gpus(source, library)
        assert (card.vram_total_bytes, card.shared_memory, card.driver) == (None, True, "L4T 36.4.0")
        assert card.bandwidth_gbps == 68


def test_an_arc_whose_driver_hides_its_memory_is_known_by_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "sys/class/drm/card0/device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x8086")
    (folder / "device").write_text("0x56a0")
    (card,) = intel.gpus(Source(tmp_path))
    assert (card.shared_memory, card.vram_total_bytes, card.bandwidth_gbps) == (False, None, None)  # 8 or 16 GB
    (folder / "device").write_text("0xffff")
    assert intel.gpus(Source(tmp_path))[0].shared_memory
    (folder / "tile0/vram0").mkdir(parents=True)
    assert not intel.gpus(Source(tmp_path))[0].shared_memory


# ------------------------------------------------------------------------------------------------------ spec sheets


@pytest.mark.parametrize(
    ("name", "gib", "gbps"),
    [
        ("NVIDIA GeForce RTX 3060", 12, 360),
        ("NVIDIA GeForce RTX 3060", 8, 240),
        ("NVIDIA GeForce RTX 3060", None, None),  # either
        ("NVIDIA GeForce RTX 4090", 23.99, 1008),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),  # another card
        ("NVIDIA GeForce RTX 4090 D", 24, None),
        ("Intel(R) Arc(TM) B580 Graphics", 12, 456),
        ("AMD Radeon RX 7900 XTX", 24, 960),
        ("AMD Radeon RX 7900 XTX", 16, None),
        ("", None, None),
    ],
)
def test_a_cards_bandwidth_by_its_name(name: str, gib: float | None, gbps: float | None) -> None:
    card = chips.card_by_name(name, None if gib is None else round(gib * GIB))
    assert (card.gbps if card else None) == gbps


def test_every_card_of_the_table_is_found_by_its_name_and_size() -> None:
    for rows in chips._data("gpus").values():
        for row in rows:
            found = chips.card_by_name(row["name"], row["vram_gib"] * GIB)
            assert found == chips.Card(row["name"], row["gbps"])
            if "pci" in row:
                assert chips.card_by_pci(row["pci"], row["vram_gib"] * GIB) == found


@pytest.mark.parametrize(
    ("memory_gib", "limit", "expected_gib", "source"),
    [
        (16, "0", 16 * 2 / 3, "Metal's usual limit, 2/3 of the RAM"),
        (64, "0", 48, "Metal's usual limit, 3/4 of the RAM"),
        (64, "57344", 56, "sysctl iogpu.wired_limit_mb"),
        (16, "999999", 16, "sysctl iogpu.wired_limit_mb"),
    ],
)
def test_how_much_metal_lets_a_gpu_have(memory_gib: int, limit: str, expected_gib: float, source: str) -> None:
    answers = {
        "sysctl -n machdep.cpu.brand_string": "Apple M3",
        "sysctl -n hw.memsize": str(memory_gib * GIB),
        "sysctl -n iogpu.wired_limit_mb": limit,
    }
    (card,) = apple.gpus(Source(Path("/nowhere"), lambda command, seconds: answers.get(" ".join(command)), "Darwin"))
    assert card.vram_total_bytes == pytest.approx(expected_gib * GIB, abs=1)
    assert card.source == source
    assert card.vram_total_bytes <= memory_gib * GIB


def test_an_intel_mac_has_no_apple_gpu() -> None:
    brand = "Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz"
    assert apple.gpus(Source(Path("/nowhere"), lambda command, seconds: brand, "Darwin", "x86_64")) == ()


def test_windows_knows_carve_outs_from_memory_of_its_own(tmp_path: Path) -> None:
    source, _ = captured("windows-laptop", tmp_path)
    integrated, discrete = windows.gpus(source)
    assert (integrated.shared_memory, integrated.vram_total_bytes) == (True, GIB // 2)
    assert (discrete.shared_memory, discrete.vram_total_bytes) == (False, 0x1FFC00000)  # more than 32 bits
    assert amd.gpus(source) == intel.gpus(source) == ()
