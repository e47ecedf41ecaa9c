"""The records of a batch, one after the other as they come: lines, JSON lines, or files. Never all at once.

A pipe is read as it is written, and by its descriptor: a thread that waits in a buffered stream would keep the
interpreter from ending.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localai.errors import LocalaiError, NotFound, UsageError

FORMS = ("lines", "jsonl", "files")
LONGEST_LINE_BYTES = 10_000_000
_CHUNK = 1 << 16
_LOOKED_THROUGH_BYTES = 1 << 28  # of a file, for how many lines it has and how long they are
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `shown` is what tells it in the output: its text, its path, its id or all of it.

    `error` says why it cannot be asked about; else `fields` gives what fills the template. `digest` is of its bytes.
    """

    index: int
    shown: Any
    digest: str
    values: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    error: LocalaiError | None = None

    def fields(self) -> dict[str, Any]:
        """What the template may speak of; a file is read now. Raises what is wrong with the record."""
        if self.error is not None:
            raise self.error
        if self.path is None:
            return self.values
        from localai import documents

        document = documents.read(self.path)
        return {"text": document.text, "name": document.name, "path": self.shown}


@dataclass(frozen=True, slots=True)
class Size:
    """How large a batch is, as far as it can be told beforehand: its records, the bytes of the longest one."""

    records: int | None
    longest_bytes: int


class Source:
    """The lines of files, or of stdin where there are none. Raises NotFound, UsageError for one that cannot be read."""

    def __init__(self, paths: Sequence[Path] = (), reads_stdin: bool = True) -> None:
        self._open = [(_opened(path), str(path)) for path in paths]
        if not self._open and reads_stdin:
            self._open = [(0, "stdin")]
        self._read_before: dict[int, bytes] = {}

    def size(self, others: int = 0) -> Size:
        """Looks through files, and of a pipe at what comes first, for which it waits. `others` are counted, too."""
        lines, longest = others, 0
        for descriptor, name in self._open:
            if (found := _looked_through(descriptor)) is None:
                first = self._read_before[descriptor] = _read(descriptor, name)
                found = first.count(b"\n"), max(map(len, first.split(b"\n"))), not first
            lines, longest = lines + found[0], max(longest, found[1])
            if not found[2]:
                return Size(None, longest)
        return Size(lines, longest)

    def reads(self, descriptor: int) -> bool:
        """Whether it reads the very file that is open there: what is written to that would be read again."""
        found = os.fstat(descriptor)
        return stat.S_ISREG(found.st_mode) and any(os.path.samestat(found, os.fstat(each)) for each, _ in self._open)

    def lines(self) -> Iterator[bytes | None]:
        """Each line without its end; None for one that is too long to be meant."""
        for descriptor, name in self._open:
            yield from _lines(self._chunks(descriptor, name))

    def _chunks(self, descriptor: int, name: str) -> Iterator[bytes]:
        chunk = self._read_before.pop(descriptor, b"") or _read(descriptor, name)
        while chunk:
            yield chunk
            chunk = _read(descriptor, name)

    def close(self) -> None:
        for descriptor, _ in self._open:
            if descriptor:
                os.close(descriptor)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes | None]:
    pieces: list[bytes] = []  # of the line that has begun
    held, first = 0, True
    for chunk in chunks:
        *ended, rest = (chunk.removeprefix(_BOM) if first else chunk).split(b"\n")
        first = False
        for line in ended:
            whole = held + len(line) <= LONGEST_LINE_BYTES
            yield b"".join([*pieces, line]).removesuffix(b"\r") if whole else None
            pieces, held = [], 0
        held += len(rest)
        pieces = [*pieces, rest] if held <= LONGEST_LINE_BYTES else []
    if held:
        yield b"".join(pieces).removesuffix(b"\r") if held <= LONGEST_LINE_BYTES else None


def _opened(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", "check the path") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is a folder", "name its files: --input files, with one path a line")
    return descriptor


def _read(descriptor: int, name: str) -> bytes:
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        raise LocalaiError(f"cannot read {name}: {error.strerror}", "check what is given as input") from error


def _looked_through(descriptor: int) -> tuple[int, int, bool] | None:
    """Lines of a file, the longest one's bytes, and whether that is all; None for what cannot be read twice."""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        start = position = os.lseek(descriptor, 0, os.SEEK_CUR)
        lines = longest = begun = 0
        while position - start < _LOOKED_THROUGH_BYTES and (chunk := os.read(descriptor, 1 << 20)):
            first, *others = chunk.split(b"\n")
            lines += len(others)
            longest = max(longest, begun + len(first), *map(len, others))
            begun = len(others[-1]) if others else begun + len(first)
            position += len(chunk)
        whole = position - start < _LOOKED_THROUGH_BYTES
        os.lseek(descriptor, start, os.SEEK_SET)
    except OSError:
        return None
    return lines + bool(begun), longest, whole


# ------------------------------------------------------------------------------------------------------------- records


def records(lines: Iterator[bytes | None], form: str) -> Iterator[Record]:
    """The records that the lines are, counted from 0; blank lines among JSON records and paths are none."""
    made: Callable[[int, bytes], Record] = {"lines": _of_line, "jsonl": _of_json, "files": _of_path}[form]
    index = 0
    for line in lines:
        if line is None:
            told = UsageError(f"the line is longer than {LONGEST_LINE_BYTES // 10**6} MB", "cut it into records")
            yield Record(index, None, _digest(b""), error=told)
        elif form != "lines" and not line.strip():
            continue
        else:
            yield made(index, line)
        index += 1


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _of_line(index: int, line: bytes) -> Record:
    text = line.decode("utf-8", "replace")
    return Record(index, text, _digest(line), {"text": text})


def _of_json(index: int, line: bytes) -> Record:
    digest = _digest(line)
    shown: Any = line.decode("utf-8", "replace")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        told = UsageError(f"the record is no JSON: {str(error)[:200]}", "one JSON object a line")
        return Record(index, shown[:1000], digest, error=told)
    if isinstance(value, str):
        return Record(index, value, digest, {"text": value})
    if not isinstance(value, dict):
        told = UsageError("the record is neither a JSON object nor a text", "one JSON object a line")
        return Record(index, value, digest, error=told)
    return Record(index, value.get("id", value), digest, value)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is larger than any number")
    return value


def _of_path(index: int, line: bytes) -> Record:
    path, shown = Path(os.fsdecode(line)), line.decode("utf-8", "replace")
    digest = hashlib.sha256(line)
    try:
        if line == b"-" or stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            # stdin has the other records; a pipe or a device may have no end, and gives nothing twice
            told: LocalaiError = UsageError(f"{shown[:200]} is no file", "name files, one path a line")
            return Record(index, shown, _digest(line), error=told)
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    except ValueError:  # a NUL in it
        told = NotFound(f"there is no file {shown[:200]!r}", "check the path")
        return Record(index, shown, _digest(line), error=told)
    except OSError:
        pass  # reading it as a document tells why
    return Record(index, shown, digest.hexdigest()[:16], path=path)
