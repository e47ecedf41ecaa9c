"""Markdown as it arrives, to lines for a terminal: words wrap at the edge, and what is written is never drawn again.

Of each line only so much is held back as cannot be told yet: what kind of line it is, a word until it ends, emphasis
until it is closed, a table until its last row. Code keeps its fences and has nothing put before its lines, so that it
can be copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from localai.render import cells

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, CODE, HEADING = "1", "2", "3", "4", "9", "36", "1;35"

LONGEST_HELD = 400  # characters of emphasis or a link without an end, after which it is none
_NARROW = 20  # columns under which nothing is wrapped any more
_ESCAPABLE = "\\`*_#|~>"
_SPECIAL = re.compile(r"[\\`*_~\[!]")
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+)")
_QUOTE = re.compile(r" {0,3}> ?")
_QUOTES = re.compile(r"^(?: {0,3}> ?)+")
_DELIMITERS = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
# the beginnings of lines, behind their marks of quotes, whose kind is not sure yet
_UNSURE = re.compile(
    r"[ \t]*| {0,3}#{1,6}[ \t]*|[ \t]*(?:[-+*]|\d{1,9}[.)]?)[ \t]*| {0,3}>|[ \t]*(?:`{1,2}|~{1,2})"
    r"| {0,3}([-*_])(?:[ \t]*\1)*[ \t]*"
)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text in one style, an SGR code or "" for none."""

    text: str
    style: str = ""


class Markdown:
    """Takes harmless text as it comes and gives what can be shown of it now.

    `width` is asked at every line, so that a resized window is followed. Without `framed` rules are of characters
    that every encoding has. Without `styled` there are no escape sequences and the marks of the source stay.
    """

    def __init__(self, width: Callable[[], int], styled: bool, framed: bool = True) -> None:
        self._flow = Flow(width, styled)
        self._styled = styled
        self._rule, self._bar = "─│" if framed and styled else "-|"
        self._line = ""  # what is held of the line that arrives
        self._flowing = False  # the beginning of the line is shown: the rest is words
        self._fence = ""  # the fence that ends the code we are in
        self._in_code_line = False
        self._table: list[str] = []
        self._style = ""
        self._before = ""  # the last character of the line before what is held
        self._blank = True

    @property
    def held(self) -> str:
        """What is being held back for long, to be told while it grows; "" for nothing."""
        return f"a table, {len(self._table)} rows" if len(self._table) > 1 else ""

    def feed(self, text: str) -> str:
        """What can be shown once `text` has arrived."""
        shown = []
        while text:
            part, newline, text = text.partition("\n")
            self._line += part
            shown.append(self._advance())
            if newline:
                shown.append(self._end_line())
        return "".join(shown)

    def finish(self) -> str:
        """All that was held back, with the end of the last line."""
        shown = self._advance()
        if self._line or self._flowing or self._in_code_line:
            shown += self._end_line()
        return shown + self._end_table()

    # -------------------------------------------------------------------------------------------------- lines

    def _advance(self) -> str:
        """Show what is sure of the line that arrives."""
        if self._fence:
            return self._code()
        if not self._flowing and not self._begin(False):
            return ""
        return self._words(False)

    def _code(self) -> str:
        if not self._in_code_line and self._fence.startswith(self._line.lstrip(" ")[: len(self._fence)]):
            return ""  # may become the closing fence
        self._in_code_line = True
        text, self._line = self._line, ""
        return self._flow.raw(Piece(text, CODE))

    def _begin(self, whole: bool) -> bool:
        """Find out what kind of line it is and show its beginning; False while that is not sure."""
        line = self._line
        if self._table and not (line.lstrip().startswith("|") or (not whole and not line.strip())):
            self._flow.add(self._end_table())
        if line.lstrip().startswith("|") or _FENCE.match(line):
            return False
        if not whole and _UNSURE.fullmatch(_QUOTES.sub("", line)):
            return False
        self._flowing = True
        self._style, indent = "", 0
        while found := _QUOTE.match(self._line):
            self._line = self._line[found.end() :]
            self._flow.put(Piece(f"{self._bar} " if self._styled else "> ", DIM))
            indent += 2
        if self._styled and (found := _HEADING.match(self._line)):
            self._style = HEADING
            self._line = self._line[found.end() :]
        elif found := _ITEM.match(self._line):
            before = found[1].expandtabs(4)
            self._flow.put(Piece(before), Piece(found[2], "1"), Piece(" "))
            indent += len(before) + len(found[2]) + 1
            self._line = self._line[found.end() :]
        else:
            rest = self._line.lstrip(" \t")
            before = self._line[: len(self._line) - len(rest)].expandtabs(4)
            self._flow.put(Piece(before))
            indent += len(before)
            self._line = rest
        self._flow.indent(indent)
        self._before = ""
        return True

    def _words(self, whole: bool) -> str:
        if not self._styled:
            pieces, rest = [Piece(self._line)], ""
        else:
            pieces, rest = inline(self._line, self._style, whole, self._before)
        if len(rest) < len(self._line):
            self._before = self._line[len(self._line) - len(rest) - 1]
        self._line = rest
        for piece in pieces:
            self._flow.words(piece)
        return self._flow.take()

    def _end_line(self) -> str:
        """The line is whole: show the rest of it."""
        line = self._line
        if self._fence:
            return self._end_code_line(line)
        if not self._flowing and not (line.strip() or self._table):
            self._line = ""
            return self._blank_line()
        if not self._flowing:
            if line.lstrip().startswith("|"):
                self._table.append(line)
                self._line = ""
                is_table = len(self._table) < 2 or _DELIMITERS.fullmatch(self._table[1])
                return self._after(self._flow.take() if is_table else self._end_table())
            if self._table and not line.strip():
                self._line = ""
                return self._end_table() + self._blank_line()
            if found := _FENCE.match(line):
                table, self._line = self._end_table(), ""
                self._fence = found[1]
                return self._after(table + self._flow.raw(Piece(line.strip(), DIM)) + "\n")
            if self._styled and _RULE.fullmatch(line):
                table, self._line = self._end_table(), ""
                return self._after(table + self._flow.raw(Piece(self._rule * min(self._flow.width, 40), DIM)) + "\n")
            self._begin(True)
        shown = self._words(True)
        self._flowing = False
        return self._after(shown + self._flow.end_line())

    def _end_code_line(self, line: str) -> str:
        closing = line.strip()
        if not self._in_code_line and closing.startswith(self._fence) and not closing.strip(self._fence[0]):
            self._fence = ""
            self._line = ""
            return self._flow.raw(Piece(closing, DIM)) + "\n"
        self._in_code_line, self._line = False, ""
        return self._flow.raw(Piece(line, CODE)) + "\n"

    def _blank_line(self) -> str:
        """One empty line between blocks, none before the first."""
        shown = "" if self._blank else "\n"
        self._blank = True
        return shown

    def _after(self, shown: str) -> str:
        self._blank = False
        return shown

    def _end_table(self) -> str:
        rows, self._table = self._table, []
        if not rows:
            return ""
        if len(rows) > 1 and _DELIMITERS.fullmatch(rows[1]):
            return table(rows, self._flow, self._styled, self._rule)
        for row in rows:
            for piece in inline(row, "", True)[0] if self._styled else [Piece(row)]:
                self._flow.words(piece)
            self._flow.add(self._flow.end_line())
        return self._flow.take()


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
    return f"\x1b[{piece.style}m{piece.text}\x1b[0m" if piece.style and piece.text else piece.text


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


# -------------------------------------------------------------------------------------------------------- inline


def inline(text: str, style: str, whole: bool, before: str = "") -> tuple[list[Piece], str]:
    """The pieces of a line's text, and the rest that cannot be told before more of the line is there.

    `whole`: the line has ended, nothing is held back. `before` is the character before the text.
    """
    pieces: list[Piece] = []
    at = 0
    while at < len(text):
        found = _SPECIAL.search(text, at)
        if found is None:
            pieces.append(Piece(text[at:], style))
            return pieces, ""
        if found.start() > at:
            pieces.append(Piece(text[at : found.start()], style))
            at = found.start()
        sure = whole or len(text) - at > LONGEST_HELD
        taken = _span(text, at, style, sure, text[at - 1] if at else before)
        if taken is None:
            return pieces, text[at:]
        pieces += taken[0]
        at = taken[1]
    return pieces, ""


Taken = tuple[list[Piece], int] | None  # the pieces and where they end; None: it cannot be told yet


def _span(text: str, at: int, style: str, sure: bool, before: str) -> Taken:
    """What begins at `at` with a special character."""
    match text[at]:
        case "\\":
            following = text[at + 1 : at + 2]
            if not following and not sure:
                return None
            return (
                ([Piece(following, style)], at + 2)
                if following and following in _ESCAPABLE
                else _literal(text, at, 1, style)
            )
        case "`":
            return _code_span(text, at, style, sure)
        case "[" | "!":
            return _link(text, at, style, sure)
    return _emphasis(text, at, style, sure, before)


def _literal(text: str, at: int, length: int, style: str) -> Taken:
    return [Piece(text[at : at + length], style)], at + length


def _run(text: str, at: int) -> int:
    end = at
    while end < len(text) and text[end] == text[at]:
        end += 1
    return end - at


def _code_span(text: str, at: int, style: str, sure: bool) -> Taken:
    length = _run(text, at)
    if at + length == len(text) and not sure:
        return None
    end = at + length
    while (end := text.find("`", end)) >= 0:
        closing = _run(text, end)
        if end + closing == len(text) and not sure and closing <= length:
            return None
        if closing == length:
            code = text[at + length : end]
            if code.startswith(" ") and code.endswith(" ") and code.strip():
                code = code[1:-1]
            return [Piece(code, _both(style, CODE))], end + length
        end += closing
    return _literal(text, at, length, style) if sure else None


def _link(text: str, at: int, style: str, sure: bool) -> Taken:
    """`[text](address)`: both are shown, the address in brackets."""
    start = at + 1 if text[at] == "!" else at
    if start == len(text) and not sure:
        return None
    if text[start : start + 1] != "[":
        return _literal(text, at, 1, style)
    middle = text.find("]", start)
    if middle < 0 or (middle + 1 == len(text) and not sure):
        return _literal(text, at, 1, style) if sure else None
    if text[middle + 1 : middle + 2] != "(":
        return _literal(text, at, 1, style)
    end = text.find(")", middle)
    if end < 0:
        return _literal(text, at, 1, style) if sure else None
    label, address = text[start + 1 : middle], text[middle + 2 : end].strip()
    pieces = inline(label, style, True)[0]
    if address and address != label:
        pieces += [Piece(" (", style), Piece(address, _both(style, UNDERLINED)), Piece(")", style)]
    return pieces, end + 1


def _emphasis(text: str, at: int, style: str, sure: bool, before: str) -> Taken:
    mark, length = text[at], _run(text, at)
    after = text[at + length : at + length + 1]
    if not after and not sure:
        return None
    styles = {"*": {1: ITALIC, 2: BOLD, 3: f"{BOLD};{ITALIC}"}, "_": {1: ITALIC, 2: BOLD}, "~": {2: STRUCK}}[mark]
    within_word = before.isalnum() and (mark == "_" or length == 1)  # snake_case, 2*3*4
    if length not in styles or not after.strip() or within_word:
        return _literal(text, at, length, style)
    end = at + length
    while (end := text.find(mark * length, end)) >= 0:
        closing = _run(text, end)
        last = text[end + closing : end + closing + 1]
        if not last and not sure and (mark == "_" or closing < length + 1):
            return None
        inner = text[at + length : end]
        if closing == length and not text[end - 1].isspace() and not (mark == "_" and last.isalnum()):
            return inline(inner, _both(style, styles[length]), True)[0], end + length
        end += closing
    return _literal(text, at, length, style) if sure else None


def _both(style: str, more: str) -> str:
    return f"{style};{more}" if style else more


# -------------------------------------------------------------------------------------------------------- tables


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
                styled_part = [Piece(p.text, _both(p.style, BOLD)) if number == 0 else p for p in part]
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
