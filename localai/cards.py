"""A model's card: what it is and how it would run here, from its header, here or on the Hub, else from the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localai import aliases, catalog, estimate, gguf, hardware, library, naming, quantization, shapes, sizes, threads
from localai.buffers import UBATCH
from localai.domain.files import InstalledModel
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.shape import Shape, Weights
from localai.errors import AccessDenied, LocalaiError, NetworkError, NotFound

if TYPE_CHECKING:
    from localai import remote  # brings HTTP: `run` imports this module for `size_note`, and must not pay for it
    from localai.alternatives import Alternatives

_HUB_SECONDS = 3.0  # to wait for the list of what else a repository holds, where one of its files is here


@dataclass(frozen=True, slots=True)
class CardVariant:
    """One quantization of the model. `plan` is None where nothing is known to plan with."""

    quantization: str
    file: str
    size_bytes: int | None
    installed: bool
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Card:
    """What `localai show` tells. `basis` is "header" (exact) or "catalog" (from published facts).

    `warning` says why it is the catalog's facts where the Hub was asked and did not answer.
    """

    model: str
    name: str
    repo: str | None
    architecture: str | None
    params_b: float | None
    active_params_b: float | None
    context_length: int | None
    license: str | None
    languages: tuple[str, ...]
    has_chat_template: bool | None
    source: str
    path: str | None
    note: str | None
    basis: str
    variants: tuple[CardVariant, ...]
    commit: str | None = None
    warning: str | None = None
    projector_bytes: int = 0  # of a vision model, for pictures; part of what each plan takes
    embeds: bool = False  # it makes vectors: its speed is that of reading
    instead: Alternatives | None = None  # where nothing of it fits as it was asked for

    @property
    def best(self) -> CardVariant | None:
        """The one file that the card is of, the file that is here for one; of a repository the variant that `pull`
        takes, or one of fewer bits where only such a one fits.
        """
        from localai import recommend

        if len(self.variants) == 1 or self.path is not None:
            return self.variants[0]
        planned = [(each, each.plan) for each in self.variants if each.plan is not None]
        enough = [pair for pair in planned if not quantization.is_low_bit(pair[0].quantization)]
        if not any(plan.fits for _, plan in enough):
            enough = [pair for pair in planned if pair[1].fits] or enough
        return recommend.best_of(enough or planned)[0] if planned else None

    @property
    def plan(self) -> Plan | None:
        """How that one would run here."""
        return self.best.plan if self.best else None


def size_note(params: int) -> str | None:
    """What to say plainly of a model of that many parameters before anybody trusts its answers; None of larger ones."""
    if params >= 500_000_000:
        return None
    return "a very small model: good for trying things out, often wrong"


def card(
    name: str,
    context: int | None = None,
    kv_type: str | None = None,
    on_retry: Callable[[str], None] = lambda line: None,
) -> Card:
    """The card of an installed model, a .gguf file, or a model of the Hub.

    A connection is opened for the last, and to list what else the repository of an installed one holds. `on_retry` is
    told why the Hub is asked again, one line each.

    Where the Hub cannot be asked, a model of the catalog is described by the catalog's facts, with a `warning`.
    Raises NotFound for a name that is none of these, EngineError for a file that is no model, NetworkError and
    AccessDenied for a repository that is not in the catalog.
    """
    try:
        found = library.find(name)
    except NotFound as error:
        if naming.parse(aliases.expand(name)).kind is naming.Kind.PATH:
            raise
        wanted = library.meaning(name)
        if wanted.repo is None:
            raise error from None
    else:
        of_hub = found.model is not None and found.model.repo is not None
        return from_header(found, context, kv_type, beside=_repository(name) if of_hub else None)
    from localai import remote

    asked = threads.Later(lambda: remote.model(wanted, on_retry))
    machine = hardware.detect()  # meanwhile
    try:
        return from_hub(wanted, asked.result(), machine, context, kv_type)
    except (NetworkError, AccessDenied) as error:
        if wanted.known is None:
            raise
        return replace(from_catalog(wanted.known, wanted.selector, context, kv_type, machine), warning=_instead(error))


def _repository(name: str) -> library.Meaning | None:
    """The repository that a name means as a whole, where the catalog does not know what is in it."""
    reference = naming.parse(aliases.expand(name))
    if reference.kind is not naming.Kind.REPO or reference.selector is not None:
        return None
    wanted = library.meaning(name)
    return wanted if wanted.known is None else None


def _instead(error: LocalaiError) -> str:
    return f"{error.message}; what follows is reckoned from the catalog's facts"


def _planned(
    shape: Shape,
    machine: Machine,
    projector_bytes: int,
    *,
    weights: Weights,
    context: int | None,
    kv_type: str | None,
    quant: str | None = None,
    measured: estimate.Measure | None = None,
) -> Plan:
    """How it would run here. With a context of the user's own, what that takes as it is asked for: an f16 cache and the
    usual micro-batch, where the plan would take less of either to make it fit.
    """
    estimate.check_kv_type(shape, kv_type)
    ubatch = None
    if context is not None:
        kv_type, ubatch = kv_type or "f16", UBATCH
    return estimate.plan(
        shape,
        weights,
        machine,
        context=context,
        kv_type=kv_type,
        ubatch=ubatch,
        quant=quant,
        measured=measured,
        projector_bytes=projector_bytes,
    )


def _instead_of(
    variants: Sequence[CardVariant],
    planned: partial[Plan],
    weights: Sequence[Weights],
    known: catalog.CatalogModel | None,
    measured: estimate.Measure | None = None,
) -> Alternatives | None:
    """What would fit, where none of the variants does; `weights` are in their order, `planned` is what they were
    planned with.
    """
    from localai import alternatives

    pairs = [(each, bytes_) for each, bytes_ in zip(variants, weights, strict=False) if each.plan is not None]
    if not pairs or any(each.plan and each.plan.fits for each in variants):
        return None
    enough = [pair for pair in pairs if not quantization.is_low_bit(pair[0].quantization)]
    smallest, its_weights = min(enough or pairs, key=lambda pair: pair[1].total_bytes)
    assert smallest.plan is not None
    shape, machine, _ = planned.args
    return alternatives.find(
        partial(planned, weights=its_weights),
        smallest.plan,
        shape,
        its_weights,
        machine,
        known=known,
        quant=smallest.quantization,
        context=planned.keywords["context"],
        measured=measured,
    )


def from_hub(
    wanted: library.Meaning, found: remote.RemoteModel, machine: Machine, context: int | None, kv_type: str | None
) -> Card:
    """The card of a model on the Hub: one variant's header was read, the others go by their sizes."""
    facts, known = shapes.card(found.header), wanted.known
    variants = []
    pictures = found.repository.projector_bytes
    planned = partial(_planned, found.shape, machine, pictures, context=context, kv_type=kv_type)
    for variant, weights in zip(found.variants, found.weights, strict=True):
        quant, name = variant.quantization, variant.files[0].name
        plan = planned(weights=weights, quant=quant, measured=found.measured)
        variants.append(CardVariant(quant, name, variant.size_bytes, False, plan))
    return Card(
        model=wanted.model,
        name=known.name if known else facts.name or wanted.model,
        repo=found.repository.repo,
        architecture=found.shape.architecture,
        params_b=round(found.shape.params / 1e9, 4),
        active_params_b=round(found.shape.active_params / 1e9, 4) if found.shape.active_params else None,
        context_length=found.shape.context_length,
        license=facts.license or (known.license if known else None),
        languages=known.languages if known else (),
        has_chat_template=facts.has_chat_template,
        embeds=facts.embeds,
        source="hub",
        path=None,
        note=size_note(found.shape.params),
        basis="header",
        variants=tuple(variants),
        commit=found.repository.commit,
        projector_bytes=pictures,
        instead=_instead_of(variants, planned, found.weights, known, found.measured),
    )


def from_header(found: library.Found, context: int | None, kv_type: str | None, beside: library.Meaning | None) -> Card:
    """The card of a model whose file is here, and its other quantizations: those that are here, those that the catalog
    knows, and those of the repository `beside`, where the Hub answers.
    """
    from localai import loading, measuring

    header = gguf.read_model(found.paths)
    facts, shape, weights = shapes.card(header), shapes.shape(header), shapes.weights(header)
    measured = measuring.measure_here(shape, found.paths)
    machine, pictures = hardware.detect(), projector_bytes(loading.projector_of(found))
    planned = partial(_planned, shape, machine, pictures, context=context, kv_type=kv_type)
    known = catalog.resolve_name(found.name)
    size = sum(path.stat().st_size for path in found.paths)
    quant = found.model.quantization if found.model else shapes.quantization(header)
    plan = planned(weights=weights, measured=measured)
    variants = [CardVariant(quant, found.path.name, size, found.model is not None, plan)]
    if found.model is not None:
        variants += _installed_beside(found.model, planned)
        there = from_catalog(known, None, context, kv_type, machine).variants if known else ()
        if beside is not None:
            there = tuple(_on_hub(beside, planned, header.data_offset, (weights, quant)))
        here = {each.quantization for each in variants}
        variants += [each for each in there if each.quantization not in here]
    return Card(
        model=found.name,
        name=known.name if known else facts.name or found.name,
        repo=found.model.repo if found.model else None,
        architecture=shape.architecture,
        params_b=round(shape.params / 1e9, 4),
        active_params_b=round(shape.active_params / 1e9, 4) if shape.active_params else None,
        context_length=shape.context_length,
        license=facts.license or (known.license if known else None),
        languages=known.languages if known else (),
        has_chat_template=facts.has_chat_template,
        embeds=facts.embeds,
        source=found.model.source if found.model else "file",
        path=str(found.path),
        note=size_note(shape.params),
        basis="header",
        variants=tuple(variants),
        commit=found.model.commit if found.model else None,
        projector_bytes=pictures,
        instead=_instead_of(variants[:1], planned, [weights], known, measured),
    )


def projector_bytes(path: Path | None) -> int:
    """Bytes of the tensors of a projector that is here, by its header, else of its file; 0 without one."""
    if path is None:
        return 0
    try:
        return sum(tensor.size_bytes for tensor in gguf.read_header(path).tensors)
    except LocalaiError:
        return path.stat().st_size if path.exists() else 0


def _installed_beside(model: InstalledModel, planned: partial[Plan]) -> Iterator[CardVariant]:
    """The other quantizations of a model that are here, planned as it is."""
    for other in library.installed():
        if other.model != model.model or other.quantization == model.quantization:
            continue
        size = sum(file.size_bytes for file in other.files)
        try:
            weights = shapes.weights(gguf.read_model([file.path for file in other.files]))
            plan = planned(weights=weights, quant=other.quantization)
        except LocalaiError:  # what is wrong with it, its own card tells
            plan = None
        yield CardVariant(other.quantization, other.path.name, size, True, plan)


def _on_hub(
    wanted: library.Meaning, planned: partial[Plan], header_bytes: int, read: tuple[Weights, str]
) -> Iterator[CardVariant]:
    """The quantizations of a repository by their sizes and by what was `read` here: weights and their quantization.

    None where the Hub does not answer soon.
    """
    from localai import hub, hub_client

    repo = wanted.repo or ""
    try:
        found = hub_client.within(_HUB_SECONDS, lambda: hub.repository(repo, wanted.revision))
    except (LocalaiError, TimeoutError):
        return
    for variant in naming.variants(found.files):
        size, quant = max(1, variant.size_bytes - header_bytes), variant.quantization
        plan = planned(weights=sizes.weights_like(*read, planned.args[0], size, quant), quant=quant)
        yield CardVariant(quant, variant.files[0].name, variant.size_bytes, False, plan)


def from_catalog(
    known: catalog.CatalogModel,
    selector: str | None,
    context: int | None,
    kv_type: str | None = None,
    machine: Machine | None = None,
) -> Card:
    """The card of a model that is not here, from the catalog's facts; `selector` leaves one of its files."""
    machine = machine or hardware.detect()
    variants, all_weights = [], []
    shape, pictures = sizes.shape_from_catalog(known), sizes.projector_bytes(known)
    planned = partial(_planned, shape, machine, pictures, context=context, kv_type=kv_type)
    for file in known.files:
        if selector is not None and not library.selects(selector, file.quantization, [file.name]):
            continue
        weights = sizes.weights_from_catalog(known, file.quantization)
        plan = planned(weights=weights, quant=file.quantization)
        all_weights.append(weights)
        variants.append(CardVariant(file.quantization, file.name, file.size_bytes, False, plan))
    if selector is not None and not variants:
        have = ", ".join(file.quantization for file in known.files)
        raise NotFound(f"the catalog knows no {selector} of {known.id}", f"it knows: {have}")
    return Card(
        model=known.id,
        name=known.name,
        repo=known.repo,
        architecture=known.architecture,
        params_b=known.params_b,
        active_params_b=known.active_params_b,
        context_length=known.context_length,
        license=known.license,
        languages=known.languages,
        has_chat_template=None,
        embeds=known.embedding_only,
        source="catalog",
        path=None,
        note=size_note(int(known.params_b * 1e9)),
        basis="catalog",
        variants=tuple(variants),
        projector_bytes=pictures,
        instead=_instead_of(variants, planned, all_weights, known),
    )
