"""Neural processors, on small trees: which they are, their TOPS, and that nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from machines import NAMES, captured

from localai.domain.machine import Npu
from localai.probes import chips, npu
from localai.probes.source import Source

ACCEL = "/sys/class/accel/accel0/device"
PCI = "/sys/bus/pci/devices/0000:01:00.0"


def found(
    folder: Path, files: Mapping[str, str], system: str = "Linux", commands: Mapping[str, str] | None = None
) -> list[tuple[str, str, float | None, str | None]]:
    for path, text in files.items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    source = Source(folder, lambda command, seconds: (commands or {}).get(" ".join(command)), system, "x86_64", dict)
    return [(each.vendor, each.name, each.tops, each.driver) for each in npu.npus(source)]


@pytest.mark.parametrize(
    ("pci_id", "driver", "expected"),
    [
        ("8086:7d1d", "intel_vpu", ("Intel", "Intel NPU (Meteor Lake)", 11)),
        ("8086:ad1d", "intel_vpu", ("Intel", "Intel NPU (Arrow Lake)", 13)),
        ("8086:643e", "intel_vpu", ("Intel", "Intel NPU (Lunar Lake)", 48)),
        ("8086:b03e", "intel_vpu", ("Intel", "Intel NPU (Panther Lake)", 50)),
        ("8086:fd3e", "intel_vpu", ("Intel", "Intel NPU (Wildcat Lake)", None)),
        ("17cb:a100", "qaic", ("Qualcomm", "Qualcomm Cloud AI 100", None)),
        ("1e60:2864", "hailo", ("Hailo", "Hailo-8 (26 TOPS) or Hailo-8L (13 TOPS)", None)),
        ("1e60:45c4", "hailo1x", ("Hailo", "Hailo-10H (40 TOPS with 4 bits)", 20)),
        ("1ac1:089a", "apex", ("Google", "Coral Edge TPU", 4)),
        ("19e5:d100", "devdrv", ("Huawei", "Ascend 310", 22)),
        ("19e5:d500", "devdrv", ("Huawei", "Ascend 310P", None)),
    ],
)
def test_on_pci(pci_id: str, driver: str, expected: tuple[str, str, float | None], tmp_path: Path) -> None:
    vendor, device = pci_id.split(":")
    files = {f"{PCI}/vendor": f"0x{vendor}\n", f"{PCI}/device": f"0x{device}\n"}
    assert found(tmp_path, files) == [(*expected, None)]
    assert found(tmp_path, {f"{PCI}/uevent": f"DRIVER={driver}\nPCI_ID={pci_id}\n"}) == [(*expected, driver)]


@pytest.mark.parametrize(
    ("device", "vbnv", "processor", "name", "tops"),
    [
        ("1502", "RyzenAI-npu1", "AMD Ryzen 7 7840U w/ Radeon 780M", "AMD XDNA NPU (Phoenix)", 10),
        ("1502", "RyzenAI-npu1", "AMD Ryzen 7 8845HS", "AMD XDNA NPU (Hawk Point)", 16),
        ("1502", "RyzenAI-npu1", "AMD Ryzen 5 PRO 7545U", "AMD XDNA NPU (Phoenix)", 10),
        ("1502", "RyzenAI-npu1", "AMD Custom", "AMD XDNA NPU (Phoenix or Hawk Point)", None),
        ("1502", "", "AMD Custom", "AMD XDNA NPU (Ryzen AI)", None),
        ("1502", "NPU Hawk Point", "AMD Custom", "AMD XDNA NPU (Hawk Point)", 16),
        ("17f0", "RyzenAI-npu4", "", "AMD XDNA 2 NPU (Strix)", 50),
        ("17f0", "NPU Strix Halo", "", "AMD XDNA 2 NPU (Strix Halo)", 50),
        ("17f0", "RyzenAI-npu6", "", "AMD XDNA 2 NPU (Krackan)", 50),
        ("17f0", "NPU Gorgon Point 1", "", "AMD XDNA 2 NPU (Gorgon Point)", None),
        ("17f0", "something new", "", "AMD XDNA 2 NPU (Ryzen AI)", None),
    ],
)
def test_amds_families(device: str, vbnv: str, processor: str, name: str, tops: float | None, tmp_path: Path) -> None:
    files = {
        f"{ACCEL}/vendor": "0x1022",
        f"{ACCEL}/device": f"0x{device}",
        f"{ACCEL}/uevent": "DRIVER=amdxdna\nPCI_SLOT_NAME=0000:c6:00.1",
        f"{ACCEL}/vbnv": vbnv,
        "/proc/cpuinfo": f"processor : 0\nmodel name : {processor}\n",
    }
    assert found(tmp_path, files) == [("AMD", name, tops, "amdxdna")]


@pytest.mark.parametrize(
    ("compatible", "files", "expected"),
    [
        ("radxa,rock-5b\0rockchip,rk3588\0", {"/sys/class/devfreq/fdab0000.npu/cur_freq": "1"}, ("RK3588", 6, "rknpu")),
        ("x,y\0rockchip,rk3588s\0", {f"{ACCEL}/uevent": "DRIVER=rocket\n"}, ("RK3588S", 6, "rocket")),
        (
            "x,y\0rockchip,rk3588\0",
            {"/proc/device-tree/npu@fdab0000/compatible": "rockchip,rk3588-rknn-core\0"},
            ("RK3588", 6, None),
        ),
        ("x,y\0rockchip,rk3568\0", {"/sys/class/devfreq/fde40000.npu/cur_freq": "1"}, ("RK3568", 1, "rknpu")),
        ("x,y\0rockchip,rk3699\0", {"/sys/class/devfreq/fde40000.npu/cur_freq": "1"}, ("RK3699", None, "rknpu")),
    ],
)
def test_rockchip(
    compatible: str, files: dict[str, str], expected: tuple[str, float | None, str | None], tmp_path: Path
) -> None:
    chip, tops, driver = expected
    tree = {"/proc/device-tree/compatible": compatible, **files}
    assert found(tmp_path, tree) == [("Rockchip", f"Rockchip NPU ({chip})", tops, driver)]


def test_hexagon_on_a_laptop_and_on_phones(tmp_path: Path) -> None:
    laptop = {
        "/proc/device-tree/compatible": "lenovo,thinkpad-t14s\0qcom,x1e80100\0",
        "/sys/class/remoteproc/remoteproc1/name": "cdsp\n",
    }
    assert found(tmp_path / "a", laptop) == [("Qualcomm", "Qualcomm Hexagon (Snapdragon X Elite)", 45, None)]
    chip = {"getprop ro.soc.model": "SM8750\n"}
    elite = [("Qualcomm", "Qualcomm Hexagon (Snapdragon 8 Elite)", None, None)]
    assert found(tmp_path / "b", {}, "Android", chip) == elite
    assert found(tmp_path / "c", {}, "Android", {"getprop ro.soc.model": "MT6989\n"}) == []
    assert found(tmp_path / "d", {"/dev/fastrpc-cdsp": ""}) == [("Qualcomm", "Qualcomm Hexagon", None, "fastrpc")]


def test_a_coral_on_usb_and_an_ascend_on_the_board(tmp_path: Path) -> None:
    coral = {"/sys/bus/usb/devices/2-1/idVendor": "18d1\n", "/sys/bus/usb/devices/2-1/idProduct": "9302\n"}
    assert found(tmp_path / "a", coral) == [("Google", "Coral USB Accelerator", 4, None)]
    assert found(tmp_path / "b", {"/dev/davinci0": ""}) == [("Huawei", "Ascend NPU", None, "davinci")]


def test_neural_engines(tmp_path: Path) -> None:
    for chip, tops in (
        ("Apple M1", 11),
        ("Apple M2", 15.8),
        ("Apple M3 Pro", 18),
        ("Apple M4 Max", 38),
        ("Apple M9", None),
    ):
        answers = {"sysctl -n machdep.cpu.brand_string": f"{chip}\n"}
        assert found(tmp_path, {}, "Darwin", answers) == [("Apple", f"{chip} Neural Engine", tops, None)]


def test_windows_without_a_driver_and_on_snapdragon(tmp_path: Path) -> None:
    enumerated = {r"reg query HKLM\SYSTEM\CurrentControlSet\Enum\PCI": r"HKLM\…\PCI\VEN_8086&DEV_643E&SUBSYS_1&REV_04"}
    assert found(tmp_path, {}, "Windows", enumerated) == [("Intel", "Intel NPU (Lunar Lake)", 48, None)]
    name = {
        r"reg query HKLM\HARDWARE\DESCRIPTION\System\CentralProcessor\0 /v ProcessorNameString": "    "
        "ProcessorNameString    REG_SZ    Snapdragon(R) X Elite - X1E78100 - Qualcomm(R) Oryon(TM) CPU"
    }
    assert found(tmp_path, {}, "Windows", name) == [("Qualcomm", "Qualcomm Hexagon (Snapdragon X Elite)", 45, None)]


@pytest.mark.parametrize("name", ["desktop-nvidia", "desktop-arc", "raspberry-pi-5", "container-v2", "nothing"])
def test_no_npu_where_there_is_none(name: str, tmp_path: Path) -> None:
    assert name in NAMES
    assert npu.npus(captured(name, tmp_path)[0]) == ()


def test_every_figure_of_the_table_is_plausible() -> None:
    rows = [*chips.npus("pci").values(), *chips.npus("usb").values(), *chips.npus("vbnv").values()]
    rows += chips.npus("qualcomm").values()
    for row in rows:
        assert row["name"]
        assert row.get("tops") is None or 1 <= row["tops"] <= 1000
    assert Npu("x", "y", None).usable_by_engine is False
