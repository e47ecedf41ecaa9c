"""The layout of the Hugging Face cache: blobs by SHA-256, snapshots of pointers to them, revisions by name.

It is huggingface_hub's, documented there and stable since 2022; reading it here spares `list` and `rm` that import.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from localai import naming, settings
from localai.domain.files import RemoteFile
from localai.errors import UsageError
from localai.partial import discard_partial, disk_error, partial_path, replace_whole


def _folder(repo: str) -> Path:
    return settings.hub_cache() / f"models--{repo.replace('/', '--')}"


def folder_of(path: Path) -> Path | None:
    """The folder of the repository, in whatever cache, that a pointer belongs to; None for any other path."""
    for parent in path.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return parent.parent
    return None


def repository_lock(folder: Path) -> Path:
    """The lock of a repository's folder, held by what adds pointers to it or takes blobs away."""
    return folder.parent / ".locks" / folder.name / "localai.lock"


def blob_path(repo: str, sha256: str) -> Path:
    """Where the cache keeps the bytes with this SHA-256."""
    return _folder(repo) / "blobs" / sha256


def lock_path(repo: str, sha256: str) -> Path:
    """The lock that huggingface_hub itself holds while it downloads this blob, so that no two tools do at once."""
    return lock_in(_folder(repo), sha256)


def lock_in(folder: Path, sha256: str) -> Path:
    """The same for the folder of a repository, in whatever cache."""
    return folder.parent / ".locks" / folder.name / f"{sha256}.lock"


def repository_folder(repo: str) -> Path:
    """The absolute path of a repository's folder in the cache."""
    return Path(os.path.abspath(_folder(repo)))


def bytes_at_hand(repo: str, commit: str, file: RemoteFile, damaged: bool = False) -> int:
    """How many bytes of a file need not be fetched, going by sizes alone; of a `damaged` one only a new beginning."""
    if file.sha256 is None:
        return 0
    blob = blob_path(repo, file.sha256)
    whole: tuple[Path, ...] = () if damaged else (blob, pointer_path(repo, commit, file.name))
    for path in (*whole, partial_path(blob)):
        with suppress(OSError):
            size = path.stat().st_size
            if size == file.size_bytes or (path == partial_path(blob) and size < file.size_bytes):
                return size
    return 0


def reclaim(repo: str, commit: str, file: RemoteFile) -> None:
    """Where a file system without links holds the bytes in the pointer's place, make them a blob again, to be hashed.

    Raises LocalaiError for what the disk refuses.
    """
    assert file.sha256 is not None
    pointer, blob = pointer_path(repo, commit, file.name), blob_path(repo, file.sha256)
    try:
        is_there = pointer.is_file() and not pointer.is_symlink() and pointer.stat().st_size == file.size_bytes
        if is_there and not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            os.replace(pointer, blob)
    except OSError as error:
        raise disk_error(error, pointer) from error


def pointer_path(repo: str, commit: str, name: str) -> Path:
    """Where the cache shows one file of a repository at a commit."""
    return _folder(repo) / "snapshots" / commit / name


def remember_revision(repo: str, commit: str, revision: str) -> None:
    """Note that this branch or tag was at `commit`, as the cache's own tools do; a commit needs no note.

    It helps other tools only, so a disk that does not take it is no reason to fail.
    """
    if naming.COMMIT.fullmatch(revision):
        return
    ref = _folder(repo) / "refs" / naming.check_revision(revision)
    with suppress(OSError):
        ref.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(ref, commit.encode("ascii"))


def unlink(repo: str, commit: str, name: str, path: Path) -> int:
    """Remove a file's pointer, and its blob unless another snapshot needs it; returns the bytes freed.

    `path` is the pointer as recorded; only one inside this repository's own snapshots is ever removed.
    Raises UsageError for any other, LocalaiError for what the disk refuses. A missing file frees 0.
    """
    naming.check_filename(name)
    snapshot = path
    for _ in name.split("/"):
        snapshot = snapshot.parent
    folder = snapshot.parent.parent
    expected = folder / "snapshots" / commit / name
    if path != expected or folder.name != f"models--{repo.replace('/', '--')}" or not naming.COMMIT.fullmatch(commit):
        raise UsageError(f"{path} is not in the cache of {repo}", "remove that file by hand if it is not wanted")
    try:
        return _unlink(folder, snapshot, path)
    except OSError as error:
        raise disk_error(error, path) from error


def _unlink(folder: Path, snapshot: Path, path: Path) -> int:
    if not path.is_symlink():
        freed = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
    else:
        blob = Path(os.path.normpath(path.parent / os.readlink(path)))  # one step: a blob can itself be a link
        path.unlink()
        freed = 0
        if blob.parent == folder / "blobs" and not _is_needed(folder / "snapshots", blob):
            discard_partial(blob)
            freed = blob.lstat().st_size if os.path.lexists(blob) else 0
            blob.unlink(missing_ok=True)
    _remove_empty_folders(path.parent, snapshot.parent)
    if not snapshot.exists():
        _forget_revisions(folder, snapshot.name)
    return freed


def _is_needed(snapshots: Path, blob: Path) -> bool:
    return blob in _pointers(snapshots).values()


def pointers(folder: Path) -> dict[Path, Path]:
    """Every pointer of a repository's folder and where it leads in one step, to itself where it is the file.

    Raises OSError where a folder may not be looked into: what it needs is not known then.
    """
    return _pointers(folder / "snapshots")


def _pointers(snapshots: Path) -> dict[Path, Path]:
    found = {}
    for root, _, names in os.walk(snapshots, onerror=_unless_gone):
        for name in names:
            path = Path(root, name)
            with suppress(FileNotFoundError):
                found[path] = Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path
    return found


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _remove_empty_folders(folder: Path, stop: Path) -> None:
    with suppress(OSError):  # the first one that is not empty ends it
        while folder != stop:
            folder.rmdir()
            folder = folder.parent


def _forget_revisions(folder: Path, commit: str) -> None:
    """Drop the branch names that lead to a snapshot that is gone; the cache's own tools call that corrupt."""
    for name in refs_to(folder, commit):
        with suppress(OSError):
            (folder / "refs" / name).unlink()


def freed_by(folder: Path, gone: Collection[Path]) -> int:
    """The bytes on the disk that no pointer but those leads to."""
    led = pointers(folder)
    others = {blob for path, blob in led.items() if path not in gone}
    return sum(_size(blob) for blob in {led[path] for path in gone if path in led} - others)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def refs_to(folder: Path, commit: str) -> set[str]:
    """The branches and tags that lead to a commit."""
    refs, found = folder / "refs", set()
    for root, _, names in os.walk(refs):
        for name in names:
            with suppress(OSError):
                path = Path(root, name)
                if path.read_bytes()[:100].strip() == commit.encode():
                    found.add(path.relative_to(refs).as_posix())
    return found
