"""The JSON of what is on this disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localai.domain.files import InstalledModel
from localai.schema.models import fit

if TYPE_CHECKING:
    from localai.discovering import Candidate
    from localai.importing import Duplicate
    from localai.inventory import Entry
    from localai.manifests import Pinned
    from localai.pruning import Leftover
    from localai.verifying import ModelCheck

Json = dict[str, Any]


def installed_model(model: InstalledModel) -> Json:
    """One entry of `list --json`; `sha256` is that of the first file, `files` has them all."""
    return {
        "model": model.model,
        "repo": model.repo,
        "commit": model.commit,
        "file": model.files[0].name,
        "path": str(model.path),
        "quantization": model.quantization,
        "size_bytes": model.size_bytes,
        "sha256": model.files[0].sha256,
        "verified_at": model.verified_at,
        "last_used_at": model.last_used_at,
        "source": model.source,
        "read_only": model.read_only,
        "files": [
            {"file": each.name, "path": str(each.path), "size_bytes": each.size_bytes, "sha256": each.sha256}
            for each in model.all_files
        ],
    }


def installed_models(models: Sequence[InstalledModel]) -> Json:
    return {"models": [installed_model(model) for model in models]}


def inventory(entries: Sequence[Entry]) -> Json:
    """`list --json`."""
    return {"models": [inventory_entry(each) for each in entries]}


def inventory_entry(entry: Entry) -> Json:
    """One entry of `list --json`: an installed model, and how it would run here."""
    return {
        **installed_model(entry.model),
        "params_b": entry.params_b,
        "active_params_b": entry.active_params_b,
        "fit": None if entry.plan is None else fit(entry.plan),
    }


def model_check(check: ModelCheck) -> Json:
    """One entry of `verify --json`."""
    return {
        "model": check.model.model,
        "repo": check.model.repo,
        "quantization": check.model.quantization,
        "source": check.model.source,
        "ok": check.sound,
        "files": [
            {
                "file": each.file.name,
                "path": str(each.file.path),
                "size_bytes": each.file.size_bytes,
                "sha256": each.file.sha256,
                "ok": each.problem is None,
                "problem": each.problem,
            }
            for each in check.files
        ],
        "remedy": check.remedy,
    }


def leftover(found: Leftover) -> Json:
    """One entry of `prune --json`."""
    return {
        "kind": found.kind.name.lower(),
        "path": str(found.path),
        "size_bytes": found.size_bytes,
        "model": found.model.model if found.model else None,
    }


def candidate(found: Candidate | Pinned) -> Json:
    """One entry of `candidates` of `import --dry-run --json`."""
    return {"model": found.model, "quantization": found.quantization, "size_bytes": found.size_bytes}


def duplicate(found: Duplicate) -> Json:
    """One entry of `duplicates` of `import --json`."""
    return {
        "model": found.model,
        "path": str(found.path),
        "same_as": found.same_as,
        "same_path": str(found.same_path),
        "costs_bytes": found.costs_bytes,
    }
