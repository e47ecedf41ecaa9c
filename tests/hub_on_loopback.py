"""A Hub on loopback for the real client: repositories, redirects to a storage server, an access log, and faults.

`HubOnLoopback` is one server; a second one plays the storage that files are redirected to. What a request meets is
decided by `faults`: each is used up by the requests it strikes.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from localai.transfer import RetryPolicy

QUICK = RetryPolicy(tries=3, first_wait_s=0, longest_wait_s=0, timeout_s=10)  # fails soon, and not for a busy machine

COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"


@dataclass
class Repo:
    """What one repository holds: names and contents. `sha256` overrides what the Hub says of a file."""

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    token: str | None = None  # who may read it; None is everybody
    sha256: dict[str, str | None] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)  # the files of older commits, which stay
    tags: dict[str, str] = field(default_factory=dict)  # and their commits
    downloads: int = 1

    def replace(self, files: dict[str, bytes], commit: str) -> None:
        """A new commit on the main branch."""
        self.earlier[self.commit] = self.files
        self.files, self.commit = files, commit

    def sha256_of(self, name: str) -> str | None:
        return self.sha256.get(name, hashlib.sha256(self.files[name]).hexdigest())


@dataclass
class Fault:
    """What goes wrong with the next `times` requests for bytes (GET of a file)."""

    times: int = 1
    drop_at: int | None = None  # the connection is closed before this byte of the file
    reset: bool = False  # ... and that with a reset, which also costs bytes on the way
    end_at: int | None = None  # the body ends before this byte, its length not announced
    flip_at: int | None = None  # this byte has one bit flipped
    hang_at: int | None = None  # nothing comes from this byte on, until the server closes
    status: int | None = None
    retry_after: str | None = None
    announce: int | None = None  # the length that is announced instead of the real one
    extra: int = 0  # bytes sent beyond the end
    ignore_range: bool = False
    content_range: str | None = None
    location: str | None = None  # redirect to there instead
    gate: threading.Event | None = None  # set: go on; the request waits for it before its body
    drip: int | None = None  # so many bytes, one by one, for as long as the client stays
    drip_head: bool = False  # ... and that from the first byte of the head on
    only_after: int = 0  # strikes only requests for bytes from there on


@dataclass
class Seen:
    """One line of the access log, there from the moment that the request came; `sent` grows."""

    method: str
    path: str
    range: str | None
    if_range: str | None
    authorization: str | None
    status: int
    sent: int


class HubOnLoopback:
    """A server and its log. Use `running()`."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.listing_faults: list[Fault] = []
        self.head_faults: list[Fault] = []
        self.hits: list[Any] = []  # what a search finds besides the repositories
        self.log: list[Seen] = []
        self.storage: HubOnLoopback | None = None
        self.is_storage = False
        self.sent = 0
        self.closing = threading.Event()
        self.began = threading.Condition()
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], **options: Any) -> Repo:
        self.repos[repo] = Repo(files, **options)
        return self.repos[repo]

    def fault(self, **what: Any) -> Fault:
        """The next request for bytes goes wrong like this (of a storage server, where there is one)."""
        fault = Fault(**what)
        (self.storage or self).faults.append(fault)
        return fault

    def downloads(self) -> list[Seen]:
        """The requests for bytes, storage server included, oldest first."""
        with self.lock:
            mine = [
                seen
                for seen in self.log
                if seen.method == "GET" and "/resolve/" in seen.path and seen.status in {200, 206}
            ]
        return mine + (self.storage.downloads() if self.storage else [])

    def requests(self) -> list[Seen]:
        with self.lock:
            return list(self.log)

    def wait_until_sent(self, count: int, timeout: float = 30) -> bool:
        """Block until the server has sent that many bytes of some file."""
        with self.began:
            return self.began.wait_for(lambda: self.sent >= count, timeout)

    def wait_for_requests(self, count: int, timeout: float = 30) -> bool:
        """Block until so many requests have come."""
        with self.began:
            return self.began.wait_for(lambda: len(self.log) >= count, timeout)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def running(
    storage: bool = False, tls: ssl.SSLContext | None = None, storage_tls: ssl.SSLContext | None = None
) -> Iterator[HubOnLoopback]:
    """A Hub, with a storage server of its own where asked for, for the time of a test; https with a `tls` context."""
    hub = HubOnLoopback(tls)
    hub.start()
    if storage:
        hub.storage = HubOnLoopback(storage_tls)
        hub.storage.repos = hub.repos
        hub.storage.is_storage = True
        hub.storage.start()
    try:
        yield hub
    finally:
        if hub.storage:
            hub.storage.close()
        hub.close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what many a test is about; it prints nothing."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubOnLoopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        authorization = self.headers.get("Authorization")
        self.seen = Seen(
            self.command, self.path, self.headers.get("Range"), self.headers.get("If-Range"), authorization, 0, 0
        )
        with self.hub.lock:
            self.hub.log.append(self.seen)
        with self.hub.began:
            self.hub.began.notify_all()
        try:
            self.route()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/models":
            self.found(parse_qs(urlsplit(self.path).query))
        elif path.startswith("/api/models/"):
            self.listing(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            commit, _, name = rest.partition("/")
            self.file(repo, name, commit)
        else:
            self.refuse(404, "")

    # ----------------------------------------------------------------------------------------------- the listing

    def found(self, query: dict[str, list[str]]) -> None:
        """The repositories whose names hold every word, the most downloaded first."""
        words = " ".join(query.get("search", [])).lower().split()
        names = [name for name in self.hub.repos if all(word in name.lower() for word in words)]
        names.sort(key=lambda name: -self.hub.repos[name].downloads)
        hits = [listing_of(name, self.hub.repos[name], blobs=False) for name in names]
        self.send_json([*self.hub.hits, *hits][: int(query.get("limit", ["1000"])[0])])

    def listing(self, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        if self.hub.listing_faults:
            fault = self.hub.listing_faults.pop(0)
            if fault.hang_at is not None:
                self.hub.closing.wait()
                self.close_connection = True
                return
            if fault.drop_at is not None:
                self.close_connection = True
                return
            if fault.end_at is not None:
                self.start(200, {"Content-Type": "application/json", "Content-Length": "1000"})
                self.wfile.write(b"{" + b" " * (fault.end_at - 1))
                self.close_connection = True
                return
            if fault.location is not None:
                self.start(307, {"Location": fault.location, "Content-Length": "0"})
                return
            self.refuse(fault.status or 500, "", retry_after=fault.retry_after)
            return
        repo = self.hub.repos.get(name)
        if repo is None:
            self.refuse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
            return
        if repo.token is not None and not repo.gated and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self.refuse(401, "RepoNotFound")
            return
        revision = repo.tags.get(revision, revision)
        if revision in repo.earlier:
            repo = Repo(repo.earlier[revision], revision)
        elif revision and revision not in {"main", repo.commit}:
            self.refuse(404, "RevisionNotFound")
            return
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        self.send_json(listing_of(name, repo, blobs))

    def send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.start(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    # ------------------------------------------------------------------------------------------------- the files

    def file(self, repo_name: str, name: str, commit: str) -> None:
        repo = self.hub.repos.get(repo_name)
        if repo is None:
            self.refuse(401, "RepoNotFound")
            return
        has_token = repo.token is None or self.headers.get("Authorization") == f"Bearer {repo.token}"
        if not has_token and not self.hub.is_storage:
            self.refuse(
                403 if self.headers.get("Authorization") else 401, "GatedRepo" if repo.gated else "RepoNotFound"
            )
            return
        if commit in repo.earlier:
            repo = Repo(repo.earlier[commit], commit)
        if name not in repo.files:
            self.refuse(404, "EntryNotFound")
            return
        if self.command == "HEAD" and self.hub.head_faults:
            fault = self.hub.head_faults.pop(0)
            if fault.gate is not None:
                fault.gate.wait(30)
            self.refuse(fault.status or 500, "")
            return
        sha256 = repo.sha256_of(name) or hashlib.sha1(repo.files[name]).hexdigest()
        headers = {
            "X-Repo-Commit": repo.commit,
            "X-Linked-Size": str(len(repo.files[name])),
            "X-Linked-Etag": f'"{sha256}"',
            "Accept-Ranges": "bytes",
        }
        if self.hub.storage is not None:
            if self.command == "GET" and (fault := self.next_fault(0)).status is not None:
                self.refuse(fault.status, "", retry_after=fault.retry_after)
                return
            self.start(302, {**headers, "Location": f"{self.hub.storage.url}{self.path}", "Content-Length": "0"})
        else:
            self.bytes_of(repo, name, {**headers, "ETag": repo.etags.get(name, f'"{sha256[:16]}"')})

    def bytes_of(self, repo: Repo, name: str, headers: dict[str, str]) -> None:
        content = repo.files[name]
        if self.command == "HEAD":
            self.start(200, {**headers, "Content-Length": str(len(content))})
            return
        first, last = self.wanted(len(content))
        fault = self.next_fault(first)
        if fault.drip_head:
            self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000, 1000)
            return
        if fault.location is not None:
            self.start(302, {"Location": fault.location, "Content-Length": "0"})
            return
        if fault.status is not None:
            self.refuse(fault.status, "", retry_after=fault.retry_after)
            return
        start, end = 0, len(content)
        partial = self.headers.get("Range") is not None and not fault.ignore_range
        if partial and self.headers.get("If-Range") in {None, headers["ETag"]}:
            start, end = first, last
            if start >= len(content):
                self.start(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
            headers["Content-Range"] = fault.content_range or f"bytes {start}-{end - 1}/{len(content)}"
        else:
            partial = False
        if fault.end_at is None and not fault.extra:
            headers["Content-Length"] = str(fault.announce or end - start)
        else:
            headers["Connection"] = "close"
        self.start(206 if partial else 200, headers)
        self.body(content, start, end, fault)

    def wanted(self, size: int) -> tuple[int, int]:
        """The bytes of the Range header, else all."""
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size

    def next_fault(self, first: int) -> Fault:
        with self.hub.lock:
            if not self.hub.faults or first < self.hub.faults[0].only_after:
                return Fault()
            fault = self.hub.faults[0]
            fault.times -= 1
            if fault.times <= 0:
                self.hub.faults.pop(0)
            return fault

    def drip(self, content: bytes, most: int) -> None:
        """One byte every 50 ms: what no time-out of a socket notices."""
        for at in range(most):
            if self.hub.closing.wait(0.05):
                break
            self.wfile.write(content[at : at + 1])
        self.close_connection = True

    def body(self, content: bytes, start: int, end: int, fault: Fault) -> None:
        if fault.gate is not None:
            fault.gate.wait(30)
        if fault.flip_at is not None:
            content = content[: fault.flip_at] + bytes([content[fault.flip_at] ^ 1]) + content[fault.flip_at + 1 :]
        stops = [stop for stop in (fault.drop_at, fault.end_at, fault.hang_at) if stop is not None]
        end = max(start, min([end, *stops]))
        if fault.drip is not None:
            self.drip(content[start:end], fault.drip)
            return
        for at in range(start, end, 1 << 16):
            piece = content[at : min(end, at + (1 << 16))]
            self.wfile.write(piece)
            self.seen.sent += len(piece)
            with self.hub.began:
                self.hub.sent += len(piece)
                self.hub.began.notify_all()
        if fault.extra:
            self.wfile.write(b"x" * fault.extra)
        if fault.hang_at is not None:
            self.hub.closing.wait()
        if stops or fault.extra:
            self.close_connection = True
        if fault.reset:
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    # ---------------------------------------------------------------------------------------------------- answers

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def refuse(self, status: int, code: str, retry_after: str | None = None) -> None:
        headers = {"Content-Length": "0"}
        if code:
            headers["X-Error-Code"] = code
        if retry_after is not None:
            headers["Retry-After"] = retry_after
        self.start(status, headers)


def listing_of(name: str, repo: Repo, blobs: bool = True) -> dict[str, Any]:
    """What the Hub's API says of a repository."""
    siblings = []
    for file, content in repo.files.items():
        entry: dict[str, Any] = {"rfilename": file}
        if blobs:
            size = repo.sizes.get(file, len(content))
            entry |= {"size": size, "blobId": hashlib.sha1(content).hexdigest()}
            if (sha256 := repo.sha256_of(file)) is not None:
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        siblings.append(entry)
    return {
        "_id": "0" * 24,
        "id": name,
        "modelId": name,
        "sha": repo.commit,
        "private": False,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": 1,
        "tags": ["gguf"],
        "siblings": siblings,
    }
