"""The values of a GGUF file as they follow one another: numbers, strings, arrays, each checked before it is read.

Whatever the input, reading stops after `HEADER_LIMIT` bytes and keeps at most `KEPT_LIMIT` bytes of text.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from localai.errors import EngineError, NotFound

HEADER_LIMIT = 256 * 1024**2  # the largest seen are some 30 MB: vocabulary, merges and a tokenizer in JSON
KEPT_LIMIT = 32 * 1024**2  # keys, names and values that are kept, by their cost in memory
STRING_LIMIT = 1024**2  # a longer one is skipped; chat templates are some tens of kB
ARRAY_LIMIT = 1024  # a longer one is skipped: vocabularies; per-layer arrays have at most 512 entries
STRINGS_LIMIT = 2 * 1024**2  # strings in skipped arrays; vocabulary and merges of the largest are about 1.5 million
CHUNK = 256 * 1024

HINT = "the file is damaged or no model; localai verify checks what is installed and says how to mend it"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value too long to be worth keeping: `kind` "string" (`length` in bytes) or an array's element type."""

    kind: str
    length: int


Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...] | Skipped


class ByteSource(Protocol):
    """Where the bytes come from: a file, or later ranges over HTTP. `size` is that of the whole file."""

    name: str
    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; none only at the end."""
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
STRING, ARRAY = 8, 9  # enum gguf_type of gguf.h; the others are numbers


class Reader:
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
        window = b""
        while len(window) < length:
            more = self.source.read_at(self.position + len(window), max(length - len(window), CHUNK))
            if not more:
                raise self.error("its header is cut off")
            window += more
        self._start, self._window = self.position, window

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
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
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
        if kind == STRING:
            if kept:
                return tuple(self.string(f"a string of {shown(key)}", STRING_LIMIT) for _ in range(length))
            self._skip_strings(length)
            return Skipped("string", length)
        if kept:
            return self._numbers(key, kind, length)
        self.skip(length * self._size(key, kind))
        return Skipped(_NUMBERS[kind][0], length)

    def _size(self, key: str, kind: int) -> int:
        if kind not in _NUMBERS:
            what = "arrays in an array" if kind == ARRAY else f"the type {kind}"
            raise self.error(f"the key {shown(key)} has {what}, which GGUF readers refuse")
        return struct.calcsize("<" + _NUMBERS[kind][1])

    def _numbers(self, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
        size = self._size(key, kind)
        if count * size > KEPT_LIMIT:
            raise self.error(f"the key {shown(key)} has {count} elements")
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


def shown(value: object) -> str:
    """A name from the file, fit for an error line."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"
