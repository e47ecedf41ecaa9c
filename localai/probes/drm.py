"""Graphics cards in /sys/class/drm, as the AMD and Intel probes read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from localai.probes.source import Source


@dataclass(frozen=True, slots=True)
class Card:
    """One card: its folder, its PCI device folder, and who made it."""

    folder: str
    device: str
    vendor_id: int
    device_id: int | None
    driver: str | None

    @property
    def pci_id(self) -> str:
        """ "1002:744c", as lspci prints it."""
        return f"{self.vendor_id:04x}:{self.device_id:04x}" if self.device_id is not None else f"{self.vendor_id:04x}"


def cards(source: Source, vendor_id: int) -> Iterator[Card]:
    """The vendor's cards, in the kernel's order; connectors (card0-DP-1) are not cards."""
    folders = [path for path in source.glob("/sys/class/drm/card*") if re.search(r"/card\d{1,3}$", path)]
    for folder in sorted(folders, key=lambda path: int(path.rsplit("card", 1)[1])):
        device = f"{folder}/device"
        if source.integer(f"{device}/vendor") != vendor_id:
            continue
        events = source.text(f"{device}/uevent", 4096) or ""
        driver = re.search(r"^DRIVER=([\w-]{1,32})$", events, re.M)
        yield Card(folder, device, vendor_id, source.integer(f"{device}/device"), driver.group(1) if driver else None)
