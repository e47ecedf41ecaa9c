"""Bringing a model from the Hub to this disk: what it would take, said before the first byte, and then the doing."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from localai import (
    catalog,
    choosing,
    claims,
    copies,
    hub,
    hub_cache,
    hub_client,
    hub_errors,
    inventory,
    library,
    locks,
    quantization,
    records,
    settings,
    transfer,
    verifying,
)
from localai.domain.files import InstalledFile, InstalledModel, RemoteFile, Variant
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.units import GIB
from localai.errors import DoesNotFit, HashMismatch, LocalaiError
from localai.partial import disk_error, offset


@dataclass(frozen=True, slots=True)
class PullPlan:
    """What a pull would do. With `already_installed` there is nothing to do and nothing was asked of the Hub.

    `files` is everything to have on the disk, `download_bytes` its size, `already_bytes` what of it need not be
    fetched, `needed_bytes` what it takes on the disk (that of another folder, where that is meant).
    `plan` None: nothing is known to plan with. `why` says how the quantization was chosen, "" where the user chose it.
    """

    model: str
    repo: str
    commit: str
    revision: str | None
    variant: Variant
    projector: RemoteFile | None
    files: tuple[RemoteFile, ...]
    download_bytes: int
    already_bytes: int
    needed_bytes: int
    free_bytes_after: int | None
    plan: Plan | None
    already_installed: InstalledModel | None
    why: str
    warnings: tuple[str, ...]

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded, going by sizes alone."""
        return self.download_bytes - self.already_bytes


def plan_pull(
    text: str,
    machine: Machine,
    reserved_bytes: int = 0,
    disk: Path | None = None,
    on_retry: Callable[[str], None] = lambda line: None,
) -> PullPlan:
    """Find out what `localai pull TEXT` takes. Without a connection where the model is installed already.

    `reserved_bytes` of the disk are spoken for by other downloads that come first; `disk` is another folder than the
    cache that the files are for; `on_retry` is told why the Hub is asked again.
    Raises NotFound, UsageError, NetworkError, AccessDenied (gated, no token), HashMismatch (the Hub gives no hash),
    DoesNotFit where the disk is too small. Whether it fits the memory is in `plan`, for the caller to decide on.
    """
    wanted = library.meaning(text)
    models = library.installed(wanted=wanted)
    here = [model for model in library.selected(library.matching(wanted, models), wanted) if is_sound(model)]
    if here:
        return nothing_to_do(max(here, key=lambda model: (model.last_used_at or "", model.size_bytes)))
    if wanted.repo is None:
        raise library.unknown(text, models)
    found = hub.repository(wanted.repo, wanted.revision, on_retry)
    choice = choosing.choose(text, wanted, found, machine)
    return planned(wanted.model, found, wanted.revision, choice, reserved_bytes, found.projector, disk)


def is_sound(model: InstalledModel) -> bool:
    """Whether a model is still what was verified: one whose files were written to since is hashed again.

    The index then knows of a fault, and the pull mends it.
    """
    verified = datetime.fromisoformat(model.verified_at).timestamp() if model.verified_at else 0.0
    try:
        touched = any(os.stat(file.path).st_mtime > verified + 2 for file in model.all_files)
    except OSError:
        touched = True
    return not touched or all(check.sound for check in verifying.verify([model]))


def planned(
    model: str,
    found: hub.Repository,
    revision: str | None,
    choice: choosing.Choice,
    reserved_bytes: int,
    projector: RemoteFile | None,
    disk: Path | None = None,
) -> PullPlan:
    """The plan of a pull of these files. Raises HashMismatch, AccessDenied, DoesNotFit as `plan_pull` does."""
    variant = choice.variant
    files = (*variant.files, *([projector] if projector else []))
    for file in files:
        if file.sha256 is None:
            raise HashMismatch(
                f"the Hub gives no SHA-256 for {file.name}, so it cannot be verified", "take another file"
            )
    total = sum(file.size_bytes for file in files)
    damaged = {sha256 for each in records.read_all() if each.model.repo == found.repo for sha256 in each.damaged}
    cached = [hub_cache.bytes_at_hand(found.repo, found.commit, file, file.sha256 in damaged) for file in files]
    there = [
        cache if disk is None else copies.bytes_carried(disk / copies.carried(found.repo, file.name), file.size_bytes)
        for cache, file in zip(cached, files, strict=True)
    ]
    already, needed = sum(map(max, cached, there)), total - sum(there)
    if found.gated and already < total and hub_client.token() is None:
        raise hub_errors.gated(found.repo)
    return PullPlan(
        model=model,
        repo=found.repo,
        commit=found.commit,
        revision=revision,
        variant=variant,
        projector=projector,
        files=files,
        download_bytes=total,
        already_bytes=already,
        needed_bytes=needed,
        free_bytes_after=_checked_disk(variant, needed, reserved_bytes, disk or settings.hub_cache()),
        plan=choice.plan,
        already_installed=None,
        why=choice.why,
        warnings=_warnings(choice),
    )


def nothing_to_do(model: InstalledModel) -> PullPlan:
    """The plan of a pull of what is installed already."""
    remote = tuple(RemoteFile(file.name, file.size_bytes, file.sha256) for file in model.files)
    return PullPlan(
        model=model.model,
        repo=model.repo or "",
        commit=model.commit or "",
        revision=None,
        variant=Variant(model.quantization, remote),
        projector=None,
        files=remote,
        download_bytes=model.size_bytes,
        already_bytes=model.size_bytes,
        needed_bytes=0,
        free_bytes_after=None,
        plan=None,
        already_installed=model,
        why="",
        warnings=(),
    )


def _warnings(choice: choosing.Choice) -> tuple[str, ...]:
    warnings = list(choice.plan.warnings)
    quant = choice.variant.quantization
    if quantization.is_low_bit(quant) and not any("bit" in each for each in warnings):
        warnings.append(f"{quant} has under 4 bits per weight: expect more hallucination")
    if choice.fault is not None:
        warnings.append(f"{choice.fault}: it can be downloaded, but not run")
    return tuple(warnings)


def _checked_disk(variant: Variant, missing_bytes: int, reserved_bytes: int, folder: Path) -> int:
    """Free bytes after the download. Raises DoesNotFit where too little would be left."""
    folder, free = copies.disk_of(folder)
    after = free - reserved_bytes - missing_bytes
    if after < (copies.RESERVE_BYTES if missing_bytes else 0):
        raise DoesNotFit(
            f"{variant.quantization} needs {missing_bytes / GIB:.1f} GiB more on the disk of {folder},"
            f" {(after + missing_bytes) / GIB:.1f} GiB are free",
            "free some space (localai rm), take a smaller model, or set HF_HOME to a folder on another disk",
        )
    return after


def pull(
    plan: PullPlan,
    progress: Callable[[int], None] = lambda done_bytes: None,
    on_retry: Callable[[str], None] = lambda line: None,
    retry: transfer.RetryPolicy | None = None,
) -> InstalledModel:
    """Download what `plan` says, verify every byte, and record the model as installed.

    `progress` is told the bytes at hand of `plan.download_bytes`; `on_retry` each hitch, one line each, and that the
    Hub's file is no model. Interrupted at any point, the next pull goes on from there. Raises HashMismatch,
    NetworkError, AccessDenied, NotFound, DoesNotFit.
    """
    if plan.already_installed is not None:
        return plan.already_installed
    hub_client.require_online(f"pulling {plan.model}")
    records.prepare()
    with _repository_locked(plan, on_retry):
        claim = claims.stake(plan.repo, plan.commit, plan.revision, plan.files)
    model = None

    def told(done_bytes: int) -> None:
        progress(done_bytes)
        if done_bytes == plan.download_bytes:
            hub.prepare_link()

    while model is None:
        done = 0
        for file in plan.files:
            _fetch(plan, file, offset(told, done), on_retry, retry)
            done += file.size_bytes
            progress(done)
        with _repository_locked(plan, on_retry):
            # What another process took away while this one was at the next file is fetched again.
            if all(hub_cache.bytes_at_hand(plan.repo, plan.commit, file) == file.size_bytes for file in plan.files):
                model = _listed(plan, claim, on_retry)
    try:
        inventory.read_facts(model)  # kept, so that `list` need not read the header
    except LocalaiError as error:
        on_retry(f"warning: every byte is the Hub's, but no model to run: {error.message}")
    return model


def _repository_locked(plan: PullPlan, on_retry: Callable[[str], None]) -> AbstractContextManager[Any]:
    """Held, no other process adds pointers to the repository in the cache or takes blobs away."""
    lock = hub_cache.repository_lock(hub_cache.repository_folder(plan.repo))
    try:
        return locks.hold(lock, lambda: on_retry(f"another process is at {plan.repo}; waiting for it"))
    except OSError as error:
        raise disk_error(error, lock) from error


def _listed(plan: PullPlan, claim: claims.Claim, on_retry: Callable[[str], None]) -> InstalledModel:
    """The model, its files shown in the cache and recorded; all of them are there and verified."""
    claims.add(claim)  # again: it may have been let go while nothing of it was there
    paths = {file.name: hub.link(plan.repo, plan.commit, file, plan.revision, on_retry) for file in plan.files}
    known = catalog.by_repo(plan.repo)
    model = InstalledModel(
        model=known.id if known else plan.repo,
        repo=plan.repo,
        commit=plan.commit,
        quantization=plan.variant.quantization,
        files=tuple(_installed(file, paths[file.name]) for file in plan.variant.files),
        projector=_installed(plan.projector, paths[plan.projector.name]) if plan.projector else None,
        verified_at=records.now(),
        source="hub",
        revision=plan.revision,
    )
    before = records.replaced_by(model)
    if before is not None and before.commit != model.commit:
        claims.adopt(before)
    records.save(model)
    return model


def _fetch(
    plan: PullPlan,
    file: RemoteFile,
    progress: Callable[[int], None],
    on_retry: Callable[[str], None],
    retry: transfer.RetryPolicy | None,
) -> None:
    assert file.sha256 is not None
    hub_cache.reclaim(plan.repo, plan.commit, file)
    blob = hub_cache.blob_path(plan.repo, file.sha256)
    download(plan, file.name, file.size_bytes, file.sha256, blob, progress, on_retry, retry)


def download(
    plan: PullPlan,
    name: str,
    size_bytes: int,
    sha256: str,
    destination: Path,
    progress: Callable[[int], None],
    on_retry: Callable[[str], None],
    retry: transfer.RetryPolicy | None,
) -> None:
    """Bring one file of the plan's repository and commit to `destination`, verified. Raises as `transfer.download`."""
    transfer.download(
        hub_client.file_url(plan.repo, plan.commit, name),
        destination,
        size_bytes=size_bytes,
        sha256=sha256,
        lock=hub_cache.lock_path(plan.repo, sha256),
        headers=hub_client.auth_headers(),
        progress=progress,
        on_retry=on_retry,
        on_wait=lambda: on_retry(f"another program is downloading {name}; waiting for it"),
        refusal=lambda status, headers: hub_errors.refusal(plan.repo, status, headers),
        retry=retry,
    )


def _installed(file: RemoteFile, path: Path) -> InstalledFile:
    assert file.sha256 is not None
    return InstalledFile(file.name, path, file.size_bytes, file.sha256)
