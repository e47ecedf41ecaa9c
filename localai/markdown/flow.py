"""Pieces of text in a style, and words put onto lines of the terminal's width."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localai.render import cells

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, CODE, HEADING = "1", "2", "3", "4", "9", "36", "1;35"

_NARROW = 20  # columns under which nothing is wrapped any more


@dataclass(frozen=True, slots=True)
class Piece:
    """Text in one style, an SGR code or "" for none."""

    text: str
    style: str = ""


class Flow:
    """Puts words onto lines: a word goes to the next line where it would cross the edge."""

    def __init__(self, width: Callable[[], int], styled: bool) -> None:
        self._width, self._styled = width, styled
        self._out: list[str] = []
        self._column = 0
        self._indent = 0
        self._word: list[Piece] = []
        self._word_cells = 0
        self._space = ""

    @property
    def width(self) -> int:
        return self._width()

    def add(self, shown: str) -> None:
        """Append what is rendered already."""
        self._out.append(shown)

    def raw(self, piece: Piece) -> str:
        """A piece as it stands, not wrapped: code, which the terminal itself folds, so that it is copied whole."""
        return self.take() + self._painted(piece)

    def put(self, *pieces: Piece) -> None:
        """The beginning of a line: marks and white space."""
        for piece in pieces:
            self._out.append(self._painted(piece))
            self._column += cells(piece.text)

    def indent(self, columns: int) -> None:
        """How far the lines after the first begin."""
        self._indent = columns if columns < self.width - _NARROW else 0

    def words(self, piece: Piece) -> None:
        """Text that flows: its words are shown when they end, wide characters at once."""
        for part in re.findall(r"[ \t]+|[^ \t]+", piece.text):
            if part[0] in " \t":
                self._end_word()
                self._space += part.replace("\t", "    ")
                continue
            for run in _breakable(part):
                self._word.append(Piece(run, piece.style))
                self._word_cells += cells(run)
                if cells(run[-1]) == 2 or self._word_cells > max(self.width, _NARROW):
                    self._end_word()

    def _end_word(self) -> None:
        if not self._word:
            return
        space = len(self._space)
        width = max(self.width, _NARROW)
        if self._column > self._indent and self._column + space + self._word_cells > width:
            self._out.append("\n" + " " * self._indent)
            self._column = self._indent
        elif self._space:
            self._out.append(self._space)
            self._column += space
        self._space = ""
        self._out.extend(self._painted(each) for each in self._word)
        self._column = self._column + self._word_cells
        if self._column > width:  # longer than a line: the terminal folds it
            self._column %= width
        self._word, self._word_cells = [], 0

    def end_line(self) -> str:
        """Show the last word and end the line."""
        self._end_word()
        self._space, self._column, self._indent = "", 0, 0
        return self.take() + "\n"

    def take(self) -> str:
        """What has become sure since the last time."""
        shown, self._out = "".join(self._out), []
        return shown

    def _painted(self, piece: Piece) -> str:
        return painted(piece) if self._styled else piece.text


def painted(piece: Piece) -> str:
    """The piece with the escape sequences of its style around it."""
    return f"\x1b[{piece.style}m{piece.text}\x1b[0m" if piece.style and piece.text else piece.text


def both(style: str, more: str) -> str:
    """One style and another on top of it."""
    return f"{style};{more}" if style else more


def _breakable(word: str) -> Iterator[str]:
    """A word in parts between which a line may end: after each wide character, as Chinese and Japanese are set."""
    start = 0
    for at, character in enumerate(word):
        if ord(character) > 0x10FF and cells(character) == 2:
            if at > start:
                yield word[start:at]
            yield character
            start = at + 1
    if start < len(word):
        yield word[start:]
