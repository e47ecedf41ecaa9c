"""Ollama's store: manifests by name, and blobs by SHA-256 that they point to.

The layout is Ollama's own (manifest/paths.go, manifest/manifest.go, types/model/name.go of ollama/ollama):
`manifests/HOST/NAMESPACE/MODEL/TAG`, newer versions also `manifests-v2/…` with links to blobs, and
`blobs/sha256-HEX`. A manifest is JSON with `layers`, one of which is the model; a list of manifests has children.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from localai.foreign.found import Finds, FoundFile, FoundModel, LeftOut

_LARGEST_MANIFEST = 1_000_000
_MOST_MANIFESTS = 10_000
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})", re.IGNORECASE)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_LAYER = "application/vnd.ollama.image."
_LIST = "application/vnd.ollama.manifest.list.v2+json"


def roots(environ: Mapping[str, str], system: str = sys.platform) -> tuple[Path, ...]:
    """Where Ollama keeps models: `OLLAMA_MODELS` where that is set, else the user's folder and its Linux service's."""
    if own := environ.get("OLLAMA_MODELS"):
        return (Path(os.path.expanduser(own)),)
    found = [Path(os.path.expanduser("~/.ollama/models"))]
    if system.startswith("linux"):
        found += [Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/.ollama/models")]
    return tuple(found)


def find(root: Path) -> Finds:
    """Every model of the store at `root`; hostile or damaged manifests are left out with a reason."""
    finds = Finds()
    if not finds.look_into(root):
        return finds
    seen: set[str] = set()
    for path, parts in _manifests(root, finds):
        if (name := _name(parts)) is None:
            finds.left_out.append(LeftOut(path, "its name is not one of Ollama's"))
        elif name not in seen:
            seen.add(name)
            try:
                finds.models.append(_model(root, name, _manifest(root, path)))
            except ValueError as error:
                finds.left_out.append(LeftOut(path, str(error)))
    return finds


def _manifests(root: Path, finds: Finds) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The manifests four folders deep, newest layout first."""
    count = 0
    for base in (root / "manifests-v2", root / "manifests"):
        try:
            paths = sorted(base.glob("*/*/*/*"))
        except OSError as error:
            finds.left_out.append(LeftOut(base, f"it cannot be read: {error.strerror}"))
            continue
        for path in paths:
            count += 1
            if count > _MOST_MANIFESTS:
                return
            if not os.path.isdir(path) and not path.name.startswith("."):
                yield path, path.relative_to(base).parts


def _name(parts: tuple[str, ...]) -> str | None:
    """The model's name as Ollama shows it: without its own registry, `library` and `latest`."""
    host, *rest = parts
    if not _HOST.fullmatch(host) or not all(_PART.fullmatch(part) for part in rest):
        return None
    namespace, model, tag = rest
    name = model if tag == "latest" else f"{model}:{tag}"
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{name}"
    return name if namespace == "library" else f"{namespace}/{name}"


def _manifest(root: Path, path: Path) -> dict[str, Any]:
    """The manifest, or of a list its first child with a model. Raises ValueError."""
    raw = _json(path, root)
    if raw.get("mediaType") != _LIST:
        return raw
    children = raw.get("manifests")
    for child in children[:100] if isinstance(children, list) else ():
        if isinstance(child, dict) and "layers" not in child and isinstance(child.get("digest"), str):
            child = _json(_blob(root, child["digest"]), root)
        if isinstance(child, dict) and any(_kind(layer) == "model" for layer in _layers(child)):
            return child
    raise ValueError("it has no GGUF model")


def _json(path: Path, root: Path) -> dict[str, Any]:
    """A small JSON object inside the store. Raises ValueError."""
    try:
        if not path.resolve().is_relative_to(root.resolve()) or not os.path.isfile(path):
            raise ValueError("it leads out of the store")
        with open(path, "rb") as stream:
            content = stream.read(_LARGEST_MANIFEST + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ValueError(f"it cannot be read: {getattr(error, 'strerror', None) or 'a circle of links'}") from error
    try:
        raw = json.loads(content) if len(content) <= _LARGEST_MANIFEST else None
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        raise ValueError("it is not a manifest")
    return raw


def _layers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    layers = manifest.get("layers")
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _kind(layer: dict[str, Any]) -> str:
    """`model`, `projector`, `adapter`, `template`, …"""
    media = layer.get("mediaType")
    return media.removeprefix(_LAYER).split(";")[0] if isinstance(media, str) and media.startswith(_LAYER) else ""


def _blob(root: Path, digest: object) -> Path:
    """Where a blob lies. Raises ValueError for what is no digest, so that no manifest names a file of its choosing."""
    said = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if said is None:
        raise ValueError("it names a blob that is none")
    return root / "blobs" / f"sha256-{said[1].lower()}"


def _model(root: Path, name: str, manifest: dict[str, Any]) -> FoundModel:
    """Raises ValueError for a manifest that is not of one GGUF model."""
    by_kind: dict[str, list[FoundFile]] = {}
    for layer in _layers(manifest):
        kind = _kind(layer)
        if kind in ("model", "projector", "adapter"):
            blob = _blob(root, layer.get("digest"))
            by_kind.setdefault(kind, []).append(FoundFile(blob, blob.name, blob.name.removeprefix("sha256-")))
    models = by_kind.get("model", [])
    if len(models) != 1:
        raise ValueError("it has no GGUF model" if not models else "its model is in several files")
    if "adapter" in by_kind:
        raise ValueError("it is an adapter on top of another model")
    return FoundModel(name, "ollama", tuple(models), tuple(by_kind.get("projector", ())[:1]))
