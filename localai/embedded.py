"""The embedded default: a small model inside an installed package, listed only if its bytes are the known ones."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from localai import json_file, records, settings
from localai.domain.files import InstalledFile, InstalledModel
from localai.partial import sha256_of


@dataclass(frozen=True, slots=True)
class Embedded:
    """What `data/embedded.toml` says of the file."""

    model: str
    package: str
    file: str
    quantization: str
    size_bytes: int
    sha256: str


@cache
def described() -> Embedded:
    """The embedded model as it must be."""
    raw = tomllib.loads(files("localai").joinpath("data", "embedded.toml").read_text("utf-8"))
    return Embedded(**{name: value for name, value in raw.items() if name != "schema_version"})


def find() -> InstalledModel | None:
    """The embedded model, None where its package is absent or its bytes are not the known ones.

    It is hashed once, and again when its size or time changes; where the data folder cannot be written, each time.
    """
    known = described()
    path = _path(known)
    if path is None:
        return None
    try:
        stat = path.stat()
        if stat.st_size != known.size_bytes:
            return None
        seen = {"path": str(path), "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": known.sha256}
        verified_at = _remembered(seen)
        if verified_at is None:
            if sha256_of(path) != known.sha256:
                return None
            verified_at = records.now()
            _remember({**seen, "verified_at": verified_at})
    except OSError:
        return None
    model = InstalledModel(
        model=known.model,
        repo=None,
        commit=None,
        quantization=known.quantization,
        files=(InstalledFile(known.file, path, known.size_bytes, known.sha256),),
        projector=None,
        verified_at=verified_at,
        source="embedded",
        read_only=True,
    )
    return replace(model, last_used_at=records.last_used_at(model))


def _path(known: Embedded) -> Path | None:
    """Where the package keeps the file. The package is found, never imported."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(known.package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(place).absolute() / known.file).is_file():
                return path
    return None


def _memory() -> Path:
    return settings.folders().data / "embedded.json"


def _remembered(seen: dict[str, Any]) -> str | None:
    """When these very bytes were verified, None if they never were."""
    try:
        raw = json_file.read(_memory())
        verified_at = raw.pop("verified_at")
    except (OSError, ValueError, KeyError):
        return None
    return verified_at if raw == seen and isinstance(verified_at, str) else None


def forget() -> None:
    """No longer believe that the file was verified: it is hashed anew when next asked for."""
    with suppress(OSError):
        _memory().unlink(missing_ok=True)


def _remember(verified: dict[str, Any]) -> None:
    with suppress(OSError):
        settings.private_folder(_memory().parent)
        settings.write_atomically(_memory(), json.dumps(verified).encode())
