"""One record of the index as JSON: written, and read with all of it checked."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from localai import json_file
from localai.domain.files import InstalledFile, InstalledModel

SCHEMA_VERSION = 1


class NewerVersion(ValueError):
    """A record in a form that only a later version of this program knows."""


def as_json(model: InstalledModel) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model.model,
        "repo": model.repo,
        "commit": model.commit,
        "revision": model.revision,
        "quantization": model.quantization,
        "source": model.source,
        "verified_at": model.verified_at,
        "device": device_of(model.path),
        "files": [_file_as_json(file) for file in model.files],
        "projector": _file_as_json(model.projector) if model.projector else None,
    }


def _file_as_json(file: InstalledFile) -> dict[str, Any]:
    return {"name": file.name, "path": str(file.path), "size_bytes": file.size_bytes, "sha256": file.sha256}


def read(path: str) -> InstalledModel:
    """One record. Raises OSError, or ValueError for anything that is not one."""
    raw = json_file.read(path)
    version = raw.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise NewerVersion(f"a newer version wrote it (schema_version {version!r:.20})")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {version!r:.20} is not known")
    files = raw.get("files")
    if not isinstance(files, list) or not files:
        raise ValueError("no files")
    projector = raw.get("projector")
    return InstalledModel(
        model=_text(raw, "model"),
        repo=_text_or_none(raw, "repo"),
        commit=_text_or_none(raw, "commit"),
        revision=_text_or_none(raw, "revision"),
        quantization=_text(raw, "quantization"),
        files=tuple(_file(file) for file in files),
        projector=_file(projector) if projector is not None else None,
        verified_at=moment(raw.get("verified_at")),
        source=_text(raw, "source"),
    )


def _file(raw: Any) -> InstalledFile:
    if not isinstance(raw, dict):
        raise ValueError("a file is not an object")
    size = raw.get("size_bytes")
    path = Path(_text(raw, "path"))
    if type(size) is not int or size < 0 or not path.is_absolute():
        raise ValueError("a file's size or path is wrong")
    return InstalledFile(_text(raw, "name"), path, size, _text(raw, "sha256"))


def _text(raw: dict[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{key} is missing")
    return value


def _text_or_none(raw: dict[str, Any], key: str) -> str | None:
    return None if raw.get(key) is None else _text(raw, key)


def moment(value: Any) -> str | None:
    """A date as `now` gives it; None for what is none: not known, so that whoever goes by it looks again."""
    try:
        known = isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return None
    return value if known else None


def device_of(path: Path) -> int | None:
    """The device that a file or folder is on, None where it is not there or may not be asked about."""
    try:
        return path.stat().st_dev
    except OSError:
        return None
