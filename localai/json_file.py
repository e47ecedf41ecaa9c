"""Small JSON objects in files that anybody may have damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_BYTES = 1_000_000


def read(path: Path | str, largest_bytes: int = LARGEST_BYTES) -> dict[str, Any]:
    """The object that a file of at most `largest_bytes` holds. Raises OSError, or ValueError for anything else."""
    with open(path, "rb") as stream:
        content = stream.read(largest_bytes)
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
