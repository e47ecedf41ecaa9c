"""A small mixture of experts with random weights and a real vocabulary, that llama.cpp loads and runs."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy

WIDTH, HEADS, EXPERTS, USED, FEED_FORWARD = 64, 4, 8, 2, 64


def write_moe(folder: Path, vocabulary_of: Path, layers: int = 4) -> Path:
    """A qwen3moe model of that many layers, its tokenizer and template those of another model."""
    reader = gguf.GGUFReader(vocabulary_of)
    path = folder / "moe.gguf"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    for key, value in {
        "block_count": layers,
        "context_length": 2048,
        "embedding_length": WIDTH,
        "feed_forward_length": FEED_FORWARD,
        "expert_feed_forward_length": FEED_FORWARD,
        "expert_count": EXPERTS,
        "expert_used_count": USED,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": WIDTH // HEADS,
        "attention.value_length": WIDTH // HEADS,
    }.items():
        writer.add_uint32(f"qwen3moe.{key}", value)
    writer.add_float32("qwen3moe.attention.layer_norm_rms_epsilon", 1e-6)
    random = numpy.random.default_rng(7)

    def add(name: str, *shape: int) -> None:
        weights = numpy.ones(shape) if "norm" in name else random.normal(0, 0.1, shape)
        writer.add_tensor(name, weights.astype(numpy.float32))

    add("token_embd.weight", tokens, WIDTH)
    add("output_norm.weight", WIDTH)
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}.weight", WIDTH, WIDTH)
        for part in ("attn_q_norm", "attn_k_norm"):
            add(f"blk.{i}.{part}.weight", WIDTH // HEADS)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{part}.weight", WIDTH)
        add(f"blk.{i}.ffn_gate_inp.weight", EXPERTS, WIDTH)
        for part in ("ffn_gate_exps", "ffn_up_exps"):
            add(f"blk.{i}.{part}.weight", EXPERTS, FEED_FORWARD, WIDTH)
        add(f"blk.{i}.ffn_down_exps.weight", EXPERTS, WIDTH, FEED_FORWARD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
