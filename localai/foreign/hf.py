"""The Hugging Face cache as other programs fill it: GGUF files by repository and commit, blobs named by their SHA-256.

The layout is huggingface_hub's (its guide "Understand caching"); llama.cpp has used the same since March 2026.
"""

from __future__ import annotations

import os
from pathlib import Path

from localai import naming
from localai.domain.files import RemoteFile, Variant
from localai.errors import UsageError
from localai.foreign.found import Finds, FoundFile, FoundModel, LeftOut

_MOST_FILES = 20_000


def find(root: Path, source: str = "hf") -> Finds:
    """Every GGUF model in the cache at `root`, each set of bytes once, of the newest revision that has it."""
    finds = Finds()
    if not finds.look_into(root):
        return finds
    for folder in sorted(root.glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        try:
            naming.check_repo(repo)
        except UsageError:
            finds.left_out.append(LeftOut(folder, "its name is not a repository's"))
            continue
        seen: set[tuple[Path, ...]] = set()
        for commit in _commits(folder):
            for model in _models(folder / "snapshots" / commit, repo, commit, source, finds):
                blobs = tuple(file.path.resolve() for file in model.files)
                if blobs not in seen:
                    seen.add(blobs)
                    finds.models.append(model)
    return finds


def _commits(folder: Path) -> list[str]:
    """The snapshots there are: that of `main` first, then other branches', then the newest."""
    try:
        with os.scandir(folder / "snapshots") as listing:
            times = {each.name: each.stat().st_mtime for each in listing if naming.COMMIT.fullmatch(each.name)}
    except OSError:
        return []
    named = []
    for ref in [folder / "refs" / "main", *sorted((folder / "refs").rglob("*"))]:
        try:
            commit = ref.read_text("ascii")[:100].strip()
        except (OSError, UnicodeDecodeError):
            continue
        if commit in times and commit not in named:
            named.append(commit)
    return named + sorted(times.keys() - set(named), key=lambda commit: (-times[commit], commit))


def _models(snapshot: Path, repo: str, commit: str, source: str, finds: Finds) -> list[FoundModel]:
    files: dict[str, RemoteFile] = {}
    for place, _, names in os.walk(snapshot):
        for each in names:
            path = Path(place, each)
            name = path.relative_to(snapshot).as_posix()
            if not name.lower().endswith(".gguf") or len(files) > _MOST_FILES:
                continue
            try:
                naming.check_filename(name)
                files[name] = RemoteFile(name, path.stat().st_size, _claimed(path))
            except UsageError:
                finds.left_out.append(LeftOut(path, "its name is not safe"))
            except OSError:
                finds.left_out.append(LeftOut(path, "it is a link to nothing"))

    def model(variant: Variant) -> FoundModel:
        own = naming.own_projectors(variant.files[0].name, files.values())
        parts, beside = ([_found(snapshot, each) for each in some] for some in (variant.files, own))
        return FoundModel(repo, source, tuple(parts), tuple(beside), repo, commit)

    return [model(variant) for variant in naming.variants(files.values())]


def _found(snapshot: Path, file: RemoteFile) -> FoundFile:
    return FoundFile(snapshot / file.name, file.name, file.sha256)


def _claimed(path: Path) -> str | None:
    """The SHA-256 that the blob is named by; None for files outside LFS and caches without links."""
    name = os.path.basename(os.readlink(path)) if path.is_symlink() else ""
    return name if naming.SHA256.fullmatch(name) else None
