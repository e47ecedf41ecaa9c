"""The operating system and the processor: Linux from /proc and /sys, macOS from sysctl, Windows from its registry."""

from __future__ import annotations

import math
import re
import tomllib
from functools import cache
from importlib import resources

from localai.domain.machine import Cpu
from localai.probes import cgroups
from localai.probes.source import Source
from localai.probes.windows import PROCESSOR_KEY


def os_name(source: Source) -> str:
    """What the system calls itself, with its version: "Debian GNU/Linux 12 (bookworm)", "macOS 15.1"."""
    match source.system:
        case "Linux" | "Android":
            if is_android(source):
                version = (source.output("getprop", "ro.build.version.release") or "").strip()
                return f"Android {version[:40]}".strip()
            release = source.text("/etc/os-release") or source.text("/usr/lib/os-release") or ""
            found = re.search(r'^PRETTY_NAME=(["\']?)(.{1,200}?)\1\s*$', release, re.M)
            name = found.group(2) if found else source.system
            kernel = source.text("/proc/sys/kernel/osrelease", 256) or ""
            return f"{name} on WSL" if "microsoft" in kernel.lower() else name
        case "Darwin":
            version = (source.output("sw_vers", "-productVersion") or "").strip()
            return f"macOS {version}".strip()
        case "Windows":
            found = re.search(r"Microsoft Windows \[\D*([\d.]+)\]", source.output("cmd", "/c", "ver") or "")
            return f"Windows {found.group(1)}" if found else "Windows"
    return source.system or "unknown"


def cpu(source: Source) -> Cpu:
    """The processor; what the system does not tell is psutil's answer or None."""
    match source.system:
        case "Linux" | "Android":
            return _linux(source)
        case "Darwin":
            return _macos(source)
        case "Windows":
            return _windows(source)
    return Cpu(source.architecture or "unknown", source.architecture, None, _logical_cores(source))


def is_android(source: Source) -> bool:
    """Whether this is Android, as in Termux: Linux with another userland."""
    return source.system == "Android" or source.exists("/system/build.prop")


def soc_model(source: Source) -> str | None:
    """The chip of an Android device, as its maker calls it: "SM8650"."""
    model = (source.output("getprop", "ro.soc.model") or "").strip() if is_android(source) else ""
    return model if re.fullmatch(r"[\w. -]{2,40}", model) else None


def _logical_cores(source: Source) -> int:
    return max(source.figures().get("logical_cores", 1), 1)


# -------------------------------------------------------------------------------------------------------- Linux


def _linux(source: Source) -> Cpu:
    text = source.text("/proc/cpuinfo") or ""
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", text)]
    processors = [block for block in blocks if "processor" in block]
    logical = _online(source) or len(processors) or _logical_cores(source)
    physical = _physical(source, processors)
    name = _name(source, blocks, processors)
    return Cpu(name, source.architecture, physical, logical, _usable(source, physical or logical))


def _usable(source: Source, cores: int) -> int | None:
    """Cores that this process may keep busy, where affinity or a control group's quota leaves fewer than there are."""
    limits: list[float] = [cores]
    status = source.text("/proc/self/status") or ""
    if found := re.search(r"^Cpus_allowed_list:\s+(\S{1,4000})$", status, re.M):
        limits.append(_listed(found.group(1)) or cores)
    if quota := cgroups.cpu_quota(source):
        limits.append(quota)
    usable = max(1, math.ceil(min(limits)))
    return usable if usable < cores else None


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _online(source: Source) -> int | None:
    return _listed(source.text("/sys/devices/system/cpu/online", 4096) or "")


def _listed(text: str) -> int | None:
    """How many processors a list such as "0-3,8" names."""
    count = 0
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip())
        if not found:
            return None
        first, last = int(found.group(1)), int(found.group(2) or found.group(1))
        count += max(last - first + 1, 0)
    return count or None


def _physical(source: Source, processors: list[dict[str, str]]) -> int | None:
    """Cores, not threads: processors that share a core name the same siblings."""
    siblings = set()
    for path in source.glob("/sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"):
        if text := source.text(path, 4096):
            siblings.add(text)
    if siblings:
        return len(siblings)
    cores = {
        (block["physical id"], block["core id"]) for block in processors if {"physical id", "core id"} <= set(block)
    }
    if cores:
        return len(cores)
    return len(processors) or None if any("CPU part" in block for block in processors) else None


def _name(source: Source, blocks: list[dict[str, str]], processors: list[dict[str, str]]) -> str:
    """The model's name; ARM boards give none, so their cores' design and the board's own name stand for it."""
    for block in processors:
        if name := block.get("model name") or block.get("cpu model") or block.get("uarch"):
            return re.sub(r"\s+", " ", name)
    cores = []
    for block in processors:
        if "CPU part" in block and (design := _arm_design(block)) not in cores:
            cores.append(design)
    board = source.text("/proc/device-tree/model", 256) or next((b["Model"] for b in blocks if b.get("Model")), "")
    board = soc_model(source) or board
    name = " + ".join(cores[:4])
    if name and board:
        return f"{name} ({board})"
    return name or board or next((b["cpu"] for b in blocks if b.get("cpu")), "") or source.architecture or "unknown"


def _arm_design(block: dict[str, str]) -> str:
    maker, part = block.get("CPU implementer", "?").lower(), block["CPU part"].lower()
    return _arm_table().get(f"{maker}:{part}", f"ARM core {maker}:{part}")


@cache
def _arm_table() -> dict[str, str]:
    text = resources.files("localai.data").joinpath("arm_cores.toml").read_text("utf-8")
    return {str(key): str(name) for key, name in tomllib.loads(text)["cores"].items()}


# --------------------------------------------------------------------------------------------- macOS and Windows


def _macos(source: Source) -> Cpu:
    answers: dict[str, str] = {}
    # One question a call: sysctl fails as a whole where it does not know a name (hw.optional.arm64 on Intel Macs).
    for name in ("machdep.cpu.brand_string", "hw.physicalcpu", "hw.logicalcpu", "hw.optional.arm64"):
        answers[name] = (source.output("sysctl", "-n", name) or "").strip()
    logical = _count(answers.get("hw.logicalcpu"))
    architecture = "arm64" if answers.get("hw.optional.arm64") == "1" else source.architecture  # Rosetta says x86_64
    return Cpu(
        answers.get("machdep.cpu.brand_string") or architecture or "unknown",
        architecture,
        _count(answers.get("hw.physicalcpu")),
        logical or _logical_cores(source),
    )


def _count(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[1-9]\d{0,5}", text) else None


def _windows(source: Source) -> Cpu:
    answer = source.output("reg", "query", PROCESSOR_KEY, "/v", "ProcessorNameString") or ""
    found = re.search(r"ProcessorNameString\s+REG_SZ\s+(\S.{0,200}?)\s*$", answer, re.M)
    name = re.sub(r"\s+", " ", found.group(1)) if found else source.architecture or "unknown"
    return Cpu(name, source.architecture, source.figures().get("physical_cores"), _logical_cores(source))
