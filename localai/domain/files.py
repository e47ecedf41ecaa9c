"""The files that models are made of: those of a repository on the Hub, and those on this disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a Hub repository. `sha256` is None where the Hub gives none (files outside LFS)."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization of a model: one GGUF file, or all the shards of one."""

    quantization: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One verified file of an installed model."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this disk, every byte of it verified.

    `source` is hub, embedded, file, or the program whose file it is: ollama, lmstudio, llama.cpp, hf.
    `revision` is the Hub's branch, tag or commit that was asked for, None for the main branch.
    """

    model: str
    repo: str | None
    commit: str | None
    quantization: str
    files: tuple[InstalledFile, ...]
    projector: InstalledFile | None
    verified_at: str | None
    source: str
    last_used_at: str | None = None
    read_only: bool = False
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The file llama.cpp is given: the only one, or the first shard."""
        return self.files[0].path

    @property
    def all_files(self) -> tuple[InstalledFile, ...]:
        """Every file of the model, its projector last."""
        return (*self.files, *([self.projector] if self.projector else []))

    @property
    def size_bytes(self) -> int:
        """What the model takes on the disk, its projector included."""
        return sum(file.size_bytes for file in self.all_files)
