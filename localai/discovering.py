"""Models that are on this disk already: a file, a folder, or what other programs hold, with their headers read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localai import catalog, gguf, naming, settings, shapes
from localai.domain.files import RemoteFile
from localai.errors import LocalaiError, NotFound, UsageError
from localai.foreign import folders, hf, ollama
from localai.foreign.found import Finds, FoundFile, FoundModel, LeftOut

TOOLS = ("ollama", "lmstudio", "llama.cpp", "hf")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model whose header was read and found good; its files are not hashed yet. `named`: by the user."""

    found: FoundModel
    model: str
    quantization: str
    projector: FoundFile | None
    size_bytes: int
    named: bool = False

    @property
    def files(self) -> tuple[FoundFile, ...]:
        return (*self.found.files, *([self.projector] if self.projector else []))


@dataclass(frozen=True, slots=True)
class Discovery:
    """What there is to import; `folders` are those that were looked into."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    folders: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.candidates)


def discover_path(path: Path, name: str | None = None) -> Discovery:
    """The models of a .gguf file (with its shards) or of a folder; `name` overrides the name of the one model.

    Raises NotFound for what is not there, EngineError for a file that is no model, UsageError.
    """
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if os.path.isdir(path):
        discovery = _looked_into(folders.find(path, "file", lambda file: folders.name_of(file.name)))
    elif os.path.isfile(path):
        discovery = _file(path)
    elif _is_closed(path):
        raise LocalaiError(f"may not read {path}", "check the permissions of that file and of the folders it is in")
    else:
        raise NotFound(f"there is no file or folder {path}", "give the path of a .gguf file or of a folder of them")
    if name is None:
        return discovery
    if len(discovery.candidates) != 1:
        raise UsageError(f"--name is for one model, and {len(discovery.candidates)} are in {path}", "leave it out")
    return replace(discovery, candidates=(replace(discovery.candidates[0], model=check_model_name(name), named=True),))


def _is_closed(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


def check_model_name(name: str) -> str:
    """`name` if a model can be listed and found under it. Raises UsageError."""
    reference = naming.parse(name)
    if reference.kind is naming.Kind.PATH or len(name) > 120:
        raise UsageError(f"{name[:120]!r} cannot be a model's name", "give a word, such as my-model")
    return name


def _file(path: Path) -> Discovery:
    try:
        names = sorted(each for each in os.listdir(path.parent) if each.lower().endswith(".gguf"))
    except OSError:  # a folder may be closed and its file open
        names = [path.name]
    finds = folders.group(path.parent, names, "file", lambda file: folders.name_of(file.name))
    finds.models = [model for model in finds.models if path in {file.path for file in model.files}]
    if not finds.models and path.suffix.lower() != ".gguf":  # a blob of another program's store has no suffix
        finds.models = [FoundModel(folders.name_of(path.name), "file", (FoundFile(path, path.name),))]
    if not finds.models:
        why = next((each.reason for each in finds.left_out if each.path == path), None)
        why = why or ("it is a projector" if naming.is_projector(path.name) else "its name is not that of a model")
        raise UsageError(
            f"{path} cannot be imported: {why}", "give the model's own file; what lies beside it comes too"
        )
    return Discovery((_candidate(finds.models[0]),), (), (path.parent,))


def discover_tools(tools: Sequence[str], roots: Mapping[str, Sequence[Path]] | None = None) -> Discovery:
    """What other programs hold; `roots` overrides the folders they use. Raises UsageError for an unknown tool."""
    finds = Finds()
    for tool in dict.fromkeys(TOOLS if "all" in tools else tools):
        if tool not in TOOLS:
            raise UsageError(f"--from {tool[:40]} is not known", f"it takes: {', '.join(TOOLS)}, all")
        for root in (roots or {}).get(tool) or _roots(tool):
            finds.add(_find(tool, root))
    return _looked_into(finds)


def _roots(tool: str) -> tuple[Path, ...]:
    match tool:
        case "ollama":
            return ollama.roots(os.environ)
        case "lmstudio":
            return folders.lmstudio_roots(os.environ)
        case "llama.cpp":
            return folders.llamacpp_roots(os.environ)
    return (settings.hub_cache(),)


def _find(tool: str, root: Path) -> Finds:
    match tool:
        case "ollama":
            return ollama.find(root)
        case "lmstudio":
            return folders.find_lmstudio(root)
        case "llama.cpp":
            finds = folders.find_llamacpp(root)
            if finds.folders:  # since 2026 its cache has the Hub's layout, in the same folder
                newer = hf.find(root, "llama.cpp")
                finds.models += newer.models
                finds.left_out += newer.left_out
            return finds
    return hf.find(root)


def _looked_into(finds: Finds) -> Discovery:
    """Read every header; what has none of a language model is left out with the reason."""
    candidates, left_out = [], list(finds.left_out)
    for found in finds.models:
        try:
            candidates.append(_candidate(found))
        except LocalaiError as error:
            left_out.append(LeftOut(found.files[0].path, error.message))
    return Discovery(tuple(candidates), tuple(left_out), tuple(finds.folders))


def _candidate(found: FoundModel) -> Candidate:
    """Raises NotFound or EngineError for what is no language model that llama.cpp can read."""
    header = gguf.read_model([file.path for file in found.files])
    shape = shapes.shape(header)
    projector = next((each for each in found.projectors if _belongs(each.path, shape.embedding_length)), None)
    quantization = shapes.quantization(header)
    if variants := naming.variants([RemoteFile(file.name, 0, None) for file in found.files]):
        named = variants[0].quantization
        quantization = named if named != naming.UNKNOWN_QUANTIZATION else quantization
    size = header.file_size + (os.stat(projector.path).st_size if projector else 0)
    known = catalog.by_repo(found.model) if "/" in found.model else catalog.resolve_name(found.model)
    return Candidate(found, known.id if known else found.model, quantization, projector, size)


def _belongs(projector: Path, embedding_length: int | None) -> bool:
    """Whether a projector may be the model's; a folder may hold those of several models."""
    try:
        return shapes.may_see_for(gguf.read_header(projector), embedding_length)
    except LocalaiError:
        return False
