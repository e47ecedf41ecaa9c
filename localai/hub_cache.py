"""The layout of the Hugging Face cache: blobs by SHA-256, snapshots of pointers to them, revisions by name.

It is huggingface_hub's, documented there and stable since 2022; reading it here spares `list` and `rm` that import.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from localai import naming, settings
from localai.domain import RemoteFile
from localai.errors import UsageError
from localai.partial import discard_partial, disk_error, partial_path

_COMMIT = re.compile(r"[0-9a-f]{40}")


def _folder(repo: str) -> Path:
    return settings.hub_cache() / f"models--{repo.replace('/', '--')}"


def blob_path(repo: str, sha256: str) -> Path:
    """Where the cache keeps the bytes with this SHA-256."""
    return _folder(repo) / "blobs" / sha256


def lock_path(repo: str, sha256: str) -> Path:
    """The lock that huggingface_hub itself holds while it downloads this blob, so that no two tools do at once."""
    return settings.hub_cache() / ".locks" / _folder(repo).name / f"{sha256}.lock"


def bytes_at_hand(repo: str, file: RemoteFile) -> int:
    """How many bytes of a file need not be fetched, going by sizes alone."""
    if file.sha256 is None:
        return 0
    blob = blob_path(repo, file.sha256)
    for path in (blob, partial_path(blob)):
        with suppress(OSError):
            if (size := path.stat().st_size) == file.size_bytes or (path != blob and size < file.size_bytes):
                return size
    return 0


def pointer_path(repo: str, commit: str, name: str) -> Path:
    """Where the cache shows one file of a repository at a commit."""
    return _folder(repo) / "snapshots" / commit / name


def remember_revision(repo: str, commit: str, revision: str) -> None:
    """Note that this branch or tag was at `commit`, as the cache's own tools do; a commit needs no note."""
    if _COMMIT.fullmatch(revision):
        return
    ref = _folder(repo) / "refs" / naming.check_revision(revision)
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit, "ascii")


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
