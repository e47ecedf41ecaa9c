"""The application: both forms of the API, its health and its numbers, behind the guard."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from localai import __version__
from localai.errors import LocalaiError
from localai.server.answers import ClientGone, error_body, status_of, whole
from localai.server.forms import FAILURES
from localai.server.generating import Counts, Dispatcher
from localai.server.ollama.routes import routes as ollama
from localai.server.openai.routes import routes as openai
from localai.server.security import App, Guard, Rules

log = logging.getLogger(__name__)
MANAGING = tuple(f"/api/{what}" for what in ("pull", "push", "create", "copy", "delete", "blobs"))


def application(dispatcher: Dispatcher, rules: Rules) -> Counted:
    """The ASGI application of a server."""

    # the pages of the documentation would fetch their scripts from elsewhere
    app = FastAPI(
        title="localai",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
        },
    )

    tell_errors(app)
    tell_of_itself(app, dispatcher)
    app.include_router(openai(dispatcher))
    app.include_router(ollama(dispatcher))
    return Counted(Guard(app, rules), dispatcher.counts)


def tell_errors(app: FastAPI) -> None:
    """Answer whatever goes wrong in the form of whoever asked."""

    def failed(
        request: Request,
        status: int,
        message: str,
        hint: str = "",
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        body = error_body(request.url.path, status, message, hint, code)
        return Response(body, status, headers, media_type="application/json")

    @app.exception_handler(LocalaiError)
    async def known(request: Request, error: LocalaiError) -> Response:
        status, code = status_of(error)
        headers = {"retry-after": "1"} if status == 429 else None
        return failed(request, status, error.message, error.hint, code, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        faults = [
            "the body is no JSON"
            if each["type"] == "json_invalid"
            else f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"
            for each in error.errors()[:3]
        ]
        return failed(request, 400, "; ".join(faults)[:500], code="invalid_request")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        path, message, hint = request.url.path[:200], str(error.detail), "docs/server.md lists what is answered"
        if path.startswith(MANAGING):
            hint = "localai pull, import and rm manage the models on this disk"
        if error.status_code in (404, 405):
            message = f"nothing answers {request.method} {path}"
        return failed(request, error.status_code, message, hint, headers=error.headers)

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody will read it

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        log.error("unexpected", exc_info=error)
        return failed(request, 500, f"unexpected: {type(error).__name__}", "this is a bug in localai; please report it")


def tell_of_itself(app: FastAPI, dispatcher: Dispatcher) -> None:
    """The routes of neither form."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def root() -> Response:
        return Response("localai is running\n", media_type="text/plain")

    @app.get("/health", responses=FAILURES)
    async def health() -> Response:
        """Whether the server answers."""
        return whole({"status": "ok", "version": __version__})

    @app.get("/metrics", responses=FAILURES, response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(numbers(dispatcher), media_type="text/plain; version=0.0.4")


class Counted:
    """ASGI: counts answers by path and status, as they leave."""

    def __init__(self, app: App, counts: Counts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                key = (getattr(route, "path", "other"), message["status"])
                self._counts.requests[key] = self._counts.requests.get(key, 0) + 1
            await send(message)

        await self._app(scope, receive, counting)


def numbers(dispatcher: Dispatcher) -> bytes:
    """The numbers of `/metrics`, in Prometheus's text form."""
    counts, held = dispatcher.counts, dispatcher.holder.held()
    lines: list[str] = []

    def tell(name: str, kind: str, help_: str, values: list[tuple[str, float]]) -> None:
        lines.append(f"# HELP localai_{name} {help_}")
        lines.append(f"# TYPE localai_{name} {kind}")
        lines.extend(f"localai_{name}{labels} {value}" for labels, value in values)

    answers: list[tuple[str, float]] = [
        (f'{{path={label(path)},status="{status}"}}', count) for (path, status), count in counts.requests.items()
    ]
    tell("requests_total", "counter", "HTTP requests answered.", answers)
    tell("answers_under_way", "gauge", "Answers being generated or waiting for it.", [("", counts.under_way)])
    tell("answers_interrupted_total", "counter", "Answers whose client went away.", [("", counts.interrupted)])
    tell("prompt_tokens_total", "counter", "Tokens of prompts.", [("", counts.prompt_tokens)])
    tell("cached_tokens_total", "counter", "Tokens of prompts not evaluated again.", [("", counts.cached_tokens)])
    tell("completion_tokens_total", "counter", "Tokens of answers.", [("", counts.completion_tokens)])
    memory: list[tuple[str, float]] = [(f"{{model={label(each.name)}}}", each.memory_bytes) for each in held]
    tell("models_loaded", "gauge", "Models in memory.", [("", len(held))])
    tell("model_memory_bytes", "gauge", "Memory of each model in memory.", memory)
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"


def label(value: str) -> str:
    """A label's value: Prometheus knows no escapes but these three."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
