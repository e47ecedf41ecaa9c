"""A model on the Hub known by its header alone: its variants, shape and weights, before anything is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from localai import gguf, hub, hub_client, hub_errors, library, measuring, naming, quantization, ranges, shapes, sizes
from localai.domain.files import RemoteFile, Variant
from localai.domain.shape import Shape, Weights
from localai.engine import oracle
from localai.errors import LocalaiError, NetworkError, NotFound
from localai.estimate import Measure

_PREFERRED = "Q4_K_M"  # whose header is read where no variant is asked for: nearly every repository has it


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a repository holds and what one variant's header says of it all; `weights` are in the variants' order.

    `measured` is for `estimate.plan`: quantization changes neither the cache nor the compute buffers.
    """

    repository: hub.Repository
    header: gguf.Header
    shape: Shape
    read: Variant
    variants: tuple[Variant, ...]
    weights: tuple[Weights, ...]
    measured: Measure | None


def remote_shape(repo: str, commit: str, files: Sequence[RemoteFile]) -> tuple[Shape, Weights]:
    """Shape and weights of one variant of a repository, `files` being its shards in order, read over HTTP ranges.

    The header is kept by commit, so that asking again opens no connection. Raises NetworkError, AccessDenied, NotFound,
    EngineError for a file that is no language model.
    """
    header = ranges.read_model(repo, commit, files).header
    return shapes.shape(header), shapes.weights(header)


def model(wanted: library.Meaning, on_retry: Callable[[str], None] = lambda line: None) -> RemoteModel:
    """The model that a name means, on the Hub: all its variants, or the one that the name selects.

    One header is read whole; the others' weights are their size less that header's size. `on_retry` is told why the
    Hub is asked again, one line each. Raises NetworkError (also offline), AccessDenied, NotFound, EngineError.
    """
    if wanted.repo is None:
        raise library.unknown(wanted.name)
    found = _repository(wanted, on_retry)
    variants = _selected(naming.variants(found.files), wanted, found.repo)
    if found.gated and hub_client.token() is None:
        raise hub_errors.gated(found.repo)
    chosen = _representative(variants)
    asked: list[oracle.Oracle] = []

    def get_ready(beginning: gguf.Header) -> None:
        """Have llama.cpp ready by the time that the header is here."""
        with suppress(LocalaiError):
            if not measuring.is_exact(shapes.shape(beginning)):
                asked.append(oracle.Oracle())

    remote = ranges.read_model(found.repo, found.commit, chosen.files, on_retry, get_ready)
    shape, weights = shapes.shape(remote.header), shapes.weights(remote.header)
    beside_bytes = sum(remote.header_bytes)

    def like(other: Variant) -> Weights:
        size_bytes = max(1, other.size_bytes - beside_bytes)
        return sizes.weights_like(weights, chosen.quantization, shape, size_bytes, other.quantization)

    return RemoteModel(
        repository=found,
        header=remote.header,
        shape=shape,
        read=chosen,
        variants=variants,
        weights=tuple(weights if each is chosen else like(each) for each in variants),
        measured=measuring.measure_for(
            shape,
            [
                oracle.HeaderFile(path, length, file.size_bytes, None if number else remote.header)
                for number, (path, length, file) in enumerate(
                    zip(remote.kept, remote.header_bytes, remote.files, strict=True)
                )
            ],
            asked[0] if asked else None,
        ),
    )


def _repository(wanted: library.Meaning, on_retry: Callable[[str], None]) -> hub.Repository:
    """What the repository holds. Of a name of the catalog nobody has said that it is there: a Hub without it is as good
    as none.
    """
    assert wanted.repo is not None
    try:
        return hub.repository(wanted.repo, wanted.revision, on_retry)
    except NotFound as error:
        if wanted.by_name and wanted.revision is None:
            raise NetworkError(error.message, error.hint) from error
        raise


def _selected(variants: tuple[Variant, ...], wanted: library.Meaning, repo: str) -> tuple[Variant, ...]:
    if not variants:
        raise NotFound(f"{repo} holds no GGUF files", "look for a repository whose name ends in -GGUF")
    if wanted.selector is None:
        return variants
    chosen = tuple(
        each
        for each in variants
        if library.selects(wanted.selector, each.quantization, [file.name for file in each.files])
    )
    if not chosen:
        have = ", ".join(dict.fromkeys(each.quantization for each in variants))
        raise NotFound(f"{repo} has no {wanted.selector}", f"it has {have}")
    top = tuple(each for each in chosen if "/" not in each.files[0].name)  # the plain one, as `pull` takes it
    return top if len(top) == 1 else chosen


def _representative(variants: Sequence[Variant]) -> Variant:
    """The variant whose header is read: the usual one, else the smallest of at least 4 bits, else the smallest."""
    for each in variants:
        if each.quantization == _PREFERRED:
            return each
    return min(variants, key=lambda each: ((quantization.bits(each.quantization) or 0) < 4, each.size_bytes))
