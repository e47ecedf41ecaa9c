"""The routes of OpenAI's form, under /v1."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Request, Response

from localai.domain.files import InstalledModel
from localai.holding import TEXT
from localai.server import asking
from localai.server.answers import Stream, while_there, whole
from localai.server.forms import FAILURES, Json, streams
from localai.server.generating import Dispatcher
from localai.server.openai import answers
from localai.server.openai.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    chat_request,
    check_completion,
    completion_requests,
    texts_of,
    times,
)
from localai.server.vectors import vectors

EVENT_STREAM = "text/event-stream"


def routes(dispatcher: Dispatcher) -> APIRouter:
    router, api = APIRouter(prefix="/v1", tags=["openai"], responses=FAILURES), Api(dispatcher)
    router.add_api_route("/models", api.models, methods=["GET"])
    router.add_api_route("/models/{name:path}", api.model, methods=["GET"])
    router.add_api_route("/chat/completions", api.chat, methods=["POST"], responses=streams(EVENT_STREAM))
    router.add_api_route("/completions", api.completions, methods=["POST"], responses=streams(EVENT_STREAM))
    router.add_api_route("/embeddings", api.embeddings, methods=["POST"])
    return router


class Api:
    """What each route does. FastAPI tells the docstrings in /openapi.json."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def models(self) -> Response:
        """The model that is served, where it is a file, and the installed ones."""
        listed = [
            model_object(name, model) for name, model in await self._dispatcher.blocking(self._dispatcher.installed)
        ]
        if (found := self._dispatcher.unlisted()) is not None:
            listed.insert(0, model_object(found.name, None))
        return whole({"object": "list", "data": listed})

    async def model(self, name: str) -> Response:
        """One installed model."""
        if not name:  # only a slash too many
            return await self.models()
        found = await self._dispatcher.blocking(self._dispatcher.find, name)
        return whole(model_object(name, found.model))

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        found = await self._dispatcher.blocking(self._dispatcher.find, asked.model)
        wanted = await self._dispatcher.blocking(chat_request, asked, found.name)
        kind = asking.kind_of(wanted.messages)
        keep, name = asking.keep_alive(asked.keep_alive), asked.model or found.name
        starting = self._dispatcher.all_started(found, kind, keep, times(wanted, asked.n))
        several = await while_there(request.receive, starting)
        if asked.stream:
            return Stream(answers.chat_pieces(several, name, asked.wants_usage), EVENT_STREAM, *several)
        return whole(await while_there(request.receive, answers.chat_whole(several, name)))

    async def completions(self, asked: CompletionRequest, request: Request) -> Response:
        """A text, continued."""
        check_completion(asked)
        found = await self._dispatcher.blocking(self._dispatcher.find, asked.model)
        wanted = await self._dispatcher.blocking(completion_requests, asked, found.name)
        keep, name = asking.keep_alive(asked.keep_alive), asked.model or found.name
        several = await while_there(request.receive, self._dispatcher.all_started(found, TEXT, keep, wanted))
        prompts = len(asked.prompts)
        if asked.stream:
            pieces = answers.completion_pieces(several, name, prompts, asked.wants_usage)
            return Stream(pieces, EVENT_STREAM, *several)
        return whole(await while_there(request.receive, answers.completion_whole(several, name, prompts)))

    async def embeddings(self, asked: EmbeddingsRequest, request: Request) -> Response:
        """A vector for each text."""
        texts = texts_of(asked)
        keep = asking.keep_alive(asked.keep_alive)
        making = vectors(self._dispatcher, asked.model, texts, keep, dimensions=asked.dimensions)
        made = await while_there(request.receive, making)
        return whole(answers.embeddings(made.rows, asked.model or made.model, asked.encoding_format == "base64"))


def model_object(name: str, model: InstalledModel | None) -> Json:
    """A model as /v1/models tells it; None for a file of the user's."""
    made = datetime.fromisoformat(model.verified_at) if model and model.verified_at else None
    owner = model.repo.split("/")[0] if model and model.repo else "local"
    return {"id": name, "object": "model", "created": int(made.timestamp()) if made else 0, "owned_by": owner}
