"""Models as a Hub has them: real headers with real vocabularies, and holes instead of weights."""

from __future__ import annotations

from typing import Any

from gguf_files import STRING, Typed, gguf_bytes, size_of
from model_headers import Model, metadata, tensors


class Sparse(bytes):
    """A file of which only the beginning exists; the rest are zeros, made when asked for."""

    size: int

    def __new__(cls, beginning: bytes, size: int) -> Sparse:
        made = super().__new__(cls, beginning)
        made.size = size
        return made

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Any) -> Any:
        start, stop, _ = key.indices(self.size)
        return bytes.__getitem__(self, slice(start, stop)).ljust(stop - start, b"\0")


def vocabulary(count: int) -> Typed:
    """Tokens as long as a real vocabulary's are on average."""
    return Typed(
        9,
        STRING.to_bytes(4, "little")
        + count.to_bytes(8, "little")
        + b"".join(len(text).to_bytes(8, "little") + text for text in (b"t%06d" % i for i in range(count))),
    )


def header_of(model: Model, quantization: str, **more: Any) -> tuple[bytes, int]:
    """The header of a model with a real vocabulary, and the size of the whole file."""
    table = tensors(model, quantization)
    tokens = vocabulary(model.vocabulary)
    facts = {**metadata(model), "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": tokens, **more}
    header = gguf_bytes(facts, table, data=False)
    return header, len(header) + sum(-(-size_of(kind, dims) // 32) * 32 for _, kind, dims in table)


def file_of(model: Model, quantization: str, **more: Any) -> Sparse:
    return Sparse(*header_of(model, quantization, **more))
