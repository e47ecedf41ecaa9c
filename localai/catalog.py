"""The models we know: what they are, where their GGUF files are, and what a name means.

The facts are in `data/catalog.json`, each with its source. What no source gives is None, never a guess.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from localai.domain.shape import Shape

_STATE_SIZE = 128  # Mamba-2 and gated delta-net state per channel in llama.cpp's hybrid models (ssm.state_size)
_CONV_KERNEL = 4  # ssm.conv_kernel of the same
_NAME_LIMIT = 256
_MOST_NEAR = 3


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """One quantization of a catalog model: its file, or all its shards in order.

    `evidence` says how the name is known; `trained_for` is true of a model trained for this quantization.
    """

    quantization: str
    names: tuple[str, ...]
    size_bytes: int | None
    evidence: str
    trained_for: bool = False

    @property
    def name(self) -> str:
        """The file in the repository that llama.cpp is given: the only one, or the first shard."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Quality:
    """A published score, ± `spread`, over so many benchmark `results`; the model's `sources["quality"]` says whose."""

    score: float
    spread: float
    results: int


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model of the catalog. `params_b` and `active_params_b` are billions.

    Not established: `french` None, `languages` empty, `shape` None (no source gives the dimensions). `sampling` holds
    only the values that the model's makers recommend. `sources` maps a fact's group to where it was read.
    """

    id: str
    name: str
    family: str
    publisher: str
    base_repo: str
    repo: str
    alternative_repos: tuple[str, ...]
    aliases: tuple[str, ...]
    architecture: str
    params_b: float
    active_params_b: float | None
    mixture_of_experts: bool
    license: str
    languages: tuple[str, ...]
    languages_note: str | None
    french: bool | None
    context_length: int | None
    context_note: str | None
    release: str | None
    modalities: tuple[str, ...]
    capabilities: tuple[str, ...]
    gated: bool
    files: tuple[CatalogFile, ...]
    projector: str | None
    untied_embedding: bool | None
    shape: Shape | None
    sampling: tuple[tuple[str, float], ...]
    sources: Mapping[str, tuple[str, ...]] = field(hash=False, compare=False)
    notes: str | None = None
    quality: Quality | None = None

    @property
    def embedding_only(self) -> bool:
        """Whether the model gives vectors and no text."""
        return self.capabilities == ("embedding",)

    def file(self, quantization: str) -> CatalogFile | None:
        """The file of that quantization (case-insensitive), None where the catalog knows none."""
        wanted = quantization.upper()
        return next((file for file in self.files if file.quantization == wanted), None)


@dataclass(frozen=True, slots=True)
class _Catalog:
    models: tuple[CatalogModel, ...]
    by_name: Mapping[str, CatalogModel]
    by_repo: Mapping[str, CatalogModel]
    unavailable: tuple[tuple[tuple[str, ...], str], ...]


def load() -> tuple[CatalogModel, ...]:
    """Every model of the catalog, read once."""
    return _catalog().models


def resolve_name(name: str) -> CatalogModel | None:
    """The model of that id or alias (case-insensitive; `:latest` and Ollama's `library/` may be there), or None."""
    return _catalog().by_name.get(_key(name))


def by_repo(repo: str) -> CatalogModel | None:
    """The model whose weights that Hub repository holds (also a copy by another publisher), or None."""
    return _catalog().by_repo.get(repo.strip().lower())


def unavailable(name: str) -> str | None:
    """Why a model known by name cannot be had here, and what to take instead; None for any other name."""
    key = _key(name).replace(" ", "-")
    return next((why for names, why in _catalog().unavailable if key.startswith(names)), None)


def nearest(name: str) -> tuple[str, ...]:
    """Up to three ids and aliases that look like `name`, the nearest first; aliases of one model count once."""
    key = _key(name)[:_NAME_LIMIT]
    known = _catalog().by_name
    close = difflib.get_close_matches(key, known, n=3 * _MOST_NEAR, cutoff=0.6)
    close += [each for each in known if key and len(key) > 2 and key in each]
    first_of_model: dict[str, str] = {}
    for each in close:
        first_of_model.setdefault(known[each].id, each)
    return tuple(first_of_model.values())[:_MOST_NEAR]


def _key(name: str) -> str:
    return name.strip().lower().removeprefix("library/").removesuffix(":latest")


@cache
def _catalog() -> _Catalog:
    raw = json.loads(resources.files("localai").joinpath("data/catalog.json").read_bytes())
    models = tuple(_model(each, raw["sources"]) for each in raw["models"])
    by_name = {name: model for model in models for name in model.aliases}
    by_name |= {model.id: model for model in models}
    repos = {repo.lower(): model for model in models for repo in model.alternative_repos}
    repos |= {model.repo.lower(): model for model in models}
    refusals = tuple(
        (tuple(each["names"]), f"{each['reason']}; instead: {' or '.join(each['instead'])}")
        for each in raw["unavailable"]
    )
    return _Catalog(models, by_name, repos, refusals)


def _model(raw: Mapping[str, Any], sources: Mapping[str, str]) -> CatalogModel:
    return CatalogModel(
        id=raw["id"],
        name=raw["name"],
        family=raw["family"],
        publisher=raw["publisher"],
        base_repo=raw["base_repo"],
        repo=raw["repo"],
        alternative_repos=tuple(raw["alternative_repos"]),
        aliases=tuple(raw["aliases"]),
        architecture=raw["architecture"],
        params_b=raw["params_b"],
        active_params_b=raw["active_params_b"],
        mixture_of_experts=raw["mixture_of_experts"],
        license=raw["license"],
        languages=tuple(raw["languages"] or ()),
        languages_note=raw["languages_note"],
        french=raw["french"],
        context_length=raw["context_length"],
        context_note=raw["context_note"],
        release=raw["release"],
        modalities=tuple(raw["modalities"]),
        capabilities=tuple(raw["capabilities"]),
        gated=raw["gated"],
        files=tuple(_file(each) for each in raw["files"]),
        projector=raw["projector"],
        untied_embedding=raw.get("untied_embedding"),
        shape=_shape(raw),
        sampling=tuple((raw["sampling"] or {}).items()),
        sources={fact: tuple(sources[key] for key in keys) for fact, keys in raw["sources"].items()},
        notes=raw["notes"],
        quality=Quality(**raw["quality"]) if raw.get("quality") else None,
    )


def _file(raw: Mapping[str, Any]) -> CatalogFile:
    return CatalogFile(
        raw["quantization"], tuple(raw["names"]), raw["size_bytes"], raw["evidence"], raw.get("trained_for", False)
    )


def _shape(raw: Mapping[str, Any]) -> Shape | None:
    """The dimensions as `Shape`: windows and caches are spread evenly over the layers, their counts are exact."""
    facts = raw["shape"]
    if facts is None:
        return None
    layers, caches, windows = facts["n_layers"], facts["cache_layers"], facts["window_layers"]
    shared = facts.get("shared_kv_layers", 0)
    has_cache = _spread(caches, layers - shared) + (False,) * shared
    is_full = iter(_spread(caches - windows, caches))
    sliding = tuple(not next(is_full) if cached else False for cached in has_cache)
    recurrent = layers - shared - caches if facts["kv_heads"] else 0
    return Shape(
        architecture=raw["architecture"],
        params=round(raw["params_b"] * 1e9),
        n_layers=layers,
        embedding_length=facts["hidden"],
        vocab_size=facts["vocab"],
        kv_heads=tuple(facts["kv_heads"] if cached else 0 for cached in has_cache),
        key_length=facts["key_length"],
        value_length=facts["value_length"],
        context_length=raw["context_length"],
        sliding_window=facts.get("window"),
        sliding_layers=sliding if windows else (),
        swa_kv_heads=facts.get("window_kv_heads"),
        swa_key_length=facts.get("window_key_length"),
        swa_value_length=facts.get("window_key_length"),
        latent_kv=facts.get("latent_kv", False),
        recurrent_state_bytes=_recurrent_state(raw["architecture"], recurrent, facts["hidden"]),
        expert_count=facts.get("experts") or 0,
        expert_used_count=facts.get("experts_used") or 0,
        active_params=round(raw["active_params_b"] * 1e9) if raw["active_params_b"] else None,
        basis="catalog",
    )


def _spread(some: int, among: int) -> tuple[bool, ...]:
    """`some` of `among` places, evenly, the last one of each stretch."""
    return tuple((i + 1) * some // among > i * some // among for i in range(among)) if among else ()


def _recurrent_state(architecture: str, layers: int, hidden: int | None) -> int:
    """Bytes of the fixed F32 state of recurrent layers; an upper estimate, since the catalog has no `ssm.*` facts.

    Short convolutions (LFM2: l_cache 3) keep 2 × hidden; the others conv (k − 1)(inner + 2·group·state) and
    inner × state values (llama.cpp, `llama_hparams::n_embd_r` and `n_embd_s`), with inner ≤ 2 × hidden, 16 groups.
    """
    if not layers or not hidden:
        return 0
    if architecture.startswith("lfm2"):
        return layers * 2 * hidden * 4
    inner = 2 * hidden
    return layers * 4 * ((_CONV_KERNEL - 1) * (inner + 2 * 16 * _STATE_SIZE) + inner * _STATE_SIZE)
