"""GGUF files of a few kilobytes whose headers are those of language models: enough to list, import and verify."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gguf_files import Typed, gguf_bytes

WIDTH = 64


def model_bytes(name: str = "small", **more: object) -> bytes:
    """A whole model; another `name` makes other bytes of nearly the same size."""
    metadata = {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": 2,
        "llama.block_count": 2,
        "llama.embedding_length": WIDTH,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.context_length": 4096,
        "llama.feed_forward_length": 128,
        **more,
    }
    return gguf_bytes(metadata, [("token_embd.weight", "F32", (WIDTH, 8)), ("blk.0.attn_q.weight", "F32", (WIDTH, 4))])


def projector_bytes(width: int = WIDTH) -> bytes:
    return gguf_bytes(
        {"general.architecture": "clip", "clip.vision.projection_dim": width}, [("v.weight", "F32", (4, 4))]
    )


def shard_bytes(number: int, count: int = 2, name: str = "sharded") -> bytes:
    uint16 = 2
    split = {
        "split.no": Typed(uint16, number.to_bytes(2, "little")),
        "split.count": Typed(uint16, count.to_bytes(2, "little")),
        "split.tensors.count": count,
    }
    head = (
        {}
        if number
        else {
            "general.architecture": "llama",
            "general.name": name,
            "llama.block_count": 2,
            "llama.embedding_length": WIDTH,
            "llama.attention.head_count": 4,
        }
    )
    return gguf_bytes({**head, **split}, [(f"blk.{number}.attn_q.weight", "F32", (WIDTH, 4))])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def ollama_store(root: Path, models: dict[str, bytes], projector: bytes | None = None) -> Path:
    """A store as Ollama lays it out; `models` by HOST/NAMESPACE/MODEL/TAG."""
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    for name, content in models.items():
        layers = [("model", content), ("license", b"MIT"), *([("projector", projector)] if projector else [])]
        for _, blob in layers:
            (root / "blobs" / f"sha256-{sha256(blob)}").write_bytes(blob)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": "sha256:" + "0" * 64},
            "layers": [
                {
                    "mediaType": f"application/vnd.ollama.image.{kind}",
                    "digest": f"sha256:{sha256(blob)}",
                    "size": len(blob),
                }
                for kind, blob in layers
            ],
        }
        path = root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(manifest))
    return root


def hub_snapshot(root: Path, repo: str, commit: str, files: dict[str, bytes], ref: str | None = "main") -> Path:
    """A repository in the Hugging Face cache, as huggingface_hub lays it out."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for name, content in files.items():
        blob = folder / "blobs" / sha256(content)
        pointer = snapshot / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        if not pointer.is_symlink():
            pointer.symlink_to(Path(*[".."] * len(pointer.relative_to(folder).parts[:-1]), "blobs", blob.name))
    if ref is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot
