"""One file over several connections, for lines that a single stream does not fill; the bytes arrive in order.

Each lane fetches a segment at a time over a connection that it keeps. Segments ahead of the first one that is not yet
whole wait in memory, so the partial file is at every moment what a single stream would have left, and the hash runs on.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.client import HTTPResponse

from localai.source import BROKEN, Connection, Pace, Retryable, Source, reason_of

_READ_BYTES = 1 << 18
_LEAST_SEGMENT_BYTES = 1 << 18

NewPace = Callable[[], Pace]


class NoRanges(Retryable):
    """The server does not answer ranges as several connections need it: go on with one."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """When several connections are tried: rates in bytes per second, measured for `trial_s` seconds each.

    A single stream of `enough_bps` is left alone, and so is a rest that it brings within `least_s`; `count` connections
    stay only if they bring `gain` times its rate. At most `ahead` segments are asked for and not yet written, which
    bounds the memory.
    """

    count: int = 4
    segment_bytes: int = 8 << 20  # at most; `segment_s` of what one connection brings
    segment_s: float = 0.5  # long beside a request's way, short beside the trial: what is ahead shows only when whole
    ahead: int = 6
    trial_s: float = 3.0
    gain: float = 1.15
    enough_bps: float = 100e6
    least_s: float = 6.0  # of a shorter rest less is to be gained than a vain trial costs
    failures: int = 3

    def for_rate(self, single_bps: float) -> Lanes:
        """With segments as they fit connections of this rate."""
        fitting = max(_LEAST_SEGMENT_BYTES, int(single_bps * self.segment_s))
        return replace(self, segment_bytes=min(self.segment_bytes, fitting))


@dataclass(slots=True)
class _Segment:
    start: int
    end: int
    chunks: deque[bytes] = field(default_factory=deque)
    came: int = 0


class _Fetch:
    """The state that the lanes share, all of it under `changed`."""

    def __init__(self, source: Source, etag: str, position: int, size_bytes: int, lanes: Lanes, pace: NewPace) -> None:
        self.source, self.etag, self.size_bytes, self.lanes = source, etag, size_bytes, lanes
        self.pace = pace
        self.changed = threading.Condition()
        self.segments: deque[_Segment] = deque()  # in the order of the file
        self.asked = position
        self.failure: BaseException | None = None
        self.stopped = False
        self.connections = [Connection(source.timeout_s) for _ in range(lanes.count)]

    def work(self, connection: Connection) -> None:
        """One lane: segment after segment, until there is none left or something fails."""
        try:
            while (segment := self._next()) is not None:
                self._bring(connection, segment)
        except BROKEN as error:
            self._fail(Retryable(reason_of(error)))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that writes
            self._fail(error)

    def _next(self) -> _Segment | None:
        with self.changed:
            self.changed.wait_for(lambda: self.stopped or len(self.segments) < self.lanes.ahead)
            if self.stopped or self.asked >= self.size_bytes:
                return None
            segment = _Segment(self.asked, min(self.asked + self.lanes.segment_bytes, self.size_bytes))
            self.asked = segment.end
            self.segments.append(segment)
            return segment

    def _bring(self, connection: Connection, segment: _Segment) -> None:
        response = self.source.open(connection, segment.start, segment.end, self.etag)
        self._check(response, segment)
        pace = self.pace()
        left = segment.end - segment.start
        while left:
            if not (chunk := response.read1(min(_READ_BYTES, left))):
                raise Retryable(f"the connection ended {left} bytes early")
            pace.add(len(chunk))
            left -= len(chunk)
            with self.changed:
                if self.stopped:
                    return
                segment.chunks.append(chunk)
                segment.came += len(chunk)
                self.changed.notify_all()
        response.close()  # all of it is read: the connection is free for the next segment

    def _check(self, response: HTTPResponse, segment: _Segment) -> None:
        said = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", "").strip()
        )
        expected = (segment.start, segment.end - 1, self.size_bytes)
        length = response.headers.get("Content-Length", "")
        if (
            response.status != 206
            or said is None
            or (int(said[1]), int(said[2]), int(said[3])) != expected
            or response.headers.get("Content-Encoding", "identity").lower() != "identity"
            or response.headers.get("ETag", self.etag) != self.etag
            or (length and length != str(segment.end - segment.start))
        ):
            raise NoRanges("the server does not serve the ranges of one file to several connections")

    def _fail(self, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or error
            self.stopped = True
            self.changed.notify_all()

    def take(self) -> bytes | None:
        """The next bytes of the file; None at its end. Raises what a lane failed with, once all that came is taken."""
        with self.changed:
            while True:
                if self.segments and self.segments[0].chunks:
                    return self.segments[0].chunks.popleft()
                if self.segments and self.segments[0].came == self.segments[0].end - self.segments[0].start:
                    self.segments.popleft()
                    self.changed.notify_all()
                elif not self.segments and self.asked >= self.size_bytes:
                    return None
                elif self.failure is not None:
                    raise self.failure
                else:
                    self.changed.wait(0.5)  # with an end, so that Ctrl-C is seen on Windows too

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()
        for connection in self.connections:
            connection.cut()


def fetch(
    source: Source,
    etag: str,
    position: int,
    size_bytes: int,
    lanes: Lanes,
    pace: NewPace,
    write: Callable[[bytes], bool],
) -> None:
    """Hand the bytes from `position` to the end to `write`, in order, until it says False.

    Raises NoRanges where the server cannot do it, Retryable for what may pass, and what `Source.open` raises.
    """
    shared = _Fetch(source, etag, position, size_bytes, lanes, pace)
    threads = [
        threading.Thread(target=shared.work, args=(connection,), name="localai-lane", daemon=True)
        for connection in shared.connections
    ]
    for thread in threads:
        thread.start()
    try:
        while (chunk := shared.take()) is not None and write(chunk):
            pass
    finally:
        shared.stop()
        for thread, connection in zip(threads, shared.connections, strict=True):
            thread.join(source.timeout_s)
            connection.close()
