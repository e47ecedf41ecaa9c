"""What can go from the disk: our own leftovers, and what our pulls brought that no model uses any more.

What other programs left or hold is theirs to clear away, and stays: of a cache that is shared, only what is claimed
(`claims`) goes. Where the index cannot be read whole, nothing is offered that a model may need. What is offered is
looked at again before it goes, with what keeps other processes from it held: a prompt can wait for long.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from localai import aliases, claims, copies, hub_cache, locks, record_format, records, settings
from localai.claims import Claim
from localai.domain.files import InstalledModel
from localai.partial import disk_error
from localai.removing import place_of, places

IDLE_SECONDS = 3600  # what was written to more recently may belong to a process at work
_PARTIAL = re.compile(r"([0-9a-f]{64})\.localai\.[a-z0-9.]+")
_NOTE = re.compile(r".+\.[0-9]+\.[0-9a-f]{8}\.new")  # of a branch, half written


class Kind(StrEnum):
    """What a leftover is, in words."""

    PARTIAL = "unfinished download"
    REVISION = "unused revision"
    COPY = "copy that no model uses"
    TEMPORARY = "unfinished file"
    RECORD = "record of a model whose files are gone"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can go. `size_bytes` is what that frees; `model` that of a record, `claim` whose part it is."""

    kind: Kind
    path: Path
    size_bytes: int
    model: InstalledModel | None = None
    claim: Claim | None = None


def find(
    idle_seconds: float = IDLE_SECONDS, on_fault: Callable[[str], None] = lambda line: None
) -> tuple[Leftover, ...]:
    """Everything that can go now; what another process is at is left alone. Changes nothing.

    `on_fault` is told, one line each, what of the index cannot be read: then no copy and no revision is among them.
    """
    known = _known(on_fault)
    return (
        *_partials(),
        *(_claimed(known) if known is not None else ()),
        *(_copies(known, idle_seconds) if known is not None else ()),
        *_temporaries(idle_seconds),
        *_gone(known or ()),
    )


def remove(leftovers: Sequence[Leftover], idle_seconds: float = IDLE_SECONDS) -> tuple[Leftover, ...]:
    """Remove them; returns those that went, with the bytes that were freed. Raises LocalaiError."""
    gone = []
    for each in leftovers:
        try:
            freed = _remove(each, idle_seconds)
        except OSError as error:
            raise disk_error(error, each.path) from error
        if freed is not None:
            gone.append(Leftover(each.kind, each.path, freed, each.model, each.claim))
    return tuple(gone)


def _remove(leftover: Leftover, idle_seconds: float) -> int | None:
    """The bytes freed; None for what is in use after all, or is gone already."""
    if leftover.claim is not None:
        return _remove_claimed(leftover, leftover.claim)
    match leftover.kind:
        case Kind.PARTIAL:
            return _remove_partial(leftover)
        case Kind.COPY:
            with locks.if_free(copies.lock_of(leftover.path)) as free:
                known = _known() if free else None
                is_needed = known is None or place_of(leftover.path) in places(known)
                return None if is_needed else copies.discard(leftover.path)
        case Kind.RECORD if leftover.model is not None:
            if not _is_gone(leftover.model):
                return None
            records.forget(leftover.model)
            return leftover.size_bytes
    if _idle_size(leftover.path, idle_seconds) is None:
        return None
    leftover.path.unlink(missing_ok=True)
    return leftover.size_bytes


def _known(on_fault: Callable[[str], None] = lambda line: None) -> list[InstalledModel] | None:
    """Every model of the index; None where something of it cannot be read."""
    faults: list[str] = []
    known = [record.model for record in records.read_all(faults.append)]
    for line in faults:
        on_fault(line)
    return None if faults else known


# --------------------------------------------------------------------------------------------- unfinished downloads


def _partials() -> Iterator[Leftover]:
    for path in sorted(settings.hub_cache().glob("models--*/blobs/*.localai.*")):
        if _PARTIAL.fullmatch(path.name):
            with locks.if_free(_lock_of(path), make=False) as free, suppress(FileNotFoundError):
                if free:
                    yield Leftover(Kind.PARTIAL, path, path.lstat().st_size)


def _lock_of(partial: Path) -> Path:
    return hub_cache.lock_in(partial.parent.parent, partial.name.partition(".")[0])


def _remove_partial(leftover: Leftover) -> int | None:
    with locks.if_free(_lock_of(leftover.path), make=False) as free:
        if not free:
            return None
        leftover.path.unlink(missing_ok=True)
        # The lock was this download's alone; a process that waits for it notices that it is gone, and makes a new one.
        if not any(leftover.path.parent.glob(f"{leftover.path.name.partition('.')[0]}*")):
            with suppress(OSError):
                _lock_of(leftover.path).unlink(missing_ok=True)
    return leftover.size_bytes


# ----------------------------------------------------------------------------------------------- what pulls brought


def _claimed(known: Sequence[InstalledModel]) -> Iterator[Leftover]:
    needed = places(known)
    for claim in claims.read_all():
        with claims.if_idle(claim, make=False) as idle:
            parts: tuple[Leftover, ...] = ()
            with suppress(OSError):  # what may not be looked into stays
                parts = tuple(_parts(claim, needed)) if idle else ()
            yield from parts


def _parts(claim: Claim, needed: set[Path]) -> Iterator[Leftover]:
    """What of a claim no model uses: pointers, unless others note the revision, and blobs that nothing leads to."""
    led = hub_cache.pointers(claim.folder)
    if (unused := _unused(claim, led, needed)) and hub_cache.refs_to(claim.folder, claim.commit) <= claim.refs:
        yield Leftover(Kind.REVISION, claim.snapshot, hub_cache.freed_by(claim.folder, unused), claim=claim)
    for blob in claim.whole_blobs():
        if blob not in led.values() and place_of(blob) not in needed:
            yield Leftover(Kind.PARTIAL, blob, blob.stat().st_size, claim=claim)
    if claim.is_void():
        note = claims.path_of(claim)
        yield Leftover(Kind.TEMPORARY, note, note.stat().st_size, claim=claim)


def _unused(claim: Claim, led: dict[Path, Path], needed: set[Path]) -> list[Path]:
    return [
        path
        for path in claim.pointers()
        if path in led and place_of(path) not in needed and place_of(led[path]) not in needed
    ]


def _remove_claimed(leftover: Leftover, claim: Claim) -> int | None:
    with claims.if_idle(claim) as idle:
        known = _known() if idle else None
        if known is None or (leftover.kind, leftover.path) not in {
            (each.kind, each.path) for each in _parts(claim, places(known))
        }:
            return None
        freed = leftover.size_bytes
        if leftover.kind is Kind.REVISION:
            repo = claim.folder.name.removeprefix("models--").replace("--", "/", 1)
            freed = 0
            for path in _unused(claim, hub_cache.pointers(claim.folder), places(known)):
                name = path.relative_to(claim.snapshot).as_posix()
                freed += hub_cache.unlink(repo, claim.commit, name, path)
        elif leftover.kind is Kind.PARTIAL:
            leftover.path.unlink(missing_ok=True)
        claims.settle(claim)
        return freed


# ----------------------------------------------------------------------------------------------- in our own folders


def _copies(known: Sequence[InstalledModel], idle_seconds: float) -> Iterator[Leftover]:
    needed = places(known)
    for path in sorted(copies.everything()):
        if place_of(path) not in needed and (size := _idle_size(path, idle_seconds)) is not None:
            with locks.if_free(copies.lock_of(path), make=False) as free:
                if free:
                    yield Leftover(Kind.COPY, path, size)


def _temporaries(idle_seconds: float) -> Iterator[Leftover]:
    """What a process that was killed in the middle of a write left, and notes about models that are gone."""
    own = settings.folders()
    for folder in (own.config, own.data, records.folder(), aliases.folder(), claims.folder()):
        for path in sorted(folder.glob(".*.tmp")):
            if (size := _idle_size(path, idle_seconds)) is not None:
                yield Leftover(Kind.TEMPORARY, path, size)
    for path in sorted(settings.hub_cache().glob("models--*/refs/**/*.new")):
        if _NOTE.fullmatch(path.name) and (size := _idle_size(path, idle_seconds)) is not None:
            yield Leftover(Kind.TEMPORARY, path, size)
    for path in sorted(records.folder().glob("[!.]*")):
        alone = path.suffix in records.NOTES and not path.with_suffix(".json").exists()
        if alone and (size := _idle_size(path, idle_seconds)) is not None:
            yield Leftover(Kind.TEMPORARY, path, size)


def _idle_size(path: Path, idle_seconds: float) -> int | None:
    """The size of a file that was not touched for that long, None of any other."""
    try:
        stat = path.lstat()
    except OSError:
        return None
    return stat.st_size if time.time() - max(stat.st_mtime, stat.st_ctime) >= idle_seconds else None


def _gone(known: Sequence[InstalledModel]) -> Iterator[Leftover]:
    for model in known:
        if _is_gone(model):
            yield Leftover(Kind.RECORD, model.path, 0, model)


def _is_gone(model: InstalledModel) -> bool:
    """Whether a model's files were all removed, and are not only out of reach: their disk away, their folder closed."""
    for file in model.all_files:
        try:
            file.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass
        return False
    folder = hub_cache.folder_of(model.path)
    # The cache itself, since its tools take away a repository with its folder.
    place = folder.parent if folder is not None else model.path.parent
    device, known = record_format.device_of(place), records.disk_of(model)
    if known is not None:
        return device == known
    try:  # a record of an earlier version: an empty folder may be where a disk was
        return bool(os.listdir(place))
    except OSError:
        return False
