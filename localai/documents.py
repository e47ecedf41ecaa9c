"""Files to text: plain text, Markdown and code as they are, and the text of PDF, HTML and DOCX.

What a file is follows from its content, and for HTML also from its name. Every reader is bounded in size; none follows
a link, opens a connection or expands an XML entity.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.parsers import expat

from localai.errors import NotFound, UsageError

LARGEST_BYTES = 50_000_000
LARGEST_XML_BYTES = 100_000_000  # of a DOCX when it is unpacked

_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
_STRICT_WORD = "http://purl.oclc.org/ooxml/wordprocessingml/main "
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Word, Excel and PowerPoint before 2007, and encrypted ones since
_HTML_START = re.compile(rb"\s*(?:<!--.{0,1000}?-->\s*)*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's name, without its folder, and its text."""

    name: str
    text: str


def read(path: Path) -> Document:
    """The text of the file `path`. Raises NotFound, UsageError for what has no text that can be read."""
    name = "".join(c if c.isprintable() else "?" for c in path.name)
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", "check the path") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder", "name its files: --file A --file B") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}", "check the path") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(f"{name} is larger than {LARGEST_BYTES // 10**6} MB", "take the part of it that matters")
    text = _text(content, name).strip("\r\n")
    if not text.strip():
        raise UsageError(f"{name} holds no text", "check the file")
    return Document(name, text)


def together(documents: Iterable[Document]) -> str:
    """The documents one after the other, each under a line with its name."""
    return "\n\n".join(f"--- {each.name} ---\n{each.text}" for each in documents)


def _text(content: bytes, name: str) -> str:
    if b"%PDF-" in content[:1024]:
        from localai import pdf_text

        return pdf_text.text(content, name)
    if content.startswith(b"PK\x03\x04"):
        return _docx(content, name)
    if content.startswith(_OLE):
        raise UsageError(f"{name} is an old or an encrypted Office file", "save it as DOCX, without a password")
    text = _decoded(content, name)
    if name.lower().endswith((".html", ".htm", ".xhtml")) or _HTML_START.match(content[:5000]):
        return html_text(text)
    return text


def _decoded(content: bytes, name: str) -> str:
    """Text in UTF-8, in UTF-16 with its mark, else in Windows-1252, which any bytes are; raises for what is no text."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    controls = sum(content[:65536].count(byte) for byte in (*range(8), *range(14, 27), *range(28, 32)))
    if controls > len(content[:65536]) // 1000:
        raise UsageError(f"{name} is not text, PDF, HTML or DOCX", "save it in one of these forms")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


# --------------------------------------------------------------------------------------------------------- HTML

_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "math", "iframe", "object", "select"})
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "div", "dl", "dd", "dt", "figure", "footer", "form", "header"}
    | {"h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "ul"}
    | {"title", "br", "body", "caption"}
)


class _Page(HTMLParser):
    """Collects the text that a reader of the page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            self._depth += tag == self._hidden
        elif tag in _HIDDEN:
            self._hidden, self._depth = tag, 1
        elif tag in ("td", "th"):
            self.parts.append("\t")
        elif tag in _BLOCKS:
            self.parts.append("\n- " if tag == "li" else "\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._hidden and tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._depth -= tag == self._hidden
            if not self._depth:
                self._hidden = ""
        elif tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(re.sub(r"\s+", " ", data))


def html_text(source: str) -> str:
    """The visible text of a page, a line a block, without scripts, styles and tags."""
    page = _Page()
    page.feed(source)
    page.close()
    return _tidy("".join(page.parts))


def _tidy(text: str) -> str:
    lines = [re.sub(r" *\t *", "\t", line).strip() for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


# --------------------------------------------------------------------------------------------------------- DOCX


def _docx(content: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open("word/document.xml") as stream:
            source = stream.read(LARGEST_XML_BYTES + 1)  # what it unpacks to, whatever its header says
    except KeyError as error:
        raise UsageError(f"{name} is a ZIP archive, not DOCX", "unpack it, or save the document as DOCX") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{name} is a damaged or an encrypted DOCX file", "open it and save it again") from error
    if len(source) > LARGEST_XML_BYTES:
        raise UsageError(f"{name} unpacks to more than {LARGEST_XML_BYTES // 10**6} MB", "that is no honest document")
    return _tidy(_word_text(source, name))


def _word_text(source: bytes, name: str) -> str:
    """The paragraphs and tables of `word/document.xml`; a document type, where entities hide, is refused."""
    parts: list[str] = []
    state = {"text": False, "cells": 0}

    def start(tag: str, attributes: dict[str, str]) -> None:
        match _word_tag(tag):
            case "t":
                state["text"] = True
            case "tab":
                parts.append("\t")
            case "br" | "cr":
                parts.append("\n")
            case "tc":
                state["cells"] += 1

    def end(tag: str) -> None:
        match _word_tag(tag):
            case "t":
                state["text"] = False
            case "p":
                parts.append(" " if state["cells"] else "\n")
            case "tc":
                state["cells"] -= 1
                parts.append("\t")
            case "tr":
                parts.append("\n")

    def characters(text: str) -> None:
        if state["text"]:
            parts.append(text)

    def refuse(*about: object) -> None:
        raise UsageError(f"{name} declares XML entities", "that is no honest document")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = characters, refuse
    try:
        parser.Parse(source, True)
    except expat.ExpatError as error:
        raise UsageError(f"{name} is a damaged DOCX file: {error}", "open it and save it again") from error
    return "".join(parts)


def _word_tag(tag: str) -> str:
    for namespace in (_WORD, _STRICT_WORD):
        if tag.startswith(namespace):
            return tag.removeprefix(namespace)
    return ""
