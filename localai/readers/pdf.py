"""The text of PDF files, by pypdf."""

from __future__ import annotations

import io
from typing import Any

from localai.readers import MOST_CHARACTERS, Unreadable

_ENCRYPTED = Unreadable("is encrypted", "take its password away first: qpdf --decrypt {name} plain.pdf")


def read(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The text of all pages, a blank line between them."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise _ENCRYPTED
        pages, length = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            length += len(pages[-1])
            if length > MOST_CHARACTERS:
                break
    except DependencyError as error:  # AES, and cryptography cannot be imported
        raise _ENCRYPTED from error
    if not any(pages):
        count = "1 page" if len(pages) == 1 else f"{len(pages)} pages"
        raise Unreadable(f"has {count} and no text: it is a scan", "ocrmypdf {name} out.pdf adds the text")
    return {"text": "\n\n".join(pages)}, b""
