"""What `list` tells of each installed model beyond its record: its parameters, and how it would run here.

The facts of a model's header are kept beside its record, so that a thousand models are listed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from localai import estimate, gguf, records, shapes
from localai.domain.files import InstalledModel
from localai.domain.machine import Machine
from localai.domain.plan import Plan
from localai.domain.shape import Shape, Weights
from localai.errors import LocalaiError

Made = TypeVar("Made", Shape, Weights)


@dataclass(frozen=True, slots=True)
class Facts:
    """The numbers of a model's header that memory and speed follow from."""

    shape: Shape
    weights: Weights


@dataclass(frozen=True, slots=True)
class Entry:
    """An installed model and how it would run here; `facts` and `plan` None where its header cannot be read."""

    model: InstalledModel
    facts: Facts | None
    plan: Plan | None

    @property
    def params_b(self) -> float | None:
        return round(self.facts.shape.params / 1e9, 4) if self.facts else None

    @property
    def active_params_b(self) -> float | None:
        return round(self.facts.shape.active_params / 1e9, 4) if self.facts and self.facts.shape.active_params else None


def entries(models: Iterable[InstalledModel], machine: Machine) -> tuple[Entry, ...]:
    """Each model with its facts and its plan on `machine`."""
    found, folder = [], str(records.folder())
    for model in models:
        facts = facts_of(model, folder)
        pictures = model.projector.size_bytes if model.projector else 0
        plan = estimate.plan(facts.shape, facts.weights, machine, projector_bytes=pictures) if facts else None
        found.append(Entry(model, facts, plan))
    return tuple(found)


def facts_of(model: InstalledModel, folder: str | None = None) -> Facts | None:
    """The model's facts, as kept, else from its header and kept from now on; None for a header that cannot be read."""
    kept = records.facts(model, folder)
    if kept is not None and (facts := _from_json(kept)) is not None:
        return facts
    try:
        return read_facts(model)
    except LocalaiError:
        return None


def read_facts(model: InstalledModel) -> Facts:
    """The model's facts from its header, kept from now on. Raises EngineError, NotFound for what is no model."""
    header = gguf.read_model([file.path for file in model.files])
    facts = Facts(shapes.shape(header), shapes.weights(header))
    records.keep_facts(model, {"shape": asdict(facts.shape), "weights": asdict(facts.weights)})
    return facts


Reader = Callable[[Any], Any]


@cache
def _readers() -> Mapping[type, Mapping[str, Reader]]:
    """For each field of the dataclasses that are kept, what makes its value of JSON's."""
    kinds = (Shape, Weights)
    return {kind: {name: _reader(each) for name, each in get_type_hints(kind).items()} for kind in kinds}


def _reader(kind: Any) -> Reader:
    """What takes a value of this type from JSON, and raises ValueError for any other."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        (inner,) = (_reader(each) for each in parts if each is not NoneType)
        return lambda value: None if value is None else inner(value)
    if get_origin(kind) is tuple:
        if parts[-1] is ... and parts[0] in (int, bool, str):  # the long ones
            return lambda value: _plain(value, parts[0])
        readers = None if parts[-1] is ... else tuple(_reader(each) for each in parts)
        first = _reader(parts[0])
        return lambda value: _tuple(value, readers or (first,) * len(value))
    return lambda value: _scalar(value, kind)


def _scalar(value: Any, kind: type) -> Any:
    if type(value) is not kind or (type(value) is int and value < 0):
        raise ValueError(f"not a value of {kind.__name__}")
    return value


def _plain(value: Any, kind: type) -> tuple[Any, ...]:
    if type(value) is not list or {kind}.union(map(type, value)) != {kind}:
        raise ValueError(f"not a list of {kind.__name__}")
    return tuple(value)


def _tuple(value: Any, readers: Sequence[Reader]) -> tuple[Any, ...]:
    if type(value) is not list:
        raise ValueError("not a list")
    return tuple(reader(each) for reader, each in zip(readers, value, strict=True))


def _from_json(raw: Mapping[str, Any]) -> Facts | None:
    """The facts of a kept note; None for one that this version did not write."""
    try:
        facts = Facts(_made(Shape, raw["shape"]), _made(Weights, raw["weights"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return facts if facts.shape.n_layers > 0 else None


def _made(kind: type[Made], raw: Any) -> Made:
    """A `kind` from its fields. Raises AttributeError, TypeError, KeyError or ValueError for anything else."""
    readers = _readers()[kind]
    if raw.keys() != readers.keys():
        raise ValueError(f"not the fields of {kind.__name__}")
    return kind(**{name: readers[name](value) for name, value in raw.items()})
