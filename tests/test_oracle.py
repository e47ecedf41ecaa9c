"""The closed forms and llama.cpp's own reckoning, each held against the other; and a child process that can die."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import Typed, gguf_bytes, sparse, write
from model_headers import (
    MODELS,
    Model,
    attention,
    deepseek2_layer,
    dense,
    llama_layer,
    metadata,
    mixtral_layer,
    named,
    qwen3_layer,
    tensors,
    write_sparse,
)
from real_model import model_file
from remote_models import vocabulary

from localai import buffers, estimate, gguf, measuring, shapes
from localai.domain.shape import Shape
from localai.domain.units import MIB
from localai.engine import oracle
from localai.engine.oracle import HeaderFile, Reading, Setting
from localai.errors import EngineError
from localai.machines import hypothetical

CONTEXTS = (512, 4096, 16384, 131072)
SETTINGS = [Setting(context, kind) for context in CONTEXTS for kind in ("f16", "q8_0", "q4_0")]
SETTINGS += [Setting(8192, ubatch=128), Setting(8192, ubatch=2048), Setting(300), Setting(8192, "bf16")]
SETTINGS += [Setting(65536, "f32")]


def arcee_layer(m: Model, i: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Without a gate."""
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length")
    yield from attention(m, i)
    yield "ffn_norm.weight", (d,)
    yield "ffn_up.weight", (d, ff)
    yield "ffn_down.weight", (ff, d)


def deepseek32_layer(m: Model, i: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Latent attention to what an indexer chooses."""
    d, heads, size, rank = m.dim("embedding_length"), *(m.dim(f"attention.{key}") for key in INDEXER)
    yield from deepseek2_layer(m, i)
    yield "indexer.k_norm.weight", (size,)
    yield "indexer.k_norm.bias", (size,)
    yield "indexer.proj.weight", (d, heads)
    yield "indexer.attn_k.weight", (d, size)
    yield "indexer.attn_q_b.weight", (rank, heads * size)


def grok_layer(m: Model, i: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    d = m.dim("embedding_length")
    yield from mixtral_layer(m, i)
    yield "attn_output_norm.weight", (d,)
    yield "post_ffw_norm.weight", (d,)


DEEPSEEK32 = Model(
    "deepseek-v3.2-like",
    "deepseek32",
    dense(12, 5120, 12288, 64, 1, 576)
    | {"expert_count": 64, "expert_used_count": 8, "expert_feed_forward_length": 1536, "expert_shared_count": 1}
    | {"leading_dense_block_count": 3, "expert_weights_scale": 2.5, "expert_weights_norm": True}
    | {"expert_gating_func": 2, "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512}
    | {"attention.value_length": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128}
    | {"rope.dimension_count": 64, "attention.indexer.head_count": 64, "attention.indexer.key_length": 128}
    | {"attention.indexer.top_k": 2048},
    deepseek32_layer,
    129280,
)
INDEXER = ("indexer.head_count", "indexer.key_length", "q_lora_rank")

# What the table of docs/accuracy.md has nothing like.
ODD = (
    Model("one-kv-head-of-80", "llama", dense(19, 1152, 3001, 7, 1, 80), llama_layer, 32003),
    Model("wide-heads", "qwen3", dense(7, 768, 1536, 64, 1, 256), qwen3_layer, 32000),
    Model("afm-4.5b", "arcee", dense(36, 2560, 18432, 20, 4, 128), arcee_layer, 128004),
    Model(
        "qwen3-vl-8b",
        "qwen3vl",
        dense(36, 4096, 12288, 32, 8, 128) | {"rope.dimension_sections": (24, 20, 20, 0), "n_deepstack_layers": 3},
        qwen3_layer,
        151936,
    ),
    Model(
        "grok-like",
        "grok",
        dense(8, 6144, 32768, 48, 8, 128) | {"expert_count": 8, "expert_used_count": 2},
        grok_layer,
        131072,
        tied=True,
    ),
)


def file_of(path: Path) -> HeaderFile:
    header = gguf.read_header(path)
    return HeaderFile(path, header.data_offset, header.file_size)


@pytest.mark.parametrize("model", [*MODELS, *ODD], ids=lambda model: model.name)
def test_the_closed_forms_are_what_llama_cpp_reserves(model: Model, tmp_path: Path) -> None:
    path = write_sparse(tmp_path, model)
    header = gguf.read_header(path)
    shape, weights = shapes.shape(header), shapes.weights(header)
    kinds = {"f16", "bf16"} | ({"q8_0", "q4_0"} if estimate.can_shrink_cache(shape) else set())
    kinds |= {"f32"} if measuring.is_exact(shape) else set()  # what the others convert is asked of llama.cpp
    settings = [each for each in SETTINGS if each.kv_type in kinds]
    for setting, truth in zip(settings, oracle.measure([file_of(path)], settings), strict=True):
        found = estimate.memory(shape, weights, setting.context, setting.kv_type, setting.ubatch)
        assert found.kv_cache_bytes == pytest.approx(truth.kv_cache_bytes, abs=0.05 * MIB), setting
        near = 32 * MIB * max(1, setting.ubatch / 512)
        assert found.compute_bytes == pytest.approx(truth.compute_bytes, rel=0.05, abs=near), setting
        assert weights.total_bytes == truth.weights_bytes
        total = truth.weights_bytes + truth.kv_cache_bytes + truth.compute_bytes
        assert found.total_bytes == pytest.approx(total, rel=0.02, abs=100 * MIB), setting


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-32b", "gemma-3-4b", "smollm2-135m", "phi-4"])
def test_dense_models_are_nearly_exact(name: str, tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named(name))
    shape = shapes.shape(gguf.read_header(path))
    assert measuring.is_exact(shape)
    settings = [Setting(context) for context in CONTEXTS]
    for setting, truth in zip(settings, oracle.measure([file_of(path)], settings), strict=True):
        assert buffers.compute_bytes(shape, setting.context) == pytest.approx(truth.compute_bytes, abs=2 * MIB)


def test_without_flash_attention_and_with_more_outputs(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("llama-3.1-8b"))
    shape = shapes.shape(gguf.read_header(path))
    plain, wide = oracle.measure([file_of(path)], [Setting(32768, flash=False), Setting(8192, outputs=512)])
    assert buffers.compute_bytes(shape, 32768, flash=False) == pytest.approx(plain.compute_bytes, rel=0.01)
    assert buffers.compute_bytes(shape, 8192, outputs=512) == pytest.approx(wide.compute_bytes, rel=0.01)


def test_an_indexer_keeps_keys_of_its_own(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, DEEPSEEK32)
    shape = shapes.shape(gguf.read_header(path))
    settings = [Setting(4096), Setting(4096, "q8_0"), Setting(4096, ubatch=128), Setting(131072)]
    for setting, truth in zip(settings, oracle.measure([file_of(path)], settings), strict=True):
        cache = buffers.kv_cache_bytes(shape, setting.context, setting.kv_type, setting.ubatch)
        assert cache == pytest.approx(truth.kv_cache_bytes, abs=0.05 * MIB)
        if setting.kv_type == "f16":
            compute = buffers.compute_bytes(shape, setting.context, setting.ubatch)
            assert compute == pytest.approx(truth.compute_bytes, rel=0.25)


def test_an_encoder_has_no_logits_and_sees_one_batch() -> None:
    """bge-m3, a batch of 8,192 tokens with a row each: llama.cpp reserves 352.09 MiB, and not 8 GB for a vocabulary."""
    width, layers = 1024, 24
    shape = Shape("bert", 567_000_000, layers, width, 250002, (0,) * layers, 64, 64, 8192, 4096, 16)
    assert buffers.compute_bytes(shape, 8192, 8192, outputs=8192) == pytest.approx(352.09 * MIB, rel=0.01)
    assert buffers.compute_bytes(shape, 8192, 512) == pytest.approx(14.51 * MIB, rel=0.01)


def test_several_sequences(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("gemma-3-4b"))
    shape = shapes.shape(gguf.read_header(path))
    (truth,) = oracle.measure([file_of(path)], [Setting(8192, outputs=4, sequences=4)])
    found = sum(buffers.kv_layers(shape, 8192, "f16", 512, 4))
    assert found == pytest.approx(truth.kv_cache_bytes, abs=0.05 * MIB)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-3-4b", "qwen3-0.6b", "lfm2.5-1.2b"])
def test_several_sequences_with_a_cache_each(name: str, tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named(name))
    header = gguf.read_header(path)
    shape, weights = shapes.shape(header), shapes.weights(header)
    settings = [Setting(2048 * n, outputs=n, sequences=n, unified=False) for n in (4, 32)]
    for setting, truth in zip(settings, oracle.measure([file_of(path)], settings), strict=True):
        found = estimate.memory(shape, weights, 2048, sequences=setting.sequences)
        assert found.kv_cache_bytes == pytest.approx(truth.kv_cache_bytes, rel=0.001), setting
        assert found.compute_bytes == pytest.approx(truth.compute_bytes, rel=0.05, abs=4 * MIB), setting


@pytest.mark.parametrize("quantization", ["Q8_0", "Q4_0", "F16"])
def test_the_quantization_changes_neither_cache_nor_buffers(quantization: str, tmp_path: Path) -> None:
    for name in ("qwen3-0.6b", "gpt-oss-20b"):
        files = [file_of(write_sparse(tmp_path, named(name), each)) for each in ("Q4_K_M", quantization)]
        one, other = (oracle.measure([file], [Setting(8192)])[0] for file in files)
        assert (one.kv_cache_bytes, one.compute_bytes) == (other.kv_cache_bytes, other.compute_bytes)
        assert other.weights_bytes == shapes.weights(gguf.read_header(files[1].path)).total_bytes


def test_the_beginning_of_a_file_is_enough(tmp_path: Path) -> None:
    whole = file_of(write_sparse(tmp_path, named("qwen3-30b-a3b")))
    beginning = tmp_path / "beginning"
    with whole.path.open("rb") as stream:
        beginning.write_bytes(stream.read(whole.header_bytes))
    part = HeaderFile(beginning, whole.header_bytes, whole.size_bytes)
    assert oracle.measure([part], [Setting(4096)]) == oracle.measure([whole], [Setting(4096)])


def test_shards(tmp_path: Path) -> None:
    model, files = named("smollm2-135m"), []
    table = tensors(model, "Q8_0")
    for number, part in enumerate((table[:100], table[100:])):
        facts = {
            "split.no": uint16(number),
            "split.count": uint16(2),
            "split.tensors.count": Typed(5, int32(len(table))),
        }
        whole = metadata(model) if number == 0 else {"general.architecture": "llama"}
        files.append(file_of(write(tmp_path, gguf_bytes({**whole, **facts}, part), f"part-{number}.gguf")))
    one = file_of(write_sparse(tmp_path, model, "Q8_0"))
    assert oracle.measure(files, [Setting(512)]) == oracle.measure([one], [Setting(512)])
    with pytest.raises(EngineError):
        oracle.measure(files[:1], [Setting(512)])


def uint16(value: int) -> Typed:
    return Typed(2, struct.pack("<H", value))


def int32(value: int) -> bytes:
    return struct.pack("<i", value)


def test_a_real_file_with_its_vocabulary() -> None:
    path = model_file()
    header = gguf.read_header(path)
    (truth,) = oracle.measure(measuring.header_files([path]), [Setting(2048)])
    found = estimate.memory(shapes.shape(header), shapes.weights(header), 2048)
    assert found.weights_bytes == truth.weights_bytes
    assert found.kv_cache_bytes == truth.kv_cache_bytes
    assert found.compute_bytes == pytest.approx(truth.compute_bytes, abs=MIB)


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "deepseek-v2-lite", "gemma-3-4b", "qwen3.5-4b"])
def test_the_vocabulary_is_left_out_and_changes_nothing(name: str, tmp_path: Path) -> None:
    """Also where the file says another size of it than it has."""
    model = named(name)
    tokens = {"tokenizer.ggml.tokens": vocabulary(model.vocabulary), "tokenizer.ggml.pre": "qwen2"}
    facts = {**metadata(model), **tokens, f"{model.architecture}.vocab_size": 7, "tokenizer.chat_template": "{{ x }}"}
    path = sparse(tmp_path, facts, tensors(model, "Q4_K_M"))
    (given,) = measuring.header_files([path])
    plain = file_of(write_sparse(tmp_path, model))
    assert oracle.measure([given], [Setting(4096)]) == oracle.measure([plain], [Setting(4096)])
    assert given.header is not None
    with path.open("rb") as stream:
        lean = gguf.without_vocabulary(given.header, stream.read(given.header_bytes))
    assert len(lean) < 300_000 < given.header_bytes
    found = gguf.parse(Beginning(lean, given.size_bytes))
    assert shapes.weights(found) == shapes.weights(given.header)
    assert found.metadata[f"{model.architecture}.vocab_size"] == model.vocabulary
    assert found.metadata["tokenizer.chat_template"] == "{{ x }}"


class Beginning:
    """The beginning of a file of that size."""

    def __init__(self, content: bytes, size: int) -> None:
        self.name, self.size, self.content = "beginning", size, content

    def read_at(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


# -------------------------------------------------------------------------------------------- what can go wrong


def test_a_header_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes({"general.architecture": "llama"}))
    with pytest.raises(EngineError, match="cannot tell"):
        oracle.measure([file_of(path)], [Setting(512)])


def test_a_cache_that_does_not_go_is_refused(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("smollm2-135m"))
    with pytest.raises(EngineError):
        oracle.measure([file_of(path)], [Setting(512, "q4_0", flash=False)])


@pytest.mark.parametrize(
    ("stdout", "code"),
    [
        ("", -6),
        ("[[1, 2]]", 0),
        ("[[1, 2, 3], [3, 4, 5]]", 0),
        ('{"error": "no"}', 0),
        ("[[null, 2, 3]]", 0),
        ("null", 0),
    ],
)
def test_a_child_that_dies_or_babbles(stdout: str, code: int, tmp_path: Path, monkeypatch: Any) -> None:
    path = write_sparse(tmp_path, named("smollm2-135m"))
    says = f"import os, sys; sys.stdin.readline(); print({stdout!r}, flush=True); os._exit({abs(code)})"
    monkeypatch.setattr(oracle.sys, "executable", python_that(tmp_path, says))
    with pytest.raises(EngineError, match="cannot tell"):
        oracle.measure([file_of(path)], [Setting(512)])


def python_that(folder: Path, says: str) -> str:
    """A program in Python's place that does something else."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{says}\n")
    path.chmod(0o755)
    return str(path)


def test_one_child_answers_for_one_model_as_often_as_it_is_asked(tmp_path: Path) -> None:
    files = [file_of(write_sparse(tmp_path, named("smollm2-135m")))]
    with oracle.Oracle() as asked:
        first, again = asked.measure(files, [Setting(512)]), asked.measure(files, [Setting(512), Setting(4096)])
        assert again[0] == first[0]
        assert again[1].kv_cache_bytes == pytest.approx(8 * again[0].kv_cache_bytes, rel=0.01)
        with pytest.raises(EngineError, match="cannot tell"):
            asked.measure(files, [Setting(512, "q4_0", flash=False)])
    with pytest.raises(EngineError, match="ended with"):
        asked.measure(files, [Setting(512)])


def test_a_child_that_hangs(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("smollm2-135m"))
    with pytest.raises(EngineError, match="more than"):
        oracle.measure([file_of(path)], [Setting(512)], timeout_s=0.001)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sparse(tmp_path, named("smollm2-135m"))
    empty = tmp_path / "temporary"
    empty.mkdir()
    monkeypatch.setattr(oracle.tempfile, "tempdir", str(empty))
    oracle.measure([file_of(path)], [Setting(512)])
    assert not list(empty.iterdir())


# -------------------------------------------------------------------------------------------------------- planning


def test_a_plan_takes_the_measured_buffers_where_the_closed_form_is_inexact(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("qwen3.6-35b-a3b"))
    header = gguf.read_header(path)
    shape, weights = shapes.shape(header), shapes.weights(header)
    measured = measuring.measure_for(shape, measuring.header_files([path]))
    assert measured is not None
    plan = estimate.plan(shape, weights, hypothetical(64), context=8192, measured=measured)
    (truth,) = oracle.measure([file_of(path)], [Setting(8192)])
    assert (plan.memory.kv_cache_bytes, plan.memory.compute_bytes) == (truth.kv_cache_bytes, truth.compute_bytes)


def test_a_dense_model_starts_no_process(tmp_path: Path) -> None:
    path = write_sparse(tmp_path, named("llama-3.1-8b"))
    assert measuring.measure_for(shapes.shape(gguf.read_header(path)), measuring.header_files([path])) is None


def test_more_tokens_than_llama_cpp_can_count_are_not_asked_about(tmp_path: Path) -> None:
    """2^32 + 512 would come back as 512, and fit."""
    path = write_sparse(tmp_path, named("qwen3-30b-a3b"))
    shape = shapes.shape(gguf.read_header(path))
    measured = measuring.measure_for(shape, measuring.header_files([path]))
    assert measured is not None
    assert measured(2**32 + 512, "f16", 512) is None
    assert measured(512, "f16", 512) is not None


def test_two_questions_at_most_are_asked_for_all_that_a_plan_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sparse(tmp_path, named("qwen3-30b-a3b"))
    header = gguf.read_header(path)
    shape, weights = shapes.shape(header), shapes.weights(header)
    asked: list[int] = []

    def measure(self: object, files: object, settings: list[Setting]) -> tuple[Reading, ...]:
        asked.append(len(settings))
        return tuple(Reading(each.context, 7, 1) for each in settings)

    monkeypatch.setattr(oracle.Oracle, "measure", measure)
    files = measuring.header_files([path])
    plan = estimate.plan(shape, weights, hypothetical(64), measured=measuring.measure_for(shape, files))
    assert plan.memory.compute_bytes == 7
    assert asked == [3]
    asked.clear()
    assert not estimate.plan(shape, weights, hypothetical(8), measured=measuring.measure_for(shape, files)).fits
    assert asked == [3, 9]


def test_where_llama_cpp_refuses_the_closed_form_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sparse(tmp_path, named("qwen3-30b-a3b"))
    header = gguf.read_header(path)
    shape, weights = shapes.shape(header), shapes.weights(header)
    asked: list[int] = []

    def refuse(self: object, files: object, settings: list[Setting]) -> tuple[Reading, ...]:
        asked.append(1)
        raise EngineError("no", "no")

    monkeypatch.setattr(oracle.Oracle, "measure", refuse)
    measured = measuring.measure_for(shape, measuring.header_files([path]))
    assert estimate.plan(shape, weights, hypothetical(8), measured=measured) == estimate.plan(
        shape, weights, hypothetical(8)
    )
    assert asked == [1]
