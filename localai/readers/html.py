"""The text of HTML pages, by lxml: what a reader of the page sees, with its structure in Markdown."""

from __future__ import annotations

import codecs
import re
from typing import Any

from lxml import etree, html

from localai.readers import decoded

_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object", "select", "head"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset"}
    | {"figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"}
    | {"summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul", "h1", "h2", "h3", "h4", "h5", "h6"}
)
_APART = frozenset({"p", "table", "ul", "ol", "dl", "blockquote", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "figure"})
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n\f\v\xa0]+")
_DECLARED = re.compile(rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([a-z0-9_:.-]{1,40})""", re.IGNORECASE)
_XML_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([a-z0-9_:.-]{1,40})""", re.IGNORECASE)


def read(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The text of a page, in the encoding that it declares, else UTF-8 or Windows-1252."""
    return {"text": text(_decoded(content))}, b""


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    declared = _XML_DECLARED.search(content[:1024]) or _DECLARED.search(content[:4096])
    encodings = ["utf-8-sig"]
    if declared and not content.startswith(codecs.BOM_UTF8):
        name = declared[1].decode("ascii").lower()
        # what pages call Latin-1 is Windows-1252 to every browser; one that can be read so far is not UTF-16
        encodings.insert(0, "cp1252" if name in ("iso-8859-1", "latin1", "ascii", "us-ascii") else name)
    for encoding in encodings:
        try:
            if not encoding.startswith(("utf-16", "utf-32", "utf-7")):
                return content.decode(encoding)
        except (UnicodeError, LookupError):
            continue
    return decoded(content.removeprefix(codecs.BOM_UTF8))


def text(source: str) -> str:
    """The text of a page: a line a block, headings with `#`, items with `-` or numbers, cells between `|`."""
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    held = source.replace("\0", "").encode("utf-8", "replace")
    if not held.strip():
        return ""
    try:
        page = html.document_fromstring(held, parser=parser)
    except etree.ParserError:  # nothing in it
        return ""
    writer, hidden = _Writer(), 0
    for event, tag in etree.iterwalk(page, events=("start", "end")):
        unseen = _is_hidden(tag)
        if event == "start":
            hidden += unseen
            if not hidden:
                writer.tag(tag, True)
                writer.text(tag.text or "")
        else:
            if not hidden:
                writer.tag(tag, False)
            hidden -= unseen
            if not hidden:
                writer.text(tag.tail or "")
    body = writer.done()
    title = " ".join((page.findtext(".//title") or "").split())
    return f"{title}\n\n{body}".strip("\n") if title not in body[: len(title) + 200] else body


def _is_hidden(tag: Any) -> bool:
    if tag.tag in _HIDDEN or "hidden" in tag.attrib or _UNSEEN.search(tag.get("style", "")):
        return True
    # the way back from a footnote, as mammoth writes it
    return bool(tag.tag == "a" and tag.get("href", "").startswith(("#footnote-ref", "#endnote-ref")))


class _Writer:
    """Puts lines together. `_line` is the one that grows, `_lists` the open lists with their last item's number."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._line = ""
        self._start = ""  # what the next text is to begin its line with
        self._lists: list[int | None] = []
        self._rows: list[list[str]] = []  # cells of the open rows; tables nest
        self._verbatim = 0

    def text(self, content: str) -> None:
        if self._verbatim:
            first, *others = content.split("\n")
            self._line += first
            for line in others:
                self._lines.append(self._line)
                self._line = line
            return
        found = _SPACE.sub(" ", content)
        if not self._line:
            found = found.lstrip(" ")
            if found:
                self._line, self._start = self._start, ""
        self._line += found

    def tag(self, tag: Any, entering: bool) -> None:
        name = tag.tag
        if name == "br" and entering:
            self._line += " " if self._rows else ""
            if not self._rows:
                self._break()
        elif name == "img" and entering and (alt := tag.get("alt", "").strip()):
            self.text(f"[{alt}]")
        elif name in ("td", "th") and self._rows:
            self._cell(entering)
        elif name in _BLOCKS and not (self._rows and name != "tr"):
            self._block(tag, entering)
        elif name in _BLOCKS and self._line and not self._line.endswith(" "):
            self._line += " "  # blocks inside a cell stay on its line

    def _block(self, tag: Any, entering: bool) -> None:
        name = tag.tag
        if name == "tr":
            self._row(entering)
            return
        self._break()
        if (
            name in _APART
            and not (name in ("ul", "ol") and len(self._lists) > (not entering))
            and not (name == "p" and self._lists)
        ):
            self._apart()
        if name in ("ul", "ol"):
            if entering:
                start = str(tag.get("start") or "1")
                self._lists.append(
                    int(start) - 1 if name == "ol" and start.isdecimal() else 0 if name == "ol" else None
                )
            elif self._lists:
                self._lists.pop()
        elif name == "pre":
            self._verbatim += 1 if entering else -1
        elif entering and name == "li":
            self._start = self._item()
        elif name[0] == "h" and name[1:].isdecimal():
            self._start = "#" * int(name[1:]) + " " if entering else ""

    def _item(self) -> str:
        indent = "  " * max(0, len(self._lists) - 1)
        if self._lists and (number := self._lists[-1]) is not None:
            self._lists[-1] = number + 1
            return f"{indent}{number + 1}. "
        return f"{indent}- "

    def _row(self, entering: bool) -> None:
        if entering:
            if not self._rows:
                self._break()
            self._rows.append([])
            return
        if not self._rows:
            return
        cells = self._rows.pop()
        row = " | ".join(cells)
        if self._rows:  # a table inside a cell
            self._line += row
        elif any(cells):
            self._lines.append(f"| {row} |")

    def _cell(self, entering: bool) -> None:
        if not entering:
            self._rows[-1].append(self._line.strip())
        self._line = ""

    def _break(self) -> None:
        if self._line.strip() or self._verbatim:
            self._lines.append(self._line.rstrip())
        self._line = ""

    def _apart(self) -> None:
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def done(self) -> str:
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip("\n")
