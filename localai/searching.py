"""Searching the Hub: what each repository holds, and how each quantization would run here, before any download.

Of a repository the list of files is asked for, and of a model that the catalog does not know the first 128 KiB of one
file: its dimensions. So many at a time, and an end to the waiting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from localai import catalog, hub, hub_client, naming, quantization, ranges, recommend, shapes, sizes, threads
from localai.domain.files import Variant
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.shape import Shape
from localai.errors import EngineError, LocalaiError, UsageError

AT_ONCE = 8
SECONDS = 30.0  # for all repositories together; those that have not answered by then say so
QUERY_LIMIT = 200
_READ_FIRST = ("Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True)
class FoundVariant:
    """One quantization of a repository, and how it would run here; `file` is the first of its shards."""

    quantization: str
    file: str
    size_bytes: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A repository that a search found. `basis` is "header", "catalog", or "size" where nothing else is known.

    `model` is what to pull: the catalog's id where it knows the repository. `best` is the quantization that `pull`
    would take. `failure` says why nothing more is known: `variants` are then empty, or go by their sizes where the
    header is no language model's.
    """

    repo: str
    model: str
    commit: str | None
    gated: bool | None
    downloads: int | None
    likes: int | None
    architecture: str | None
    params_b: float | None
    active_params_b: float | None
    context_length: int | None
    basis: str | None
    best: str | None
    variants: tuple[FoundVariant, ...]
    failure: str | None = None


def search(
    query: str, machine: Machine, limit: int, on_retry: Callable[[str], None] = lambda line: None
) -> tuple[FoundModel, ...]:
    """Models of the Hub that match, the most downloaded first; repositories without a GGUF model are left out.

    `on_retry` is told why the Hub is asked again.
    Raises UsageError for a query that is none, NetworkError (also offline, before any connection).
    """
    words = " ".join(query.split())
    if not words or len(words) > QUERY_LIMIT or any(unicodedata.category(each) == "Cc" for each in words):
        raise UsageError("there is nothing to search for in that", "give a name or a part of it, as in: qwen3 4b")
    hits = hub.search(words, limit, on_retry)
    found: list[FoundModel | None] = [_failed(each, "it did not answer in time") for each in hits]

    def look(at: int) -> None:
        try:
            found[at] = _looked_up(hits[at], machine)
        except LocalaiError as error:
            found[at] = _failed(hits[at], error.message)

    threads.in_parallel([partial(look, at) for at in range(len(hits))], min(AT_ONCE, len(hits)), SECONDS)
    return tuple(each for each in found if each is not None)


def _looked_up(hit: hub.Hit, machine: Machine) -> FoundModel | None:
    """What one repository holds; None where that is no GGUF model. Raises NetworkError, AccessDenied, NotFound."""
    repository = hub.repository(hit.repo)
    variants = naming.variants(repository.files)
    if not variants:
        return None
    known = catalog.by_repo(hit.repo)
    shape, basis, failure = _shape(repository, variants, known)
    projector_bytes = repository.projector_bytes
    planned = [(each, recommend.plan_variant(each, shape, machine, projector_bytes)) for each in variants]
    best, _, _ = recommend.choose_variant(variants, shape, machine, projector_bytes)
    return FoundModel(
        repo=hit.repo,
        model=known.id if known and known.repo == hit.repo else hit.repo,
        commit=repository.commit,
        gated=repository.gated,
        downloads=hit.downloads,
        likes=hit.likes,
        architecture=known.architecture if known else shape.architecture if shape else None,
        params_b=known.params_b if known else round(shape.params / 1e9, 2) if shape else None,
        active_params_b=known.active_params_b if known else _billions(shape.active_params if shape else None),
        context_length=shape.context_length if shape else None,
        basis=basis,
        best=best.quantization,
        variants=tuple(FoundVariant(each.quantization, each.files[0].name, each.size_bytes, p) for each, p in planned),
        failure=failure,
    )


def _billions(params: int | None) -> float | None:
    return round(params / 1e9, 2) if params else None


def _shape(
    repository: hub.Repository, variants: tuple[Variant, ...], known: catalog.CatalogModel | None
) -> tuple[Shape | None, str, str | None]:
    """The model's dimensions, how they are known (by the catalog, by the beginning of one file, else by the size), and
    what is wrong with that beginning.
    """
    if known is not None and known.shape is not None:
        return known.shape, "catalog", None
    if repository.gated and hub_client.token() is None:
        return None, "size", None
    read = min(
        variants,
        key=lambda each: (
            _READ_FIRST.index(each.quantization) if each.quantization in _READ_FIRST else len(_READ_FIRST),
            quantization.bits(each.quantization) is None,
        ),
    )
    params = sizes.params_from_size(read.size_bytes, read.quantization)
    try:
        beginning = ranges.read_beginning(repository.repo, repository.commit, read.files[0])
        return shapes.shape_of_beginning(beginning, params), "header", None
    except EngineError as error:  # no language model, or none that llama.cpp runs; its files have sizes all the same
        return None, "size", error.message


def _failed(hit: hub.Hit, failure: str) -> FoundModel:
    nothing = (None,) * 6
    return FoundModel(hit.repo, hit.repo, None, hit.gated, hit.downloads, hit.likes, *nothing, (), failure)
