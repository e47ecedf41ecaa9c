"""Intel graphics through the xe and i915 drivers' sysfs files."""

from __future__ import annotations

from localai.domain.machine import Gpu
from localai.probes import chips, drm
from localai.probes.source import Source

VENDOR_ID = 0x8086


def gpus(source: Source) -> tuple[Gpu, ...]:
    """Intel's cards; one without local memory is integrated and shares the system's."""
    return tuple(_gpu(source, card) for card in drm.cards(source, VENDOR_ID))


def _gpu(source: Source, card: drm.Card) -> Gpu:
    total, free, origin = _local_memory(source, card)
    discrete = total is not None or chips.is_discrete(card.pci_id) or _has_vram(source, card)
    known = chips.card_by_pci(card.pci_id, total) if discrete else None
    kind = "Arc graphics" if discrete else "graphics"
    return Gpu(
        vendor="Intel",
        name=known.name if known else f"Intel {kind} ({card.pci_id})",
        vram_total_bytes=total,
        vram_free_bytes=free,
        shared_memory=not discrete,
        bandwidth_gbps=known.gbps if known else None,
        driver=card.driver,
        source=origin,
    )


def _local_memory(source: Source, card: drm.Card) -> tuple[int | None, int | None, str]:
    """(total, free, file) of the card's own memory: xe names it for each tile, i915 once for the card."""
    tiles = source.glob(f"{card.device}/tile[0-9]*/physical_vram_size_bytes")
    tiles += source.glob(f"{card.device}/tile[0-9]*/memory/physical_vram_size_bytes")
    total = sum(source.integer(path) or 0 for path in tiles)
    if total:
        return total, None, tiles[0]
    for folder in (card.folder, card.device):
        if total := source.integer(f"{folder}/lmem_total_bytes") or 0:
            free = source.integer(f"{folder}/lmem_avail_bytes")
            return total, None if free is None else min(free, total), f"{folder}/lmem_total_bytes"
    return None, None, card.device


def _has_vram(source: Source, card: drm.Card) -> bool:
    """Whether xe shows a region of local memory, also where it does not say how large it is."""
    return bool(source.glob(f"{card.device}/tile[0-9]*/vram0") + source.glob(f"{card.device}/tile[0-9]*/memory/vram0"))
