"""Vectors for texts: which model makes them, how it is loaded here, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localai import catalog, estimate, gguf, hardware, library, loading, shapes
from localai.domain.embedding import Pooling
from localai.domain.files import InstalledModel
from localai.domain.plan import MemoryNeed, Plan
from localai.errors import LocalaiError, NotFound
from localai.loading import LoadOptions

if TYPE_CHECKING:
    from localai.engine.embedding import Embedder

LONGEST = 8192  # tokens of a text, where nobody asked for more: what such models are made for, or more than that
SHORTEST = 512


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that fits, how it will be loaded, and how it makes vectors. `plan.context` is the longest text."""

    found: library.Found
    plan: Plan
    pooling: Pooling

    @property
    def warning(self) -> str | None:
        """What to say plainly before anybody builds on its vectors."""
        if self.pooling.declared:
            return None
        return f"{self.found.name} is not made for embeddings: expect worse results than of a model that is"


def find(name: str | None) -> library.Found:
    """The model that `name` means; without one the installed embedding model that was used last, else the largest.

    Raises NotFound, UsageError.
    """
    if name is not None:
        return library.find(name)
    makers = [model for model in library.installed() if makes_vectors(model)]
    if not makers:
        raise NotFound("no embedding model is installed", "localai pull nomic-embed-text-v1.5, or name one with -m")
    best = max(makers, key=lambda model: (model.last_used_at or "", model.size_bytes))
    reason = "the only embedding model" if len(makers) == 1 else "the last used" if best.last_used_at else "the largest"
    return library.Found(best, best.path, best.model, f"using {best.model} ({best.quantization}), {reason}")


def makes_vectors(model: InstalledModel) -> bool:
    """Whether that is an embedding model, by the catalog, else by its header; False where it cannot be read."""
    if (known := catalog.resolve_name(model.model)) is not None:
        return known.embedding_only
    try:
        pooling = shapes.pooling(gguf.read_header(model.path))
    except LocalaiError:
        return False
    return pooling.declared and pooling.name != "rank"


def prepare(found: library.Found, options: LoadOptions) -> Prepared:
    """Plan how `found` would be loaded here, for texts as long as it is made for, 8,192 tokens, or what fits.

    Raises EngineError for a file that is no model, DoesNotFit, UsageError for more threads than there are and a
    cache it cannot have.
    """
    machine = hardware.detect()
    loading.check_threads(options, machine)
    header = gguf.read_model(found.paths)
    shape, weights, pooling = shapes.shape(header), shapes.weights(header), shapes.pooling(header)
    estimate.check_kv_type(shape, options.kv_type)

    def planned(context: int) -> Plan:
        plan = estimate.plan(
            shape,
            weights,
            machine,
            context=context,
            gpu_layers=options.gpu_layers,
            threads=options.threads,
            kv_type=options.kv_type or "f16",
        )
        batch = pooling.batch(context)
        need = estimate.memory(shape, weights, context, plan.kv_type, batch, outputs=batch)
        return _with_batches(plan, context, batch, need)

    context = options.context or min(shape.context_length or LONGEST, LONGEST)
    plan = planned(context)
    while not plan.fits and options.context is None and context > SHORTEST:
        context = max(SHORTEST, context // 2)
        plan = planned(context)
    if not plan.fits:
        from localai import refusing

        raise refusing.of_texts(found, plan, shape.context_length, planned)
    return Prepared(found, plan, pooling)


def _with_batches(plan: Plan, context: int, batch: int, need: MemoryNeed) -> Plan:
    need = replace(need, overhead_bytes=plan.memory.overhead_bytes)
    fits = plan.fits and need.total_bytes + need.overhead_bytes <= plan.available_bytes
    return replace(plan, context=context, batch=batch, ubatch=batch, memory=need, fits=fits)


def load(
    prepared: Prepared,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Embedder:
    """Load the model as planned and remember that it was used. Raises EngineError, DoesNotFit, KeyboardInterrupt."""
    from localai.engine import embedding

    found = prepared.found
    loaded = embedding.load(found.path, prepared.plan, prepared.pooling, progress, cancelled)
    if found.model is not None:
        library.touch(found.model)
    return loaded
