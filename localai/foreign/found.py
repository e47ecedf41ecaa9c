"""What a reader of another program's store finds: models that could be imported, and what was left out and why."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file; `sha256` is what its store claims, None where it claims nothing."""

    path: Path
    name: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in another program's store, not yet looked into. `source` is what the index will call it."""

    model: str
    source: str
    files: tuple[FoundFile, ...]
    projectors: tuple[FoundFile, ...] = ()  # those that lie beside it, the one to take first
    repo: str | None = None
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that looks like a model and cannot be one of ours."""

    path: Path
    reason: str


@dataclass(slots=True)
class Finds:
    """All of a store; `folders` are those that were there to look into."""

    models: list[FoundModel] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    def add(self, other: Finds) -> None:
        self.models += other.models
        self.left_out += other.left_out
        self.folders += other.folders

    def look_into(self, root: Path) -> bool:
        """Whether `root` is a folder that can be read; one that may not be is left out with the reason."""
        try:
            os.scandir(root).close()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.left_out.append(LeftOut(root, f"this folder cannot be read: {reason}"))
            return False
        self.folders.append(root)
        return True
