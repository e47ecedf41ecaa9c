"""The terminal's own modes while a conversation goes on: no echo into an answer, and all as it was at the end.

What is typed into an answer waits for the next line as it came, and a paste as one.

Where there is no terminal, or no termios (Windows), nothing is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from localai import interrupt, render

ENDS = ("SIGTERM", "SIGHUP", "SIGQUIT")
# What a line editor may have switched on: bracketed paste off, attributes off, cursor shown.
RESET = "\x1b[?2004l\x1b[0m\x1b[?25h"
PASTES_MARKED, PASTES_BARE = "\x1b[?2004h", "\x1b[?2004l"

_restore: Callable[[], None] | None = None
_ending: int | None = None  # the signal that wants the program to end
_marked = False  # whether the terminal marks pastes while nothing is read


class Ended(SystemExit):
    """A signal wants the program to end: raised where it waits, so that what must be kept can be; see `end`.

    What is in progress is asked to stop instead: an exception cannot pass through C.
    """


@contextlib.contextmanager
def conversing() -> Iterator[None]:
    """Within: keys are not echoed, Ctrl-C alone does nothing, SIGTERM, SIGHUP, SIGQUIT (Ctrl-\\) end it: see `Ended`.

    After it the terminal is as before.
    """
    global _restore, _marked
    before = _modes()
    if before is None:
        yield
        return

    def put_back() -> None:
        _set(before)
        if not render.plain():
            _tell(RESET)

    def ended(number: int, frame: FrameType | None) -> None:
        global _ending
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # in the background, setting modes would stop us
        put_back()
        for name in ENDS:  # a second one ends it at once
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        _ending = number
        if not interrupt.request():
            raise Ended(128 + number)

    def pause(number: int, frame: FrameType | None) -> None:  # Ctrl-Z while an answer comes
        with _pastes_bare():
            _set(before)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            signal.signal(number, pause)  # we are back
            _set_lines(False)

    handlers: dict[str, Any] = {**dict.fromkeys(ENDS, ended), "SIGTSTP": pause, "SIGINT": lambda number, frame: None}
    previous = {name: signal.signal(getattr(signal, name), handler) for name, handler in handlers.items()}
    _restore = put_back
    _set_lines(False)
    try:
        yield
    finally:
        _restore = None
        if _marked:
            _marked = False
            _tell(PASTES_BARE)
        _set(before)
        for name, handler in previous.items():
            signal.signal(getattr(signal, name), handler)


def ending() -> bool:
    """Whether a signal wants the program to end: what went wrong on the way out may have hidden it."""
    return _ending is not None


def end() -> None:
    """End by the signal that wanted it, where one did."""
    if _ending is not None:
        signal.signal(_ending, signal.SIG_DFL)
        os.kill(os.getpid(), _ending)


def restore() -> None:
    """Put the terminal back at once, for an end that no `finally` sees."""
    if _restore is not None:
        _restore()


@contextlib.contextmanager
def cooked() -> Iterator[None]:
    """Within: keys are echoed, Ctrl-C raises KeyboardInterrupt and Ctrl-Z stops us with these modes, for a line read
    plainly or a program started.
    """
    before = _modes()
    meanwhile: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if before is not None:
        meanwhile[signal.SIGTSTP] = signal.SIG_DFL
    handlers = {number: signal.signal(number, handler) for number, handler in meanwhile.items()}
    with _pastes_bare():
        _set_lines(True)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            _set(before)


def mark_pastes() -> None:
    """Have the terminal mark what is pasted until the next line is read: it is one message then, not one a line."""
    global _marked
    if _restore is not None:  # at its end it is taken back
        _marked = True
        _tell(PASTES_MARKED)


@contextlib.contextmanager
def _pastes_bare() -> Iterator[None]:
    """Within: pastes are not marked, for what does not know the marks."""
    if _marked:
        _tell(PASTES_BARE)
    try:
        yield
    finally:
        if _marked:
            _tell(PASTES_MARKED)


def _tell(sequence: str) -> None:
    """Send a control sequence past what is buffered, for a signal may come in the middle of that, to a terminal that
    may be gone.
    """
    with contextlib.suppress(OSError):
        os.write(sys.stdin.fileno(), sequence.encode())


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within: Ctrl-C raises KeyboardInterrupt."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _modes() -> list[Any] | None:
    """The modes of the terminal on stdin; None where there is none."""
    try:
        import termios
    except ImportError:
        return None
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError, AttributeError):
        return None


def _set(modes: list[Any] | None) -> None:
    if modes is None:
        return
    import termios

    with contextlib.suppress(termios.error, OSError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, modes)


def _set_lines(on: bool) -> None:
    """Echo keys and let the terminal hold them back until their line is whole, or neither.

    In lines, it would drop what is longer than 4,095 bytes, and take a Ctrl-D that is for the next line.
    """
    modes = _modes()
    if modes is None:
        return
    import termios

    lines = termios.ECHO | termios.ICANON
    modes[3] = modes[3] | lines if on else modes[3] & ~lines
    _set(modes)
