"""The text of a PDF file, read in a process of its own: a hostile file can use up that one's memory, not ours."""

from __future__ import annotations

import io
import json
import subprocess
import sys

from localai.errors import UsageError

MOST_SECONDS = 120
MOST_MEMORY_BYTES = 2 * 1024**3
MOST_CHARACTERS = 20_000_000
ENCRYPTED = "encrypted"


def text(content: bytes, name: str) -> str:
    """The text of all pages, a blank line between them. Raises UsageError for a file that has none that can be read."""
    command = [sys.executable, "-P", "-m", "localai.pdf_text"]
    try:
        done = subprocess.run(
            command, input=content, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=MOST_SECONDS, check=False
        )
        told = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{name} takes more than {MOST_SECONDS} s to read", "export its text another way") from error
    except ValueError as error:
        raise UsageError(f"{name} is a damaged PDF file", "open it and export it again") from error
    if told.get("error") == ENCRYPTED:
        raise UsageError(f"{name} is encrypted", f"take its password away first: qpdf --decrypt {name} plain.pdf")
    if "error" in told:
        raise UsageError(f"{name} is a damaged PDF file: {told['error']}", "open it and export it again")
    found = str(told["text"])
    if not found.strip():
        raise UsageError(
            f"{name} has {told['pages']} pages and no text: it is a scan", f"ocrmypdf {name} out.pdf adds the text"
        )
    return found


def main() -> None:
    """In the child: a PDF on stdin, JSON on stdout."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # Windows, macOS: the time limit is left
    try:
        told = _extract(sys.stdin.buffer.read())
    except Exception as error:  # noqa: BLE001  whatever a hostile file makes the reader raise
        told = {"error": f"{type(error).__name__}: {error}"[:200]}
    sys.stdout.buffer.write(json.dumps(told).encode())


def _extract(content: bytes) -> dict[str, object]:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(io.BytesIO(content))
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": ENCRYPTED}
        pages, length = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            length += len(pages[-1])
            if length > MOST_CHARACTERS:
                return {"error": "it has too much text"}
    except DependencyError:  # AES needs a library that is not installed
        return {"error": ENCRYPTED}
    return {"pages": len(pages), "text": "\n\n".join(pages)}


if __name__ == "__main__":
    main()
