"""The marks within a line of Markdown: emphasis, code, links, escapes."""

from __future__ import annotations

import re

from localai.markdown.flow import BOLD, CODE, ITALIC, STRUCK, UNDERLINED, Piece, both

LONGEST_HELD = 400  # characters of emphasis or a link without an end, after which it is none
_ESCAPABLE = "\\`*_#|~>"
_SPECIAL = re.compile(r"[\\`*_~\[!]")


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
            return [Piece(code, both(style, CODE))], end + length
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
        pieces += [Piece(" (", style), Piece(address, both(style, UNDERLINED)), Piece(")", style)]
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
            return inline(inner, both(style, styles[length]), True)[0], end + length
        end += closing
    return _literal(text, at, length, style) if sure else None
