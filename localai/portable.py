"""Models in a folder that can be carried, written by `pull --to` (`packing`) and taken in by `import` elsewhere.

The folder is self-contained: every file, and a manifest with every file's SHA-256. What is taken in is copied, since
sticks are pulled out, and hashed as it is copied: a model is listed only when each of its bytes is the manifest's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

from localai import copies, gguf, inventory, library, manifests, records
from localai.copies import How
from localai.domain.files import InstalledFile, InstalledModel
from localai.errors import HashMismatch, LocalaiError, NotFound, UsageError
from localai.foreign.found import LeftOut
from localai.importing import Duplicate, Outcome
from localai.manifests import Pinned, PinnedFile
from localai.partial import offset, sha256_of

MANIFEST = "localai-manifest.json"


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
                yield _taken(folder, each, how, offset(progress, done))
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
                copies.copy(source, target, file.sha256, offset(progress, done))
            else:
                _checked(source, file, offset(progress, done))
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
