"""Markdown as it arrives, to lines for a terminal: words wrap at the edge, and what is written is never drawn again.

Of each line only so much is held back as cannot be told yet: what kind of line it is, a word until it ends, emphasis
until it is closed, a table until its last row. Code keeps its fences and has nothing put before its lines, so that it
can be copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from localai.markdown.flow import CODE, DIM, HEADING, Flow, Piece
from localai.markdown.inline import inline
from localai.markdown.table import DELIMITERS, table

_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+)")
_QUOTE = re.compile(r" {0,3}> ?")
_QUOTES = re.compile(r"^(?: {0,3}> ?)+")
# the beginnings of lines, behind their marks of quotes, whose kind is not sure yet
_UNSURE = re.compile(
    r"[ \t]*| {0,3}#{1,6}[ \t]*|[ \t]*(?:[-+*]|\d{1,9}[.)]?)[ \t]*| {0,3}>|[ \t]*(?:`{1,2}|~{1,2})"
    r"| {0,3}([-*_])(?:[ \t]*\1)*[ \t]*"
)


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
                is_table = len(self._table) < 2 or DELIMITERS.fullmatch(self._table[1])
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
        if len(rows) > 1 and DELIMITERS.fullmatch(rows[1]):
            return table(rows, self._flow, self._styled, self._rule)
        for row in rows:
            for piece in inline(row, "", True)[0] if self._styled else [Piece(row)]:
                self._flow.words(piece)
            self._flow.add(self._flow.end_line())
        return self._flow.take()
