"""The JSON that commands answer with: the fixed keys of `docs/json.md`, from the dataclasses. Pure functions."""

from __future__ import annotations

from localai.schema.answers import answer, failure, record
from localai.schema.installed import (
    candidate,
    duplicate,
    installed_model,
    installed_models,
    inventory,
    leftover,
    model_check,
)
from localai.schema.machines import finding, listed_machine, machine, tier_row
from localai.schema.measured import bench, calibration, past_run, tuning
from localai.schema.models import card, found_model, recommendation

__all__ = [
    "answer",
    "bench",
    "calibration",
    "candidate",
    "card",
    "duplicate",
    "failure",
    "finding",
    "found_model",
    "installed_model",
    "installed_models",
    "inventory",
    "leftover",
    "listed_machine",
    "machine",
    "model_check",
    "past_run",
    "recommendation",
    "record",
    "tier_row",
    "tuning",
]
