"""Write every machine of the list with its tier into `docs/machines.md`; `--check` tells whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from localai.domain.machine import Gpu
from localai.domain.units import GIB
from localai.machines import Listed, listed
from localai.tiers import tier

PAGE = Path(__file__).resolve().parent.parent / "docs" / "machines.md"

INTRODUCTION = """# Machines that `recommend --machine` knows

Generated from `localai/data/machines.toml` and the rule of [tiers](tiers.md) by `scripts/machine_page.py`; a test
checks that it is up to date. A dash is what a machine does not have, "unknown" what no source gives. Memory of a GPU in
brackets is part of the RAM, not added to it. NPUs are shown for completeness: llama.cpp as it is usually installed uses
none. GB/s are peaks by the spec sheet, but a Raspberry Pi 4's: what it was seen to reach.

| name | machine | RAM | RAM, GB/s | GPU: memory, GB/s | NPU, TOPS | tier |
|---|---|---|---|---|---|---|
"""


def rows() -> Iterator[str]:
    for each in listed():
        machine = each.machine
        cells = (
            f"`{each.id}`",
            each.name,
            f"{machine.memory.total_bytes / GIB:g} GB",
            number(machine.bandwidth.gbps),
            "<br>".join(gpu_cell(gpu) for gpu in machine.gpus) or "–",
            "<br>".join(number(npu.tops) for npu in machine.npus) or "–",
            tier(machine).size,
        )
        yield f"| {' | '.join(cells)} |"


def gpu_cell(gpu: Gpu) -> str:
    if not gpu.usable_by_engine:
        return f"{gpu.name}: not used"
    size = f"{gpu.vram_total_bytes / GIB:.4g} GB" if gpu.vram_total_bytes else "unknown"
    return f"{gpu.name}: {f'({size})' if gpu.shared_memory else size}, {number(gpu.bandwidth_gbps)}"


def number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def sources() -> Iterator[str]:
    yield "\n## Where the figures are from\n"
    for each in listed():
        yield f"- `{each.id}`: {text_of(each)}"


def text_of(each: Listed) -> str:
    return "; ".join(source.rstrip(".") for source in each.sources)


def page() -> str:
    return INTRODUCTION + "\n".join([*rows(), *sources()]) + "\n"


def main() -> int:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == page():
        return 0
    print("error: docs/machines.md is not what the list says\nhint: python scripts/machine_page.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
