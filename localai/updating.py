"""Newer revisions of what is installed: `localai pull --update`."""

from __future__ import annotations

from collections.abc import Callable

from localai import catalog, choosing, hub, naming, pulling
from localai.domain.files import InstalledModel
from localai.domain.machine import Machine
from localai.errors import NotFound, UsageError
from localai.pulling import PullPlan


def is_updatable(model: InstalledModel) -> bool:
    """Whether the Hub can have something newer: not for what was asked for at one commit, nor for other sources."""
    return model.source == "hub" and model.repo is not None and not naming.COMMIT.fullmatch(model.revision or "")


def plan_update(
    model: InstalledModel,
    machine: Machine,
    reserved_bytes: int = 0,
    on_retry: Callable[[str], None] = lambda line: None,
) -> PullPlan | None:
    """Find out what the newest revision of an installed model takes; None where it is the one installed.

    Raises UsageError for a model that is not `is_updatable`, NotFound where the newest revision no longer has its
    file, else as `plan_pull`.
    """
    if not is_updatable(model) or model.repo is None:
        raise UsageError(
            f"{model.model} has no newer revisions: it is {'pinned' if model.revision else 'not from the Hub'}",
            "localai pull --update without a name looks at all models that may have some",
        )
    found = hub.repository(model.repo, model.revision, on_retry)
    if found.commit == model.commit:
        return None
    variants = naming.variants(found.files)
    same = [each for each in variants if each.files[0].name == model.files[0].name]
    same = same or [each for each in variants if each.quantization == model.quantization]
    if len(same) != 1:
        raise NotFound(
            f"{model.repo} at {found.commit[:12]} no longer has {model.files[0].name}",
            f"the installed one stays; localai show {model.repo} lists what there is now",
        )
    why = f"a newer revision of {model.model}: {found.commit[:12]} instead of {(model.commit or 'none')[:12]}"
    choice = choosing.fitted(found, same[0], catalog.by_repo(model.repo), machine, why)
    return pulling.planned(model.model, found, model.revision, choice, reserved_bytes, found.projector)
