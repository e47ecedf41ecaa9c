"""The layout of the Hugging Face cache: blobs by SHA-256, snapshots of pointers to them, revisions by name.

It is huggingface_hub's, documented there and stable since 2022; reading it here spares `list` and `rm` that import.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from localai import naming, settings
from localai.domain.files import RemoteFile
from localai.errors import UsageError
from localai.partial import discard_partial, disk_error, partial_path, replace_whole

_COMMIT = re.compile(r"[0-9a-f]{40}")


def _folder(repo: str) -> Path:
    return settings.hub_cache() / f"models--{repo.replace('/', '--')}"


def blob_path(repo: str, sha256: str) -> Path:
    """Where the cache keeps the bytes with this SHA-256."""
    return _folder(repo) / "blobs" / sha256


def lock_path(repo: str, sha256: str) -> Path:
    """The lock that huggingface_hub itself holds while it downloads this blob, so that no two tools do at once."""
    return settings.hub_cache() / ".locks" / _folder(repo).name / f"{sha256}.lock"


def bytes_at_hand(repo: str, commit: str, file: RemoteFile) -> int:
    """How many bytes of a file need not be fetched, going by sizes alone."""
    if file.sha256 is None:
        return 0
    blob = blob_path(repo, file.sha256)
    for path in (blob, pointer_path(repo, commit, file.name), partial_path(blob)):
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
    """Note that this branch or tag was at `commit`, as the cache's own tools do; a commit needs no note."""
    if _COMMIT.fullmatch(revision):
        return
    ref = _folder(repo) / "refs" / naming.check_revision(revision)
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
    if path != expected or folder.name != f"models--{repo.replace('/', '--')}" or not _COMMIT.fullmatch(commit):
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
        _forget_revisions(folder / "refs", snapshot.name)
    return freed


def _is_needed(snapshots: Path, blob: Path) -> bool:
    for root, _, names in os.walk(snapshots):
        for name in names:
            path = os.path.join(root, name)
            if os.path.islink(path) and os.path.normpath(os.path.join(root, os.readlink(path))) == str(blob):
                return True
    return False


def _remove_empty_folders(folder: Path, stop: Path) -> None:
    with suppress(OSError):  # the first one that is not empty ends it
        while folder != stop:
            folder.rmdir()
            folder = folder.parent


def _forget_revisions(refs: Path, commit: str) -> None:
    """Drop the branch names that lead to a snapshot that is gone; the cache's own tools call that corrupt."""
    for root, _, names in os.walk(refs):
        for name in names:
            ref = Path(root, name)
            with suppress(OSError):
                if ref.read_bytes().strip() == commit.encode():
                    ref.unlink()


def unused_revisions(repo: str, used: Collection[str]) -> list[tuple[Path, int]]:
    """Snapshots of GGUF files alone that no branch or tag leads to and whose commit is not `used`; with the bytes each
    alone takes on the disk.
    """
    folder = _folder(repo)
    snapshots = {path.name: path for path in sorted((folder / "snapshots").glob("*")) if _COMMIT.fullmatch(path.name)}
    kept = {*used, *_named_commits(folder / "refs")}
    blobs = {commit: _blobs(path) for commit, path in snapshots.items()}
    found = []
    for commit, path in snapshots.items():
        mine = blobs[commit]
        if commit in kept or not mine or not all(name.lower().endswith(".gguf") for name in mine):
            continue
        others = {blob for other, theirs in blobs.items() if other != commit for blob in theirs.values()}
        alone = {blob for blob in mine.values() if blob not in others}
        found.append((path, sum(blob.stat().st_size for blob in alone if blob.is_file())))
    return found


def _blobs(snapshot: Path) -> dict[str, Path]:
    """Where the files of a snapshot lead, by name."""
    return {
        (path := Path(root, name)).relative_to(snapshot).as_posix(): path.resolve()
        for root, _, names in os.walk(snapshot)
        for name in names
    }


def _named_commits(refs: Path) -> set[str]:
    found = set()
    for root, _, names in os.walk(refs):
        for name in names:
            with suppress(OSError):
                found.add(Path(root, name).read_bytes()[:100].strip().decode("ascii", "replace"))
    return found
