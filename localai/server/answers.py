"""How answers leave: JSON, streams that end when their reader goes, and errors in the form of whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Response

from localai.domain.generation import TokenLogprob
from localai.errors import (
    ContextOverflow,
    DoesNotFit,
    EngineClosed,
    EngineError,
    LocalaiError,
    NetworkError,
    NotFound,
    QueueFull,
    SchemaIncomplete,
    UsageError,
)

if TYPE_CHECKING:
    from localai.server.generating import Events

WRITE_LIMIT_S = 120.0  # a reader that takes nothing for so long is taken for gone
ANSWER_LIMIT_S = 3600.0  # for one answer, waiting and loading included

STATUS: tuple[tuple[type[LocalaiError], int, str], ...] = (
    (ContextOverflow, 400, "context_length_exceeded"),
    (UsageError, 400, "invalid_request"),
    (SchemaIncomplete, 422, "schema_incomplete"),
    (NotFound, 404, "model_not_found"),
    (QueueFull, 429, "queue_full"),
    (DoesNotFit, 503, "out_of_memory"),
    (NetworkError, 503, "network"),
    (EngineClosed, 503, "engine_closed"),
    (EngineError, 500, "engine"),
)

T = TypeVar("T")


def status_of(error: LocalaiError) -> tuple[int, str]:
    """The HTTP status and the code of an error."""
    return next(((status, code) for kind, status, code in STATUS if isinstance(error, kind)), (500, error.code))


def dumps(content: Any) -> bytes:
    """As JSON that is ASCII: half a character in a name must not break an answer."""
    return json.dumps(content, separators=(",", ":"), default=str).encode("ascii")


def error_content(path: str, status: int, message: str, hint: str, code: str | None) -> dict[str, Any]:
    """An error in Ollama's form under /api/, in OpenAI's anywhere else."""
    text = f"{message} ({hint})" if hint else message
    if path.startswith("/api/"):
        return {"error": text}
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": text, "type": kind.get(status, fallback), "param": None, "code": code}}


def error_body(path: str, status: int, message: str, hint: str, code: str | None = None) -> bytes:
    return dumps(error_content(path, status, message, hint, code))


def finite(logprob: float) -> float:
    """JSON has no number for a probability of 0; OpenAI tells this one."""
    return max(logprob, -9999.0)


def logprob(found: TokenLogprob) -> dict[str, Any]:
    """A token with its probability and those of the likeliest, as both forms tell it."""

    def one(token: bytes, value: float) -> dict[str, Any]:
        return {"token": token.decode("utf-8", "replace"), "logprob": finite(value), "bytes": list(token)}

    return {**one(found.token, found.logprob), "top_logprobs": [one(*each) for each in found.top]}


class ClientGone(Exception):
    """Nobody waits for the answer any more. Caught where the application is made."""


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled at once when the client goes away. Raises ClientGone, LocalaiError."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        done, _ = await asyncio.wait((working, watching), timeout=ANSWER_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        if watching in done:
            raise ClientGone
        raise QueueFull(f"the answer took more than {ANSWER_LIMIT_S:.0f} s", "ask for less, or try again later")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


class Stream(Response):
    """An answer in pieces, made from `sources`, which are closed whatever becomes of the reader."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], media_type: str, *sources: Events) -> None:
        super().__init__(media_type=media_type)
        self._pieces, self._sources = pieces, sources

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def pump() -> None:
            kind = (b"content-type", str(self.media_type).encode())
            await send({"type": "http.response.start", "status": 200, "headers": [kind]})
            async for piece in self._pieces:
                message = {"type": "http.response.body", "body": piece, "more_body": True}
                await asyncio.wait_for(send(message), WRITE_LIMIT_S)
            await send({"type": "http.response.body", "body": b""})

        try:
            with contextlib.suppress(ClientGone, TimeoutError, OSError, QueueFull):
                await while_there(receive, pump())
        finally:
            await self._pieces.aclose()
            for source in self._sources:
                await source.aclose()


def whole(content: Any, status: int = 200) -> Response:
    """An answer in one piece."""
    return Response(dumps(content), status, media_type="application/json")
