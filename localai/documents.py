"""Files to text: plain text, Markdown and code as they are, and the text of PDF, HTML and DOCX.

What a file is follows from its content, and for HTML also from its name. PDF, HTML and DOCX are read by `readers`, in
a bounded process of their own; no reader follows a link, opens a connection or expands an XML entity.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from localai import readers
from localai.errors import NotFound, UsageError

LARGEST_BYTES = 50_000_000
STDIN = Path("-")

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # Word, Excel and PowerPoint before 2007, and encrypted ones since
_HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}\?>\s*)?(?:<!--.{0,1000}?-->\s*)*<(?:!doctype\s+html|html)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_MARKS = {  # the longer ones first: that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
_CONTROLS = bytes((*range(8), *range(14, 27), *range(28, 32)))  # not those of white space, nor escape
_SEEN = 65_536  # bytes that tell whether a file is text


@dataclass(frozen=True, slots=True)
class Document:
    """A file's name, without its folder, and its text."""

    name: str
    text: str


def read(path: Path) -> Document:
    """The text of the file `path`; `-` is stdin. Raises NotFound, UsageError for what has no text that can be read."""
    name = name_of(path)
    text = _text(content_of(path), name).strip("\r\n")
    if not text.strip():
        raise UsageError(f"{name} holds no text", "check the file")
    return Document(name, text)


def together(documents: Iterable[Document]) -> str:
    """The documents one after the other, each under a line with its name."""
    return "\n\n".join(f"--- {each.name} ---\n{each.text}" for each in documents)


def name_of(path: Path) -> str:
    """What to call a file: its name without its folder, in characters that can be seen."""
    return "stdin" if path == STDIN else "".join(c if c.isprintable() else "?" for c in path.name)


def content_of(path: Path) -> bytes:
    """The bytes of a file; `-` is stdin. Raises NotFound, UsageError for a folder, what is too large, or unreadable."""
    try:
        if path == STDIN:
            if sys.stdin is None or sys.stdin.isatty():
                raise UsageError("there is nothing on stdin", "pipe a file into it, or name one")
            content = sys.stdin.buffer.read(LARGEST_BYTES + 1)
        else:
            with path.open("rb") as stream:
                content = stream.read(LARGEST_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", "check the path") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder", "name the files in it, one by one") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}", "check the path") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(
            f"{name_of(path)} is larger than {LARGEST_BYTES // 10**6} MB", "take the part of it that matters"
        )
    return content


def piped(content: bytes) -> str:
    """Text on stdin that was not named as a file. Raises UsageError for what is none."""
    if content.startswith((b"%PDF-", b"PK\x03\x04")) or _is_binary(content):
        raise UsageError("what is piped in is no text", "--file - reads PDF, DOCX and HTML from stdin")
    return _decoded(content)


def _text(content: bytes, name: str) -> str:
    kind = _kind(content, name)
    if kind is None and _is_binary(content):
        raise UsageError(f"{name} is not text, PDF, HTML or DOCX", "save it in one of these forms")
    if kind is None:
        return _decoded(content)
    try:
        return str(readers.in_child(kind, content)[0].get("text", ""))
    except readers.Unreadable as error:
        raise UsageError(f"{name} {error.what}", error.hint.replace("{name}", name)) from error


def _kind(content: bytes, name: str) -> str | None:
    """Which reader is for a file; None for plain text. Raises UsageError for the forms that are known and not read."""
    if b"%PDF-" in content[:1024]:
        return "pdf"
    if content.startswith(b"PK\x03\x04"):
        return "docx"
    if content.startswith(_OLE):
        raise UsageError(f"{name} is an old or an encrypted Office file", "save it as DOCX, without a password")
    if content.startswith(b"{\\rtf"):
        raise UsageError(f"{name} is RTF, which is not read", "save it as DOCX or as text")
    if name.lower().endswith((".html", ".htm", ".xhtml")) or _HTML_START.match(content[:5000]):
        return "html"
    return None


def _decoded(content: bytes) -> str:
    """Text in the encoding that its mark says, in UTF-8, in UTF-16 without a mark, else in Windows-1252, which any
    bytes are.
    """
    encoding = _marked(content)
    return content.decode(encoding, "replace") if encoding else readers.decoded(content)


def _is_binary(content: bytes) -> bool:
    """Whether there are more control characters than in any text: of compressed data one byte in nine is one."""
    seen = content[:_SEEN]
    return not _marked(content) and len(seen) - len(seen.translate(None, _CONTROLS)) > 8 + len(seen) // 20


def _marked(content: bytes) -> str:
    """The encoding that a mark at the beginning says, else UTF-16 where every other byte is a zero; "" for none."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            return encoding
    return _utf16(content[:_SEEN])


def _utf16(seen: bytes) -> str:
    """The UTF-16 that text of mostly Western letters is in, by its zeros; "" where it is none."""
    half = len(seen) // 2
    odd, even = seen[1::2].count(0), seen[0::2].count(0)
    if half and odd > half * 0.7 and not even:
        return "utf-16-le"
    return "utf-16-be" if half and even > half * 0.7 and not odd else ""
