"""What is shown while something goes on, and written over: loading, downloads, batches."""

from __future__ import annotations

import sys
import time
from collections import deque

from localai.render.lines import note
from localai.render.streams import is_terminal, plain, width, write
from localai.render.text import count, duration, safe, size


class Status:
    """A line on stderr that is written over while something goes on; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = is_terminal(sys.stderr) and not plain()
        self._last_shown = 0.0
        self._dirty = False

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._shown and now - self._last_shown >= 0.1:
            self._last_shown, self._dirty = now, True
            write(sys.stderr, "\r" + safe(text)[: width() - 1] + "\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._dirty:
            write(sys.stderr, "\r\x1b[K")
            sys.stderr.flush()
            self._dirty = False


_RATE_SECONDS = 10  # the rate is of the last ones: what was here already, or came before a stall, says nothing


class TransferProgress:
    """Progress of a download on stderr: a bar with rate and time left on a terminal, a line each tenth elsewhere."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self._label, self._total, self._done = label, total_bytes, 0
        self._status = Status()
        self._terminal = is_terminal(sys.stderr)
        self._recent: deque[tuple[float, int]] = deque()  # seconds and bytes, of the last _RATE_SECONDS
        self._tenth = -1

    def update(self, done_bytes: int) -> None:
        now = time.monotonic()
        self._done = done_bytes
        if self._recent and done_bytes < self._recent[-1][1]:
            self._recent.clear()  # begun anew
        self._recent.append((now, done_bytes))
        while now - self._recent[0][0] > _RATE_SECONDS:
            self._recent.popleft()
        seconds = now - self._recent[0][0]
        rate = (done_bytes - self._recent[0][1]) / seconds if seconds > 0.5 else None
        share = done_bytes / self._total if self._total else 1.0
        text = f"{self._label}: {share:4.0%} of {size(self._total)}"
        if rate:
            left = max(self._total - done_bytes, 0) / rate
            text += f", {size(int(rate))}/s, {duration(left)} left"
        if self._terminal:
            self._status.show(text)
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            note(text)

    def end(self) -> None:
        self._status.clear()


class BatchProgress:
    """How far a batch is, on stderr: with rate and time left on a terminal, a line now and then elsewhere."""

    _QUIET_S = 30.0  # between two lines where stderr is no terminal

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._first, self._done = total, done, done
        self._status = Status()
        self._started = self._told = time.monotonic()

    def update(self, done: int | None = None) -> None:
        """So many records are done; None: as before, but time has passed."""
        self._done = self._done if done is None else done
        if is_terminal(sys.stderr):
            self._status.show(self._text())
        elif time.monotonic() - self._told >= self._QUIET_S:
            self._told = time.monotonic()
            note(self._text())

    def _text(self) -> str:
        done = f"{self._done:,} of " if self._total is not None else ""
        text = done + count(self._done if self._total is None else self._total, "record")
        seconds = time.monotonic() - self._started
        if self._done > self._first and seconds > 0.5:
            rate = (self._done - self._first) / seconds
            text += f", {_rate(rate)}"
            if self._total is not None:
                text += f", {duration(max(self._total - self._done, 0) / rate)} left"
        return text

    def clear(self) -> None:
        """Make room for another line."""
        self._status.clear()

    def end(self) -> None:
        """Say what was done, and how fast."""
        self._status.clear()
        seconds, new = time.monotonic() - self._started, self._done - self._first
        if new:
            told = count(self._done, "record") + (f", {new:,} of them now," if self._first else "")
            note(f"{told} in {duration(seconds)} ({_rate(new / max(seconds, 1e-3))})")


def _rate(a_second: float) -> str:
    return f"{a_second:.1f} a second" if a_second >= 1 else f"{a_second * 60:.1f} a minute"
