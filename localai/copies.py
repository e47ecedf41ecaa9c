"""Model files in a folder of our own: what `import --copy` and `--link` make, and what `rm` and `prune` take away."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from enum import StrEnum
from pathlib import Path
from stat import S_ISLNK
from typing import Any

from localai import locks, naming, settings
from localai.alongside import CHUNK_BYTES
from localai.domain.units import MIB
from localai.errors import DoesNotFit, HashMismatch, LocalaiError, UsageError
from localai.partial import disk_error, partial_path, sync_folder

RESERVE_BYTES = 256 * MIB  # what a system needs to stay usable
_PART = ".part"


class How(StrEnum):
    """How an imported file is held: where it lies, by a link to it, or as a copy of its bytes."""

    REFERENCE = "reference"
    LINK = "link"
    COPY = "copy"


def folder() -> Path:
    """Where they are: a folder for each model, so that shards lie side by side."""
    return settings.folders().data / "files"


def held(model_sha256: str) -> AbstractContextManager[Any]:
    """Held while a model's files are put there and until they are recorded; `prune` leaves them alone meanwhile.

    Waits for another process that puts the same there. Raises DoesNotFit, LocalaiError.
    """
    lock = lock_of(folder() / model_sha256[:16] / "any")
    try:
        settings.private_folder(folder())
        return locks.hold(lock)
    except OSError as error:
        raise disk_error(error, lock) from error


def lock_of(path: Path) -> Path:
    """The lock of the model that one of our files belongs to."""
    return path.parent.with_name(f"{path.parent.name}.lock")


def is_ours(path: Path) -> bool:
    """Whether a file lies in that folder."""
    return folder() in path.parents


def destination(name: str, sha256: str, model_sha256: str) -> Path:
    """Where a file is put; `model_sha256` is the hash of the model's first file, which its shards share.

    A name that is not safe to write becomes one that is.
    """
    base = name.rpartition("/")[2]
    try:
        naming.check_filename(base)
    except UsageError:
        base = f"{sha256[:16]}.gguf"
    return folder() / model_sha256[:16] / base


def carried(repo: str, name: str) -> str:
    """Where a folder that is carried holds a repository's file: its path in there."""
    return f"models/{repo}/{name}"


def bytes_carried(target: Path, size_bytes: int) -> int:
    """How many bytes of a file that is to be at `target` are there already, going by sizes alone."""
    for path in (target, partial_path(target)):
        with suppress(OSError):
            size = path.stat().st_size
            if size == size_bytes or (path != target and size < size_bytes):
                return size
    return 0


def disk_of(path: Path) -> tuple[Path, int]:
    """The first parent of a path that exists, or itself, and the bytes that are free there."""
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path, shutil.disk_usage(path).free


def check_room(target: Path, needed_bytes: int, hint: str) -> None:
    """Raises DoesNotFit, with the hint, where a copy of that many bytes would fill the disk of `target`."""
    folder, free = disk_of(target)
    if free - needed_bytes < (RESERVE_BYTES if needed_bytes else 0):
        raise DoesNotFit(
            f"the copy takes {needed_bytes / 1e9:.1f} GB, and the disk of {folder} has {free / 1e9:.1f} GB free",
            hint,
        )


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a symbolic one where it lies on another disk. Raises LocalaiError."""
    source = source.resolve()
    part = _part_of(target)
    try:
        settings.private_folder(folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, part)
        except OSError:
            os.symlink(source, part)
        os.replace(part, target)
        part.unlink(missing_ok=True)  # two names of the same file: the replacement then does nothing
        _sync(target.parent)
    except OSError as error:
        raise disk_error(error, target) from error


def copy(source: Path, target: Path, sha256: str, progress: Callable[[int], None] = lambda done_bytes: None) -> None:
    """Copy a file, hashed as it goes; it has its name only when its bytes are the ones meant, and durably then.

    Raises HashMismatch where `source` has other bytes, DoesNotFit, LocalaiError.
    """
    part = _part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        found = _copied(source, part, progress)
        if found != sha256:
            raise HashMismatch(
                f"{source} has SHA-256 {found[:12]}…, not the {sha256[:12]}… that it should have",
                "the file is damaged: bring it over again from where it came",
            )
        os.replace(part, target)
        _sync(target.parent)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _copied(source: Path, part: Path, progress: Callable[[int], None]) -> str:
    """The SHA-256 of what was copied, synced to the disk."""
    digest, done = hashlib.sha256(), 0
    try:
        reading = open(source, "rb", buffering=0)  # noqa: SIM115 - closed below; only opening it is told apart
    except OSError as error:
        raise LocalaiError(f"cannot read {source}: {error.strerror}", "check the file and its permissions") from error
    with reading, open(part, "wb", buffering=0) as writing:
        while chunk := reading.read(CHUNK_BYTES):
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[writing.write(rest) :]
            done += len(chunk)
            progress(done)
        os.fsync(writing.fileno())
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    with suppress(OSError):  # not every network disk can
        sync_folder(folder)


def _part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}{_PART}")


def discard(path: Path) -> int:
    """Remove one of our files, and its folder once that is empty; returns the bytes freed on the disk.

    A link frees nothing of what it links to. Raises UsageError for a file that is not ours, LocalaiError.
    """
    if not is_ours(path) or ".." in path.parts:
        raise UsageError(f"{path} is not in {folder()}", "remove that file by hand if it is not wanted")
    try:
        stat = path.lstat()
        path.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise disk_error(error, path) from error
    with suppress(OSError):
        path.parent.rmdir()
        lock_of(path).unlink(missing_ok=True)
    return stat.st_size if stat.st_nlink == 1 and not S_ISLNK(stat.st_mode) else 0


def everything() -> Iterator[Path]:
    """Every file of the models' folders, finished or not."""
    for root, _, names in os.walk(folder()):
        if Path(root) != folder():  # there are the locks
            yield from (Path(root, name) for name in names)
