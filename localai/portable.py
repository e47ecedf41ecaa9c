"""Models in a folder that can be carried: written by `pull --to` for a disk or stick, taken in by `import` elsewhere.

The folder is self-contained: every file, and a manifest with every file's SHA-256. What is taken in is copied, since
sticks are pulled out, and hashed as it is copied: a model is listed only when each of its bytes is the manifest's.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote

from localai import (
    copies,
    gguf,
    hub_cache,
    hub_client,
    inventory,
    library,
    locks,
    manifests,
    pulling,
    records,
    settings,
    transfer,
)
from localai.copies import How
from localai.domain.files import InstalledFile, InstalledModel, RemoteFile
from localai.errors import HashMismatch, LocalaiError, NotFound, UsageError
from localai.foreign.found import LeftOut
from localai.importing import Duplicate, Outcome
from localai.manifests import Pinned, PinnedFile
from localai.partial import disk_error, sha256_of, sync_folder
from localai.pulling import PullPlan

MANIFEST = "localai-manifest.json"
_LONGEST_NAME_BYTES = 255  # of one folder, on nearly every file system


# ------------------------------------------------------------------------------------------------------ writing


def pack(
    plan: PullPlan,
    folder: Path,
    progress: Callable[[int], None] = lambda done_bytes: None,
    on_retry: Callable[[str], None] = lambda line: None,
    patience: transfer.Patience | None = None,
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
        report, target = _offset(progress, done), targets[file.name]
        if not _copied(sources.get(file.name), target, file, report):
            _downloaded(plan, file, target, report, on_retry, patience)
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


def _offset(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda so_far: progress(before + so_far)


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
        return {file.name: file.path for file in library.files(plan.already_installed)}
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
    patience: transfer.Patience | None,
) -> None:
    if not plan.repo or not plan.commit:
        raise HashMismatch(f"{file.name} is damaged here", f"localai verify {plan.model} says what to do")
    hub_client.require_online(f"pulling {plan.model}")
    pulling.download(plan, file.name, file.size_bytes, file.sha256, target, progress, on_retry, patience)


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


# ---------------------------------------------------------------------------------------------------- taking in


def read(folder: Path) -> tuple[Pinned, ...] | None:
    """What a carried folder holds, None where it is a plain folder. Raises UsageError for an unsound manifest."""
    if not os.path.isfile(folder / MANIFEST):
        return None
    pinned = manifests.read(folder / MANIFEST)
    if any(file.path is None for each in pinned for file in each.all_files):
        raise UsageError(
            f"{folder / MANIFEST} names no files of its folder",
            f"pull what it pins: localai pull --manifest {MANIFEST}",
        )
    return pinned


def named(pinned: Sequence[Pinned], name: str) -> tuple[Pinned, ...]:
    """The one model of a carried folder under another name. Raises UsageError where there are several or it is here."""
    if len(pinned) != 1:
        raise UsageError(f"--name is for one model, and {len(pinned)} are in that folder", "leave it out")
    same = _installed().get(tuple(file.sha256 for file in pinned[0].files))
    if same is not None and same.model.casefold() != name.casefold():
        hint = f"localai alias {quote(name)} {quote(same.model)}"
        raise UsageError(f"that model is here already, as {same.model}", hint)
    return (replace(pinned[0], model=name),)


def preview(folder: Path, pinned: Sequence[Pinned]) -> Iterator[Pinned | Duplicate]:
    """What `take` would do; nothing is read but the manifest."""
    here = _installed()
    for each in pinned:
        same = here.get(tuple(file.sha256 for file in each.files))
        yield each if same is None else _same(folder, each, same)


def _installed() -> dict[tuple[str, ...], InstalledModel]:
    return {tuple(file.sha256 for file in model.files): model for model in library.installed()}


def _same(folder: Path, pinned: Pinned, model: InstalledModel) -> Duplicate:
    return Duplicate(pinned.model, folder / str(pinned.files[0].path), model.model, model.path, 0)


def take(
    folder: Path,
    pinned: Sequence[Pinned],
    how: How = How.COPY,
    progress: Callable[[int], None] = lambda done_bytes: None,
) -> Iterator[Outcome]:
    """Copy (or link) the models of a carried folder into ours, every hash checked, and record them.

    One that is damaged does not stop the others; its error is raised at the end. Raises HashMismatch, NotFound,
    EngineError, DoesNotFit, LocalaiError.
    """
    here = _installed()
    new = [each for each in pinned if tuple(file.sha256 for file in each.files) not in here]
    if how is How.COPY:
        hint = "free some space, or take fewer models along"
        copies.check_room(copies.folder(), sum(each.size_bytes for each in new), hint)
    done, failure = 0, None
    for each in pinned:
        same = here.get(tuple(file.sha256 for file in each.files))
        if same is not None:
            yield _same(folder, each, same)
        else:
            try:
                yield _taken(folder, each, how, _offset(progress, done))
            except LocalaiError as error:
                failure = failure or error
                yield LeftOut(folder / str(each.files[0].path), error.message)
        done += each.size_bytes
        progress(done)
    if failure is not None:
        raise failure


def _taken(folder: Path, pinned: Pinned, how: How, progress: Callable[[int], None]) -> InstalledModel:
    with copies.held(pinned.files[0].sha256):
        placed, done = [], 0
        for file in pinned.all_files:
            source = _inside(folder, str(file.path))
            target = copies.destination(file.name, file.sha256, pinned.files[0].sha256)
            if how is How.COPY:
                copies.copy(source, target, file.sha256, _offset(progress, done))
            else:
                _checked(source, file, _offset(progress, done))
                copies.link(source, target)
            placed.append(InstalledFile(file.name, target, file.size_bytes, file.sha256))
            done += file.size_bytes
        return _recorded(pinned, placed)


def _recorded(pinned: Pinned, placed: Sequence[InstalledFile]) -> InstalledModel:
    try:
        gguf.read_model([each.path for each in placed[: len(pinned.files)]])
    except LocalaiError:
        for each in placed:
            copies.discard(each.path)
        raise
    model = InstalledModel(
        model=pinned.model,
        repo=pinned.repo,
        commit=pinned.commit,
        quantization=pinned.quantization,
        files=tuple(placed[: len(pinned.files)]),
        projector=placed[-1] if pinned.projector else None,
        verified_at=records.now(),
        source="file",
    )
    records.save(model)
    inventory.facts_of(model)
    return model


def _inside(folder: Path, path: str) -> Path:
    """A file of the folder. Raises NotFound where it is missing, UsageError where a link leads out of the folder."""
    found = folder / path
    try:
        whole = found.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NotFound(f"{found} is missing", "bring the whole folder over again") from error
    if not whole.is_relative_to(folder.resolve()):
        raise UsageError(f"{found} leads out of its folder", "bring the files themselves over, no links to them")
    return found


def _checked(source: Path, file: PinnedFile, progress: Callable[[int], None]) -> None:
    try:
        found = sha256_of(source, progress)
    except OSError as error:
        raise LocalaiError(f"cannot read {source}: {error.strerror}", "check the disk it is on") from error
    if found != file.sha256:
        raise HashMismatch(
            f"{source} has SHA-256 {found[:12]}…, not the {file.sha256[:12]}… of its manifest",
            "the file is damaged: bring it over again from where it came",
        )
