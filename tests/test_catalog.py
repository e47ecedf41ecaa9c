"""The catalog: every entry is consistent, every name means one model."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai import catalog, quantization
from localai.catalog import CatalogModel

MODELS = catalog.load()
EACH_MODEL = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)


@EACH_MODEL
def test_an_entry_is_consistent(model: CatalogModel) -> None:
    assert re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", model.id)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo)
    assert 0 < model.params_b < 300
    assert model.active_params_b is None or 0 < model.active_params_b < model.params_b
    assert not model.mixture_of_experts or model.active_params_b
    assert model.context_length is None or model.context_length >= 512
    assert model.release is None or re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", model.release)
    assert model.capabilities
    assert model.license
    assert {"repo", "params", "license"} <= set(model.sources)
    assert model.context_length is None or "context" in model.sources
    assert model.shape is None or "arch" in model.sources
    assert all(texts and all(texts) for texts in model.sources.values())


@EACH_MODEL
def test_files_are_named_after_their_quantization(model: CatalogModel) -> None:
    assert model.files
    assert len({file.quantization for file in model.files}) == len(model.files)
    for file in model.files:
        assert file.name == file.names[0]
        assert {quantization.of_filename(name) for name in file.names} == {file.quantization}
        assert quantization.bits(file.quantization)
        assert all(name.endswith(".gguf") and "{" not in name for name in file.names)
        if len(file.names) > 1:
            of = f"-of-{len(file.names):05d}.gguf"
            assert [name[-19:-14] for name in file.names] == [f"{i:05d}" for i in range(1, len(file.names) + 1)]
            assert all(name.endswith(of) for name in file.names)
        assert file.size_bytes is None or file.size_bytes > 10**7
        assert file.evidence in {"catalog", "bytes-known", "seen-in-code", "pattern"}


@EACH_MODEL
def test_every_model_has_a_file_of_at_least_four_bits(model: CatalogModel) -> None:
    assert any(not quantization.is_low_bit(file.quantization) for file in model.files)


@EACH_MODEL
def test_a_shape_agrees_with_itself(model: CatalogModel) -> None:
    shape = model.shape
    if shape is None:
        return
    assert shape.basis == "catalog"
    assert len(shape.kv_heads) == shape.n_layers
    assert len(shape.sliding_layers) in (0, shape.n_layers)
    assert bool(shape.sliding_layers) == (shape.sliding_window is not None)
    assert all(heads for heads, slides in zip(shape.kv_heads, shape.sliding_layers, strict=False) if slides)
    assert shape.params == round(model.params_b * 1e9)


@EACH_MODEL
def test_a_mixture_says_how_many_experts_it_has_and_uses(model: CatalogModel) -> None:
    """Without it they are not left in RAM beside a GPU that is too small."""
    if model.mixture_of_experts and model.shape is not None:
        assert 0 < model.shape.expert_used_count < model.shape.expert_count


@EACH_MODEL
def test_what_a_single_file_repository_does_not_hold_is_not_listed(model: CatalogModel) -> None:
    if re.search(r"qat|gpt-oss|Qwen3-(0\.6|1\.7)B-GGUF", model.repo):
        assert len(model.files) == 1


def test_every_name_means_one_model() -> None:
    names = Counter(name for model in MODELS for name in {model.id, *model.aliases})
    assert [name for name, count in names.items() if count > 1] == []
    assert all(name == name.lower() for name in names)
    repos = Counter(repo.lower() for model in MODELS for repo in {model.repo, *model.alternative_repos})
    assert [repo for repo, count in repos.items() if count > 1] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "llama3.2:3b": "llama-3.2-3b",
        "llama3.2": "llama-3.2-3b",
        "Llama3.2:latest": "llama-3.2-3b",
        "llama3.2:1b": "llama-3.2-1b",
        "llama3.1:8b": "llama-3.1-8b",
        "llama3:8b": "llama-3-8b",
        "gemma3:12b": "gemma-3-12b",
        "gemma3": "gemma-3-4b",
        "qwen3:0.6b": "qwen3-0.6b",
        "qwen3:4b": "qwen3-4b",
        "QWEN3-4B": "qwen3-4b",
        "library/phi4": "phi-4",
        "phi4-mini": "phi-4-mini",
        "mistral": "mistral-7b-v0.3",
        "mistral:7b": "mistral-7b-v0.3",
        "mistral-small": "mistral-small-3.2-24b",
        "gpt-oss:20b": "gpt-oss-20b",
        "smollm2:135m": "smollm2-135m",
        "smollm2:360m": "smollm2-360m",
        "nomic-embed-text": "nomic-embed-text-v1.5",
        " smollm2-135m ": "smollm2-135m",
    }.items(),
)
def test_names_that_users_know_are_understood(name: str, expected: str) -> None:
    model = catalog.resolve_name(name)
    assert model is not None
    assert model.id == expected


def test_an_unknown_name_is_none_with_the_nearest_offered() -> None:
    assert catalog.resolve_name("lama3.2") is None
    assert "llama3.2" in catalog.nearest("lama3.2")
    assert catalog.nearest("qwen3-4") != ()
    assert catalog.nearest("") == ()
    assert catalog.nearest("zzzzzzzz") == ()


def test_a_repository_is_found_whatever_its_case_and_by_a_copy_of_another_publisher() -> None:
    assert (found := catalog.by_repo("bartowski/smollm2-135m-instruct-gguf")) is not None
    assert found.id == "smollm2-135m"
    assert (copy := catalog.by_repo("unsloth/Qwen3-0.6B-GGUF")) is not None
    assert copy.id == "qwen3-0.6b"
    assert catalog.by_repo("someone/else") is None


@pytest.mark.parametrize("name", ["gemini-nano", "Gemini Nano", "deepseek-v3", "deepseek-v3:671b", "DeepSeek-V3.1"])
def test_models_that_cannot_be_had_say_why_and_what_instead(name: str) -> None:
    why = catalog.unavailable(name)
    assert why is not None
    instead = why.partition("; instead: ")[2].split(" or ")
    assert all(catalog.resolve_name(each) for each in instead)
    assert catalog.resolve_name(name) is None


def test_models_that_can_be_had_are_not_refused() -> None:
    assert [model.id for model in MODELS if catalog.unavailable(model.id)] == []


@given(st.text(max_size=400))
def test_any_name_is_answered(name: str) -> None:
    catalog.resolve_name(name)
    catalog.unavailable(name)
    assert len(catalog.nearest(name)) <= 3


def test_sampling_holds_only_what_the_makers_say() -> None:
    allowed = {"temperature", "top_k", "top_p", "min_p", "repeat_penalty"}
    for model in MODELS:
        assert {name for name, _ in model.sampling} <= allowed
        assert bool(model.sampling) == ("sampling" in model.sources)


def test_the_installed_engine_knows_every_architecture() -> None:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent
    library = next(path for path in sorted(folder.rglob("*llama.*")) if path.suffix in (".so", ".dylib", ".dll"))
    content = library.read_bytes()
    assert [model.id for model in MODELS if model.architecture.encode() + b"\0" not in content] == []
