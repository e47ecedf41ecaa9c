"""The text of DOCX files, by mammoth: paragraphs, headings, lists, tables and notes, as those of an HTML page.

What stands at the head and the foot of pages, which mammoth leaves out, is where letters name their sender.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import Any
from xml.parsers import expat

from localai.readers import Unreadable, html

LARGEST_UNPACKED_BYTES = 200_000_000


def read(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The text of a document; pictures are left out, and what was deleted under revision stays deleted."""
    import mammoth

    _check(content)
    made = mammoth.convert_to_html(
        io.BytesIO(content), convert_image=mammoth.images.img_element(lambda image: {"src": ""})
    )
    heads, feet = _margins(content, "header"), _margins(content, "footer")
    return {"text": "\n\n".join(part for part in (*heads, html.text(made.value), *feet) if part)}, b""


def _margins(content: bytes, kind: str) -> list[str]:
    """What stands at the head, or at the foot, of the pages: each text once, a line a paragraph."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(rf"word/{kind}[0-9]*\.xml", name)]
        return list(dict.fromkeys(_lines(archive.read(name)) for name in sorted(names)))


def _lines(source: bytes) -> str:
    from lxml import etree

    text, instead = "", 0
    part = etree.fromstring(source, etree.XMLParser(resolve_entities=False, remove_comments=True, remove_pis=True))
    for event, tag in etree.iterwalk(part, events=("start", "end")):
        name = etree.QName(tag).localname
        if name == "Fallback":  # the same text box once more, for older programs
            instead += 1 if event == "start" else -1
        elif name == "p":
            text += "\n"
        elif event == "start" and not instead and name in ("t", "tab", "br"):
            text += (tag.text or "") if name == "t" else " "
    return "\n".join(line.strip() for line in text.split("\n") if line.strip())


def _check(content: bytes) -> None:
    """Refuse what is no DOCX file, unpacks to too much, or declares XML entities, before anything is built of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            if "word/document.xml" not in archive.namelist():
                raise Unreadable("is a ZIP archive, not DOCX", "unpack it, or save the document as DOCX")
            # zipfile reads no more of a part than is declared
            if sum(part.file_size for part in parts) > LARGEST_UNPACKED_BYTES:
                raise Unreadable(
                    f"unpacks to more than {LARGEST_UNPACKED_BYTES // 10**6} MB", "that is no honest document"
                )
            for part in parts:
                if part.filename.lower().endswith((".xml", ".rels")):
                    _check_xml(archive.read(part))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, ValueError, zlib.error) as error:
        raise Unreadable("is a damaged or an encrypted DOCX file", "open it and save it again") from error


def _check_xml(source: bytes) -> None:
    def refuse(*about: object) -> None:
        raise Unreadable("declares XML entities", "that is no honest document")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(source, True)
    except expat.ExpatError as error:
        raise Unreadable(f"is a damaged DOCX file: {error}", "open it and save it again") from error
