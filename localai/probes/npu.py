"""Neural processors: Intel, AMD, Qualcomm, Rockchip, Apple, Hailo, Coral, Ascend; found without their makers' kits.

Which of them llama.cpp can use is not told here: only the installed engine knows that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localai.domain.machine import Npu
from localai.probes import apple, chips, windows
from localai.probes.host import soc_model
from localai.probes.source import Source

_XDNA_1 = "1022:1502"
_MAKERS = ("8086", "1022", "17cb", "1e60", "1ac1", "19e5")


def npus(source: Source) -> tuple[Npu, ...]:
    """Every neural processor of the machine, with its TOPS where its maker gives them."""
    match source.system:
        case "Darwin":
            return tuple(_apple(source))
        case "Windows":
            return tuple(_windows(source))
    return (*_pci(source), *_usb(source), *_rockchip(source), *_hexagon(source), *_ascend_board(source))


# -------------------------------------------------------------------------------------------------------- Linux


@dataclass(frozen=True, slots=True)
class _Device:
    folder: str
    pci_id: str
    driver: str | None


def _pci(source: Source) -> Iterator[Npu]:
    """Those on PCI, also where no driver is bound to them."""
    seen = set()
    for device in (*_devices(source, "/sys/class/accel/accel*/device"), *_devices(source, "/sys/bus/pci/devices/*")):
        slot = _event(source, device.folder, "PCI_SLOT_NAME") or device.folder.rsplit("/", 1)[-1]
        row = chips.npus("pci").get(device.pci_id)
        if row is None or slot in seen:
            continue
        seen.add(slot)
        name, tops = row["name"], row.get("tops")
        if row["vendor"] == "AMD":
            name, tops = _xdna(source, device, name)
        yield Npu(row["vendor"], name, tops, source=device.folder, driver=device.driver)


def _devices(source: Source, pattern: str) -> Iterator[_Device]:
    for folder in source.glob(pattern):
        vendor = source.integer(f"{folder}/vendor")
        if vendor is None or f"{vendor:04x}" not in _MAKERS:
            continue
        device = source.integer(f"{folder}/device")
        if device is not None:
            yield _Device(folder, f"{vendor:04x}:{device:04x}", _event(source, folder, "DRIVER"))


def _event(source: Source, folder: str, name: str) -> str | None:
    found = re.search(rf"^{name}=([\w.:,-]{{1,64}})$", source.text(f"{folder}/uevent", 4096) or "", re.M)
    return found.group(1) if found else None


def _xdna(source: Source, device: _Device, name: str) -> tuple[str, float | None]:
    """AMD's family by what the driver says; Phoenix and Hawk Point, the same to it, by the processor's name."""
    row = chips.npus("vbnv").get(source.text(f"{device.folder}/vbnv", 64) or "", {})
    name, tops = row.get("name", name), row.get("tops")
    if device.pci_id == _XDNA_1 and tops is None:
        return _first_xdna(source.text("/proc/cpuinfo", 4096) or "") or (name, tops)
    return name, tops


def _first_xdna(processor: str) -> tuple[str, float] | None:
    """Phoenix (Ryzen 7x4x) or Hawk Point (8x4x); TOPS: amd.com, Ryzen 7040 and 8040 series."""
    model = re.search(r"Ryzen \d (?:PRO )?([78])\d4\d", processor)
    if model is None:
        return None
    return ("AMD XDNA NPU (Phoenix)", 10) if model.group(1) == "7" else ("AMD XDNA NPU (Hawk Point)", 16)


def _usb(source: Source) -> Iterator[Npu]:
    for path in source.glob("/sys/bus/usb/devices/*/idVendor"):
        folder = path.rsplit("/", 1)[0]
        usb_id = f"{source.text(path, 16)}:{source.text(f'{folder}/idProduct', 16)}".lower()
        if row := chips.npus("usb").get(usb_id):
            yield Npu(row["vendor"], row["name"], row.get("tops"), source=folder, driver=None)


def _compatible(source: Source) -> str:
    """What the device tree calls the machine: "radxa,rock-5b\\nrockchip,rk3588"."""
    return (source.text("/proc/device-tree/compatible", 1024) or "").replace("\0", "\n").lower()


def _rockchip(source: Source) -> Iterator[Npu]:
    """The NPU of the RK35xx: by the maker's driver (devfreq), the kernel's (accel/rocket), or the device tree alone."""
    chip = re.search(r"^rockchip,(rk\d{4}s?)\b", _compatible(source), re.M)
    folders = source.glob("/sys/class/devfreq/*.npu")
    driver = "rknpu" if folders else None
    if not folders:
        folders = [
            path for path in source.glob("/sys/class/accel/accel*/device") if _event(source, path, "DRIVER") == "rocket"
        ]
        driver = "rocket" if folders else None
    if not folders:
        nodes = source.glob("/proc/device-tree/npu@*/compatible") + source.glob(
            "/proc/device-tree/soc/npu@*/compatible"
        )
        folders = [path for path in nodes if re.search(r"rockchip,rk\w+-rkn", source.text(path, 256) or "")]
    if folders and (chip or driver):
        name = chip.group(1) if chip else ""
        tops = chips.npus("rockchip").get(name)
        yield Npu(
            "Rockchip",
            f"Rockchip NPU ({name.upper()})" if name else "Rockchip NPU",
            tops,
            source=folders[0],
            driver=driver,
        )


def _hexagon(source: Source) -> Iterator[Npu]:
    """Qualcomm's Hexagon, where its compute processor (cdsp) is seen, or Android names a chip that has one."""
    place = next((path for path in ("/dev/fastrpc-cdsp", "/dev/fastrpc-cdsp-secure") if source.exists(path)), None)
    for path in source.glob("/sys/class/remoteproc/*/name"):
        if place is None and "cdsp" in (source.text(path, 64) or ""):
            place = path
    tree = re.search(r"^qcom,(\w{5,12})\b", _compatible(source), re.M)
    model = tree.group(1) if tree else (soc_model(source) or "").lower()
    row = chips.npus("qualcomm").get(model)
    if place or row:
        chip = row["name"] if row else model.upper()
        name = f"Qualcomm Hexagon ({chip})" if chip else "Qualcomm Hexagon"
        driver = "fastrpc" if place and place.startswith("/dev/") else None
        yield Npu(
            "Qualcomm", name, row.get("tops") if row else None, source=place or "getprop ro.soc.model", driver=driver
        )


def _ascend_board(source: Source) -> Iterator[Npu]:
    """An Ascend that is part of the board (Atlas 200, Orange Pi AI Pro): not on PCI, seen by its driver's device."""
    if not source.exists("/dev/davinci0"):
        return
    if not any(source.integer(f"{folder}/vendor") == 0x19E5 for folder in source.glob("/sys/bus/pci/devices/*")):
        yield Npu("Huawei", "Ascend NPU", None, source="/dev/davinci0", driver="davinci")


# --------------------------------------------------------------------------------------------- macOS and Windows


def _apple(source: Source) -> Iterator[Npu]:
    if name := apple.chip_name(source):
        known = chips.apple_chip(name, None)
        yield Npu("Apple", f"{name} Neural Engine", known.tops if known else None, source="the chip's name")


def _windows(source: Source) -> Iterator[Npu]:
    """Compute accelerators with a driver; then what is on PCI without one, and Snapdragons by their name."""
    processor = source.output("reg", "query", windows.PROCESSOR_KEY, "/v", "ProcessorNameString") or ""
    seen = set()
    for each in windows.adapters(source, windows.ACCELERATOR):
        row = chips.npus("pci").get(f"{each.vendor_id}:{each.device_id}")
        if row:
            seen.add(f"{each.vendor_id}:{each.device_id}")
            yield _named(
                f"{each.vendor_id}:{each.device_id}",
                processor,
                f"registry, compute accelerator {each.number}",
                each.driver,
            )
    key = r"HKLM\SYSTEM\CurrentControlSet\Enum\PCI"
    listed = re.findall(r"\\VEN_([0-9A-F]{4})&DEV_([0-9A-F]{4})&", source.output("reg", "query", key) or "")
    for pci_id in dict.fromkeys(f"{vendor}:{device}".lower() for vendor, device in listed):
        row = chips.npus("pci").get(pci_id)
        if row and pci_id not in seen:
            yield _named(pci_id, processor, "registry, Enum\\PCI", None)
    for row in chips.npus("qualcomm").values():
        if row["name"].startswith("Snapdragon X") and row["name"] in processor.replace("(R)", ""):
            yield Npu("Qualcomm", f"Qualcomm Hexagon ({row['name']})", row.get("tops"), source="the processor's name")


def _named(pci_id: str, processor: str, origin: str, driver: str | None) -> Npu:
    row = chips.npus("pci")[pci_id]
    name, tops = row["name"], row.get("tops")
    if pci_id == _XDNA_1:
        name, tops = _first_xdna(processor) or (name, tops)
    return Npu(row["vendor"], name, tops, source=origin, driver=driver)
