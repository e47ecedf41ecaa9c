"""Folders of GGUF files: plain ones, LM Studio's `publisher/repository/file`, llama.cpp's flat cache.

LM Studio: lmstudio.ai/docs, "Import Models". llama.cpp: `owner_repo_file.gguf` beside `manifest=owner=repo=tag.json`
until March 2026, since then the Hugging Face layout under `LLAMA_CACHE` (common/hf-cache.cpp, common/common.cpp).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from localai import json_file, naming
from localai.domain.files import RemoteFile
from localai.errors import UsageError
from localai.foreign.found import Finds, FoundFile, FoundModel, LeftOut

_DEEPEST = 8
_MOST_ENTRIES = 200_000
_SHARD = re.compile(r"-(?P<index>\d{5})-of-(?P<total>\d{5})(?=\.gguf$)", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"[-._](?:UD-)?(?:I?Q\d|TQ\d|MXFP4|NVFP4|BF16|FP?16|FP?32)(?:_[A-Z0-9]+)*$", re.IGNORECASE
)  # at the end of a file's name


def lmstudio_roots(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """LM Studio's model folders: the one its settings name, its own, and that of versions before 0.3."""
    home = Path(os.path.expanduser(environ.get("HOME") or environ.get("USERPROFILE") or "~"))
    homes = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    chosen = [folder for each in homes if (folder := _chosen_folder(each / "settings.json"))]
    return tuple(dict.fromkeys([*chosen, *(each / "models" for each in homes)]))


def _chosen_folder(settings: Path) -> Path | None:
    try:
        text = json_file.read(settings).get("downloadsFolder")
    except (OSError, ValueError):
        return None
    return Path(text) if isinstance(text, str) and os.path.isabs(text) and "\0" not in text else None


def llamacpp_roots(environ: Mapping[str, str], system: str = sys.platform) -> tuple[Path, ...]:
    """llama.cpp's cache folders (fs_get_cache_directory)."""
    if own := environ.get("LLAMA_CACHE"):
        return (Path(own),)
    home = Path(os.path.expanduser(environ.get("HOME") or "~"))
    if system == "win32":
        local = environ.get("LOCALAPPDATA")
        return (Path(local) / "llama.cpp",) if local else ()
    if system == "darwin":
        return (home / "Library" / "Caches" / "llama.cpp",)
    return (Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "llama.cpp",)


def find_lmstudio(root: Path) -> Finds:
    """LM Studio's models, named after publisher and repository."""

    def name(path: Path) -> str:
        parts = path.relative_to(root).parts
        try:
            return naming.check_repo("/".join(parts[:2])) if len(parts) > 2 else name_of(path.name)
        except UsageError:
            return name_of(path.name)

    return find(root, "lmstudio", name)


def find_llamacpp(root: Path) -> Finds:
    """The models of llama.cpp's flat cache, named after owner and repository where its manifests tell them."""
    prefixes: dict[str, str] = {}
    try:
        for path in root.glob("manifest=*=*=*.json"):
            _, owner, repo, _ = path.name.split("=", 3)
            prefixes[f"{owner}_{repo}_"] = f"{owner}/{repo}"
    except OSError:
        pass

    def name(path: Path) -> str:
        fitting = [prefix for prefix in prefixes if path.name.startswith(prefix)]
        try:
            return naming.check_repo(prefixes[max(fitting, key=len)]) if fitting else name_of(path.name)
        except UsageError:
            return name_of(path.name)

    return find(root, "llama.cpp", name, deep=False)


def find(root: Path, source: str, name: Callable[[Path], str], deep: bool = True) -> Finds:
    """Every GGUF model under `root`, its shards together and with the projectors that lie beside it.

    Links to folders are not followed; incomplete sets of shards are left out with a reason.
    """
    finds = Finds()
    if not finds.look_into(root):
        return finds
    for folder, names in _folders(root, deep):
        finds.add(group(folder, names, source, name))
    return finds


def _folders(root: Path, deep: bool) -> Iterator[tuple[Path, list[str]]]:
    """Folders with GGUF files, and those files' names."""
    count = 0
    for place, folders, names in os.walk(root):
        folders.sort()
        if not deep or len(Path(place).relative_to(root).parts) >= _DEEPEST:
            folders.clear()
        count += len(folders) + len(names)
        if found := [each for each in sorted(names) if each.lower().endswith(".gguf")]:
            yield Path(place), found
        if count > _MOST_ENTRIES:
            return


def group(folder: Path, names: list[str], source: str, name: Callable[[Path], str]) -> Finds:
    """The models among the files of one folder."""
    finds = Finds()
    present = [each for each in names if os.path.isfile(folder / each)]
    sizes = {each: RemoteFile(each, 0, None) for each in present}
    beside = tuple(FoundFile(folder / each.name, each.name) for each in naming.projectors(sizes.values()))
    taken = {each.name for each in beside}
    for variant in naming.variants(sizes.values()):
        files = tuple(FoundFile(folder / each.name, each.name) for each in variant.files)
        taken |= {each.name for each in files}
        own = naming.own_projectors(files[0].name, sizes.values())
        projectors = tuple(FoundFile(folder / each.name, each.name) for each in own)
        finds.models.append(FoundModel(name(files[0].path), source, files, projectors))
    for each in names:
        if each in taken or "imatrix" in each.lower():
            continue
        if each not in sizes:
            finds.left_out.append(LeftOut(folder / each, "it is not a file, or a link to nothing"))
        elif (shard := _SHARD.search(each)) and shard["index"] == min(_present_shards(each, names)):
            finds.left_out.append(LeftOut(folder / each, f"not all of its {int(shard['total'])} shards are here"))
    if beside and not finds.models:
        finds.left_out.append(LeftOut(beside[0].path, "it is a projector; the model it belongs to is not beside it"))
    return finds


def _present_shards(name: str, names: list[str]) -> list[str]:
    """The numbers of the shards of the same set, so that the set is told of once."""
    stem = _SHARD.sub("", name)
    return [shard["index"] for each in names if _SHARD.sub("", each) == stem and (shard := _SHARD.search(each))]


def name_of(file: str) -> str:
    """A model's name from its file's: without shard number and quantization, and such as can be typed."""
    stem = _QUANTIZATION.sub("", re.sub(r"\.gguf$", "", _SHARD.sub("", file), flags=re.IGNORECASE))
    plain = "".join(each if each.isalnum() or each in "._+- " else "-" for each in stem)
    return plain.strip(" .-~")[:96] or "model"
