"""The index of installed models: one small JSON file for each, so that no crash and no second process loses another's.

A record is written whole or not at all; when a model was last used is the time of an empty file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localai import settings
from localai.domain import InstalledFile, InstalledModel
from localai.partial import disk_error, sync_folder

SCHEMA_VERSION = 1
_LARGEST_RECORD_BYTES = 1_000_000
_RECORD, _USED = ".json", ".used"


def folder() -> Path:
    """Where the records are."""
    return settings.folders().data / "models"


def save(model: InstalledModel) -> None:
    """Write one model's record, replacing an older one of the same file. Raises LocalaiError, DoesNotFit."""
    path = folder() / (_slug(model) + _RECORD)
    try:
        settings.private_folder(path.parent)
        settings.write_atomically(path, json.dumps(_as_json(model), indent=1).encode())
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def load(on_damaged: Callable[[str], None] = lambda line: None) -> tuple[InstalledModel, ...]:
    """Every record, by model and quantization. A damaged one is skipped and told in one line; nothing is raised."""
    entries: dict[str, os.DirEntry[str]] = {}
    try:
        with os.scandir(folder()) as listing:
            entries = {entry.name: entry for entry in listing}
    except FileNotFoundError:
        return ()
    except OSError as error:
        on_damaged(f"cannot read {folder()}: {error.strerror}")
        return ()
    models = []
    for name, entry in entries.items():
        if name.startswith(".") or not name.endswith(_RECORD):
            continue
        try:
            model = _read(entry.path)
        except (OSError, ValueError) as error:
            on_damaged(f"{entry.path} is not a readable record and is left out: {_reason(error)}")
            continue
        used = entries.get(name.removesuffix(_RECORD) + _USED)
        models.append(replace(model, last_used_at=_used_at(used)) if used else model)
    return tuple(sorted(models, key=lambda model: (model.model, model.quantization, str(model.path))))


def forget(model: InstalledModel) -> None:
    """Remove one model's record. Raises LocalaiError."""
    path = folder() / _slug(model)
    try:
        path.with_name(path.name + _RECORD).unlink(missing_ok=True)
        path.with_name(path.name + _USED).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


def touch(model: InstalledModel) -> None:
    """Note that the model is used now; a disk that does not take the note is no reason to fail."""
    with suppress(OSError):
        path = settings.private_folder(folder()) / (_slug(model) + _USED)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.utime(path)


def last_used_at(model: InstalledModel) -> str | None:
    """When `touch` last noted the model, ISO 8601 in UTC."""
    return _used_at(folder() / (_slug(model) + _USED))


def _used_at(path: os.DirEntry[str] | Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (OSError, ValueError, OverflowError):
        return None


def _slug(model: InstalledModel) -> str:
    """A file name that is safe whatever the model is called, and that one repository's file always gets."""
    identity = "\0".join((model.source, model.repo or str(model.path), model.files[0].name)).casefold()
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model.model)[:60].strip(".-")
    return f"{readable}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _as_json(model: InstalledModel) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model.model,
        "repo": model.repo,
        "commit": model.commit,
        "quantization": model.quantization,
        "source": model.source,
        "verified_at": model.verified_at,
        "files": [_file_as_json(file) for file in model.files],
        "projector": _file_as_json(model.projector) if model.projector else None,
    }


def _file_as_json(file: InstalledFile) -> dict[str, Any]:
    return {"name": file.name, "path": str(file.path), "size_bytes": file.size_bytes, "sha256": file.sha256}


def _read(path: str) -> InstalledModel:
    """One record. Raises OSError, or ValueError for anything that is not one."""
    with open(path, "rb") as stream:
        content = stream.read(_LARGEST_RECORD_BYTES)
    try:
        raw = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version {raw.get('schema_version')!r:.20} is not known")
    files = raw.get("files")
    if not isinstance(files, list) or not files:
        raise ValueError("no files")
    projector = raw.get("projector")
    return InstalledModel(
        model=_text(raw, "model"),
        repo=_text_or_none(raw, "repo"),
        commit=_text_or_none(raw, "commit"),
        quantization=_text(raw, "quantization"),
        files=tuple(_file(file) for file in files),
        projector=_file(projector) if projector is not None else None,
        verified_at=_text_or_none(raw, "verified_at"),
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


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error).splitlines()[0]
