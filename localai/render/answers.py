"""What a model says, as it comes: the answer on stdout, its thoughts on stderr."""

from __future__ import annotations

import sys

from localai.render.streams import colour_wanted, flush, is_terminal, write
from localai.render.text import safe


class AnswerStream:
    """Streams an answer to stdout, each piece at once: made harmless on a terminal, exact anywhere else."""

    held = ""  # nothing is held back here

    def __init__(self) -> None:
        self._terminal = is_terminal(sys.stdout)
        self._last = ""

    def write(self, text: str) -> None:
        write(sys.stdout, safe(text) if self._terminal else text)
        self._last = text[-1:] or self._last
        flush()

    def end(self) -> None:
        """End the answer's last line."""
        if self._last not in ("", "\n"):
            write(sys.stdout, "\n")
        flush()


class ThinkingStream:
    """Streams a model's thoughts to stderr, dimmed on a terminal and set off from the answer."""

    def __init__(self) -> None:
        self._open = False

    def write(self, text: str) -> None:
        if not self._open:
            self._open = True
            write(sys.stderr, "\x1b[2m" if colour_wanted(sys.stderr) else "")
        write(sys.stderr, safe(text) if is_terminal(sys.stderr) else text)
        if sys.stderr is not None:
            sys.stderr.flush()

    def end(self) -> None:
        if self._open:
            self._open = False
            write(sys.stderr, "\x1b[0m\n\n" if colour_wanted(sys.stderr) else "\n\n")
