"""A Hub on loopback with one repository of one large file, served with sendfile so that it is never what is measured.

    python benchmarks/loopback_hub.py FILE [--per-connection BYTES_PER_SECOND]

Prints its address. `--per-connection` bounds the rate of each connection, as many networks and storage servers do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPO, NAME, COMMIT = "bench/file-GGUF", "file-Q4_0.gguf", "c0ffee01" * 5


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    file: Path
    sha256: str
    bytes_per_s: float | None = None

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        size = self.file.stat().st_size
        if self.path.startswith("/api/"):
            self.listing(size)
            return
        start, end = 0, size
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else size
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        for name, value in (
            ("Accept-Ranges", "bytes"),
            ("ETag", f'"{self.sha256}"'),
            ("X-Linked-Etag", f'"{self.sha256}"'),
            ("X-Linked-Size", str(size)),
            ("X-Repo-Commit", COMMIT),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        if body:
            try:
                self.send_file(start, end)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def send_file(self, start: int, end: int) -> None:
        began, first = time.monotonic(), start
        step = 1 << 20 if self.bytes_per_s is None else 1 << 16
        with self.file.open("rb") as stream:
            while start < end:
                start += os.sendfile(self.connection.fileno(), stream.fileno(), start, min(step, end - start))
                if self.bytes_per_s is not None:
                    time.sleep(max(0.0, (start - first) / self.bytes_per_s - (time.monotonic() - began)))

    def listing(self, size: int) -> None:
        lfs = {"sha256": self.sha256, "size": size, "pointerSize": 134}
        sibling = {"rfilename": NAME, "size": size, "blobId": "0" * 40, "lfs": lfs}
        told = {"_id": "0" * 24, "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "gated": False}
        content = json.dumps({**told, "disabled": False, "tags": ["gguf"], "siblings": [sibling]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--per-connection", type=float)
    options = parser.parse_args()
    Handler.file, Handler.bytes_per_s = options.file, options.per_connection
    with options.file.open("rb") as stream:
        Handler.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
