"""Manifests: models pinned by repository, commit, file, size and SHA-256, so that everybody gets the same bytes.

The same format describes a folder that `pull --to` wrote; there each file also has its path in the folder. A manifest
comes from somebody else and is hostile input: everything in it is checked before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai import catalog, choosing, hub, library, naming, pulling
from localai.domain.files import InstalledModel, Variant
from localai.domain.machine import Machine
from localai.errors import HashMismatch, UsageError

SCHEMA_VERSION = 1
KIND = "localai-manifest"
_LARGEST_BYTES = 16_000_000
_MOST_MODELS, _MOST_FILES = 10_000, 1000


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file; `path` is where it lies in a folder of `pull --to`, None in a manifest without files."""

    name: str
    size_bytes: int
    sha256: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Pinned:
    """One model, every byte of it named. `repo` and `commit` are None for what is not from the Hub."""

    model: str
    repo: str | None
    commit: str | None
    quantization: str
    files: tuple[PinnedFile, ...]
    projector: PinnedFile | None

    @property
    def all_files(self) -> tuple[PinnedFile, ...]:
        return (*self.files, *([self.projector] if self.projector else []))

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.all_files)


# ------------------------------------------------------------------------------------------------------ writing


def pin(model: InstalledModel) -> Pinned:
    """An installed model as a manifest names it."""
    pinned = [PinnedFile(file.name, file.size_bytes, file.sha256) for file in model.all_files]
    projector = pinned.pop() if model.projector else None
    return Pinned(model.model, model.repo, model.commit, model.quantization, tuple(pinned), projector)


def pins(names: Sequence[str]) -> tuple[tuple[Pinned, ...], tuple[InstalledModel, ...]]:
    """The named installed models (all, where none is named) pinned, and those that cannot be: not from the Hub.

    Raises NotFound, and UsageError where a model that was named cannot be pinned.
    """
    models = library.installed()
    chosen: list[InstalledModel] = [] if names else list(models)
    for name in names:
        found = library.named(name, models)
        if not found:
            raise library.missing(name, models)
        chosen += [model for model in found if model not in chosen]
    without = tuple(model for model in chosen if model.repo is None or model.commit is None)
    if names and without:
        raise UsageError(
            f"{without[0].model} cannot be pinned: it is not known from which commit of the Hub it comes",
            "models that were pulled can; for others: localai pull --to FOLDER",
        )
    return tuple(pin(model) for model in chosen if model not in without), without


def as_json(pinned: Sequence[Pinned]) -> dict[str, Any]:
    """The manifest's content, `schema_version` included."""
    return {"schema_version": SCHEMA_VERSION, "kind": KIND, "models": [_model_json(each) for each in pinned]}


def _model_json(each: Pinned) -> dict[str, Any]:
    return {
        "model": each.model,
        "repo": each.repo,
        "commit": each.commit,
        "quantization": each.quantization,
        "files": [_file_json(file) for file in each.files],
        "projector": _file_json(each.projector) if each.projector else None,
    }


def _file_json(file: PinnedFile) -> dict[str, Any]:
    where = {} if file.path is None else {"path": file.path}
    return {"file": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256, **where}


# ------------------------------------------------------------------------------------------------------ reading


def read(path: Path) -> tuple[Pinned, ...]:
    """The models of a manifest. Raises UsageError for whatever is not one, with the place that is wrong."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read {path}: {reason}", "localai export-manifest writes a manifest") from error
    try:
        if len(content) > _LARGEST_BYTES:
            raise ValueError("it is too large")
        return parse(json.loads(content))
    except (ValueError, RecursionError, UsageError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UsageError(
            f"{path} is not a sound manifest: {reason}", "localai export-manifest writes one; ask for it anew"
        ) from error


def parse(raw: Any) -> tuple[Pinned, ...]:
    """The models of a manifest's JSON. Raises ValueError or UsageError, saying what is wrong."""
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise ValueError(f"it is not of the kind {KIND}")
    if raw.get("schema_version") != SCHEMA_VERSION:
        raise ValueError("its schema_version is not known; update localai")
    models = raw.get("models")
    if not isinstance(models, list) or len(models) > _MOST_MODELS:
        raise ValueError("it has no list of models")
    return tuple(_model(each) for each in models)


def _model(raw: Any) -> Pinned:
    if not isinstance(raw, dict):
        raise ValueError("a model is not an object")
    repo, commit = raw.get("repo"), raw.get("commit")
    files = raw.get("files")
    if not isinstance(files, list) or not 0 < len(files) <= _MOST_FILES:
        raise ValueError("a model has no files")
    if (repo is None) != (commit is None) or not (
        commit is None or (isinstance(commit, str) and naming.COMMIT.fullmatch(commit))
    ):
        raise ValueError("a model has no sound repository and commit")
    projector = raw.get("projector")
    pinned = Pinned(
        model=_name(raw.get("model")),
        repo=None if repo is None else naming.check_repo(_name(repo)),
        commit=commit,
        quantization=_word(raw.get("quantization")),
        files=tuple(_file(each) for each in files),
        projector=None if projector is None else _file(projector),
    )
    if len({file.name.casefold() for file in pinned.all_files}) < len(pinned.all_files):
        raise ValueError(f"{pinned.model} names a file twice")
    return pinned


def _file(raw: Any) -> PinnedFile:
    if not isinstance(raw, dict):
        raise ValueError("a file is not an object")
    size, sha256, path = raw.get("size_bytes"), raw.get("sha256"), raw.get("path")
    if type(size) is not int or not 0 < size < 2**50:
        raise ValueError("a file's size_bytes is wrong")
    if not isinstance(sha256, str) or not naming.SHA256.fullmatch(sha256):
        raise ValueError("a file's sha256 is wrong")
    name = raw.get("file")
    if not isinstance(name, str) or not (path is None or isinstance(path, str)):
        raise ValueError("a file has no name")
    return PinnedFile(naming.check_filename(name), size, sha256, None if path is None else naming.check_filename(path))


def _name(value: Any) -> str:
    """A model's name that can be typed. Raises ValueError, UsageError."""
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("a model has no name")
    if naming.parse(value).kind is naming.Kind.PATH:
        raise ValueError("a model's name is a path")
    return value


def _word(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 40 or not value.isprintable():
        raise ValueError("a model has no quantization")
    return value


# ------------------------------------------------------------------------------------------------------ pulling


def plan_pull(
    pinned: Pinned,
    machine: Machine,
    reserved_bytes: int = 0,
    disk: Path | None = None,
    on_retry: Callable[[str], None] = lambda line: None,
) -> pulling.PullPlan:
    """What pulling exactly these bytes takes; no connection where they are here.

    Raises UsageError for a model that is not from the Hub, HashMismatch where the Hub has other bytes for that commit,
    else as `pulling.plan_pull`.
    """
    hashes = {file.sha256 for file in pinned.all_files}
    for model in library.installed():
        if hashes <= {file.sha256 for file in model.all_files} and pulling.is_sound(model):
            return pulling.nothing_to_do(model)
    if pinned.repo is None or pinned.commit is None:
        raise UsageError(
            f"{pinned.model} is not from the Hub and cannot be pulled",
            "bring its folder over: localai pull --to FOLDER there, localai import FOLDER here",
        )
    found = hub.repository(pinned.repo, pinned.commit, on_retry)
    there = {file.name: file for file in found.files}
    for file in pinned.all_files:
        remote = there.get(file.name)
        if (
            found.commit != pinned.commit
            or remote is None
            or (remote.size_bytes, remote.sha256) != (file.size_bytes, file.sha256)
        ):
            raise HashMismatch(
                f"{pinned.repo} at {pinned.commit[:12]} does not have the {file.name} that the manifest names",
                "the manifest or the Hub is not to be trusted: ask whoever wrote it",
            )
    variant = Variant(pinned.quantization, tuple(there[file.name] for file in pinned.files))
    known = catalog.by_repo(pinned.repo)
    choice = choosing.fitted(found, variant, known, machine, "as the manifest pins it")
    projector = there[pinned.projector.name] if pinned.projector else None
    return pulling.planned(pinned.model, found, pinned.commit, choice, reserved_bytes, projector, disk)
