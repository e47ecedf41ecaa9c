"""The index of installed models: one small JSON file for each, so that no crash and no second process loses another's.

A record is written whole or not at all, without any lock. What changes after it was written lies in files beside it:
`.used` (its time is when the model was last used), `.check` (what the last verification found) and `.facts` (what the
model's header says, so that it need not be read again). They belong to a record by the SHA-256 of its files, so one
that is left over from other bytes says nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from localai import json_file, record_format, settings
from localai.domain.files import InstalledModel
from localai.errors import LocalaiError
from localai.partial import disk_error, sync_folder

_RECORD, _USED, _CHECK, _FACTS = ".json", ".used", ".check", ".facts"
NOTES = (_CHECK, _FACTS)  # what is of no use without its record


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the index; `fault` is what the last verification found wrong, None where all was well.

    `damaged` are the SHA-256 of the files that it found so.
    """

    model: InstalledModel
    fault: str | None = None
    damaged: frozenset[str] = frozenset()


class Why(StrEnum):
    """Why a record cannot be read."""

    DAMAGED = "it is damaged"
    NEWER = "a newer version wrote it"
    REFUSED = "the system refuses it"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry of the index that says nothing; `reason` is a sentence's end."""

    path: Path
    why: Why
    reason: str


def folder() -> Path:
    """Where the records are."""
    return settings.folders().data / "models"


def prepare() -> None:
    """Make the folder of the records and see that it can be written, before hours go into what is to be recorded.

    Raises LocalaiError.
    """
    try:
        settings.private_folder(folder())
        with tempfile.TemporaryFile(dir=folder()):
            return
    except OSError as error:
        raise LocalaiError(
            f"cannot write to {folder()}, where installed models are recorded: {error.strerror}",
            "mend the folder's permissions, or set LOCALAI_HOME to a folder of your own",
        ) from error


def save(model: InstalledModel) -> None:
    """Write one model's record, replacing an older one of the same file. Raises LocalaiError, DoesNotFit."""
    path, earlier = folder() / (_slug(model) + _RECORD), folder() / (_stem(model) + _RECORD)
    try:
        settings.private_folder(path.parent)
        settings.write_atomically(path, json.dumps(record_format.as_json(model), indent=1).encode())
        # Only now: until the new record is there, what was found wrong with the old one still holds.
        path.with_suffix(_CHECK).unlink(missing_ok=True)
        if earlier != path:
            with suppress(FileNotFoundError):
                os.replace(earlier.with_suffix(_USED), path.with_suffix(_USED))
            _unlink(earlier)
    except OSError as error:
        raise disk_error(error, path) from error
    with suppress(OSError):  # a network disk that cannot sync a folder still has the record
        sync_folder(path.parent)


def load(on_damaged: Callable[[str], None] = lambda line: None) -> tuple[InstalledModel, ...]:
    """The models of every record that no verification found fault with, by model and quantization.

    What is left out is told in one line each; nothing is raised.
    """
    models = []
    for record in read_all(on_damaged):
        if record.fault is None:
            models.append(record.model)
        else:
            on_damaged(f"{described(record.model)} is left out: {record.fault}; localai verify says what to do")
    return tuple(models)


def described(model: InstalledModel) -> str:
    """A model in a message: its name and quantization."""
    return f"{model.model} ({model.quantization})"


def read_all(on_damaged: Callable[[str], None] = lambda line: None) -> tuple[Record, ...]:
    """Every readable record, also of models with a fault; an unreadable one is skipped and told in one line."""
    found = []
    for each in _entries():
        if isinstance(each, Record):
            found.append(each)
        elif each.path == folder():
            on_damaged(f"cannot read {each.path}: {each.reason}")
        else:
            on_damaged(f"{each.path} is not a readable record and is left out: {each.reason}")
    found.sort(key=lambda record: (record.model.model, record.model.quantization, str(record.model.path)))
    return tuple(found)


def unreadable() -> tuple[Unreadable, ...]:
    """Every entry of the index that cannot be read; the folder itself, where that cannot be."""
    return tuple(each for each in _entries() if isinstance(each, Unreadable))


def _entries() -> Iterator[Record | Unreadable]:
    entries: dict[str, os.DirEntry[str]] = {}
    try:
        with os.scandir(folder()) as listing:
            entries = {entry.name: entry for entry in listing}
    except FileNotFoundError:
        return
    except OSError as error:
        yield Unreadable(folder(), Why.REFUSED, _reason(error))
        return
    for name, entry in entries.items():
        if name.startswith(".") or not name.endswith(_RECORD):
            continue
        try:
            model = record_format.read(entry.path)
        except FileNotFoundError:  # removed this moment by another process
            continue
        except (OSError, ValueError) as error:
            newer = isinstance(error, record_format.NewerVersion)
            why = Why.NEWER if newer else Why.REFUSED if isinstance(error, OSError) else Why.DAMAGED
            yield Unreadable(Path(entry.path), why, _reason(error))
            continue
        stem = name.removesuffix(_RECORD)
        if used := entries.get(stem + _USED):
            model = replace(model, last_used_at=_used_at(used))
        check = entries.get(stem + _CHECK)
        yield _checked(model, check.path) if check else Record(model)


def _checked(model: InstalledModel, path: str) -> Record:
    """The record with what its last verification found; a note about other bytes is not heeded."""
    try:
        raw = json_file.read(path)
    except (OSError, ValueError):
        return Record(model)
    fault, at, hashes = raw.get("fault"), record_format.moment(raw.get("checked_at")), _hashes(model)
    if raw.get("sha256") != hashes or at is None:
        return Record(model)
    if fault is not None:
        named = raw.get("damaged")
        damaged = {each for each in hashes if each in named} if isinstance(named, list) else set()
        return Record(model, str(fault), frozenset(damaged or hashes))
    return Record(replace(model, verified_at=max(model.verified_at or "", at)))


def note_check(model: InstalledModel, fault: str | None, damaged: Sequence[str] = ()) -> bool:
    """Note what a verification found: with a fault the model is listed no more. False where the disk takes no note.

    `damaged` are the SHA-256 of the files that the fault concerns; none named: it may be any.
    """
    note = {"sha256": _hashes(model), "checked_at": now(), "fault": fault, "damaged": list(damaged)}
    return _write_beside(model, _CHECK, note)


def now() -> str:
    """This moment, ISO 8601 in UTC, as records keep it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hashes(model: InstalledModel) -> list[str]:
    return [file.sha256 for file in model.all_files]


def facts(model: InstalledModel, folder_name: str | None = None) -> dict[str, Any] | None:
    """What was kept of the model's header, None where nothing was, or of other bytes.

    `folder_name` is `folder()`, for callers that ask about thousands.
    """
    place = folder() if folder_name is None else folder_name
    for slug in (_slug(model), *([_folded_slug(model)] if model.repo is None else [])):
        try:
            raw = json_file.read(f"{place}{os.sep}{slug}{_FACTS}")
        except (OSError, ValueError):
            continue
        if raw.get("sha256") == _hashes(model):
            return raw
    return None


def keep_facts(model: InstalledModel, content: dict[str, Any]) -> bool:
    """Keep what the model's header says; False where the disk does not take it, which costs only time."""
    return _write_beside(model, _FACTS, {"sha256": _hashes(model), **content})


def _write_beside(model: InstalledModel, suffix: str, content: dict[str, Any]) -> bool:
    path = folder() / (_stem(model) + suffix)
    try:
        if not path.with_suffix(_RECORD).exists():  # removed meanwhile, or the embedded model: nothing to lie beside
            return False
        settings.write_atomically(path, json.dumps(content).encode())
    except OSError:
        return False
    return True


def forget(model: InstalledModel) -> None:
    """Remove one model's record. Raises LocalaiError."""
    path = folder() / (_stem(model) + _RECORD)
    try:
        _unlink(path)
    except OSError as error:
        raise disk_error(error, path) from error


def _unlink(record: Path) -> None:
    for suffix in (_RECORD, _USED, *NOTES):
        record.with_suffix(suffix).unlink(missing_ok=True)


def touch(model: InstalledModel) -> None:
    """Note that the model is used now; a disk that does not take the note is no reason to fail."""
    with suppress(OSError):
        path = settings.private_folder(folder()) / (_stem(model) + _USED)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        os.utime(path)


def last_used_at(model: InstalledModel) -> str | None:
    """When `touch` last noted the model, ISO 8601 in UTC."""
    return _used_at(folder() / (_stem(model) + _USED))


def _used_at(path: os.DirEntry[str] | Path) -> str | None:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (OSError, ValueError, OverflowError):
        return None


def _slug(model: InstalledModel) -> str:
    """A file name that is safe whatever the model is called, and that one repository's file always gets.

    Of a file that is from no repository the path counts, with its case: two names can differ by that alone.
    """
    return _folded_slug(model) if model.repo is not None else _named(model, _identity(model) + "\0with its case")


def _folded_slug(model: InstalledModel) -> str:
    """That of a repository's file; earlier versions took it for every file."""
    return _named(model, _identity(model).casefold())


def _identity(model: InstalledModel) -> str:
    return "\0".join((model.source, model.repo or str(model.path), model.files[0].name))


def _named(model: InstalledModel, identity: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", model.model)[:60].strip(".-")
    return f"{readable}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def _stem(model: InstalledModel) -> str:
    """The slug under which the model's record is, be it that of an earlier version; that of a new one where none is."""
    slug, folded = _slug(model), _folded_slug(model)
    if slug == folded or (folder() / (slug + _RECORD)).exists():
        return slug
    same = (other := _at(folded)) is not None and other.path == model.path
    return folded if same else slug


def _at(stem: str) -> InstalledModel | None:
    try:
        return record_format.read(str(folder() / (stem + _RECORD)))
    except (OSError, ValueError):
        return None


def replaced_by(model: InstalledModel) -> InstalledModel | None:
    """The model whose record `save` would replace by this one's, None where there is none that can be read."""
    return _at(_stem(model))


def disk_of(model: InstalledModel) -> int | None:
    """The device that the model's files were on when it was recorded; None where that is not known."""
    try:
        found = json_file.read(folder() / (_stem(model) + _RECORD)).get("device")
    except (OSError, ValueError):
        return None
    return found if type(found) is int else None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "unreadable") if isinstance(error, OSError) else str(error).splitlines()[0]
