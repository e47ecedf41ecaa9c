"""From texts to their vectors, for both forms of the API."""

from __future__ import annotations

import math
from dataclasses import replace

from localai import embeddings
from localai.domain.embedding import Embedding
from localai.errors import UsageError
from localai.holding import VECTORS
from localai.server.generating import Desk


async def vectors(
    desk: Desk,
    model: str | None,
    texts: list[str],
    keep_alive_s: float | None,
    *,
    truncate: bool = False,
    dimensions: int | None = None,
) -> tuple[str, list[Embedding]]:
    """The name of the model and a vector for each text; with `truncate` for as much of it as the context holds.

    `dimensions` are how many numbers of each vector are told. Raises NotFound, UsageError, ContextOverflow, QueueFull.
    Left early, what is being evaluated is the last.
    """
    if model or desk.default is not None:
        found = await desk.blocking(desk.find, model)
    else:
        found = await desk.blocking(embeddings.find, None)
    async with desk.hold(found, VECTORS, None, keep_alive_s) as held:
        rows = await desk.embedded(held, texts, truncate)
    return found.name, rows if dimensions is None else [shortened(row, dimensions) for row in rows]


def shortened(row: Embedding, dimensions: int) -> Embedding:
    """The first numbers of a vector, of length 1 again. Raises UsageError where it has not so many."""
    if dimensions > len(row.vector):
        raise UsageError(f"dimensions is more than the {len(row.vector)} that the model has", "ask for fewer")
    first = row.vector[:dimensions]
    length = math.hypot(*first) or 1.0
    return replace(row, vector=[value / length for value in first])
