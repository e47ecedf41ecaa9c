"""Tables of Markdown: their columns under each other, as wide as the terminal has room for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

from localai.markdown.flow import BOLD, DIM, Flow, Piece, both, painted
from localai.markdown.inline import inline
from localai.render import cells

DELIMITERS = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")  # a table's second line


def _row(line: str) -> list[str]:
    """The cells of a table's row; a `\\|` is no border."""
    line = line.strip().removeprefix("|")
    parts = re.split(r"(?<!\\)\|", line)
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return [re.sub(r"<br\s*/?>", " ", part).replace("\\|", "|").strip() for part in parts]


def table(lines: list[str], flow: Flow, styled: bool, rule: str) -> str:
    """A table with its columns under each other, the cells folded where it is wider than the terminal."""
    head, marks, *rows = [_row(line) for line in lines]
    count = len(head)
    alignments = [each[-1:] == ":" and each[:1] != ":" for each in marks] + [False] * count
    body = [[*row[:count], *[""] * (count - len(row))] for row in (head, *rows)]
    content = [[inline(cell, "", True)[0] if styled else [Piece(cell)] for cell in row] for row in body]
    natural = [max(_cells(row[column]) for row in content) for column in range(count)]
    widths = _fitted([max(each, 1) for each in natural], flow.width - 2 * (count - 1))
    shown = []
    for number, row in enumerate(content):
        folded = [_folded(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=[]):
            cells_of_line = []
            for part, width, right in zip(parts, widths, alignments, strict=False):
                padding = " " * (width - _cells(part))
                styled_part = [Piece(p.text, both(p.style, BOLD)) if number == 0 else p for p in part]
                text = "".join(painted(p) if styled else p.text for p in styled_part)
                cells_of_line.append(padding + text if right else text + padding)
            shown.append("  ".join(cells_of_line).rstrip() + "\n")
        if number == 0:
            line = "  ".join(rule * width for width in widths)
            shown.append((painted(Piece(line, DIM)) if styled else line) + "\n")
    return "".join(shown)


def _cells(pieces: list[Piece]) -> int:
    return sum(cells(piece.text) for piece in pieces)


def _fitted(widths: list[int], room: int) -> list[int]:
    """The widths, the widest made smaller until all fit."""
    widths = list(widths)
    while sum(widths) > room and max(widths) > 4:
        widest = widths.index(max(widths))
        second = max([*(each for each in widths if each < widths[widest]), 4])
        widths[widest] = max(second, widths[widest] - (sum(widths) - room), 4)
        if widths[widest] == max(widths) and sum(widths) > room:
            widths[widest] -= 1
    return widths


def _folded(pieces: list[Piece], width: int) -> list[list[Piece]]:
    """The pieces of a cell on lines of at most `width` columns; a word that is longer is cut."""
    lines: list[list[Piece]] = [[]]
    column = 0
    for piece in pieces:
        for word in re.findall(r"\s+|\S+", piece.text):
            if column + cells(word) > width and column and not word.isspace():
                lines.append([])
                column = 0
            if word.isspace() and (not column or column + 1 > width):
                continue
            for part in _cut(word, width):
                if column + cells(part) > width:
                    lines.append([])
                    column = 0
                lines[-1].append(Piece(part, piece.style))
                column += cells(part)
    return lines


def _cut(word: str, width: int) -> Iterator[str]:
    if cells(word) <= width:
        yield word
        return
    yield from word
