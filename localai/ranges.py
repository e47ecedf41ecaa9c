"""Headers of models on the Hub, over HTTP ranges: a few MB in a few requests, never the file; kept by commit.

The requests are `source`'s, with its rules: at most 5 redirects, the token to the Hub's own origin only.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localai import gguf, gguf_reader, hub_client, hub_errors, settings, threads
from localai.domain.files import RemoteFile
from localai.domain.units import MIB
from localai.errors import EngineError, LocalaiError, NetworkError
from localai.source import BROKEN, Connection, Pace, Retryable, Source, reason_of

# Bytes asked for at once. What a vocabulary takes is not known beforehand, and what is fetched beyond it is lost; but
# how many tokens and merges it has stands before them, and tells about how much. Headers of 150,000 tokens have 6 MB
# (2 requests), of 260,000 up to 16.
WINDOWS = (1 * MIB, 2 * MIB, 4 * MIB)
_TOKENIZER = b"tokenizer.ggml.model" + struct.pack("<I", gguf_reader.STRING)
_TOKENS, _MERGES = (
    key + struct.pack("<II", gguf_reader.ARRAY, gguf_reader.STRING)
    for key in (b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges")
)
# Bytes of a header for each of its tokens: with merges 39 in Qwen3's and 61 in Llama 3's, with scores 24 in Gemma 3's.
_BYTES_PER_TOKEN = {b"gpt2": 41, b"llama": 25}
_BYTES_PER_MERGE = 18  # 17 in Llama 3's, 18.5 in Qwen3's
_MOST_EXPECTED = 16 * MIB
_BEYOND = MIB  # what is asked for at once where that was not all
BEGINNING = 128 * 1024  # the model's dimensions stand before its vocabulary, within the first 4 to 20 kB
LATER_SHARD_WINDOW = MIB // 4  # shards after the first have a tensor table and no vocabulary
FETCH_LIMIT = 64 * MIB  # no header is as long; a hostile one gets no further
LATER_FETCH_LIMIT = 8 * MIB
_AT_ONCE = 3  # shards: few enough that hostile ones do not fill the memory
CACHE_LIMIT = 256 * MIB
_TRIES = 3
_TIMEOUT_S = 15.0
_LONGEST_WAIT_S = 5.0
_LEAST_BYTES = 16 << 10  # in `_TIMEOUT_S`; a server that drips is as good as none
_SAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True)
class RemoteHeader:
    """The header of a model on the Hub, all its shards as one, and where its beginning is kept on this disk.

    `kept` has one file for each shard, of `header_bytes` bytes each: the shard up to its tensors' data.
    """

    header: gguf.Header
    files: tuple[RemoteFile, ...]
    kept: tuple[Path, ...]
    header_bytes: tuple[int, ...]


def read_model(
    repo: str,
    commit: str,
    files: Sequence[RemoteFile],
    on_retry: Callable[[str], None] = lambda line: None,
    on_beginning: Callable[[gguf.Header], None] = lambda beginning: None,
) -> RemoteHeader:
    """Read a model's header, all its shards, some at a time, from the Hub or from what an earlier call kept.

    `on_retry` is told why the Hub is asked again, one line each; `on_beginning` what the first bytes say, while the
    rest is still to come from the Hub: both from any thread. Raises NetworkError, AccessDenied, NotFound, EngineError
    for what is no sound GGUF, LocalaiError where nothing can be kept on the disk.
    """
    kept = [_kept_path(repo, commit, file.name) for file in files]

    found: dict[int, gguf.Header] = {}
    failures: dict[int, Exception] = {}

    def read(number: int) -> None:
        file, path = files[number], kept[number]
        try:
            if not failures:
                header = _kept(path, file) or _fetched(repo, commit, file, path, number, on_retry, on_beginning)
                found[number] = gguf.as_later_shard(header) if number else header
                gguf.check_count(file.name, tuple(found.values()))
        except Exception as error:  # noqa: BLE001 - raised below, where the caller is
            failures[number] = error

    threads.in_parallel([partial(read, number) for number in range(len(files))], min(_AT_ONCE, len(files)))
    if failures:
        raise failures[min(failures)]
    headers = [found[number] for number in range(len(files))]
    _forget_oldest(kept)
    joined = gguf.join([file.name for file in files], headers)
    return RemoteHeader(joined, tuple(files), tuple(kept), tuple(header.data_offset for header in headers))


def read_beginning(repo: str, commit: str, file: RemoteFile) -> gguf.Header:
    """What the first 128 KiB of a file say, by one request or by what an earlier call kept: dimensions, no tensors.

    Raises NetworkError, AccessDenied, NotFound, EngineError for what is no GGUF.
    """
    whole = _kept_path(repo, commit, file.name)
    path = whole.with_name(f"{whole.name}-beginning")
    for each in (whole, path):
        with suppress(OSError, EngineError):
            with each.open("rb") as stream:
                content = stream.read(BEGINNING)
            return gguf.parse_beginning(_Kept(file.name, len(content), content))
    with HubFile(repo, commit, file, (BEGINNING,)) as source:
        source.reach(BEGINNING)
        content = bytes(source.prefix[:BEGINNING])
    header = gguf.parse_beginning(_Kept(file.name, len(content), content))
    with suppress(OSError):
        settings.private_folder(path.parent)
        settings.write_atomically(path, content)
    return header


class HubFile:
    """The beginning of a file on the Hub as far as it was asked for: a `ByteSource`. Use it as a context.

    `windows` are the bytes of one request after the other; more than `limit` in all is an EngineError.
    """

    def __init__(
        self,
        repo: str,
        commit: str,
        file: RemoteFile,
        windows: Sequence[int],
        on_retry: Callable[[str], None] = lambda line: None,
        limit: int | None = None,
    ) -> None:
        self.name = file.name.rpartition("/")[2]
        self.size = file.size_bytes
        self.prefix = bytearray()
        self._windows = list(windows)
        self._on_retry = on_retry
        self._limit = limit or FETCH_LIMIT
        self._connection = Connection(_TIMEOUT_S)
        self._source = Source(
            hub_client.file_url(repo, commit, file.name),
            hub_client.auth_headers(),
            _TIMEOUT_S,
            lambda status, headers: hub_errors.refusal(repo, status, headers),
        )

    def __enter__(self) -> HubFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`: those that are here, else those that come with the next requests."""
        self.reach(offset + 1)
        return bytes(self.prefix[offset : offset + length])

    def reach(self, end: int) -> None:
        """Fetch what is missing up to `end`, or more."""
        end = min(end, self.size)
        while len(self.prefix) < end:
            self._grow(min(max(end, self._next()), self.size))

    def _next(self) -> int:
        """Where the next request should end: where the header is expected to, else a window further."""
        here = len(self.prefix)
        if expected := expected_bytes(self.prefix):
            return expected if expected > here else here + _BEYOND
        return here + (self._windows.pop(0) if len(self._windows) > 1 else self._windows[0])

    def _grow(self, end: int) -> None:
        """Fetch up to `end`; what came of a broken answer is kept."""
        if end > self._limit:
            raise EngineError(f"{self.name}: its header is longer than {self._limit >> 20} MiB", gguf_reader.HINT)
        for tried in range(1, _TRIES + 1):
            wait_s = 0.5 * tried
            try:
                self._take(end)
                return
            except Retryable as error:
                failure, wait_s = str(error), wait_s if error.retry_after_s is None else error.retry_after_s
            except BROKEN as error:
                failure = reason_of(error)
            self._connection.close()
            if tried == _TRIES or wait_s > _LONGEST_WAIT_S:
                break
            self._on_retry(f"{self.name}: {failure}; asking again in {wait_s:.1f} s ({tried + 1} of {_TRIES})")
            time.sleep(wait_s)
        raise NetworkError(f"{self.name}: {failure}", "check the network and HF_ENDPOINT, or try again later")

    def _take(self, end: int) -> None:
        start, pace = len(self.prefix), Pace(_TIMEOUT_S, _LEAST_BYTES)
        response = self._source.open(self._connection, start, end)
        skip = self._checked(response, start)
        while len(self.prefix) < end:
            chunk = response.read1(min(end - len(self.prefix) + skip, gguf_reader.CHUNK))
            if not chunk:
                raise Retryable(f"the connection ended after {len(self.prefix)} bytes")
            pace.add(len(chunk))
            self.prefix += chunk[skip:]
            skip = max(0, skip - len(chunk))
        if response.status == 200:
            self._connection.close()  # the rest of the file is behind it
        else:
            response.read(0)  # lets go of the connection, for the next request

    def _checked(self, response: http.client.HTTPResponse, start: int) -> int:
        """How many bytes come before those asked for: a server without ranges begins at the beginning."""
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Retryable("the server sent compressed bytes that were not asked for")
        if response.status == 200:
            return start
        said = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip()
        )
        if response.status != 206 or said is None or int(said[1]) != start or said[2] not in {str(self.size), "*"}:
            raise Retryable("the server sent another range than the one asked for")
        return 0


def expected_bytes(beginning: bytes | bytearray) -> int:
    """About how long a header is that begins like this; 0 where its vocabulary does not tell."""
    model = beginning.find(_TOKENIZER) + len(_TOKENIZER) + 8
    name = bytes(beginning[model : model + 16])
    each = next((size for kind, size in _BYTES_PER_TOKEN.items() if name.startswith(kind)), 0)
    for key, size in ((_MERGES, _BYTES_PER_MERGE), (_TOKENS, each)):
        at = beginning.find(key)
        if size and at >= 0 and at + len(key) + 8 <= len(beginning):
            (count,) = struct.unpack_from("<Q", beginning, at + len(key))
            return int(min(at + size * count, _MOST_EXPECTED))
    return 0


def _fetched(
    repo: str,
    commit: str,
    file: RemoteFile,
    path: Path,
    number: int,
    on_retry: Callable[[str], None],
    on_beginning: Callable[[gguf.Header], None],
) -> gguf.Header:
    windows = (LATER_SHARD_WINDOW, *WINDOWS) if number else WINDOWS
    with HubFile(repo, commit, file, windows, on_retry, LATER_FETCH_LIMIT if number else None) as source:
        if number == 0:
            beginning = source.read_at(0, BEGINNING)
            on_beginning(gguf.parse_beginning(_Kept(source.name, len(beginning), beginning)))
        header = gguf.parse(source)
        source.reach(header.data_offset)  # the padding before the data; or a model without tensors
        content = bytes(memoryview(source.prefix)[: header.data_offset])
    try:
        settings.private_folder(path.parent)
        settings.write_atomically(path, content)
    except OSError as error:
        raise LocalaiError(
            f"cannot keep the header of {file.name}: {error.strerror}", f"check the folder {path.parent}"
        ) from error
    return header


# ------------------------------------------------------------------------------------------------- what was kept


class _Kept:
    """The beginning of a file that is longer: a `ByteSource`."""

    def __init__(self, name: str, size: int, content: bytes) -> None:
        self.name, self.size, self._content = name, size, content

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


def _kept(path: Path, file: RemoteFile) -> gguf.Header | None:
    """The header that an earlier call kept; None where there is none, or it is damaged."""
    try:
        if path.stat().st_size > FETCH_LIMIT:
            return None
        header = gguf.parse(_Kept(file.name, file.size_bytes, path.read_bytes()))
        os.utime(path)
    except (OSError, EngineError):
        return None
    return header


def _folder() -> Path:
    return settings.folders().cache / "headers"


def _kept_path(repo: str, commit: str, name: str) -> Path:
    key = hashlib.sha256(f"{repo}\0{commit}\0{name}".encode()).hexdigest()[:24]
    shown = _SAFE.sub("_", name.rpartition("/")[2])[:80]
    return _folder() / f"{key}-{shown}"


def _forget_oldest(needed: Sequence[Path]) -> None:
    """Keep what is kept under its limit: the headers that were not used for longest go first."""
    with suppress(OSError):
        found = sorted(
            ((each.stat().st_mtime, each.stat().st_size, each) for each in _folder().iterdir()), reverse=True
        )
        total = 0
        for _, size, path in found:
            total += size
            if total > CACHE_LIMIT and path not in needed:
                path.unlink()
