"""What `list` tells of each installed model beyond its record: its parameters, and how it would run here.

The facts of a model's header are kept beside its record, so that a thousand models are listed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from localai import estimate, gguf, records, shapes
from localai.domain import InstalledModel, Machine, Plan, Shape, Weights
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
        plan = estimate.plan(facts.shape, facts.weights, machine) if facts else None
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


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int and value >= 0,
    "int | None": lambda value: value is None or (type(value) is int and value >= 0),
    "tuple[int, ...]": lambda value: isinstance(value, list) and all(type(each) is int for each in value),
    "tuple[bool, ...]": lambda value: isinstance(value, list) and all(type(each) is bool for each in value),
    "tuple[tuple[str, int], ...]": lambda value: (
        isinstance(value, list)
        and all(isinstance(each, list) and [type(part) for part in each] == [str, int] for each in value)
    ),
}

_FIELD_CHECKS: Mapping[type, Mapping[str, Callable[[Any], bool]]] = {
    Shape: {each.name: _CHECKS[str(each.type)] for each in fields(Shape)},
    Weights: {each.name: _CHECKS[str(each.type)] for each in fields(Weights)},
}


def _from_json(raw: Mapping[str, Any]) -> Facts | None:
    """The facts of a kept note; None for one that this version did not write."""
    try:
        facts = Facts(_made(Shape, raw["shape"]), _made(Weights, raw["weights"]))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return facts if facts.shape.n_layers > 0 else None


def _made(kind: type[Made], raw: Any) -> Made:
    """A `kind` from its fields. Raises AttributeError, TypeError, KeyError or ValueError for anything else."""
    checks = _FIELD_CHECKS[kind]
    if raw.keys() != checks.keys() or not all(checks[name](value) for name, value in raw.items()):
        raise ValueError(f"not the fields of {kind.__name__}")
    return kind(**{name: _frozen(value) for name, value in raw.items()})


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
