"""Where a download's bytes come from: one HTTP connection at a time, its redirects followed with care.

The standard library's HTTP client is used, not httpx2: on loopback it brings 1.5 times curl's rate with the hash,
httpx2 (64 KiB reads through h11 in Python) just reaches curl. Trust in certificates is httpx2's, as huggingface_hub's.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache

from localai.errors import AccessDenied, LocalaiError, NetworkError, NotFound

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}

Refusal = Callable[[int, Mapping[str, str]], LocalaiError]

# What a broken connection raises; UnicodeError: a host name that is none.
BROKEN = (http.client.HTTPException, OSError, UnicodeError)


class Retryable(Exception):
    """An attempt failed in a way that the next may not; `retry_after_s` is the server's wish, `status` its answer."""

    def __init__(self, reason: str, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.status = status


class Pace:
    """Cuts off a server that drips: fewer than `least_bytes` within any `window_s` seconds is a TimeoutError."""

    def __init__(self, window_s: float, least_bytes: int) -> None:
        self._window_s, self._least = window_s, least_bytes
        self._since, self._came = time.monotonic(), 0

    def add(self, count: int) -> None:
        self._came += count
        if self._came >= self._least:
            self._since, self._came = time.monotonic(), 0
        elif time.monotonic() - self._since > self._window_s:
            raise TimeoutError


class Connection:
    """One connection, kept for the next request to the same origin; the environment's proxies are honoured."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._origin: tuple[str, str, int] | None = None
        self._prefix = ""  # what a plain proxy wants before the path
        self._headers: dict[str, str] = {}

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self) -> None:
        """Make a read that blocks in another thread fail now."""
        if (connection := self._connection) is not None:
            _cut(connection.sock, threading.Event())

    def get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The response to a GET, whatever its status; its body is read by the caller. Raises what is in BROKEN."""
        parts = urllib.parse.urlsplit(url)
        if self._origin != origin(url):
            self.close()
        reused = self._connection is not None
        try:
            return self._ask(parts, headers)
        except (http.client.HTTPException, ConnectionError):
            self.close()
            if not reused:  # else the server had closed it while it was idle
                raise
        return self._ask(parts, headers)

    def _ask(self, parts: urllib.parse.SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = self._connection or self._connect(parts)
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.request("GET", self._prefix + target, headers={**headers, **self._headers})
        # The socket's time-out is for each read: a head that drips would never end by it.
        late = threading.Event()
        watch = threading.Timer(self._timeout_s, _cut, (connection.sock, late))
        watch.daemon = True
        watch.start()
        try:
            return connection.getresponse()
        except BROKEN as error:
            raise TimeoutError if late.is_set() else error from error
        finally:
            watch.cancel()

    def _connect(self, parts: urllib.parse.SplitResult) -> http.client.HTTPConnection:
        _, host, port = self._origin = origin(parts.geturl())
        proxy = _proxy(parts)
        at = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        given = _proxy_headers(proxy) if proxy else {}
        self._prefix, self._headers = "", {}
        if parts.scheme == "https":
            secure = http.client.HTTPSConnection(*at, timeout=self._timeout_s, context=_trust())
            if proxy:
                secure.set_tunnel(host, port, given)
            self._connection = secure
        else:
            self._connection = http.client.HTTPConnection(*at, timeout=self._timeout_s)
            if proxy:
                self._prefix, self._headers = f"http://{parts.netloc}", given
        return self._connection


def _cut(held: socket.socket | None, told: threading.Event) -> None:
    told.set()
    with suppress(OSError):
        if held is not None:
            held.shutdown(socket.SHUT_RDWR)


def _proxy(parts: urllib.parse.SplitResult) -> urllib.parse.SplitResult | None:
    """The proxy that the environment or the system names for this address (`HTTPS_PROXY`, `NO_PROXY`, ...)."""
    named = urllib.request.getproxies().get(parts.scheme)
    if not named or urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.parse.urlsplit(named if "://" in named else f"http://{named}")


def _proxy_headers(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


@cache
def _trust() -> ssl.SSLContext:
    """The certificates that huggingface_hub's client trusts."""
    import httpx2

    return httpx2.create_ssl_context()


class Source:
    """One file's address, and the headers (the token) that only its own origin may see."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float, refusal: Refusal) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._headers = dict(headers)
        self._refusal = refusal
        self._direct: str | None = None  # where the redirects led to

    @property
    def name(self) -> str:
        """The file's name, for messages."""
        return urllib.parse.unquote(urllib.parse.urlsplit(self.url).path.rsplit("/", 1)[-1])

    def open(
        self, connection: Connection, start: int, end: int | None = None, etag: str | None = None
    ) -> http.client.HTTPResponse:
        """The response (200, 206 or 416) for the bytes from `start` up to `end`, at the end of at most 5 redirects.

        With an `end` the address that an earlier call was led to is asked first. Raises Retryable or what is in
        BROKEN for what may pass, NetworkError for a redirect that is refused, `refusal`'s error else.
        """
        wanted = {"User-Agent": "localai", "Accept-Encoding": "identity"}
        if start or end is not None:
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if etag is not None:
                wanted["If-Range"] = etag
        if end is not None and (direct := self._direct) is not None:
            response = connection.get(direct, {**wanted, **self._secret(direct)})
            if response.status == 206:
                return response
            connection.close()
            self._direct = None  # a signed address expires
        return self._follow(connection, wanted)

    def _follow(self, connection: Connection, wanted: Mapping[str, str]) -> http.client.HTTPResponse:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            response = connection.get(url, {**wanted, **self._secret(url)})
            if response.status not in _REDIRECTS:
                checked = self._checked(connection, response, url)
                self._direct = url
                return checked
            connection.close()  # its body is not worth reading
            url = self.redirected(url, response.headers.get("Location"))
        raise NetworkError(
            f"{self.name}: redirected more than {MAX_REDIRECTS} times", "check HF_ENDPOINT, or try again later"
        )

    def _secret(self, url: str) -> Mapping[str, str]:
        return self._headers if origin(url) == origin(self.url) else {}

    def redirected(self, url: str, location: str | None) -> str:
        """The address that a redirect leads to. Raises NetworkError unless it is safe to follow."""
        parts = safe_target(self.url, url, location)
        if parts is None:
            raise unsafe_redirect(self.name)
        # Hubs send paths as they are; only what a request line cannot carry is escaped.
        return urllib.parse.quote(parts._replace(fragment="").geturl(), safe="%/:?=&+,;@!$'()*~#[]")

    def _checked(
        self, connection: Connection, response: http.client.HTTPResponse, url: str
    ) -> http.client.HTTPResponse:
        status = response.status
        if status in {200, 206, 416}:
            return response
        connection.close()
        if status in {408, 425, 429} or status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After"))
            raise Retryable(f"the server answered {status}", wait_s, status)
        if origin(url) != origin(self.url):  # a signed address that has expired: the next attempt gets a fresh one
            raise Retryable(f"the storage server answered {status}")
        raise self._refusal(status, {name.lower(): value for name, value in response.headers.items()})


def safe_target(first: str, url: str, location: str | None) -> urllib.parse.SplitResult | None:
    """Where a redirect of `url` leads; None where that is not safe for what began at `first`: https stays https."""
    try:
        target = urllib.parse.urljoin(url, location or "")
        parts = urllib.parse.urlsplit(target)
        host = parts.hostname if parts.port != 0 else None  # asking for the port checks it
    except ValueError:
        return None
    allowed = {"https"} if urllib.parse.urlsplit(first).scheme == "https" else {"https", "http"}
    safe = host is not None and parts.scheme in allowed and parts.username is None and target.isprintable()
    return parts if safe else None


def unsafe_redirect(what: str) -> NetworkError:
    """The error for a redirect that is not followed."""
    return NetworkError(
        f"{what}: the server redirects to an address that is not safe to follow",
        "only https addresses are followed; check HF_ENDPOINT and the network's proxy",
    )


def receive(response: http.client.HTTPResponse, space: memoryview) -> int:
    """Receive bytes of a body into `space`; how many, 0 at the end of the body. Raises what is in BROKEN.

    One read of the socket at a time, so that a dropped connection costs nothing that had come. `read1` of the response
    does the same into a new object each time, and its `readinto` waits until all of `space` is full.
    """
    if response.chunked or response.length is None or response.fp is None:
        chunk = response.read1(len(space))
        space[: len(chunk)] = chunk
        return len(chunk)
    count = response.fp.readinto1(space[: response.length])
    response.length -= count
    return count


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address: what a token is for."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _retry_after_s(text: str | None) -> float | None:
    """Seconds of a `Retry-After` header; its form as a date is rare and depends on clocks, so it counts as absent."""
    return float(text) if text and text.strip().isdecimal() and len(text.strip()) < 10 else None


def reason_of(error: Exception) -> str:
    """What cut the connection, in a few words."""
    match error:
        case TimeoutError():
            return "the server sent next to nothing for too long"
        case (
            http.client.IncompleteRead() | ConnectionResetError() | BrokenPipeError() | http.client.RemoteDisconnected()
        ):
            return "the connection was cut"
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted ({error.verify_message})"
        case OSError() if error.strerror:
            return f"no connection ({error.strerror})"
    return f"the connection failed ({type(error).__name__})"


def refusal(status: int, headers: Mapping[str, str]) -> LocalaiError:
    """What a status means where nobody knows better."""
    match status:
        case 401 | 403:
            return AccessDenied(f"the server refused access ({status})", "check the token: hf auth login")
        case 404 | 410:
            return NotFound("the server does not have this file", "check the name and the revision")
    return NetworkError(f"the server answered {status}", "try again later")
