"""Model files made here, of random weights and any shape, to measure speed with: nothing is downloaded.

Speed does not depend on the values of weights, as long as they are not all zero (the pages of a hole are one page,
which stays in the processor's cache). A stretch of random numbers is quantized by llama.cpp itself and repeated until
the tensor is full; read without mmap every repetition has memory of its own.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from localai.engine import library
from localai.tensor_types import BY_NAME

_ALIGNMENT = 32
_STRETCH = 1 << 18  # numbers that are drawn and quantized
_STRING, _UINT32, _FLOAT32 = 8, 4, 6  # enum gguf_metadata_value_type


@dataclass(frozen=True, slots=True)
class Synthetic:
    """A model: `kind` is the type of all its matrices. With `experts` each layer has so many, `used` for a token.

    `tied`: the output is the embedding.
    """

    kind: str
    layers: int
    width: int
    feed_forward: int
    vocabulary: int = 256
    experts: int = 0
    used: int = 0
    heads: int = 16
    kv_heads: int = 8
    head_length: int = 64
    tied: bool = False

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts else "llama"

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(_size(kind, dimensions) for _, kind, dimensions in self.tensors())

    def tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """Name, type and dimensions (GGUF's order: the row first) of each tensor."""
        d, ff = self.width, self.feed_forward
        of_heads, kv = self.heads * self.head_length, self.kv_heads * self.head_length
        yield "token_embd.weight", self.kind, (d, self.vocabulary)
        yield "output_norm.weight", "F32", (d,)
        if not self.tied:
            yield "output.weight", self.kind, (d, self.vocabulary)
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", "F32", (d,)
            yield f"blk.{i}.attn_q.weight", self.kind, (d, of_heads)
            yield f"blk.{i}.attn_k.weight", self.kind, (d, kv)
            yield f"blk.{i}.attn_v.weight", self.kind, (d, kv)
            yield f"blk.{i}.attn_output.weight", self.kind, (of_heads, d)
            yield f"blk.{i}.ffn_norm.weight", "F32", (d,)
            of_experts = (self.experts,) if self.experts else ()
            suffix = "_exps" if self.experts else ""
            if self.experts:
                yield f"blk.{i}.attn_q_norm.weight", "F32", (self.head_length,)
                yield f"blk.{i}.attn_k_norm.weight", "F32", (self.head_length,)
                yield f"blk.{i}.ffn_gate_inp.weight", "F32", (d, self.experts)
            yield f"blk.{i}.ffn_gate{suffix}.weight", self.kind, (d, ff, *of_experts)
            yield f"blk.{i}.ffn_up{suffix}.weight", self.kind, (d, ff, *of_experts)
            yield f"blk.{i}.ffn_down{suffix}.weight", self.kind, (ff, d, *of_experts)


def write(path: Path, model: Synthetic) -> None:
    """Write the model's file. Raises EngineError without an engine, OSError where the disk has no room."""
    tensors = list(model.tensors())
    contents = {kind: _content(kind) for kind in {kind for _, kind, _ in tensors}}
    with path.open("wb") as stream:
        stream.write(_header(model, tensors))
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        for name, kind, dimensions in tensors:
            size = _size(kind, dimensions)
            block = struct.pack("<f", 1.0) * 256 if "norm" in name else contents[kind]
            whole, rest = divmod(size, len(block))
            for _ in range(whole):
                stream.write(block)
            stream.write(block[:rest] + b"\0" * (-size % _ALIGNMENT))


def _size(kind: str, dimensions: tuple[int, ...]) -> int:
    each = BY_NAME[kind]
    count = 1
    for dimension in dimensions:
        count *= dimension
    return count // each.block * each.size_bytes


@cache
def _content(kind: str) -> bytes:
    """A stretch of random numbers of that type, quantized by ggml (`ggml_quantize_chunk`)."""
    import numpy

    values = (numpy.random.default_rng(1).standard_normal(_STRETCH) * 0.02).astype(numpy.float32)
    if kind == "F32":
        return values.tobytes()
    if kind == "F16":
        return values.astype(numpy.float16).tobytes()
    each = BY_NAME[kind]
    quantized = ctypes.create_string_buffer(_STRETCH // each.block * each.size_bytes)
    source = values.ctypes.data_as(ctypes.c_void_p)
    library.quantizer()(each.number, source, quantized, 0, _STRETCH // 1024, 1024, None)
    return quantized.raw


def _header(model: Synthetic, tensors: list[tuple[str, str, tuple[int, ...]]]) -> bytes:
    architecture = model.architecture
    numbers = {
        "block_count": model.layers,
        "context_length": 32768,
        "embedding_length": model.width,
        "feed_forward_length": model.feed_forward,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.head_length,
        "attention.value_length": model.head_length,
        "rope.dimension_count": model.head_length,
        "vocab_size": model.vocabulary,
    }
    if model.experts:
        numbers |= {
            "expert_count": model.experts,
            "expert_used_count": model.used,
            "expert_feed_forward_length": model.feed_forward,
        }
    pairs: list[tuple[str, Any]] = [("general.architecture", architecture), ("tokenizer.ggml.model", "no_vocab")]
    pairs += [(f"{architecture}.{name}", number) for name, number in numbers.items()]
    pairs.append((f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5))
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for name, value in pairs:
        parts.append(_text(name))
        if isinstance(value, str):
            parts.append(struct.pack("<I", _STRING) + _text(value))
        elif isinstance(value, float):
            parts.append(struct.pack("<If", _FLOAT32, value))
        else:
            parts.append(struct.pack("<II", _UINT32, value))
    offset = 0
    for name, kind, dimensions in tensors:
        parts.append(_text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        parts.append(struct.pack("<IQ", BY_NAME[kind].number, offset))
        offset += -(-_size(kind, dimensions) // _ALIGNMENT) * _ALIGNMENT
    return b"".join(parts)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
