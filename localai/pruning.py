"""What can go from the disk: our own leftovers, and revisions of our models that nothing uses any more.

What other programs left unfinished is theirs to clear away, and stays.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from localai import aliases, copies, hub_cache, library, records, settings
from localai.domain.files import InstalledModel
from localai.partial import disk_error

IDLE_SECONDS = 3600  # what was written to more recently may belong to a process at work
_PARTIAL = re.compile(r"([0-9a-f]{64})\.localai\.[a-z.]+")


class Kind(StrEnum):
    """What a leftover is, in words."""

    PARTIAL = "unfinished download"
    REVISION = "unused revision"
    COPY = "copy that no model uses"
    TEMPORARY = "unfinished file"
    RECORD = "record of a model whose files are gone"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can go. `size_bytes` is what that frees; `model` the model of a record."""

    kind: Kind
    path: Path
    size_bytes: int
    model: InstalledModel | None = None


def find(idle_seconds: float = IDLE_SECONDS) -> tuple[Leftover, ...]:
    """Everything that can go now; a download that another process is at is left alone. Changes nothing."""
    known = [record.model for record in records.read_all()]
    return (
        *_partials(),
        *_revisions(known),
        *_copies(known, idle_seconds),
        *_temporaries(idle_seconds),
        *_gone(known),
    )


def remove(leftovers: Sequence[Leftover]) -> tuple[Leftover, ...]:
    """Remove them; returns those that went, with the bytes that were freed. Raises LocalaiError."""
    gone = []
    for each in leftovers:
        try:
            freed = _remove(each)
        except OSError as error:
            raise disk_error(error, each.path) from error
        if freed is not None:
            gone.append(Leftover(each.kind, each.path, freed, each.model))
    return tuple(gone)


def _remove(leftover: Leftover) -> int | None:
    """The bytes freed; None for what is in use after all."""
    match leftover.kind:
        case Kind.PARTIAL:
            return _remove_partial(leftover)
        case Kind.REVISION:
            return _remove_revision(leftover.path)
        case Kind.COPY:
            return copies.discard(leftover.path)
        case Kind.RECORD if leftover.model is not None:
            records.forget(leftover.model)
            return leftover.size_bytes
    leftover.path.unlink(missing_ok=True)
    return leftover.size_bytes


# --------------------------------------------------------------------------------------------- unfinished downloads


def _partials() -> Iterator[Leftover]:
    for path in sorted(settings.hub_cache().glob("models--*/blobs/*.localai.*")):
        if _PARTIAL.fullmatch(path.name):
            with _held(path) as free, suppress(FileNotFoundError):
                if free:
                    yield Leftover(Kind.PARTIAL, path, path.lstat().st_size)


def _lock_of(partial: Path) -> Path:
    sha256 = partial.name.partition(".")[0]
    return settings.hub_cache() / ".locks" / partial.parent.parent.name / f"{sha256}.lock"


@contextmanager
def _held(partial: Path) -> Iterator[bool]:
    """Whether no other process is at this download; none can begin while this is entered."""
    lock = _lock_of(partial)
    if not lock.exists():
        yield True
        return
    import filelock

    held = filelock.FileLock(lock)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        yield False
        return
    except (OSError, NotImplementedError):  # no such locks on this disk: a soft one is a file that is there
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def _remove_partial(leftover: Leftover) -> int | None:
    with _held(leftover.path) as free:
        if not free:
            return None
        leftover.path.unlink(missing_ok=True)
        # The lock was this download's alone; a process that waits for it notices that it is gone, and makes a new one.
        if not any(leftover.path.parent.glob(f"{leftover.path.name.partition('.')[0]}*")):
            with suppress(OSError):
                _lock_of(leftover.path).unlink(missing_ok=True)
    return leftover.size_bytes


# ------------------------------------------------------------------------------------------------- unused revisions


def _revisions(known: Sequence[InstalledModel]) -> Iterator[Leftover]:
    """Snapshots of repositories that we pull from, which no branch leads to and no model of ours is of."""
    repos: dict[str, set[str]] = {}
    for model in known:
        if model.source == "hub" and model.repo is not None:
            repos.setdefault(model.repo, set())
    for model in known:
        if model.repo in repos and model.commit is not None:
            repos[model.repo].add(model.commit)
    for repo, used in sorted(repos.items()):
        for snapshot, freed in hub_cache.unused_revisions(repo, used):
            yield Leftover(Kind.REVISION, snapshot, freed)


def _remove_revision(snapshot: Path) -> int:
    repo = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    freed = 0
    for root, _, names in os.walk(snapshot):
        for name in names:
            path = Path(root, name)
            freed += hub_cache.unlink(repo, snapshot.name, path.relative_to(snapshot).as_posix(), path)
    return freed


# ----------------------------------------------------------------------------------------------- in our own folders


def _copies(known: Sequence[InstalledModel], idle_seconds: float) -> Iterator[Leftover]:
    needed = {file.path for model in known for file in library.files(model)}
    for path in sorted(copies.everything()):
        if path not in needed and (size := _idle_size(path, idle_seconds)) is not None:
            yield Leftover(Kind.COPY, path, size)


def _temporaries(idle_seconds: float) -> Iterator[Leftover]:
    """What a process that was killed in the middle of a write left, and notes about models that are gone."""
    own = settings.folders()
    for folder in (own.config, own.data, records.folder(), aliases.folder()):
        for path in sorted(folder.glob(".*.tmp")):
            if (size := _idle_size(path, idle_seconds)) is not None:
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
    """Records of models whose files are all gone, unless it is their disk that is."""
    for model in known:
        files = library.files(model)
        if any(os.path.lexists(file.path) for file in files):
            continue
        place = settings.hub_cache() if model.source == "hub" else model.path.parent
        if place.is_dir():
            yield Leftover(Kind.RECORD, model.path, 0, model)
