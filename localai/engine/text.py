"""From the bytes of tokens to text that may be shown: whole characters, and nothing that a stop string takes back."""

from __future__ import annotations

import codecs
from collections.abc import Iterable


class Utf8Stream:
    """Decodes bytes that arrive in pieces; a character split over pieces is held back until it is whole.

    Bytes that are no UTF-8 become U+FFFD, an unfinished character at the end too.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def held_back(text: str, markers: Iterable[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest


class StopMatcher:
    """Ends a text at the first of its stop strings, wherever the pieces are cut; the stop string is not shown."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._pending = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is now certain to be part of the answer."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece
        text = self._pending + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._pending = ""
            return text[: min(found)]
        keep = held_back(text, self._stops)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        rest, self._pending = self._pending, ""
        return rest
