"""Who may ask: hosts, origins, keys, and how much at a time. Before anything else sees a request."""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from localai import settings
from localai.errors import LocalaiError
from localai.server.answers import error_body

LARGEST_BODY_BYTES = 32 * 1024**2  # a few photographs as data URLs
BODY_LIMIT_S = 60.0  # for a whole body to arrive

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or the name that is always its own."""
    name = host.strip("[]").casefold()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def host_of(value: str) -> str | None:
    """The host of a `Host` header or of an origin's authority, without its port; None where it is malformed."""
    if value.startswith("["):
        name, bracket, port = value[1:].partition("]")
        return name.casefold() if bracket and (not port or port.removeprefix(":").isdecimal()) else None
    name, colon, port = value.partition(":")
    return name.casefold().rstrip(".") if name and (not colon or port.isdecimal()) else None


def key_file() -> Path:
    return settings.folders().data / "api-key"


def api_key() -> tuple[str, bool]:
    """The key of this user's server, and whether it was made just now. Raises LocalaiError."""
    path = key_file()
    try:
        if found := path.read_text("ascii").strip():
            os.chmod(path, 0o600)
            return found, False
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise LocalaiError(f"cannot read {path}: {error}", "mend or remove that file") from error
    made = "sk-local-" + secrets.token_urlsafe(32)
    try:
        settings.private_folder(path.parent)
        settings.write_atomically(path, f"{made}\n".encode())
    except OSError as error:
        raise LocalaiError(f"cannot write {path}: {error.strerror}", "check the folder's permissions") from error
    return made, True


@dataclass(frozen=True, slots=True)
class Rules:
    """`key` None: none is asked for. `origins` are pages that may ask, as `https://name[:port]`."""

    host: str
    key: str | None = None
    origins: frozenset[str] = frozenset()

    def knows_host(self, header: str) -> bool:
        """Whether `Host` is a name of this server: a page that rebinds its own name to us sends that name."""
        name = host_of(header)
        if name is None:
            return False
        if is_loopback(name):
            return True
        if is_loopback(self.host):
            return False
        if name in {self.host.strip("[]").casefold(), socket.gethostname().casefold()}:
            return True
        try:
            ipaddress.ip_address(name)  # nobody can rebind an address
        except ValueError:
            return False
        return True

    def knows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may ask: our own, or one that the user named."""
        return origin.casefold() in self.origins or origin.casefold() in (
            f"http://{host.casefold()}",
            f"https://{host.casefold()}",
        )

    def knows_key(self, authorization: str) -> bool:
        if self.key is None:
            return True
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.key.encode())
        return right and scheme.casefold() == "bearer"


class Guard:
    """ASGI: refuses what the rules don't allow, counts the body, and takes every body for JSON, as Ollama does."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app, self._rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        allowed = self._cors(headers)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, scope["path"], *refusal, allowed)
            return
        if scope["method"] == "OPTIONS" and allowed:
            await send({"type": "http.response.start", "status": 204, "headers": allowed})
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] in ("POST", "DELETE", "PUT"):
            others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
            scope["headers"] = [*others, (b"content-type", b"application/json")]
        body = Body(receive)

        async def sending(message: MutableMapping[str, Any]) -> None:
            if body.refusal is not None:  # what the application makes of it says less
                return
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *allowed, *FIXED]}
            await send(message)

        await self._app(scope, body.receive, sending)
        if body.refusal is not None:
            await _answer(send, scope["path"], *body.refusal, allowed)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._rules.knows_host(host):
            return 403, f"{host!r} is no name of this server", "ask it by its address, such as http://127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and not self._rules.knows_origin(origin, host):
            return 403, f"pages of {origin} may not ask", "localai serve --allow-origin lets one"
        if origin is None and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return 403, "pages of other origins may not ask", "localai serve --allow-origin lets one"
        preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if scope["path"] != "/health" and not preflight and not self._rules.knows_key(headers.get("authorization", "")):
            return 401, "the API key is missing or wrong", f"Authorization: Bearer KEY; the key is in {key_file()}"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > LARGEST_BODY_BYTES:
            return TOO_LARGE
        return None

    def _cors(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin", "")
        if origin.casefold() not in self._rules.origins:
            return []
        # the clients' own headers tell only what they run on
        wanted = headers.get("access-control-request-headers") or "authorization, content-type"
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", wanted.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"vary", b"Origin"),
        ]


FIXED = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


TOO_LARGE = 413, f"the body is larger than {LARGEST_BODY_BYTES:,} bytes", "send less"
TOO_SLOW = 408, f"the body took longer than {BODY_LIMIT_S:.0f} s", "send it faster"
Headers = Iterable[tuple[bytes, bytes]]


class Body:
    """Counts the bytes of a body that tells no length, and ends the wait for one that takes too long.

    `refusal` is why it was given up: status, message, hint. The application is told that the client has gone.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ends_at = monotonic() + BODY_LIMIT_S
        self._bytes = 0
        self._whole = False
        self.refusal: tuple[int, str, str] | None = None

    async def receive(self) -> MutableMapping[str, Any]:
        import asyncio

        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(self._ends_at - monotonic(), 0.0))
        except TimeoutError:
            self.refusal = TOO_SLOW
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._bytes > LARGEST_BODY_BYTES:
                self.refusal = TOO_LARGE
                return {"type": "http.disconnect"}
        return message


async def _answer(send: Send, path: str, status: int, message: str, hint: str, more: Headers) -> None:
    body = error_body(path, status, message, hint)
    headers: Headers = [(b"content-type", b"application/json"), *more, *FIXED]
    if status == 401:
        headers = [*headers, (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
