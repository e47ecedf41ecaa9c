"""What our pulls brought into the Hub's cache: a note for each commit, so that only what is ours is ever pruned.

The cache is shared. That a file in it has no branch, or no pointer, says nothing about whose it is; so a pull notes
what it is about to bring before it begins, and only what was not there. A note lies in our own folder: another user of
the same cache, or another LOCALAI_HOME, prunes its own alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localai import hub_cache, json_file, locks, naming, settings
from localai.domain.files import InstalledModel, RemoteFile
from localai.errors import UsageError
from localai.partial import disk_error

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What is ours of one commit of a repository, whose folder in the cache is `folder`.

    `names` are pointers, `blobs` SHA-256 of bytes, `refs` the branches and tags that only our pulls noted.
    """

    folder: Path
    commit: str
    names: frozenset[str] = frozenset()
    blobs: frozenset[str] = frozenset()
    refs: frozenset[str] = frozenset()

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def pointers(self) -> list[Path]:
        """Those of its pointers that are there."""
        return [path for name in sorted(self.names) if os.path.lexists(path := self.snapshot / name)]

    def whole_blobs(self) -> list[Path]:
        """Those of its blobs that are there."""
        return [path for sha256 in sorted(self.blobs) if os.path.isfile(path := self.folder / "blobs" / sha256)]

    def is_void(self) -> bool:
        """Whether neither its parts nor anything else of that commit is there; what may not be looked into may be."""
        return all(_is_gone(path) for path in (self.snapshot, *(self.folder / "blobs" / each for each in self.blobs)))


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def folder() -> Path:
    """Where the notes are."""
    return settings.folders().data / "pulls"


def path_of(claim: Claim) -> Path:
    """The note's own file."""
    identity = hashlib.sha256(f"{claim.folder}\0{claim.commit}".encode("utf-8", "surrogateescape")).hexdigest()
    return folder() / f"{claim.folder.name.removeprefix('models--')[:80]}-{identity[:16]}.json"


def stake(repo: str, commit: str, revision: str | None, files: Sequence[RemoteFile]) -> Claim:
    """Claim what a pull of these files is about to bring, before its first byte. The lock of the repository is held.

    Raises DoesNotFit or LocalaiError for what the disk refuses.
    """
    place = hub_cache.repository_folder(repo)
    known = [claim for claim in read_all() if claim.folder == place]
    new = Claim(place, commit)
    hashes = [file.sha256 for file in files if file.sha256 is not None]
    ref = "main" if revision is None else revision
    ours = any(ref in claim.refs for claim in known) or not os.path.lexists(place / "refs" / ref)
    return add(
        replace(
            new,
            names=frozenset(file.name for file in files if not os.path.lexists(new.snapshot / file.name)),
            blobs=frozenset(sha256 for sha256 in hashes if not os.path.exists(place / "blobs" / sha256)),
            refs=frozenset([ref] if ours and not naming.COMMIT.fullmatch(ref) else []),
        )
    )


def of(model: InstalledModel) -> Claim | None:
    """What a model that was pulled is, as a claim: its pointers, and the branch or tag that it was found under."""
    place = hub_cache.folder_of(model.path)
    if model.source != "hub" or place is None or model.commit is None or not naming.COMMIT.fullmatch(model.commit):
        return None
    ref = model.revision or "main"
    names = frozenset(file.name for file in model.all_files)
    return Claim(place, model.commit, names, refs=frozenset([] if naming.COMMIT.fullmatch(ref) else [ref]))


def adopt(model: InstalledModel) -> None:
    """Claim a model that an earlier version pulled, which claimed nothing. Raises DoesNotFit, LocalaiError."""
    claim = of(model)
    if claim is not None and not path_of(claim).exists():
        add(claim)


def add(claim: Claim) -> Claim:
    """Keep a claim, together with what was claimed of that commit before. Raises DoesNotFit, LocalaiError."""
    before = _read(path_of(claim))
    if before is not None:
        claim = replace(
            claim, names=claim.names | before.names, blobs=claim.blobs | before.blobs, refs=claim.refs | before.refs
        )
    if claim != before:
        content = {
            "schema_version": SCHEMA_VERSION,
            "folder": str(claim.folder),
            "commit": claim.commit,
            "names": sorted(claim.names),
            "blobs": sorted(claim.blobs),
            "refs": sorted(claim.refs),
        }
        try:
            settings.private_folder(folder())
            settings.write_atomically(path_of(claim), json.dumps(content, indent=1).encode())
        except OSError as error:
            raise disk_error(error, path_of(claim)) from error
    return claim


def read_all() -> tuple[Claim, ...]:
    """Every claim; what cannot be read claims nothing."""
    try:
        paths = sorted(folder().glob("[!.]*.json"))
    except OSError:
        return ()
    return tuple(claim for path in paths if (claim := _read(path)) is not None)


def _read(path: Path) -> Claim | None:
    try:
        raw = json_file.read(path)
        if raw["schema_version"] != SCHEMA_VERSION:
            return None
        claim = Claim(
            Path(raw["folder"]),
            _matching(naming.COMMIT, raw["commit"]),
            frozenset(naming.check_filename(each) for each in raw["names"]),
            frozenset(_matching(naming.SHA256, each) for each in raw["blobs"]),
            frozenset(naming.check_revision(each) for each in raw["refs"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None
    sound = claim.folder.is_absolute() and claim.folder.name.startswith("models--") and path_of(claim) == path
    return claim if sound else None


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise ValueError("not what it should be")
    return text


def settle(claim: Claim) -> None:
    """Forget a claim of which nothing is on the disk any more. The lock of the repository is held. Never fails."""
    kept = _read(path_of(claim))
    if kept is not None and kept.is_void():
        with suppress(OSError):
            path_of(claim).unlink(missing_ok=True)


@contextmanager
def if_idle(claim: Claim, make: bool = True) -> Iterator[bool]:
    """Whether no pull is at what is claimed; none lists anything of that repository until this is left.

    Without `make` nothing is written.
    """
    if not os.path.isdir(claim.folder):  # its disk is away
        yield False
        return
    names = [hub_cache.lock_in(claim.folder, sha256) for sha256 in sorted(claim.blobs)]
    with ExitStack() as stack:
        idle = stack.enter_context(locks.if_free(hub_cache.repository_lock(claim.folder), make))
        yield idle and all(stack.enter_context(locks.if_free(each, make=False)) for each in names)
