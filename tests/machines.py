# ruff: noqa: N802 - the names are pynvml's
"""Captured machines for the probes' tests: `captures/NAME.toml` laid out as a tree, with commands and NVML answers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from localai.probes.source import Source

CAPTURES = Path(__file__).parent / "captures"
NAMES = sorted(path.stem for path in CAPTURES.glob("*.toml"))


class NVMLError_NotSupported(Exception):  # noqa: N801
    pass


class CapturedNvml:
    """NVML as it answered on a captured machine; without cards, one whose driver is absent."""

    def __init__(self, answers: Mapping[str, Any] | None) -> None:
        self.answers = answers
        self.open = False

    def nvmlInit(self) -> None:
        if self.answers is None:
            raise OSError("NVML Shared Library Not Found")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlSystemGetDriverVersion(self) -> str:
        return str((self.answers or {})["driver"])

    def nvmlDeviceGetCount(self) -> int:
        return len((self.answers or {})["cards"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Mapping[str, Any]:
        card: Mapping[str, Any] = (self.answers or {})["cards"][index]
        return card

    def nvmlDeviceGetName(self, handle: Mapping[str, Any]) -> bytes:
        return str(handle["name"]).encode()

    def nvmlDeviceGetMemoryInfo(self, handle: Mapping[str, Any]) -> SimpleNamespace:
        if "total" not in handle:
            raise NVMLError_NotSupported
        return SimpleNamespace(total=handle["total"], free=handle["free"])

    def nvmlDeviceGetMaxClockInfo(self, handle: Mapping[str, Any], kind: int) -> int:
        assert kind == 2
        return int(handle["clock_mhz"])

    def nvmlDeviceGetMemoryBusWidth(self, device: Mapping[str, Any]) -> int:
        return int(device["bus_bits"])

    def nvmlDeviceGetMigMode(self, device: Mapping[str, Any]) -> list[int]:
        if "mig" not in device:
            raise NVMLError_NotSupported
        return [int(device["mig"]), int(device["mig"])]

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Mapping[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Mapping[str, Any], index: int) -> Mapping[str, Any]:
        instance: Mapping[str, Any] = device["instances"][index]
        return instance


def content(name: str) -> dict[str, Any]:
    """What `captures/NAME.toml` holds; `expected` is every figure that is to be found."""
    return tomllib.loads((CAPTURES / f"{name}.toml").read_text("utf-8"))


def captured(name: str, folder: Path) -> tuple[Source, CapturedNvml]:
    """The machine `captures/NAME.toml`, its files laid out under `folder`."""
    data = content(name)
    for path, text in data.get("files", {}).items():
        place = folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    commands = data.get("commands", {})

    def run(command: Sequence[str], seconds: float) -> str | None:
        return commands.get(" ".join(command))

    source = Source(folder, run, data["system"], data["architecture"], lambda: data.get("figures", {}))
    return source, CapturedNvml(data.get("nvml"))
