"""A model of Qwen3-0.6B's shape with random weights, for speeds that follow from the shape alone.

    python benchmarks/random_weights.py PATH

Quantized as Q4_K_M is: Q4_K, and Q6_K for the embedding and for half of `ffn_down` and `attn_v`. The blocks are drawn
at random and not quantized from anything; speed does not depend on the values, only zeros would not do (their page
stays in the cache). The vocabulary is the embedded model's, filled up to the shape's size.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from localai import embedded

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, FEED_FORWARD, VOCABULARY = 28, 1024, 16, 8, 128, 3072, 151_936
# general.file_type of Q4_K_M (enum llama_ftype)
_Q4_K_M = 15


def write(path: Path) -> Path:
    """Write the model to `path` unless it is there; returns it. About 480 MB."""
    if path.exists():
        return path
    random = np.random.default_rng(7)
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    _metadata(writer)
    _vocabulary(writer)
    for name, kind, shape in _tensors():
        writer.add_tensor(name, *_drawn(random, kind, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.replace(path)


def _metadata(writer: Any) -> None:
    writer.add_name("random weights of Qwen3-0.6B's shape")
    writer.add_block_count(LAYERS)
    writer.add_context_length(40_960)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(_Q4_K_M)


def _vocabulary(writer: Any) -> None:
    found = embedded.find()
    if found is None:
        raise SystemExit("the embedded model is not installed: its vocabulary is needed")
    fields = gguf.GGUFReader(found.path).fields
    known = list(fields["tokenizer.ggml.tokens"].contents())
    kinds = list(fields["tokenizer.ggml.token_type"].contents())
    more = range(VOCABULARY - len(known))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list([*known, *(f"word{number}" for number in more)])
    writer.add_token_types([*kinds, *(1 for _ in more)])
    writer.add_token_merges(list(fields["tokenizer.ggml.merges"].contents()))
    writer.add_bos_token_id(fields["tokenizer.ggml.bos_token_id"].contents())
    writer.add_eos_token_id(fields["tokenizer.ggml.eos_token_id"].contents())
    writer.add_chat_template(fields["tokenizer.chat_template"].contents())


def _tensors() -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes, the rows first (numpy's order)."""
    found: list[tuple[str, str, tuple[int, ...]]] = [
        ("token_embd.weight", "Q6_K", (VOCABULARY, WIDTH)),
        ("output_norm.weight", "F32", (WIDTH,)),
    ]
    for layer in range(LAYERS):
        larger = "Q6_K" if layer < LAYERS // 8 or layer >= 7 * LAYERS // 8 or layer % 3 == 2 else "Q4_K"
        found += [
            (f"blk.{layer}.attn_norm.weight", "F32", (WIDTH,)),
            (f"blk.{layer}.attn_q_norm.weight", "F32", (HEAD,)),
            (f"blk.{layer}.attn_k_norm.weight", "F32", (HEAD,)),
            (f"blk.{layer}.ffn_norm.weight", "F32", (WIDTH,)),
            (f"blk.{layer}.attn_q.weight", "Q4_K", (HEADS * HEAD, WIDTH)),
            (f"blk.{layer}.attn_k.weight", "Q4_K", (KV_HEADS * HEAD, WIDTH)),
            (f"blk.{layer}.attn_v.weight", larger, (KV_HEADS * HEAD, WIDTH)),
            (f"blk.{layer}.attn_output.weight", "Q4_K", (WIDTH, HEADS * HEAD)),
            (f"blk.{layer}.ffn_gate.weight", "Q4_K", (FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_up.weight", "Q4_K", (FEED_FORWARD, WIDTH)),
            (f"blk.{layer}.ffn_down.weight", larger, (WIDTH, FEED_FORWARD)),
        ]
    return found


def _drawn(random: np.random.Generator, kind: str, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Values of a tensor, its shape in bytes and its type, as `GGUFWriter.add_tensor` takes them."""
    if kind == "F32":
        return np.ones(shape, np.float32), None, None
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    raw = random.integers(0, 256, (shape[0], shape[1] // block, size), np.uint8)
    scale = np.array([0.0002], np.float16).view(np.uint8)
    if kind == "Q4_K":  # the scale and that of the minima, at the head of a block
        raw[..., 0:2], raw[..., 2:4] = scale, scale
    else:  # Q6_K: the scale at the end
        raw[..., -2:] = scale
    return raw.reshape(shape[0], -1), None, number


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(write(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
