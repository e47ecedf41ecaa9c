"""Apple silicon: a GPU that works in the system's memory, of which Metal lets it have a part."""

from __future__ import annotations

import re

from localai.domain.machine import Gpu
from localai.domain.units import GIB, MIB
from localai.probes import chips
from localai.probes.source import Source


def chip_name(source: Source) -> str | None:
    """ "Apple M2 Max" on a Mac with Apple silicon, None anywhere else."""
    if source.system != "Darwin":
        return None
    name = (source.output("sysctl", "-n", "machdep.cpu.brand_string") or "").strip()
    return name if re.fullmatch(r"Apple [\w ]{1,40}", name) else None


def gpus(source: Source) -> tuple[Gpu, ...]:
    """The chip's GPU; `vram_total_bytes` is the most that Metal lets it hold, never the whole RAM."""
    name = chip_name(source)
    if name is None:
        return ()
    limit, origin = working_set(source)
    known = chips.apple_chip(name, cores(source))
    return (
        Gpu(
            vendor="Apple",
            name=name,
            vram_total_bytes=limit,
            vram_free_bytes=None,
            shared_memory=True,
            bandwidth_gbps=known.gbps if known else None,
            driver="Metal",
            source=origin,
        ),
    )


def working_set(source: Source) -> tuple[int | None, str]:
    """(bytes, where from): `iogpu.wired_limit_mb` where it is set, else what Metal gives by default.

    Metal's default (`recommendedMaxWorkingSetSize`) was seen at 10.67 GiB of 16, 21.33 of 32, 48 of 64 and 96 of 128
    (logs in llama.cpp's issues 1870 and 687); newer systems give more, up to 84 %. Where the engine was built with
    Metal, its own figure takes the place of this one.
    """
    total = _integer(source, "hw.memsize")
    if total is None:
        return None, "sysctl gave no hw.memsize"
    for name in ("iogpu.wired_limit_mb", "debug.iogpu.wired_limit"):  # macOS 14 and later; 13, there in bytes
        given = _integer(source, name) or 0
        limit = given * MIB if name.endswith("_mb") else given
        if limit:
            return min(limit, total), f"sysctl {name}"
    share, words = (2 / 3, "2/3") if total <= 36 * GIB else (3 / 4, "3/4")
    return int(total * share), f"Metal's usual limit, {words} of the RAM"


def cores(source: Source) -> int | None:
    """CPU cores of the chip, which tell its versions apart."""
    return _integer(source, "hw.physicalcpu")


def _integer(source: Source, name: str) -> int | None:
    text = (source.output("sysctl", "-n", name) or "").strip()
    return int(text) if re.fullmatch(r"\d{1,15}", text) else None
