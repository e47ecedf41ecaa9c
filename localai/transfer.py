"""Our own download: resumable across processes, hashed as it comes, and never under its name before it is verified.

The standard library's HTTP client is used, not httpx2: on loopback it brings 1.5 times curl's rate with the hash,
httpx2 (64 KiB reads through h11 in Python) just reaches curl. Trust in certificates is httpx2's, as huggingface_hub's.
"""

from __future__ import annotations

import http.client
import random
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from localai.errors import AccessDenied, HashMismatch, LocalaiError, NetworkError, NotFound
from localai.partial import CHUNK_BYTES, PartialFile, disk_error, sha256_of

MAX_REDIRECTS = 5
_REPORT_SECONDS = 0.1
_GAIN_BYTES = 1 << 20  # an attempt that got this much further earns a fresh count of tries, so the tries stay bounded
_PULL_AGAIN = "pull again; it goes on from what is there"

Refusal = Callable[[int, Mapping[str, str]], LocalaiError]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on: tries without getting further, back-off and time-outs in seconds."""

    tries: int = 6
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    longest_retry_after_s: float = 120.0
    timeout_s: float = 30.0

    def wait_s(self, tried: int, retry_after_s: float | None) -> float:
        """Seconds before the next try: what the server asked for, else twice the last one ± half, bounded."""
        if retry_after_s is not None:
            return retry_after_s
        return float(min(self.longest_wait_s, self.first_wait_s * 2 ** (tried - 1)) * random.uniform(0.5, 1.5))


class _Interrupted(Exception):
    """This attempt failed in a way that the next may not; `retry_after_s` is the server's wish."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def download(
    url: str,
    destination: Path,
    *,
    size_bytes: int,
    sha256: str,
    lock: Path,
    headers: Mapping[str, str] | None = None,
    progress: Callable[[int], None] = lambda done_bytes: None,
    on_retry: Callable[[str], None] = lambda reason: None,
    on_wait: Callable[[], None] = lambda: None,
    refusal: Refusal | None = None,
    patience: Patience | None = None,
) -> None:
    """Bring `destination` to hold the `size_bytes` bytes with this SHA-256, going on from what is there.

    `progress` is told the bytes at hand (it can fall back to 0), `on_retry` why a part is fetched again, `on_wait` that
    another process holds the lock. `headers` (the token) go to the origin of `url` only. A file already at
    `destination` is hashed; a wrong one stays until the right one replaces it.
    Raises HashMismatch, NetworkError, AccessDenied, NotFound (or what `refusal` makes of a status), DoesNotFit when
    the disk is full, LocalaiError when it may not be written.
    """
    patience = patience or Patience()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = _hold(lock, on_wait)
    except OSError as error:
        raise disk_error(error, destination) from error
    with held:
        if _is_there(destination, size_bytes, sha256, progress, on_retry):
            return
        source = _Source(url, dict(headers or {}), patience.timeout_s, refusal or _refusal)
        with PartialFile(destination) as partial:
            partial.resume(size_bytes, progress)
            _fetch(source, partial, size_bytes, progress, on_retry, patience)
            if (found := partial.sha256()) != sha256:
                partial.discard()
                raise HashMismatch(
                    f"{_name(url)}: the bytes received have SHA-256 {found[:12]}…, the Hub says {sha256[:12]}…",
                    "they were thrown away; pull again to fetch the file anew",
                )
            partial.publish()


def _hold(lock: Path, on_wait: Callable[[], None]) -> AbstractContextManager[Any]:
    """The held lock; leaving it as a context releases it."""
    import filelock

    held: filelock.BaseFileLock = filelock.FileLock(lock)
    try:
        return held.acquire(timeout=0)
    except filelock.Timeout:
        on_wait()
        return held.acquire()
    except NotImplementedError:  # a file system without flock, some network disks
        return filelock.SoftFileLock(lock).acquire()


def _is_there(
    path: Path, size_bytes: int, sha256: str, progress: Callable[[int], None], on_retry: Callable[[str], None]
) -> bool:
    """Whether the file at `path` is the one wanted; another tool, or another process of ours, may have put it."""
    try:
        if path.stat().st_size == size_bytes and sha256_of(path, progress) == sha256:
            return True
        on_retry(f"the file in the cache is not the Hub's; fetching it anew: {path.name[:12]}…")
    except FileNotFoundError:
        pass
    except OSError as error:
        on_retry(f"the file in the cache cannot be read ({error.strerror}); fetching it anew: {path.name[:12]}…")
    return False


def _fetch(
    source: _Source,
    partial: PartialFile,
    size_bytes: int,
    progress: Callable[[int], None],
    on_retry: Callable[[str], None],
    patience: Patience,
) -> None:
    """Attempt after attempt until all bytes are there."""
    tried, best = 0, partial.position
    while partial.position < size_bytes:
        try:
            _attempt(source, partial, size_bytes, progress)
        except _Interrupted as error:
            if partial.position >= best + _GAIN_BYTES:
                tried, best = 0, partial.position
            tried += 1
            wait_s = patience.wait_s(tried, error.retry_after_s)
            if tried >= patience.tries:
                raise NetworkError(f"{_name(source.url)}: {error} ({tried} tries)", _PULL_AGAIN) from error
            if (error.retry_after_s or 0) > patience.longest_retry_after_s:
                raise NetworkError(
                    f"{_name(source.url)}: {error}; the server asks to wait {wait_s:.0f} s",
                    f"wait that long, then {_PULL_AGAIN}",
                ) from error
            on_retry(f"{error}; trying again in {wait_s:.1f} s ({tried + 1} of {patience.tries})")
            time.sleep(wait_s)


def _attempt(source: _Source, partial: PartialFile, size_bytes: int, progress: Callable[[int], None]) -> None:
    """One request: what it brings is kept. Raises _Interrupted when bytes are missing after it."""
    try:
        with source.open(partial.position, partial.etag) as response:
            _accept(response, partial, size_bytes)
            reported = time.monotonic()
            # read1: one read of the socket at a time, so that a dropped connection costs nothing that had come.
            while chunk := response.read1(CHUNK_BYTES):
                if partial.position + len(chunk) > size_bytes:
                    partial.discard()
                    raise NetworkError(
                        f"{_name(source.url)}: the server sends more than the {size_bytes} bytes the Hub announced",
                        "the bytes were thrown away; pull again, and tell the repository's owner if it happens again",
                    )
                partial.write(chunk)
                if (now := time.monotonic()) - reported >= _REPORT_SECONDS:
                    reported = now
                    progress(partial.position)
    except (http.client.HTTPException, OSError, UnicodeError) as error:  # UnicodeError: a host name that is none
        raise _Interrupted(_reason(error)) from error
    progress(partial.position)
    if partial.position < size_bytes:
        raise _Interrupted(f"the connection ended after {partial.position} of {size_bytes} bytes")


def _accept(response: http.client.HTTPResponse, partial: PartialFile, size_bytes: int) -> None:
    """Put `partial` at the position that the response's bytes start from, and refuse lengths that cannot be right."""
    if response.status == 416:
        partial.restart(None)
        raise _Interrupted("the server does not have the range that is missing")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _Interrupted("the server sent compressed bytes that were not asked for")
    if response.status == 206:
        said = re.fullmatch(
            r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip()
        )
        if said is None or int(said[1]) != partial.position or said[3] not in {str(size_bytes), "*"}:
            partial.restart(None)
            raise _Interrupted("the server sent another range than the one asked for")
        return
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) != size_bytes:
        raise _Interrupted(f"the server announces {int(length)} bytes where the Hub said {size_bytes}")
    partial.restart(response.headers.get("ETag"))


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the bytes come from: the URL, and the headers that only its own origin may see."""

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    refusal: Refusal

    def open(self, offset: int, etag: str | None) -> http.client.HTTPResponse:
        """The response (200, 206 or 416) at the end of at most 5 redirects.

        Raises _Interrupted for what may pass, NetworkError for a redirect that is refused, `refusal`'s error else.
        """
        wanted = {"Accept-Encoding": "identity"}
        if offset:
            wanted["Range"] = f"bytes={offset}-"
            if etag is not None:
                wanted["If-Range"] = etag
        opener = _opener()
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            secret = self.headers if _origin(url) == _origin(self.url) else {}
            response = opener.open(urllib.request.Request(url, headers={**wanted, **secret}), timeout=self.timeout_s)
            if response.status not in {301, 302, 303, 307, 308}:
                return self._checked(response, url)
            response.close()
            url = self._redirected(url, response.headers.get("Location"))
        raise NetworkError(
            f"{_name(self.url)}: redirected more than {MAX_REDIRECTS} times", "check HF_ENDPOINT, or try again later"
        )

    def _redirected(self, url: str, location: str | None) -> str:
        try:
            target = urllib.parse.urljoin(url, location or "")
            parts = urllib.parse.urlsplit(target)
            host = parts.hostname if parts.port != 0 else None  # asking for the port checks it
        except ValueError:
            host = None
        allowed = {"https"} if urllib.parse.urlsplit(self.url).scheme == "https" else {"https", "http"}
        if host is None or parts.scheme not in allowed or parts.username is not None or not target.isprintable():
            raise NetworkError(
                f"{_name(self.url)}: the server redirects to an address that is not safe to follow",
                "only https addresses are followed; check HF_ENDPOINT and the network's proxy",
            )
        # Hubs send paths as they are; only what a request line cannot carry is escaped.
        return urllib.parse.quote(parts._replace(fragment="").geturl(), safe="%/:?=&+,;@!$'()*~#[]")

    def _checked(self, response: http.client.HTTPResponse, url: str) -> http.client.HTTPResponse:
        status = response.status
        if status in {200, 206, 416}:
            return response
        response.close()
        if status in {408, 425, 429} or status >= 500:
            raise _Interrupted(f"the server answered {status}", _retry_after_s(response.headers.get("Retry-After")))
        if _origin(url) != _origin(self.url):  # a signed address that has expired: the next attempt gets a fresh one
            raise _Interrupted(f"the storage server answered {status}")
        raise self.refusal(status, {name.lower(): value for name, value in response.headers.items()})


def _opener() -> urllib.request.OpenerDirector:
    """A client that honours the environment's proxies (`HTTPS_PROXY`, `NO_PROXY`) and follows nothing by itself."""
    opener = urllib.request.OpenerDirector()  # bare: without the handlers for redirects, errors, files and FTP
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=_trust()),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "localai")]
    return opener


@cache
def _trust() -> ssl.SSLContext:
    """The certificates that huggingface_hub's client trusts."""
    import httpx2

    return httpx2.create_ssl_context()


def _origin(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _name(url: str) -> str:
    """The file's name in a URL of the Hub, for messages."""
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _retry_after_s(text: str | None) -> float | None:
    """Seconds of a `Retry-After` header; its form as a date is rare and depends on clocks, so it counts as absent."""
    return float(text) if text and text.strip().isdecimal() and len(text.strip()) < 10 else None


def _reason(error: Exception) -> str:
    """What cut the connection, in a few words."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    match error:
        case TimeoutError():
            return "the server sent nothing for too long"
        case (
            http.client.IncompleteRead() | ConnectionResetError() | BrokenPipeError() | http.client.RemoteDisconnected()
        ):
            return "the connection was cut"
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted ({error.verify_message})"
        case OSError() if error.strerror:
            return f"no connection ({error.strerror})"
    return f"the connection failed ({type(error).__name__})"


def _refusal(status: int, headers: Mapping[str, str]) -> LocalaiError:
    match status:
        case 401 | 403:
            return AccessDenied(f"the server refused access ({status})", "check the token: hf auth login")
        case 404 | 410:
            return NotFound("the server does not have this file", "check the name and the revision")
    return NetworkError(f"the server answered {status}", "try again later")
