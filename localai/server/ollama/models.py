"""What Ollama's form tells of models: the installed ones, those in memory, and what is in a file."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from localai import catalog, gguf, loading, shapes
from localai.domain.files import InstalledModel
from localai.engine import thinking
from localai.holding import Held
from localai.library import Found
from localai.server.forms import Json
from localai.server.generating import Dispatcher

UNKNOWN_TIME = "1970-01-01T00:00:00Z"
FOR_EVER_S = 3.15e9  # a hundred years


def facts(model: InstalledModel | None) -> Json:
    """The `details` of a model; of a file of the user's (None) only what every one is."""
    if model is None:
        return {"format": "gguf"}
    known = catalog.resolve_name(model.model)
    return {
        "format": "gguf",
        "family": known.architecture if known else "",
        "families": [known.architecture] if known else [],
        "parameter_size": f"{known.params_b:.3g}B" if known else "",
        "quantization_level": model.quantization,
        "parent_model": "",
    }


def all_listed(dispatcher: Dispatcher) -> list[Json]:
    """The model that is served, where it is a file, and the installed ones."""
    found = dispatcher.unlisted()
    return [*([listed_file(found)] if found is not None else []), *(listed(*each) for each in dispatcher.installed())]


def listed(name: str, model: InstalledModel) -> Json:
    """An installed model in /api/tags."""
    return {
        "name": name,
        "model": name,
        "modified_at": model.verified_at or UNKNOWN_TIME,
        "size": model.size_bytes,
        "digest": model.files[0].sha256,
        "details": facts(model),
    }


def listed_file(found: Found) -> Json:
    """A file that is served without being installed, in /api/tags."""
    size = sum(path.stat().st_size for path in found.paths if path.exists())
    return {
        "name": found.name,
        "model": found.name,
        "modified_at": UNKNOWN_TIME,
        "size": size,
        "digest": "",
        "details": facts(None),
    }


def held(each: Held) -> Json:
    """A model in memory, in /api/ps."""
    left = each.expires_in_s
    until = datetime.now(UTC) + timedelta(seconds=FOR_EVER_S if left is None else left)
    model = each.found.model
    return {
        "name": each.name,
        "model": each.name,
        "size": each.memory_bytes,
        "size_vram": each.memory_bytes if each.plan.gpu_layers else 0,
        "digest": model.files[0].sha256 if model else "",
        "details": facts(model),
        "expires_at": until.isoformat().replace("+00:00", "Z"),
        "context_length": each.plan.context,
    }


def abilities(found: Found, header: gguf.Header) -> list[str]:
    """What a model can, by its header and its chat template."""
    if not shapes.makes_text(header):
        return ["embedding"]
    template = str(header.metadata.get("tokenizer.chat_template", ""))
    return [
        "completion",
        *(["vision"] if loading.projector_of(found) else []),
        *(["tools"] if re.search(r"\btools\b", template) else []),
        *(["thinking"] if thinking.opening(template) or thinking.CHANNEL in template else []),
    ]


def shown(found: Found) -> Json:
    """What /api/show tells, from the header of the model's file. Raises as `gguf.read_model` does."""
    model = found.model
    header = gguf.read_model(found.paths)
    known = catalog.resolve_name(model.model) if model else None
    family = str(header.metadata.get("general.architecture", ""))
    simple = {
        key: value
        for key, value in header.metadata.items()
        if isinstance(value, str | int | float | bool) and not key.startswith("tokenizer.")
    }
    return {
        "modelfile": "",
        "parameters": "",
        "template": str(header.metadata.get("tokenizer.chat_template", "")),
        "license": known.license if known else str(header.metadata.get("general.license", "")),
        "details": {**facts(model), "family": family, "families": [family]},
        "model_info": simple,
        "capabilities": abilities(found, header),
        "modified_at": (model.verified_at if model else None) or UNKNOWN_TIME,
    }
