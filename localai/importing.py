"""Taking models that are on this disk already into the index: by reference, by a link, or as a copy; nothing is moved.

What is imported was hashed from its first byte to its last and has a header that can be read, like what is pulled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from shlex import quote

from localai import copies, inventory, library, records
from localai.copies import How
from localai.discovering import Candidate, Discovery
from localai.domain.files import InstalledFile, InstalledModel
from localai.errors import UsageError
from localai.foreign.found import LeftOut
from localai.partial import offset, sha256_of


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A model whose bytes are another one's. `costs_bytes` is what it takes on the disk; 0 for the very same file."""

    model: str
    path: Path
    same_as: str
    same_path: Path
    costs_bytes: int


Outcome = InstalledModel | Duplicate | LeftOut


def take(
    discovery: Discovery, how: How = How.REFERENCE, progress: Callable[[int], None] = lambda done_bytes: None
) -> Iterator[Outcome]:
    """Hash, check and record each candidate, one outcome for each; what is here already is a `Duplicate`.

    `progress` is told the bytes done of `discovery.size_bytes`. Interrupted, what was yielded is recorded and no more.
    Raises DoesNotFit where a copy does not fit the disk, UsageError where a name was given to what is here already,
    LocalaiError where nothing can be written.
    """
    here = _Here(library.installed())
    if how is How.COPY:  # what can be here already, having a twin's size, is looked at when it is hashed
        sizes = {model.size_bytes for model in here.models}
        _check_room(sum(each.size_bytes for each in discovery.candidates if each.size_bytes not in sizes))
    done = 0
    for candidate in discovery.candidates:
        outcome = _take(candidate, how, here, offset(progress, done))
        done += candidate.size_bytes
        progress(done)
        if isinstance(outcome, InstalledModel):
            here.add(outcome)
        yield outcome


def _check_room(needed_bytes: int) -> None:
    hint = "free some space, or leave the files where they are: localai import without --copy"
    copies.check_room(copies.folder(), needed_bytes, hint)


def preview(
    discovery: Discovery, progress: Callable[[int], None] = lambda done_bytes: None
) -> Iterator[Candidate | Outcome]:
    """What `take` would do, with nothing written; only what can be a duplicate, having a twin's size, is hashed."""
    here = _Here(library.installed())
    sizes = [each.size_bytes for each in discovery.candidates] + [model.size_bytes for model in here.models]
    done = 0
    for candidate in discovery.candidates:
        outcome: Candidate | Outcome = candidate
        if (same := here.same_file(candidate)) is not None:
            outcome = _unnamed(candidate, same)
        elif sizes.count(candidate.size_bytes) > 1:
            made = _hashed(candidate, offset(progress, done))
            if isinstance(made, LeftOut):
                outcome = made
            else:
                duplicate = here.duplicate(made)
                outcome = candidate if duplicate is None else _unnamed(candidate, duplicate)
                here.add(made)
        done += candidate.size_bytes
        progress(done)
        yield outcome


class _Here:
    """The models there are, to find those that have the same bytes."""

    def __init__(self, models: Sequence[InstalledModel]) -> None:
        self.models: list[InstalledModel] = []
        self._by_hash: dict[tuple[str, ...], InstalledModel] = {}
        self._by_path: dict[Path, InstalledModel] = {}
        for model in models:
            self.add(model)

    def add(self, model: InstalledModel) -> None:
        self.models.append(model)
        self._by_hash.setdefault(tuple(file.sha256 for file in model.files), model)
        self._by_path.setdefault(model.path.resolve(), model)

    def same_file(self, candidate: Candidate) -> Duplicate | None:
        """The model that is this very file, unwritten since it was verified; any other must be hashed to be known."""
        path = candidate.found.files[0].path
        same = self._by_path.get(path.resolve())
        if same is None or not all(_unwritten_since(file.path, same.verified_at) for file in candidate.found.files):
            return None
        return Duplicate(candidate.model, path, same.model, same.path, 0)

    def with_bytes_of(self, model: InstalledModel) -> InstalledModel | None:
        return self._by_hash.get(tuple(file.sha256 for file in model.files))

    def duplicate(self, model: InstalledModel) -> Duplicate | None:
        """The model with the same bytes, and what having them twice costs."""
        same = self.with_bytes_of(model)
        if same is None:
            return None
        pairs = zip(model.files, same.files, strict=True)
        costs = sum(mine.size_bytes for mine, other in pairs if not _one_file(mine.path, other.path))
        return Duplicate(model.model, model.path, same.model, same.path, costs)


def _unwritten_since(path: Path, verified_at: str | None) -> bool:
    try:
        return verified_at is not None and path.stat().st_mtime < datetime.fromisoformat(verified_at).timestamp()
    except (OSError, ValueError):
        return False


def _one_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except OSError:
        return False


def _take(candidate: Candidate, how: How, here: _Here, progress: Callable[[int], None]) -> Outcome:
    if how is How.REFERENCE and (same := here.same_file(candidate)) is not None:
        return _unnamed(candidate, same)
    made = _hashed(candidate, progress)
    if isinstance(made, LeftOut):
        return made
    held = here.with_bytes_of(made)
    referred = held is not None and how is not How.REFERENCE and _is_reference(held, made)
    if (duplicate := here.duplicate(made)) is not None and not referred:
        return _unnamed(candidate, duplicate)
    if held is not None and not candidate.named:
        made = replace(made, model=held.model)
    if how is How.REFERENCE:
        records.save(made)
    else:
        with copies.held(made.files[0].sha256):
            made = _placed(made, how)
            records.save(made)
    if held is not None:  # the same files, held in another way now
        records.forget(held)
    inventory.facts_of(made)
    return made


def _is_reference(held: InstalledModel, made: InstalledModel) -> bool:
    """Whether a model is listed where these files lie, and not by a pull."""
    return held.source not in ("hub", "embedded") and _one_file(held.path, made.path) and not copies.is_ours(held.path)


def _unnamed(candidate: Candidate, duplicate: Duplicate) -> Duplicate:
    """The duplicate. Raises UsageError where it was to have a name of the user's, which would come to nothing."""
    if candidate.named and candidate.model.casefold() != duplicate.same_as.casefold():
        raise UsageError(
            f"{duplicate.path} is here already, as {duplicate.same_as}",
            f"give that another name: localai alias {quote(candidate.model)} {quote(duplicate.same_as)}",
        )
    return duplicate


def _hashed(candidate: Candidate, progress: Callable[[int], None]) -> InstalledModel | LeftOut:
    """The model by reference, every file hashed; left out where a file is not what its store says, or changes."""
    files, done = [], 0
    for file in candidate.files:
        try:
            before = file.path.stat()
            found = sha256_of(file.path, offset(progress, done))
            after = file.path.stat()
        except OSError as error:
            return LeftOut(file.path, f"it cannot be read: {error.strerror}")
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            return LeftOut(file.path, "it changed while it was read; is it still being downloaded?")
        if file.sha256 is not None and file.sha256 != found:
            return LeftOut(file.path, f"it is damaged: its SHA-256 is {found[:12]}…, not {file.sha256[:12]}…")
        files.append(InstalledFile(file.name, file.path, before.st_size, found))
        done += before.st_size
    return InstalledModel(
        model=candidate.model,
        repo=candidate.found.repo,
        commit=candidate.found.commit,
        quantization=candidate.quantization,
        files=tuple(files[: len(candidate.found.files)]),
        projector=files[-1] if candidate.projector else None,
        verified_at=records.now(),
        source=candidate.found.source,
    )


def _placed(model: InstalledModel, how: How) -> InstalledModel:
    """The model with its files in our own folder. Raises HashMismatch, DoesNotFit, LocalaiError."""
    if how is How.COPY:
        _check_room(sum(file.size_bytes for file in model.all_files))
    placed = []
    for file in model.all_files:
        target = copies.destination(file.name, file.sha256, model.files[0].sha256)
        if how is How.LINK:
            copies.link(file.path, target)
        else:
            copies.copy(file.path, target, file.sha256)
        placed.append(replace(file, path=target))
    return replace(
        model,
        files=tuple(placed[: len(model.files)]),
        projector=placed[-1] if model.projector else None,
        source="file",
    )
