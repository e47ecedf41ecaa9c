"""Small GGUF files built with `struct`, sound or hostile."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai.tensor_types import BY_NAME

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True)
class Typed:
    """A value written with a type of the test's choosing: `data` is what follows the type's number."""

    kind: int
    data: bytes


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def value(item: Any) -> bytes:
    match item:
        case Typed(kind, data):
            return struct.pack("<I", kind) + data
        case bool():
            return struct.pack("<IB", BOOL, item)
        case int():
            return struct.pack("<II", UINT32, item)
        case float():
            return struct.pack("<If", FLOAT32, item)
        case str() | bytes():
            return struct.pack("<I", STRING) + text(item)
    return array(item)


def array(items: Sequence[Any]) -> bytes:
    kind = STRING if items and isinstance(items[0], str) else BOOL if items and isinstance(items[0], bool) else INT32
    body = b"".join(
        text(item) if kind == STRING else struct.pack("?" if kind == BOOL else "<i", item) for item in items
    )
    return struct.pack("<IIQ", ARRAY, kind, len(items)) + body


def size_of(kind: str, dimensions: Sequence[int]) -> int:
    elements = 1
    for dimension in dimensions:
        elements *= dimension
    found = BY_NAME[kind]
    return elements // found.block * found.size_bytes


def gguf_bytes(
    metadata: Mapping[str, Any] | Sequence[tuple[str, Any]],
    tensors: Sequence[tuple[str, str, Sequence[int]]] = (),
    *,
    version: int = 3,
    alignment: int = 32,
    data: bool = True,
) -> bytes:
    """A whole file; `tensors` are (name, type, dimensions), laid out one after the other."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    out += b"".join(text(key) + value(item) for key, item in pairs)
    offset = 0
    for name, kind, dimensions in tensors:
        out += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        out += struct.pack("<IQ", BY_NAME[kind].number, offset)
        offset += -(-size_of(kind, dimensions) // alignment) * alignment
    out += b"\0" * (-len(out) % alignment)
    return out + b"\0" * offset if data else out


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def sparse(folder: Path, metadata: Mapping[str, Any], tensors: Sequence[tuple[str, str, Sequence[int]]]) -> Path:
    """A model of real size that takes no room: a header, and a hole for the data."""
    header = gguf_bytes(metadata, tensors, data=False)
    data = sum(-(-size_of(kind, dimensions) // 32) * 32 for _, kind, dimensions in tensors)
    path = write(folder, header)
    with path.open("r+b") as stream:
        stream.truncate(len(header) + data)
    return path
