"""Bounded reader of GGUF headers: metadata and tensor table, never the tensors' data.

A model file is hostile input: every count, length, offset and dimension is checked against a bound before it is used,
and what llama.cpp would refuse (ggml/src/gguf.cpp of the vendored tree) is refused here with one line that says why.
Whatever the input, reading stops after `HEADER_LIMIT` bytes and keeps at most `KEPT_LIMIT` bytes of text.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Protocol, Self

from localai.errors import EngineError, NotFound
from localai.tensor_types import TENSOR_TYPES

HEADER_LIMIT = 256 * 1024**2  # the largest seen are some 30 MB: vocabulary, merges and a tokenizer in JSON
KEPT_LIMIT = 32 * 1024**2  # keys, names and values that are kept, by their cost in memory
STRING_LIMIT = 1024**2  # a longer one is skipped; chat templates are some tens of kB
ARRAY_LIMIT = 1024  # a longer one is skipped: vocabularies; per-layer arrays have at most 512 entries
KEYS_LIMIT = 16_384
TENSORS_LIMIT = 32_768
STRINGS_LIMIT = 2 * 1024**2  # strings in skipped arrays; vocabulary and merges of the largest are about 1.5 million
NAME_LIMIT = 64  # GGML_MAX_NAME, its final NUL included
DIMENSIONS_LIMIT = 4  # GGML_MAX_DIMS
CHUNK = 256 * 1024

HINT = "the file is damaged or no model; localai verify checks what is installed and says how to mend it"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value too long to be worth keeping: `kind` "string" (`length` in bytes) or an array's element type."""

    kind: str
    length: int


Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...] | Skipped


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
    """What a GGUF file says of itself. Of a sharded model: the first shard's metadata, every shard's tensors."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_offset: int
    file_size: int


class ByteSource(Protocol):
    """Where the bytes come from: a file, or later ranges over HTTP. `size` is that of the whole file."""

    name: str
    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end."""
        ...


class FileSource:
    """A file on this disk. Raises NotFound where there is none, EngineError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            if not path.is_file():
                raise NotFound(f"there is no file {path}", "localai list shows the installed models")
            self._stream: BinaryIO = path.open("rb", buffering=0)
            self.size = self._stream.seek(0, 2)
        except (OSError, ValueError) as error:
            raise EngineError(f"cannot read {path}: {_reason(error)}", "check the path and its permissions") from error

    def read_at(self, offset: int, length: int) -> bytes:
        try:
            self._stream.seek(offset)
            return self._stream.read(length)
        except OSError as error:
            raise EngineError(f"cannot read {self.name}: {_reason(error)}", "check the disk") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


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
    return join([path.name for path in paths], [read_header(path, keep) for path in paths])


def join(names: Sequence[str], headers: Sequence[Header]) -> Header:
    """The headers of a model's files, in order, as one; `names` are for messages.

    Raises EngineError where shards are missing, doubled or of another model.
    """
    first = headers[0]
    count = first.metadata.get("split.count", 1)
    if count != len(headers) and not (count == 0 and len(headers) == 1):
        raise EngineError(
            f"{names[0]} is one of {count!s:.20} shards, but {len(headers)} are here", "pull the model again"
        )
    if len(headers) == 1:
        return first
    seen: set[str] = set()
    for number, (name, header) in enumerate(zip(names, headers, strict=True)):
        if header.metadata.get("split.no") != number or header.metadata.get("split.count") != count:
            raise EngineError(f"{name} is not shard {number + 1} of {count}", "pull the model again")
        for tensor in header.tensors:
            if tensor.name in seen:
                raise EngineError(f"{name} repeats the tensor {_shown(tensor.name)}", "pull the model again")
            seen.add(tensor.name)
    return replace(
        first,
        tensors=tuple(tensor for header in headers for tensor in header.tensors),
        file_size=sum(header.file_size for header in headers),
    )


def parse(source: ByteSource, keep: Container[str] = ()) -> Header:
    """Parse a header from any byte source. Raises EngineError; time and memory are bounded whatever it holds."""
    reader = _Reader(source)
    version, tensor_count, key_count = _preamble(reader)
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = reader.string("a key's name", 65_535)
        if not key or key in metadata:
            raise reader.error(f"the key {_shown(key)} is there twice" if key else "a key has no name")
        metadata[key] = reader.value(key, keep)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.error(f"its alignment is {_shown(alignment)}, not a power of two")
    tensors = tuple(_tensors(reader, tensor_count, alignment))
    data_offset = -(-reader.position // alignment) * alignment
    end = max((data_offset + tensor.offset + tensor.size_bytes for tensor in tensors), default=0)
    if end > source.size:
        raise EngineError(
            f"{source.name} is cut off: it has {source.size} bytes of the {end} that its header announces",
            "pull it again; what is there already is used",
        )
    return Header(version, MappingProxyType(metadata), tensors, alignment, data_offset, source.size)


def parse_beginning(source: ByteSource) -> Header:
    """What the beginning of a file says: the keys that are whole in it, and no tensors.

    `source` has that beginning and its `size`. An array that is cut off is `Skipped` with its length: of a vocabulary
    that is all one wants to know. Raises EngineError where it is no GGUF.
    """
    reader = _Reader(source)
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
            if kind == _ARRAY and length <= STRINGS_LIMIT:
                metadata[key] = Skipped("string" if element == _STRING else "number", length)
    return Header(version, MappingProxyType(metadata), (), 32, source.size, source.size)


def _preamble(reader: _Reader) -> tuple[int, int, int]:
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


def _tensors(reader: _Reader, count: int, alignment: int) -> Iterator[TensorInfo]:
    """The tensor table; each tensor begins where the one before it ends, padded, as llama.cpp demands."""
    names: set[str] = set()
    expected = 0
    for _ in range(count):
        name = reader.string("a tensor's name", NAME_LIMIT - 1)
        if name in names:
            raise reader.error(f"the tensor {_shown(name)} is there twice")
        names.add(name)
        (n_dimensions,) = struct.unpack("<I", reader.take(4))
        if n_dimensions > DIMENSIONS_LIMIT:
            raise reader.error(f"the tensor {_shown(name)} has {n_dimensions} dimensions")
        dimensions = struct.unpack(f"<{n_dimensions}Q", reader.take(8 * n_dimensions))
        number, offset = struct.unpack("<IQ", reader.take(12))
        tensor = _tensor(reader, name, number, dimensions, offset)
        if offset != expected:
            raise reader.error(
                f"the tensor {_shown(name)} begins at {offset}, not at {expected}: it overlaps or leaves a gap"
            )
        expected += -(-tensor.size_bytes // alignment) * alignment
        yield tensor


def _tensor(reader: _Reader, name: str, number: int, dimensions: tuple[int, ...], offset: int) -> TensorInfo:
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise reader.error(
            f"the tensor {_shown(name)} has the type {number}, which this version does not know", "update localai"
        )
    elements = 1
    for dimension in dimensions:
        elements *= dimension
        if elements >= 2**63:
            raise reader.error(f"the tensor {_shown(name)} has impossible dimensions")
    if (dimensions[0] if dimensions else 1) % kind.block:
        raise reader.error(f"the tensor {_shown(name)} has rows that are no multiple of its block of {kind.block}")
    return TensorInfo(name, kind.name, dimensions, offset, elements // kind.block * kind.size_bytes)


_NUMBERS: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9


class _Reader:
    """A position in a byte source, with a window of what was last read; it keeps the books on the bounds."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.position = 0
        self._window = b""
        self._start = 0
        self._kept = 0
        self._strings = 0

    def error(self, what: str, hint: str = HINT) -> EngineError:
        return EngineError(f"{self.source.name}: {what}", hint)

    def take(self, length: int) -> bytes:
        """The next `length` bytes; `length` is bounded by the caller."""
        begin = self.position - self._start
        if begin + length > len(self._window):
            self._refill(length)
            begin = 0
        self.position += length
        return self._window[begin : begin + length]

    def _refill(self, length: int) -> None:
        """Move the window to the position, so that at least `length` bytes are in it."""
        if self.position + length > self.source.size:
            raise self.error("its header is cut off")
        if self.position + length > HEADER_LIMIT:
            raise self.error(f"its header is longer than {HEADER_LIMIT >> 20} MiB")
        self._start = self.position
        self._window = self.source.read_at(self.position, max(length, CHUNK))
        if len(self._window) < length:
            raise self.error("its header is cut off")

    def skip(self, length: int) -> None:
        self.position += length
        if self.position > self.source.size:
            raise self.error("its header is cut off")

    def string(self, what: str, limit: int) -> str:
        """A kept string. Bytes that are not UTF-8 become U+FFFD; llama.cpp does not mind them either."""
        (length,) = struct.unpack("<Q", self.take(8))
        if length > limit:
            raise self.error(f"{what} is {length} bytes long")
        self._keep(length)
        return self.take(length).decode("utf-8", "replace")

    def _keep(self, length: int) -> None:
        self._kept += 128 + length  # 128: at most what an object costs beside its content
        if self._kept > KEPT_LIMIT:
            raise self.error("its header holds more text than any model's")

    def value(self, key: str, keep: Container[str]) -> Value:
        (kind,) = struct.unpack("<I", self.take(4))
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            return self._array(key, keep)
        return self._numbers(key, kind, 1)[0]

    def _text(self) -> str | Skipped:
        (length,) = struct.unpack("<Q", self.take(8))
        if length > STRING_LIMIT:
            self.skip(length)
            return Skipped("string", length)
        self._keep(length)
        return self.take(length).decode("utf-8", "replace")

    def _array(self, key: str, keep: Container[str]) -> Value:
        kind, length = struct.unpack("<IQ", self.take(12))
        kept = length <= ARRAY_LIMIT or key in keep
        if kind == _STRING:
            if kept:
                return tuple(self.string(f"a string of {_shown(key)}", STRING_LIMIT) for _ in range(length))
            self._skip_strings(length)
            return Skipped("string", length)
        if kept:
            return self._numbers(key, kind, length)
        self.skip(length * self._size(key, kind))
        return Skipped(_NUMBERS[kind][0], length)

    def _size(self, key: str, kind: int) -> int:
        if kind not in _NUMBERS:
            what = "arrays in an array" if kind == _ARRAY else f"the type {kind}"
            raise self.error(f"the key {_shown(key)} has {what}, which GGUF readers refuse")
        return struct.calcsize("<" + _NUMBERS[kind][1])

    def _numbers(self, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
        size = self._size(key, kind)
        if count * size > KEPT_LIMIT:
            raise self.error(f"the key {_shown(key)} has {count} elements")
        self._keep(count * 32)
        return struct.unpack(f"<{count}{_NUMBERS[kind][1]}", self.take(count * size))

    def _skip_strings(self, count: int) -> None:
        """Step over strings, within the window where that goes: vocabularies have a million of them."""
        self._strings += count
        if self._strings > STRINGS_LIMIT:
            raise self.error(f"its header holds {self._strings} strings, more than any vocabulary")
        length_at = struct.Struct("<Q").unpack_from
        while count:
            window, begin = self._window, self.position - self._start
            last = len(window) - 8
            while count and begin <= last:
                begin += 8 + length_at(window, begin)[0]
                count -= 1
            self.position = self._start + begin
            if self.position > self.source.size:
                raise self.error("its header is cut off")
            if count:
                self._refill(8)


def _shown(value: object) -> str:
    """A name from the file, fit for an error line."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"
