"""Ctrl-C as a question that work in progress can ask, instead of an exception in its middle."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

from localai.errors import LocalaiError


class Interrupts:
    """While entered, the first Ctrl-C makes `requested()` true; the last of `presses` raises KeyboardInterrupt.

    llama.cpp runs C code into which an exception cannot be thrown: generation asks between tokens instead.
    """

    def __init__(self, presses: int = 2) -> None:
        self._presses, self._left = presses, presses
        self._flag = threading.Event()
        self._before: object = None

    def requested(self) -> bool:
        return self._flag.is_set()

    def __enter__(self) -> Interrupts:
        self._flag.clear()
        self._left = self._presses
        if threading.current_thread() is threading.main_thread():
            _entered.append(self)
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self in _entered:
            _entered.remove(self)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]  # what signal() gave us
            self._before = None
        if self.requested() and isinstance(error, LocalaiError):
            raise KeyboardInterrupt from error  # whatever else went wrong, the user wants to leave

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._flag.set()
        self._left -= 1
        if self._left <= 0:
            raise KeyboardInterrupt


_entered: list[Interrupts] = []


def requested() -> bool:
    """Whether the work in progress is asked to stop, whatever it is."""
    return any(each.requested() for each in _entered)


def request() -> bool:
    """Ask the work in progress to stop, as the first Ctrl-C does; False where there is none."""
    for each in _entered:
        each._flag.set()
    return bool(_entered)
