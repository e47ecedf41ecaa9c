"""A model's card: what it is and how it would run here, from its header where the file is here, else the catalog."""

from __future__ import annotations

from dataclasses import dataclass

from localai import catalog, estimate, gguf, hardware, library, shapes
from localai.domain import Plan
from localai.errors import NotFound


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
    """What `localai show` tells. `basis` is "header" (exact) or "catalog" (from published facts)."""

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

    @property
    def plan(self) -> Plan | None:
        """The plan of the one variant, where the card is of one file."""
        return self.variants[0].plan if len(self.variants) == 1 else None


def size_note(params: int) -> str | None:
    """What to say plainly of a model of that many parameters before anybody trusts its answers; None of larger ones."""
    if params >= 500_000_000:
        return None
    return "a very small model: good for trying things out, often wrong"


def card(name: str, context: int | None = None) -> Card:
    """The card of an installed model, a .gguf file, or a model of the catalog.

    Opens no connection. Raises NotFound for a name that is none of these, EngineError for a file that is no model.
    """
    try:
        found = library.find(name)
    except NotFound as error:
        wanted = library.meaning(name)
        if wanted.known is None:
            raise error from None
    else:
        return from_header(found, context)
    return from_catalog(wanted.known, wanted.selector, context)


def from_header(found: library.Found, context: int | None) -> Card:
    """The card of a model whose file is here."""
    header = gguf.read_model([file.path for file in found.model.files] if found.model else [found.path])
    facts, shape, weights = shapes.card(header), shapes.shape(header), shapes.weights(header)
    plan = estimate.plan(shape, weights, hardware.detect(), context=context)
    known = catalog.resolve_name(found.name)
    size = found.model.size_bytes if found.model else found.path.stat().st_size
    quantization = found.model.quantization if found.model else shapes.quantization(header)
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
        source=found.model.source if found.model else "file",
        path=str(found.path),
        note=size_note(shape.params),
        basis="header",
        variants=(CardVariant(quantization, found.path.name, size, found.model is not None, plan),),
    )


def from_catalog(known: catalog.CatalogModel, selector: str | None, context: int | None) -> Card:
    """The card of a model that is not here, from the catalog's facts; `selector` leaves one of its files."""
    machine = hardware.detect()
    variants = []
    for file in known.files:
        if selector is not None and not library.selects(selector, file.quantization, [file.name]):
            continue
        plan = None
        if known.shape is not None:
            weights = estimate.weights_from_catalog(known, file.quantization)
            plan = estimate.plan(known.shape, weights, machine, context=context)
        variants.append(CardVariant(file.quantization, file.name, file.size_bytes, False, plan))
    if selector is not None and not variants:
        have = ", ".join(file.quantization for file in known.files)
        raise NotFound(f"the catalog knows no {selector} of {known.id}", f"it knows: {have}")
    return Card(
        model=known.id,
        name=known.name,
        repo=known.repo,
        architecture=known.shape.architecture if known.shape else None,
        params_b=known.params_b,
        active_params_b=known.active_params_b,
        context_length=known.context_length,
        license=known.license,
        languages=known.languages,
        has_chat_template=None,
        source="catalog",
        path=None,
        note=size_note(int(known.params_b * 1e9)),
        basis="catalog",
        variants=tuple(variants),
    )
