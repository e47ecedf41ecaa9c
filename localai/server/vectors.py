"""From texts to their vectors, for both forms of the API."""

from __future__ import annotations

from localai import embeddings
from localai.domain.embedding import Embedding
from localai.holding import VECTORS
from localai.server.generating import Desk


async def vectors(
    desk: Desk, model: str | None, texts: list[str], keep_alive_s: float | None, truncate: bool = False
) -> tuple[str, list[Embedding]]:
    """The name of the model and a vector for each text; with `truncate` for as much of it as the context holds.

    Raises NotFound, UsageError, ContextOverflow. Left early, what is being evaluated is the last.
    """
    if model or desk.default is not None:
        found = await desk.blocking(desk.find, model)
    else:
        found = await desk.blocking(embeddings.find, None)
    async with desk.hold(found, VECTORS, None, keep_alive_s) as held:
        embedder = held.embedder
        assert embedder is not None, "it is held for vectors"
        stop: list[bool] = []

        def embed() -> list[Embedding]:
            with held.one_at_a_time:
                asked = [embedder.cut(text) for text in texts] if truncate else texts
                return embedder.embed(asked, cancelled=lambda: bool(stop))

        try:
            rows = await desk.blocking(embed)
        finally:
            stop.append(True)
    return found.name, rows
