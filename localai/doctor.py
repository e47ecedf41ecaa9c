"""What is wrong with this machine and this installation, each with the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from localai import catalog, hardware, library, settings
from localai.checks import building, engine, network, storage
from localai.checks.finding import Finding, Status, fault, warning
from localai.errors import LocalaiError

__all__ = ["Finding", "Status", "examine", "healthy"]


def examine(verify: bool = False, progress: Callable[[int], None] = lambda done_bytes: None) -> Iterator[Finding]:
    """Every check in turn, none of which raises; `verify` hashes the model files (`progress`: bytes done).

    Connects to the configured Hub only, and not at all in offline mode.
    """
    machine = hardware.detect()
    here = building.installation(machine.engine.version)
    for line in machine.failures:
        yield warning("probes", f"{line}; what it would have found is missing here")
    yield engine.check_engine(machine, here)
    if machine.engine.version is not None:
        yield engine.check_instructions(_system_info(), _cpuinfo(), here)
        yield engine.check_rpc(machine, here)
    yield from engine.check_gpus(machine, here)
    yield from engine.check_driver(machine, here)
    yield from engine.check_npus(machine, here)
    if machine.engine.version is not None:
        yield engine.check_calibration(machine)
    yield from storage.check_folders(_folders())
    yield from storage.check_room(machine, catalog.load(), library.installed())
    yield from storage.check_models(verify, progress)
    if (broken := _settings()) is not None:
        yield broken
        return
    yield from network.check_hub()


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing is a fault."""
    return all(found.status is not Status.FAULT for found in findings)


def _settings() -> Finding | None:
    """The config file's fault; None where it can be read."""
    try:
        settings.load()
    except LocalaiError as error:
        return fault("settings", error.message, error.hint)
    return None


def _folders() -> dict[str, Path]:
    ours = settings.folders()
    return {"settings": ours.config, "records": ours.data, "cache": ours.cache, "models": settings.hub_cache()}


def _system_info() -> str | None:
    from localai.engine import library as llama

    return llama.system_info()


def _cpuinfo() -> str | None:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return None
