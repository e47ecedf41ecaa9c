"""The terminal's own modes while a conversation goes on: no echo into an answer, and all as it was at the end.

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

_restore: Callable[[], None] | None = None
_ending: int | None = None  # the signal that wants the program to end


class Ended(SystemExit):
    """A signal wants the program to end: raised where it waits, so that what must be kept can be; see `end`.

    What is in progress is asked to stop instead: an exception cannot pass through C.
    """


@contextlib.contextmanager
def conversing() -> Iterator[None]:
    """Within: keys are not echoed, Ctrl-C alone does nothing, SIGTERM, SIGHUP, SIGQUIT (Ctrl-\\) end it: see `Ended`.

    After it the terminal is as before.
    """
    global _restore
    before = _modes()
    if before is None:
        yield
        return

    def put_back() -> None:
        _set(before)
        if not render.plain():
            with contextlib.suppress(OSError):
                os.write(sys.stdin.fileno(), RESET.encode())

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
        _set(before)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, pause)  # we are back
        _set_echo(False)

    handlers: dict[str, Any] = {**dict.fromkeys(ENDS, ended), "SIGTSTP": pause, "SIGINT": lambda number, frame: None}
    previous = {name: signal.signal(getattr(signal, name), handler) for name, handler in handlers.items()}
    _restore = put_back
    _set_echo(False)
    try:
        yield
    finally:
        _restore = None
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
    """Within: keys are echoed and Ctrl-C raises KeyboardInterrupt, for a line read plainly or a program started."""
    before = _modes()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_echo(True)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        _set(before)


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


def _set_echo(on: bool) -> None:
    modes = _modes()
    if modes is None:
        return
    import termios

    modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
    _set(modes)
