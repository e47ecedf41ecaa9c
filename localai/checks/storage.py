"""Folders, disk, memory, and the model files on it."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from localai import library, recommend, records, verifying
from localai.catalog import CatalogModel
from localai.checks.finding import Finding, fault, ok, warning
from localai.domain.files import InstalledFile, InstalledModel
from localai.domain.machine import Machine
from localai.domain.units import GIB

_CLOCKS_S = 5.0  # a file's time and a record's are taken by different clocks, and rounded


def check_folders(folders: Mapping[str, Path]) -> Iterable[Finding]:
    """Whether each folder can be written, or made where it does not exist yet."""
    wrong = False
    for what, folder in folders.items():
        if (reason := _unwritable(folder)) is not None:
            wrong = True
            yield fault("folders", f"the {what} folder {folder} cannot be written: {reason}", _permit(folder))
    if not wrong:
        yield ok("folders", f"the folders for {', '.join(folders)} can be written")


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written there; None where it can."""
    for place in (folder, *folder.parents):
        try:
            if not os.path.lexists(place):
                continue
            if not os.path.isdir(place):
                return f"{place} is not a folder"
            with tempfile.TemporaryFile(dir=place):
                return None
        except (OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
    return "no part of that path exists"


def _permit(folder: Path) -> str:
    place = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), folder)
    quoted = shlex.quote(str(place))
    if not place.is_dir():
        return f"mv {quoted} {quoted}.old"
    return f'sudo chown -R "$USER" {quoted} && chmod -R u+rwX {quoted}'


def check_room(
    machine: Machine, models: Sequence[CatalogModel], installed: Sequence[InstalledModel]
) -> Iterable[Finding]:
    """Whether memory holds any model of the catalog, and the disk one more of them."""
    rows = recommend.rank(machine, models, limit=1)
    memory = machine.memory
    free = f"{memory.available_bytes / GIB:.1f} GiB of {memory.total_bytes / GIB:.1f} available"
    if memory.limit_bytes is not None:
        free += f", limited to {memory.limit_bytes / GIB:.1f} by the control group"
    if rows:
        yield ok("memory", f"{free}: enough for {rows[0].model}")
    else:
        yield fault("memory", f"{free}: too little for any model. Close other programs, or raise the limit")
    yield _disk(machine, models, rows[0] if rows else None, installed)


def _disk(
    machine: Machine,
    models: Sequence[CatalogModel],
    best: recommend.Recommendation | None,
    installed: Sequence[InstalledModel],
) -> Finding:
    free, place = machine.disk.free_bytes, machine.disk.path
    if free is None:
        return warning("disk", f"how much is free in {place} could not be found out")
    smallest = min(file.size_bytes for model in models for file in model.files if file.size_bytes)
    text = f"{free / 1e9:.1f} GB free in {place}"
    ours = [model for model in installed if not model.read_only]
    largest = max(ours, key=lambda model: model.size_bytes, default=None)
    command = f"localai rm {shlex.quote(largest.model)}" if largest else "export HF_HOME=/path/on/a/larger/disk"
    if free < smallest:
        return fault("disk", f"{text}: too little for any model", command)
    if best is not None and best.model not in {model.model for model in installed} and free < best.download_bytes:
        return warning(
            "disk", f"{text}: too little for {best.model}, which takes {best.download_bytes / 1e9:.1f}", command
        )
    return ok("disk", text)


# ------------------------------------------------------------------------------------------------------ model files


def check_models(verify: bool, progress: Callable[[int], None] = lambda done_bytes: None) -> Iterable[Finding]:
    """Each installed model: whether its files are there as they were verified; hashed again with `verify`."""
    models = library.recorded()
    checks = verifying.verify(models, progress) if verify else (_glanced(model) for model in models)
    sound = 0
    for check in checks:
        name = f"{check.model.model} ({check.model.quantization})"
        if check.sound:
            sound += 1
            continue
        problems = "; ".join(f"{each.file.path.name}: {each.problem}" for each in check.files if each.problem)
        if all(each.problem in (None, _NEWER) for each in check.files):
            yield warning("models", f"{name}: {problems}", f"localai verify {shlex.quote(check.model.model)}")
        else:
            yield fault("models", f"{name}: {problems}", check.remedy)
    yield from (_unreadable(each) for each in records.unreadable())
    how = "hashed again and sound" if verify else "there, of the right size; localai doctor --verify hashes them"
    yield ok("models", f"{sound} of {len(models)} installed models {how}" if models else "none installed yet")


def _unreadable(entry: records.Unreadable) -> Finding:
    message = f"{entry.path} is not a readable record of a model: {entry.reason}"
    match entry.why:
        case records.Why.NEWER:  # the model is well, and so is what is known of it
            return fault("models", message, "pip install --upgrade localai")
        case records.Why.DAMAGED:
            return fault("models", message, f"rm {shlex.quote(str(entry.path))}")
    return fault("models", message, None if os.access(entry.path, os.R_OK) else _permit(records.folder()))


_NEWER = "it was written to after it was verified"


def _glanced(model: InstalledModel) -> verifying.ModelCheck:
    """What sizes and times tell without reading a file."""
    files = tuple(verifying.FileCheck(file, _glance(file, model.verified_at)) for file in model.all_files)
    check = verifying.ModelCheck(model, files, None)
    return check if check.sound else verifying.ModelCheck(model, files, verifying.remedy(model, files))


def _glance(file: InstalledFile, verified_at: str | None) -> str | None:
    try:
        found = os.stat(file.path)
    except (OSError, ValueError):
        return "it is gone"
    if found.st_size != file.size_bytes:
        return f"it has {found.st_size} bytes instead of {file.size_bytes}"
    try:
        verified = datetime.fromisoformat(verified_at).timestamp() if verified_at else None
    except ValueError:
        verified = None
    return _NEWER if verified is not None and found.st_mtime > verified + _CLOCKS_S else None
