"""What spec sheets say of known chips, from `localai/data`: bandwidths, TOPS, names. Unknown stays None."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from localai.domain.units import GIB

_SIZE_TOLERANCE = 0.12  # a card of "24 GB" reports 23.6 to 24 GiB; no two cards of one id are nearer than 16 to 20


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card of `gpus.toml`."""

    name: str
    gbps: float


@dataclass(frozen=True, slots=True)
class AppleChip:
    """A chip of `apple_chips.toml`; `tops` is its Neural Engine's."""

    gbps: float | None
    tops: float | None


def card_by_pci(pci_id: str, vram_bytes: int | None) -> Card | None:
    """The card with that PCI id ("1002:744c") and memory; None where the id alone leaves several."""
    rows = [row for vendor in ("amd", "intel") for row in _data("gpus")[vendor] if row["pci"] == pci_id]
    return _one(rows, vram_bytes)


def card_by_name(name: str, vram_bytes: int | None) -> Card | None:
    """The card that a driver calls so, its memory being right; laptop versions are other cards."""
    wanted = _plain(name)
    rows = [
        row for vendor in ("amd", "intel", "nvidia") for row in _data("gpus")[vendor] if _plain(row["name"]) == wanted
    ]
    return _one(rows, vram_bytes)


def is_discrete(pci_id: str) -> bool:
    """Whether `gpus.toml` has the id, all of whose cards have memory of their own."""
    return any(row["pci"] == pci_id for vendor in ("amd", "intel") for row in _data("gpus")[vendor])


def _one(rows: list[dict[str, Any]], vram_bytes: int | None) -> Card | None:
    if vram_bytes is not None:
        rows = [row for row in rows if abs(vram_bytes / (row["vram_gib"] * GIB) - 1) <= _SIZE_TOLERANCE]
    found = {Card(str(row["name"]), float(row["gbps"])) for row in rows}
    return found.pop() if len(found) == 1 else None


def _plain(name: str) -> str:
    """A card's name without its maker, trademarks and what drivers add to it."""
    bare = re.sub(r"\((?:r|tm|c)\)|\bgraphics\b|\bnvidia\b|\bamd\b|\bintel\b|\btesla\b", " ", name.casefold())
    return " ".join(bare.split())


def apple_chip(name: str, cores: int | None) -> AppleChip | None:
    """Apple's chip of that brand string ("Apple M4 Max"); its bandwidth may depend on its CPU cores."""
    row = _data("apple_chips").get(name)
    if row is None:
        return None
    gbps = row.get("gbps") or row.get("gbps_by_cores", {}).get(str(cores))
    return AppleChip(float(gbps) if gbps else None, row.get("tops"))


def board_gbps(model: str) -> float | None:
    """Peak memory bandwidth of the board that a device tree calls so, by the longest name that begins it."""
    names = [name for name in _data("boards") if re.match(rf"{re.escape(name)}(?![\w+])", model)]
    return float(_data("boards")[max(names, key=len)]["gbps"]) if names else None


def npus(kind: str) -> dict[str, Any]:
    """A table of `npus.toml`: pci, usb, vbnv, rockchip or qualcomm."""
    table: dict[str, Any] = _data("npus")[kind]
    return table


@cache
def _data(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("localai.data").joinpath(f"{name}.toml").read_text("utf-8"))
