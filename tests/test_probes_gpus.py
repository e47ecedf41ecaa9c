"""Graphics cards, on captured machines: NVIDIA by NVML and by /proc, AMD and Intel by sysfs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import CapturedNvml, captured

from localai.domain import GIB, Gpu
from localai.probes import amd, intel, nvidia
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
    assert discrete.name == "AMD Radeon graphics (1002:744c)"
    assert discrete.vram_total_bytes == 25753026560
    assert discrete.vram_free_bytes == 25753026560 - 1073741824
    assert (discrete.shared_memory, discrete.driver) == (False, "amdgpu")
    assert (integrated.shared_memory, integrated.vram_total_bytes) == (True, GIB // 2)
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
    assert by_xe.name == "Intel Arc graphics (8086:e20b)"
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
