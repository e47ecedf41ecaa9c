"""Bounded reader of GGUF headers: metadata and tensor table, never the tensors' data.

A model file is hostile input: every count, length, offset and dimension is checked against a bound before it is used,
and what llama.cpp would refuse (ggml/src/gguf.cpp of the vendored tree) is refused here with one line that says why.
The values are read by `gguf_reader`, which stops after so many bytes whatever the input.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from localai.errors import EngineError, NotFound
from localai.gguf_reader import (
    ARRAY,
    HINT,
    STRING,
    STRINGS_LIMIT,
    ByteSource,
    FileSource,
    Reader,
    Skipped,
    Value,
    shown,
)
from localai.tensor_types import TENSOR_TYPES

KEYS_LIMIT = 16_384
TENSORS_LIMIT = 32_768
NAME_LIMIT = 64  # GGML_MAX_NAME, its final NUL included
DIMENSIONS_LIMIT = 4  # GGML_MAX_DIMS


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `dimensions` innermost first, `offset` from the start of its file's data section."""

    name: str
    type: str
    dimensions: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        count = 1
        for dimension in self.dimensions:
            count *= dimension
        return count


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself. Of a sharded model: the first shard's metadata, every shard's tensors.

    `vocabulary_at` are the bytes of the (first) file, from and up to, of each key that is about the vocabulary.
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_size: int
    vocabulary_at: tuple[tuple[int, int], ...] = ()

    def text(self, key: str) -> str | None:
        """The text that the key has; None where it has none, or something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) and value else None


def read_header(path: Path, keep: Container[str] = ()) -> Header:
    """Read the header of one GGUF file; long arrays become `Skipped` unless their key is in `keep`.

    Raises NotFound, or EngineError for anything that is not a sound little-endian GGUF of version 2 or 3.
    """
    with FileSource(path) as source:
        return parse(source, keep)


def read_model(paths: Sequence[Path], keep: Container[str] = ()) -> Header:
    """Read a model's header from all its shards, in order, as one: tensors joined, `file_size` summed.

    Raises NotFound or EngineError, also where shards are missing, doubled or of another model.
    """
    if not paths:
        raise NotFound("no model file was given", "localai list shows the installed models")
    headers: list[Header] = []
    for path in paths:
        headers.append(read_header(path, keep) if not headers else as_later_shard(read_header(path)))
        check_count(path.name, headers)
    return join([path.name for path in paths], headers)


def as_later_shard(header: Header) -> Header:
    """What is kept of a shard that is not the first: its tensors and which one it is. Its metadata may be hostile."""
    kept = {key: value for key, value in header.metadata.items() if key in ("split.no", "split.count")}
    return replace(header, metadata=MappingProxyType(kept))


def check_count(name: str, headers: Sequence[Header]) -> None:
    """Raise EngineError where shards together have more tensors than any model has; `name` is the last's."""
    if (count := sum(len(header.tensors) for header in headers)) > TENSORS_LIMIT:
        raise EngineError(f"{name} and the shards before it announce {count} tensors, more than any model has", HINT)


def join(names: Sequence[str], headers: Sequence[Header]) -> Header:
    """The headers of a model's files, in order, as one; `names` are for messages.

    Raises EngineError where shards are missing, doubled or of another model.
    """
    first = headers[0]
    count = first.metadata.get("split.count", 1)
    if count != len(headers) and not (count == 0 and len(headers) == 1):
        here = f"{len(headers)} {'is' if len(headers) == 1 else 'are'} here"
        raise EngineError(f"{names[0]} is one of {shown(count)} shards, but {here}", "pull the model again")
    if len(headers) == 1:
        return first
    seen: set[str] = set()
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        if header.metadata.get("split.no") != number or header.metadata.get("split.count") != count:
            raise EngineError(f"{name} is not shard {number + 1} of {count}", "pull the model again")
        for tensor in header.tensors:
            if tensor.name in seen:
                raise EngineError(f"{name} repeats the tensor {shown(tensor.name)}", "pull the model again")
            seen.add(tensor.name)
    return replace(
        first,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        file_size=sum(header.file_size for header in headers),
    )


def parse(source: ByteSource, keep: Container[str] = ()) -> Header:
    """Parse a header from any byte source. Raises EngineError; time and memory are bounded whatever it holds."""
    reader = Reader(source)
    version, tensor_count, key_count = _preamble(reader)
    metadata: dict[str, Value] = {}
    vocabulary_at = []
    for _ in range(key_count):
        begin = reader.position
        key = reader.string("a key's name", 65_535)
        if not key or key in metadata:
            raise reader.error(f"the key {shown(key)} is there twice" if key else "a key has no name")
        metadata[key] = reader.value(key, keep)
        if _is_of_vocabulary(key, metadata[key]):
            vocabulary_at.append((begin, reader.position))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.error(f"its alignment is {shown(alignment)}, not a power of two")
    tensors = tuple(_tensors(reader, tensor_count, alignment))
    data_offset = -(-reader.position // alignment) * alignment
    end = max((data_offset + tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    if end > source.size:
        raise EngineError(
            f"{source.name} is cut off: it has {source.size} bytes of the {end} that its header announces",
            "pull it again; what is there already is used",
        )
    found = MappingProxyType(metadata)
    return Header(version, found, tensors, alignment, data_offset, source.size, tuple(vocabulary_at))


_KIND, _TOKENS, _COUNT = "tokenizer.ggml.model", "tokenizer.ggml.tokens", ".vocab_size"


def _is_of_vocabulary(key: str, value: Value) -> bool:
    return key == _KIND or key.endswith(_COUNT) or (key.startswith("tokenizer.") and isinstance(value, Skipped))


def without_vocabulary(header: Header, beginning: bytes) -> bytes:
    """A header as it would be without its vocabulary, of which only the length is told: to llama.cpp, the same model.

    `beginning` are the file's bytes up to its data. What is not longer than a few kB anyway stays as it is.
    """
    tokens = header.metadata.get(_TOKENS)
    if not isinstance(tokens, Skipped) or tokens.kind != "string":
        return beginning
    size_key = f"{header.metadata.get('general.architecture')}{_COUNT}"
    instead = _record(_KIND, STRING, _text(b"none")) + _record(size_key, 4, struct.pack("<I", tokens.length))
    parts, at = [], 24
    for begin, end in header.vocabulary_at:
        parts.append(beginning[at:begin])
        at = end
    (keys,) = struct.unpack_from("<Q", beginning, 16)
    count = struct.pack("<Q", keys - len(header.vocabulary_at) + 2)
    return b"".join((beginning[:16], count, instead, *parts, beginning[at:]))


def _record(key: str, kind: int, value: bytes) -> bytes:
    return _text(key.encode()) + struct.pack("<I", kind) + value


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def parse_beginning(source: ByteSource) -> Header:
    """What the beginning of a file says: the keys that are whole in it, and no tensors.

    `source` has that beginning and its `size`. An array that is cut off is `Skipped` with its length: of a vocabulary
    that is all one wants to know. Raises EngineError where it is no GGUF.
    """
    reader = Reader(source)
    version, _, key_count = _preamble(reader)
    metadata: dict[str, Value] = {}
    key, begin = "", 0
    try:
        for _ in range(key_count):
            key = reader.string("a key's name", 65_535)
            begin = reader.position
            metadata[key] = reader.value(key, ())
    except EngineError:  # cut off; or damaged, which whoever reads the whole of it will be told
        if len(found := source.read_at(begin, 16)) == 16:
            kind, element, length = struct.unpack("<IIQ", found)
            if kind == ARRAY and length <= STRINGS_LIMIT:
                metadata[key] = Skipped("string" if element == STRING else "number", length)
    return Header(version, MappingProxyType(metadata), (), 32, source.size, source.size)


def _preamble(reader: Reader) -> tuple[int, int, int]:
    """Magic, version and the two counts. Raises EngineError where any is out of bounds."""
    if reader.source.size < 24 or reader.take(4) != b"GGUF":
        raise EngineError(f"{reader.source.name} is not a GGUF file", "localai runs GGUF files; pull one")
    (version,) = struct.unpack("<I", reader.take(4))
    if version & 0xFFFF == 0:
        raise reader.error("it is a big-endian GGUF, made for another kind of processor", "pull a little-endian one")
    if version not in (2, 3):
        raise reader.error(f"its GGUF version is {version}; 2 and 3 can be read", "pull a newer conversion, or update")
    tensors, keys = struct.unpack("<QQ", reader.take(16))
    if tensors > TENSORS_LIMIT or keys > KEYS_LIMIT:
        raise reader.error(f"it announces {tensors} tensors and {keys} keys, more than any model has")
    return version, tensors, keys


def _tensors(reader: Reader, count: int, alignment: int) -> Iterator[TensorInfo]:
    """The tensor table; each tensor begins where the one before it ends, padded, as llama.cpp demands."""
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        name = reader.string("a tensor's name", NAME_LIMIT - 1)
        if name in names:
            raise reader.error(f"the tensor {shown(name)} is there twice")
        names.add(name)
        (n_dimensions,) = struct.unpack("<I", reader.take(4))
        if n_dimensions > DIMENSIONS_LIMIT:
            raise reader.error(f"the tensor {shown(name)} has {n_dimensions} dimensions")
        dimensions = struct.unpack(f"<{n_dimensions}Q", reader.take(8 * n_dimensions))
        number, offset = struct.unpack("<IQ", reader.take(12))
        tensor = _tensor(reader, name, number, dimensions, offset)
        if offset != expected:
            raise reader.error(
                f"the tensor {shown(name)} begins at {offset}, not at {expected}: it overlaps or leaves a gap"
            )
        expected += -(-tensor.size_bytes // alignment) * alignment
        yield tensor


def _tensor(reader: Reader, name: str, number: int, dimensions: tuple[int, ...], offset: int) -> TensorInfo:
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise reader.error(
            f"the tensor {shown(name)} has the type {number}, which this version does not know", "update localai"
        )
    elements = 1
    for dimension in dimensions:
        elements *= dimension
        if not 0 < elements < 2**63:  # llama.cpp divides by some
            raise reader.error(f"the tensor {shown(name)} has impossible dimensions")
    if (dimensions[0] if dimensions else 1) % kind.block:
        raise reader.error(f"the tensor {shown(name)} has rows that are no multiple of its block of {kind.block}")
    return TensorInfo(name, kind.name, dimensions, offset, elements // kind.block * kind.size_bytes)
