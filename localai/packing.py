"""Writing models into a folder that can be carried, a disk or stick: `pull --to`. `portable` takes them in."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from localai import copies, hub_cache, hub_client, locks, manifests, pulling, settings, transfer
from localai.domain.files import RemoteFile
from localai.errors import HashMismatch, UsageError
from localai.manifests import Pinned, PinnedFile
from localai.partial import disk_error, offset, sha256_of, sync_folder
from localai.portable import MANIFEST
from localai.pulling import PullPlan

_LONGEST_NAME_BYTES = 255  # of one folder, on nearly every file system


def pack(
    plan: PullPlan,
    folder: Path,
    progress: Callable[[int], None] = lambda done_bytes: None,
    on_retry: Callable[[str], None] = lambda line: None,
    retry: transfer.RetryPolicy | None = None,
) -> Pinned:
    """Bring the files of a plan into `folder`, from this disk where they are here, else from the Hub; each verified.

    Goes on where an earlier one was cut off. Raises as `pulling.pull` does. `describe` makes the folder complete.
    """
    pinned = _located(_pinned(plan))
    sources = _sources(plan)
    targets = {file.name: _place(folder, file) for file in pinned.all_files}
    here = sum(copies.bytes_carried(targets[file.name], file.size_bytes) for file in pinned.all_files)
    copies.check_room(folder, pinned.size_bytes - here, "free some space there, or take another disk or model")
    done = 0
    for file in pinned.all_files:
        report, target = offset(progress, done), targets[file.name]
        if not _copied(sources.get(file.name), target, file, report):
            _downloaded(plan, file, target, report, on_retry, retry)
        done += file.size_bytes
        progress(done)
    return pinned


@contextmanager
def writing(folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """No other process of ours writes into a folder to carry meanwhile; waits for one that does.

    Raises UsageError for what cannot be a folder, DoesNotFit, LocalaiError.
    """
    if any(len(os.fsencode(part)) > _LONGEST_NAME_BYTES for part in folder.parts):
        raise UsageError(f"{str(folder)[:80]}… is too long a name for a folder", "give the path of a disk or stick")
    lock = folder / ".localai.lock"
    try:
        held = locks.hold(lock, on_wait)
    except OSError as error:
        raise disk_error(error, lock) from error
    with held:
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink()


def _place(folder: Path, file: PinnedFile) -> Path:
    """Where a file is to be, cleared of what copies that were cut off left, and of links.

    Raises UsageError where a link would lead out of the folder, LocalaiError.
    """
    target = folder / str(file.path)
    if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(folder)):
        raise UsageError(f"{target.parent} leads out of {folder}", "remove that link, or give another folder")
    try:
        if target.is_symlink():
            target.unlink()
        for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, target) from error
    return target


def _pinned(plan: PullPlan) -> Pinned:
    if plan.already_installed is not None:
        return manifests.pin(plan.already_installed)
    files = tuple(_pinned_file(file) for file in plan.variant.files)
    projector = _pinned_file(plan.projector) if plan.projector else None
    return Pinned(plan.model, plan.repo, plan.commit, plan.variant.quantization, files, projector)


def _pinned_file(file: RemoteFile) -> PinnedFile:
    assert file.sha256 is not None
    return PinnedFile(file.name, file.size_bytes, file.sha256)


def _located(pinned: Pinned) -> Pinned:
    """The same with a place for each file: by repository, so that no two models' files meet."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", pinned.model)[:60].strip("-")
    local = f"models/local/{pinned.files[0].sha256[:16]}-{readable}".rstrip("-")  # two can have one name

    def located(file: PinnedFile) -> PinnedFile:
        if pinned.repo:
            return replace(file, path=copies.carried(pinned.repo, file.name))
        target = copies.destination(file.name, file.sha256, file.sha256)  # for its safe name
        return replace(file, path=f"{local}/{target.name}")

    projector = located(pinned.projector) if pinned.projector else None
    return replace(pinned, files=tuple(located(file) for file in pinned.files), projector=projector)


def _sources(plan: PullPlan) -> dict[str, Path]:
    """Where this disk has the plan's files already, by name; what is there is hashed before it counts."""
    if plan.already_installed is not None:
        return {file.name: file.path for file in plan.already_installed.all_files}
    blobs = {file.name: hub_cache.blob_path(plan.repo, str(file.sha256)) for file in plan.files}
    sizes = {file.name: file.size_bytes for file in plan.files}
    return {name: blob for name, blob in blobs.items() if _size(blob) == sizes[name]}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _copied(source: Path | None, target: Path, file: PinnedFile, progress: Callable[[int], None]) -> bool:
    """Whether `target` is there now, or was; False where it must be downloaded."""
    if source is None:
        return False
    try:
        if _size(target) == file.size_bytes and sha256_of(target, progress) == file.sha256:
            return True
    except OSError as error:
        raise disk_error(error, target) from error
    with suppress(HashMismatch):  # damaged here: the Hub has the right bytes
        copies.copy(source, target, file.sha256, progress)
        return True
    return False


def _downloaded(
    plan: PullPlan,
    file: PinnedFile,
    target: Path,
    progress: Callable[[int], None],
    on_retry: Callable[[str], None],
    retry: transfer.RetryPolicy | None,
) -> None:
    if not plan.repo or not plan.commit:
        raise HashMismatch(f"{file.name} is damaged here", f"localai verify {plan.model} says what to do")
    hub_client.require_online(f"pulling {plan.model}")
    pulling.download(plan, file.name, file.size_bytes, file.sha256, target, progress, on_retry, retry)


def describe(folder: Path, pinned: Sequence[Pinned]) -> Path:
    """Write the folder's manifest, what it named before included, once every file is there. Raises LocalaiError."""
    path = folder / MANIFEST
    before = manifests.read(path) if os.path.exists(path) else ()
    kept = [each for each in before if not any(_replaces(new, each) for new in pinned)]
    try:
        content = json.dumps(manifests.as_json([*kept, *pinned]), indent=1, ensure_ascii=False)
        settings.write_atomically(path, content.encode(), mode=0o666)  # it is for others to read
        with suppress(OSError):  # not every stick can
            sync_folder(folder)
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def _replaces(new: Pinned, old: Pinned) -> bool:
    """Whether the folder no longer holds the old one: its model's files are the new one's, or a file has other bytes.

    A projector belongs to several models of a repository.
    """
    hashes = {file.path: file.sha256 for file in new.all_files}
    same = {file.path for file in new.files} & {file.path for file in old.files}
    return bool(same) or any(hashes.get(file.path, file.sha256) != file.sha256 for file in old.all_files)
