"""From texts to their vectors, for both forms of the API."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from time import perf_counter

from localai import embeddings
from localai.domain.embedding import Embedding
from localai.errors import UsageError
from localai.holding import VECTORS
from localai.server.generating import Dispatcher


@dataclass(frozen=True, slots=True)
class Vectors:
    """What came of a request for vectors: a row for each text. `load_s` it waited for the model."""

    model: str
    rows: list[Embedding]
    load_s: float
    total_s: float


async def vectors(
    dispatcher: Dispatcher,
    model: str | None,
    texts: list[str],
    keep_alive_s: float | None,
    *,
    truncate: bool = False,
    dimensions: int | None = None,
) -> Vectors:
    """A vector for each text; with `truncate` for as much of it as the context holds.

    `dimensions` are how many numbers of each vector are told. Raises NotFound, UsageError, ContextOverflow, QueueFull.
    Left early, what is being evaluated is the last.
    """
    began = perf_counter()
    if model or dispatcher.default is not None:
        found = await dispatcher.blocking(dispatcher.find, model)
    else:
        found = await dispatcher.blocking(embeddings.find, None)
    async with dispatcher.hold(found, VECTORS, None, keep_alive_s) as held:
        loaded = perf_counter()
        rows = await dispatcher.embedded(held, texts, truncate)
    if dimensions is not None:
        rows = [shortened(row, dimensions) for row in rows]
    return Vectors(found.name, rows, loaded - began, perf_counter() - began)


def shortened(row: Embedding, dimensions: int) -> Embedding:
    """The first numbers of a vector, of length 1 again. Raises UsageError where it has not so many."""
    if dimensions > len(row.vector):
        raise UsageError(f"dimensions is more than the {len(row.vector)} that the model has", "ask for fewer")
    first = row.vector[:dimensions]
    length = math.hypot(*first) or 1.0
    return replace(row, vector=[value / length for value in first])
