"""A machine made by hand, and models in the index without a Hub."""

from __future__ import annotations

from localai import records, settings
from localai.domain.files import InstalledFile, InstalledModel
from localai.domain.machine import Bandwidth, Cpu, Disk, EngineInfo, Machine, SystemMemory
from localai.domain.units import GIB


def machine(ram_gib: float = 16) -> Machine:
    memory = SystemMemory(int(ram_gib * GIB), int(ram_gib * GIB))
    return Machine(
        "linux", Cpu("cpu", "x86_64", 4, 8), memory, Bandwidth(40, "test"), Disk("/", 10**12), EngineInfo(None)
    )


def install(model: str, quantization: str = "Q4_K_M", size: int = 10, repo: str | None = None) -> InstalledModel:
    """A model in the index and on the disk, without a Hub."""
    path = settings.folders().data / "elsewhere" / f"{model.replace('/', '-')}-{quantization}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    file = InstalledFile(path.name, path, size, "a" * 64)
    made = InstalledModel(model, repo, None, quantization, (file,), None, "2026-11-21T00:00:00Z", "file")
    records.save(made)
    return made
