"""Which variant of a repository to take, and how it would run here: by its own header, where reading that is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localai import estimate, hub, hub_client, library, naming, recommend, sizes
from localai.catalog import CatalogModel
from localai.domain.files import Variant
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.shape import Shape, Weights
from localai.domain.units import MIB
from localai.errors import EngineError, LocalaiError, NotFound

# A header has 1 to 16 MB. Of a file smaller than this that is no small part, and whether it fits is hardly in doubt.
WORTH_READING_BYTES = 256 * MIB
_HEADER_SECONDS = 6.0  # a Hub that is slower than this gets the download going; the plan then goes by sizes


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant and its plan; `why` it was taken, "" where the user chose it.

    `fault` says what is wrong with its header, where it was read and is no language model's: a plan by its size alone
    is then worth little.
    """

    variant: Variant
    plan: Plan
    why: str
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """What a header said: its numbers, or its fault, or neither where it was not read."""

    numbers: tuple[Shape, Weights] | None = None
    fault: str | None = None


def choose(text: str, wanted: library.Meaning, found: hub.Repository, machine: Machine) -> Choice:
    """The variant to take for a MODEL argument: the one asked for, else the best that fits. Raises NotFound."""
    variants = naming.variants(found.files)
    if not variants:
        raise NotFound(f"{found.repo} holds no GGUF files", "look for a repository whose name ends in -GGUF")
    if wanted.selector is None:
        return _best(found, variants, wanted.known, machine)
    chosen = [
        each
        for each in variants
        if library.selects(wanted.selector, each.quantization, [file.name for file in each.files])
    ]
    if not chosen:
        raise _no_such_variant(wanted, found.repo, variants)
    if len(chosen) > 1:  # of files with the same quantization, one in the repository's top folder is the plain one
        top = [each for each in chosen if "/" not in each.files[0].name]
        chosen = top if len(top) == 1 else chosen
    if len(chosen) > 1:
        names = ", ".join(each.files[0].name for each in chosen[:6])
        raise NotFound(
            f"{text} could be any of {len(chosen)} files", f"give one by name, as in {found.repo}:FILE: {names}"
        )
    return fitted(found, chosen[0], wanted.known, machine, "")


def fitted(found: hub.Repository, variant: Variant, known: CatalogModel | None, machine: Machine, why: str) -> Choice:
    """One variant as it would run here."""
    by_size = recommend.choose_variant([variant], _shape(known), machine, found.projector_bytes)[1]
    return _planned(found, variant, by_size, _read(found, variant, by_size, machine), machine, why)


def _shape(known: CatalogModel | None) -> Shape | None:
    return sizes.shape_from_catalog(known) if known else None


def _best(found: hub.Repository, variants: Sequence[Variant], known: CatalogModel | None, machine: Machine) -> Choice:
    """By sizes first; the header of that one tells the shape of all, by which to choose again."""
    projector_bytes = found.projector_bytes
    first, plan, reason = recommend.choose_variant(variants, _shape(known), machine, projector_bytes)
    variant, read = first, _read(found, first, plan, machine)
    if read.numbers is not None:
        variant, plan, reason = recommend.choose_variant(variants, read.numbers[0], machine, projector_bytes)
        read = read if variant is first else _read(found, variant, plan, machine)
    return _planned(found, variant, plan, read, machine, f"taking {variant.quantization}: {reason}")


def _planned(found: hub.Repository, variant: Variant, by_size: Plan, read: _Read, machine: Machine, why: str) -> Choice:
    if read.numbers is None:
        return Choice(variant, by_size, why, read.fault)
    shape, weights = read.numbers
    plan = estimate.plan(shape, weights, machine, quant=variant.quantization, projector_bytes=found.projector_bytes)
    return Choice(variant, plan, why)


def _read(found: hub.Repository, variant: Variant, by_size: Plan, machine: Machine) -> _Read:
    """The header of a variant, kept by commit once it was read; a Hub that does not give it is no reason to fail."""
    in_doubt = WORTH_READING_BYTES <= variant.size_bytes <= by_size.available_bytes
    if not in_doubt or (machine.disk.free_bytes or variant.size_bytes) < variant.size_bytes:
        return _Read()  # nothing that its header says changes whether it fits
    from localai import remote

    def read() -> tuple[Shape, Weights]:
        return remote.remote_shape(found.repo, found.commit, variant.files)

    try:
        return _Read(hub_client.within(_HEADER_SECONDS, read))
    except EngineError as error:
        return _Read(fault=error.message)
    except (LocalaiError, TimeoutError):  # whatever it is, the download meets it too, and says so better
        return _Read()


def _no_such_variant(wanted: library.Meaning, repo: str, variants: Sequence[Variant]) -> NotFound:
    have = ", ".join(dict.fromkeys(each.quantization for each in variants))
    others = [other for other in (wanted.known.alternative_repos if wanted.known else ()) if other != repo]
    hint = f"it has {have}" + (f"; or: localai pull {others[0]}:{wanted.selector}" if others else "")
    return NotFound(f"{repo} has no {wanted.selector}", hint)
