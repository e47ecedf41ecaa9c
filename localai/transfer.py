"""Our own download: resumable across processes, hashed as it comes, and never under its name before it is verified.

One connection at first; several where measuring shows that one does not fill the line.
"""

from __future__ import annotations

import http.client
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from localai import locks
from localai import source as http_source
from localai.errors import HashMismatch, NetworkError
from localai.lanes import Lanes, NoRanges, fetch
from localai.partial import PartialFile, disk_error, sha256_of
from localai.source import BROKEN, Connection, Pace, Refusal, Retryable, Source, reason_of, receive

_REPORT_SECONDS = 0.1
_GAIN_BYTES = 1 << 20  # an attempt that got this much further earns a fresh count of tries, so the tries stay bounded
# The Hub's storage refuses to send more than 50 GB in answer to one request, but sends parts of a larger file.
LARGEST_REQUEST_BYTES = 40 * 10**9
_PULL_AGAIN = "pull again; it goes on from what is there"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on: tries without getting further; back-off and time-outs in seconds."""

    tries: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 120.0
    timeout_s: float = 30.0
    least_bytes: int = 16 << 10  # in `timeout_s`: a server that drips is as good as none

    def wait_s(self, tried: int, retry_after_s: float | None) -> float:
        """Seconds before the next try: what the server asked for, else twice the last one ± half, bounded."""
        if retry_after_s is not None:
            return retry_after_s
        return float(min(self.longest_wait_s, self.first_wait_s * 2 ** (tried - 1)) * random.uniform(0.5, 1.5))

    def pace(self) -> Pace:
        return Pace(self.timeout_s, self.least_bytes)


def download(
    url: str,
    destination: Path,
    *,
    size_bytes: int,
    sha256: str,
    lock: Path,
    headers: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda done_bytes: None,
    on_retry: Callable[[str], None] = lambda reason: None,
    on_wait: Callable[[], None] = lambda: None,
    refusal: Refusal | None = None,
    retry: RetryPolicy | None = None,
    lanes: Lanes | None = None,
) -> None:
    """Bring `destination` to hold the `size_bytes` bytes with this SHA-256, going on from what is there.

    `progress` is told the bytes at hand (it can fall back to 0), `on_retry` why a part is fetched again, `on_wait` that
    another process holds the lock. `headers` (the token) go to the origin of `url` only. A file already at
    `destination` is hashed; a wrong one stays until the right one replaces it.
    Raises HashMismatch, NetworkError, AccessDenied, NotFound (or what `refusal` makes of a status), DoesNotFit when
    the disk is full, LocalaiError when it may not be written.
    """
    retry = retry or RetryPolicy()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        held = locks.hold(lock, on_wait)
    except OSError as error:
        raise disk_error(error, destination) from error
    with held:
        if _is_there(destination, size_bytes, sha256, progress, on_retry):
            return
        source = Source(url, headers or {}, retry.timeout_s, refusal or http_source.refusal)
        with PartialFile(destination) as partial:
            resumed = partial.resume(size_bytes, progress)
            transfer = _Transfer(source, partial, size_bytes, progress, on_retry, retry, lanes or Lanes())
            transfer.run()
            if resumed and partial.sha256() != sha256:
                on_retry("what an earlier download left is damaged; fetching the file anew")
                partial.restart(None)
                transfer.run()
            if (found := partial.sha256()) != sha256:
                partial.discard()
                raise HashMismatch(
                    f"{source.name}: the bytes received have SHA-256 {found[:12]}…, the Hub says {sha256[:12]}…",
                    "they were thrown away; pull again to fetch the file anew",
                )
            partial.publish()


def _is_there(
    path: Path, size_bytes: int, sha256: str, progress: Callable[[int], None], on_retry: Callable[[str], None]
) -> bool:
    """Whether the file at `path` is the one wanted; another tool, or another process of ours, may have put it."""
    try:
        if path.stat().st_size == size_bytes and sha256_of(path, progress) == sha256:
            return True
        on_retry(f"the file in the cache is not the Hub's; fetching it anew: {path.name[:12]}…")
    except FileNotFoundError:
        pass
    except OSError as error:
        on_retry(f"the file in the cache cannot be read ({error.strerror}); fetching it anew: {path.name[:12]}…")
    return False


@dataclass(slots=True)
class _Transfer:
    """Attempt after attempt, until all bytes are there."""

    source: Source
    partial: PartialFile
    size_bytes: int
    progress: Callable[[int], None]
    on_retry: Callable[[str], None]
    retry: RetryPolicy
    lanes: Lanes
    single_bps: float | None = None  # of one connection, once measured; several are tried from then on
    trials: int = 0  # of several connections; no more of them after `Lanes.failures`
    reported: float = 0.0
    doubts: int = 0  # answers in a row that do not go with what is there

    def run(self) -> None:
        """Raises NetworkError once nothing more came for too many tries, and what `Source.open` raises."""
        tried, best = 0, self.partial.position
        while self.partial.position < self.size_bytes:
            try:
                self._attempt()
            except Retryable as error:
                if self.partial.position >= best + _GAIN_BYTES:
                    tried, best = 0, self.partial.position
                tried += 1
                self._pause(error, tried)
        self.progress(self.partial.position)

    def _pause(self, error: Retryable, tried: int) -> None:
        wait_s = self.retry.wait_s(tried, error.retry_after_s)
        if tried >= self.retry.tries:
            raise NetworkError(f"{self.source.name}: {error} ({tried} tries)", _PULL_AGAIN) from error
        if (error.retry_after_s or 0) > self.retry.longest_retry_after_s:
            raise NetworkError(
                f"{self.source.name}: {error}; the server asks to wait {wait_s:.0f} s",
                f"wait that long, then {_PULL_AGAIN}",
            ) from error
        self.on_retry(f"{error}; trying again in {wait_s:.1f} s ({tried + 1} of {self.retry.tries})")
        time.sleep(wait_s)

    def _attempt(self) -> None:
        """One connection, or several: what they bring is kept. Raises Retryable when bytes are missing after it."""
        if self.single_bps is not None and self.partial.etag is not None:
            self._by_several(self.partial.etag, self.single_bps)
            return
        end = self.partial.position + LARGEST_REQUEST_BYTES
        try:
            with Connection(self.source.timeout_s) as connection:
                part = end if end < self.size_bytes else None
                response = self.source.open(connection, self.partial.position, part, self.partial.etag)
                self._accept(response)
                if not self._stream(response):
                    return
        except BROKEN as error:
            raise Retryable(reason_of(error)) from error
        self.progress(self.partial.position)
        if self.partial.position < min(end, self.size_bytes):
            raise Retryable(f"the connection ended after {self.partial.position} of {self.size_bytes} bytes")

    def _stream(self, response: http.client.HTTPResponse) -> bool:
        """Take the body to its end; False where it was left early because several connections are worth a trial."""
        pace, measured = self.retry.pace(), _Rate(self.lanes.trial_s)
        while count := receive(response, space := self.partial.space()):
            pace.add(count)
            if self.partial.position + count > self.size_bytes:
                self.partial.discard()
                raise NetworkError(
                    f"{self.source.name}: the server sends more than the {self.size_bytes} bytes the Hub announced",
                    "the bytes were thrown away; pull again, and tell the repository's owner if it happens again",
                )
            self.partial.append(space[:count])
            self._report()
            if (rate := measured.add(count)) is not None and self._worth_a_trial(rate):
                self.single_bps = rate
                return False
        return True

    def _worth_a_trial(self, rate_bps: float) -> bool:
        return (
            rate_bps < self.lanes.enough_bps
            and self.trials < self.lanes.failures
            and self.size_bytes - self.partial.position >= self.lanes.least_s * rate_bps
            and self.partial.etag is not None
        )

    def _by_several(self, etag: str, single_bps: float) -> None:
        """Several connections to the end, or back to one where they bring too little."""
        measured = _Rate(self.lanes.trial_s)
        self.trials += 1
        self.single_bps = None

        def write(chunk: bytes) -> bool:
            self.partial.write(chunk)
            self._report()
            rate = measured.add(len(chunk))
            return rate is None or rate >= self.lanes.gain * single_bps

        position = self.partial.position
        try:
            lanes = self.lanes.for_rate(single_bps)
            fetch(self.source, etag, position, self.size_bytes, lanes, self.retry.pace, write)
        except NoRanges:
            self.trials = self.lanes.failures
        except Retryable as error:
            if error.retry_after_s is not None:  # the server is busy: no more of several connections
                self.trials = self.lanes.failures
            raise
        else:
            if self.partial.position < self.size_bytes:
                self.trials = self.lanes.failures
        finally:
            self.progress(self.partial.position)

    def _report(self) -> None:
        if (now := time.monotonic()) - self.reported >= _REPORT_SECONDS:
            self.reported = now
            self.progress(self.partial.position)

    def _accept(self, response: http.client.HTTPResponse) -> None:
        """Put the partial file where the response's bytes start, and refuse lengths that cannot be right."""
        if response.status == 416:
            raise self._doubted("the server does not have the range that is missing")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Retryable("the server sent compressed bytes that were not asked for")
        if response.status == 206:
            said = re.fullmatch(
                r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip()
            )
            expected = {str(self.size_bytes), "*"}
            if said is None or int(said[1]) != self.partial.position or said[3] not in expected:
                raise self._doubted("the server sent another range than the one asked for")
            self.doubts = 0
            if self.partial.position == 0:  # the first part of a very large file
                self.partial.restart(response.headers.get("ETag"))
            return
        length = response.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) != self.size_bytes:
            raise Retryable(f"the server announces {int(length)} bytes where the Hub said {self.size_bytes}")
        self.partial.restart(response.headers.get("ETag"))

    def _doubted(self, reason: str) -> Retryable:
        """What to raise for an answer that does not go with the bytes here; these go only where it is given again."""
        self.doubts += 1
        if self.doubts > 1:
            self.doubts = 0
            self.partial.restart(None)
        return Retryable(reason)


class _Rate:
    """Bytes per second, measured once over the second half of `trial_s`: the first half is the connection's start."""

    def __init__(self, trial_s: float) -> None:
        self._start = time.monotonic() + trial_s / 2
        self._end = self._start + trial_s / 2
        self._first: float | None = None
        self._count = 0
        self._told = False

    def add(self, count: int) -> float | None:
        """The rate, once, when the time is over; None before and after."""
        now = time.monotonic()
        if self._told or now < self._start:
            return None
        if self._first is None:
            self._first = now
        else:
            self._count += count
        if now < self._end or self._count == 0:
            return None
        self._told = True
        return self._count / max(now - self._first, 1e-6)
