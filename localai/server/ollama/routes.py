"""The routes of Ollama's form, under /api."""

from __future__ import annotations

from time import perf_counter

from fastapi import APIRouter, Request, Response

from localai.domain.generation import GenerationRequest
from localai.holding import TEXT
from localai.library import Found
from localai.server import asking
from localai.server.answers import Stream, while_there, whole
from localai.server.asking import refused
from localai.server.forms import FAILURES, streams
from localai.server.generating import Dispatcher
from localai.server.ollama import answers, models
from localai.server.ollama.requests import (
    Asked,
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    OldEmbedRequest,
    ShowRequest,
    chat_messages,
    prompt_messages,
    request_of,
)
from localai.server.vectors import vectors

LINES = "application/x-ndjson"
API_VERSION = "0.12.0"  # of Ollama's API whose form this is: clients look whether it is new enough


def routes(dispatcher: Dispatcher) -> APIRouter:
    router, api = APIRouter(prefix="/api", tags=["ollama"], responses=FAILURES), Api(dispatcher)
    router.add_api_route("/chat", api.chat, methods=["POST"], responses=streams(LINES))
    router.add_api_route("/generate", api.generate, methods=["POST"], responses=streams(LINES))
    router.add_api_route("/embed", api.embed, methods=["POST"])
    router.add_api_route("/embeddings", api.embeddings, methods=["POST"])
    router.add_api_route("/tags", api.tags, methods=["GET"])
    router.add_api_route("/show", api.show, methods=["POST"])
    router.add_api_route("/ps", api.ps, methods=["GET"])
    router.add_api_route("/version", api.version, methods=["GET"])
    for path, answer in (("/tags", api.tags), ("/version", api.version)):  # some clients look whether they are there
        router.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    return router


class Api:
    """What each route does. FastAPI tells the docstrings in /openapi.json."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def chat(self, asked: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        found = await self._dispatcher.blocking(self._dispatcher.find, asked.model)
        if not asked.messages:
            return await self._only_load(asked, found, True)
        messages = await self._dispatcher.blocking(chat_messages, asked)
        wanted = await self._dispatcher.blocking(request_of, asked, found.name, messages)
        return await self._answer(asked, request, found, wanted, True)

    async def generate(self, asked: GenerateRequest, request: Request) -> Response:
        """An answer to a prompt."""
        if asked.suffix or asked.template or asked.context:
            raise refused("suffix, template and context are not taken", "/api/chat takes a whole conversation")
        found = await self._dispatcher.blocking(self._dispatcher.find, asked.model)
        if not asked.prompt and not asked.images:
            return await self._only_load(asked, found, False)
        if asked.raw and asked.images:
            raise refused("a raw prompt cannot be combined with images", "ask for either")
        if asked.raw:
            wanted = await self._dispatcher.blocking(request_of, asked, found.name, (), asked.prompt)
        else:
            messages = await self._dispatcher.blocking(prompt_messages, asked)
            wanted = await self._dispatcher.blocking(request_of, asked, found.name, messages)
        return await self._answer(asked, request, found, wanted, False)

    async def _answer(
        self, asked: Asked, request: Request, found: Found, wanted: GenerationRequest, chat: bool
    ) -> Response:
        began, kind = perf_counter(), asking.kind_of(wanted.messages)
        keep = asking.keep_alive(asked.keep_alive)
        starting = self._dispatcher.started(found, kind, asked.wished_context, keep, wanted)
        events = await while_there(request.receive, starting)
        if asked.stream is not False:
            return Stream(answers.pieces(events, asked.model, chat, began), LINES, events)
        return whole(await while_there(request.receive, answers.in_one(events, asked.model, chat, began)))

    async def _only_load(self, asked: Asked, found: Found, chat: bool) -> Response:
        """An empty request loads a model, or lets it go, once nobody uses it, where it is to be kept for no time."""
        keep = asking.keep_alive(asked.keep_alive)
        if keep == 0:
            await self._dispatcher.blocking(self._dispatcher.holder.let_go, found)
        else:
            async with self._dispatcher.hold(found, TEXT, asked.wished_context, keep):
                pass
        return whole(answers.empty(asked.model, chat, "unload" if keep == 0 else "load"))

    async def embed(self, asked: EmbedRequest, request: Request) -> Response:
        """A vector for each text."""
        if not asked.input:
            return whole({"model": asked.model, "embeddings": []})
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        asking.check_texts(texts)
        keep, cut = asking.keep_alive(asked.keep_alive), asked.truncate is not False
        making = vectors(self._dispatcher, asked.model, texts, keep, truncate=cut, dimensions=asked.dimensions)
        return whole(answers.embeddings(await while_there(request.receive, making), asked.model))

    async def embeddings(self, asked: OldEmbedRequest, request: Request) -> Response:
        """A vector for one text, as older clients ask."""
        keep = asking.keep_alive(asked.keep_alive)
        if not asked.prompt:
            return whole({"embedding": []})
        made = await while_there(request.receive, vectors(self._dispatcher, asked.model, [asked.prompt], keep))
        return whole({"embedding": made.rows[0].vector})

    async def tags(self) -> Response:
        """The model that is served, where it is a file, and the installed ones."""
        return whole({"models": await self._dispatcher.blocking(models.all_listed, self._dispatcher)})

    async def show(self, asked: ShowRequest) -> Response:
        """What a model's header says."""
        found = await self._dispatcher.blocking(self._dispatcher.find, asked.model or asked.name)
        return whole(await self._dispatcher.blocking(models.shown, found))

    async def ps(self) -> Response:
        """The models in memory."""
        return whole(
            {"models": await self._dispatcher.blocking(lambda: [*map(models.held, self._dispatcher.holder.held())])}
        )

    async def version(self) -> Response:
        """The version of the API."""
        return whole({"version": API_VERSION})
