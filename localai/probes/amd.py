"""AMD graphics through amdgpu's sysfs files; no ROCm needed."""

from __future__ import annotations

from localai.domain.machine import Gpu
from localai.domain.units import GIB
from localai.probes import chips, drm
from localai.probes.source import Source

VENDOR_ID = 0x1002


def gpus(source: Source) -> tuple[Gpu, ...]:
    """AMD's cards. An integrated one shares the system's memory: its VRAM is only the firmware's carve-out.

    `shared_total_bytes` is then the GTT, the part of the RAM that it may map: never to be added to the RAM.
    """
    return tuple(_gpu(source, card) for card in drm.cards(source, VENDOR_ID))


def _gpu(source: Source, card: drm.Card) -> Gpu:
    vram = source.integer(f"{card.device}/mem_info_vram_total") or None
    used = source.integer(f"{card.device}/mem_info_vram_used")
    gtt = source.integer(f"{card.device}/mem_info_gtt_total")
    shared = vram is not None and gtt is not None and is_integrated(vram, gtt)
    known = None if shared else chips.card_by_pci(card.pci_id, vram)
    product = source.text(f"{card.device}/product_name", 128) or (known.name if known else None)
    return Gpu(
        vendor="AMD",
        name=product or f"AMD Radeon graphics ({card.pci_id})",
        vram_total_bytes=vram,
        vram_free_bytes=None if vram is None or used is None else max(vram - used, 0),
        shared_memory=shared,
        bandwidth_gbps=known.gbps if known else None,
        driver=card.driver,
        source=f"{card.device}/mem_info_vram_total" if vram is not None else card.device,
        shared_total_bytes=gtt if shared else None,
    )


def is_integrated(vram_bytes: int, gtt_bytes: int) -> bool:
    """Whether such sizes are those of an APU: a small carve-out beside much system memory that the GPU may map.

    The rule is estimation.md's: VRAM of at most 4 GiB, and GTT of at least 8 GiB and four times the VRAM.
    """
    return vram_bytes <= 4 * GIB and gtt_bytes >= 8 * GIB and gtt_bytes >= 4 * vram_bytes
