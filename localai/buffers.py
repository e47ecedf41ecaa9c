"""Memory of a loaded model beside its weights: KV cache and compute buffer, in closed form.

The formulas are llama.cpp's (the tree that llama-cpp-python 0.3.36 vendors).
"""

from __future__ import annotations

import math

from localai.domain import Shape

CONTEXT_STEP = 256  # llama.cpp pads the KV cache to it (llama_kv_cache)
UBATCH = 512  # llama.cpp's default n_ubatch

# Bytes of one block of 32 values (ggml-common.h).
_KV_BLOCK_BYTES = {
    "f32": 128,
    "f16": 64,
    "bf16": 64,
    "q8_0": 34,
    "q5_1": 24,
    "q5_0": 22,
    "q4_1": 20,
    "q4_0": 18,
    "iq4_nl": 18,
}
KV_TYPES = tuple(_KV_BLOCK_BYTES)


def kv_cache_bytes(shape: Shape, context: int, kv_type: str = "f16", ubatch: int = UBATCH, sequences: int = 1) -> int:
    """Bytes of the KV cache and the recurrent state of a context of `context` tokens (`swa_full` off).

    llama_kv_cache: the context padded to 256 cells; layers with a sliding window hold
    pad256(min(cells, window × sequences + ubatch)); latent attention (MLA) keeps no values.
    """
    return sum(kv_layers(shape, context, kv_type, ubatch, sequences)) + shape.recurrent_state_bytes * sequences


def kv_layers(shape: Shape, context: int, kv_type: str, ubatch: int, sequences: int = 1) -> list[int]:
    """Bytes of each layer's KV cache, as `kv_cache_bytes` adds them up."""
    block = _KV_BLOCK_BYTES[kv_type]
    cells = padded(context)
    windowed = padded(min(cells, (shape.sliding_window or 0) * sequences + ubatch))
    sliding = shape.sliding_layers or (False,) * len(shape.kv_heads)
    full_row: dict[int, int] = {}
    window_row: dict[int, int] = {}
    result = []
    for heads, slides in zip(shape.kv_heads, sliding, strict=False):
        if not heads:
            result.append(0)
        elif slides:
            if heads not in window_row:
                of_window = shape.swa_kv_heads or heads
                key, value = shape.swa_key_length or shape.key_length, shape.swa_value_length or shape.value_length
                window_row[heads] = windowed * _row_bytes(shape, of_window, key, value, block)
            result.append(window_row[heads])
        else:
            if heads not in full_row:
                full_row[heads] = cells * _row_bytes(shape, heads, shape.key_length, shape.value_length, block)
            result.append(full_row[heads])
    return result


def _row_bytes(shape: Shape, heads: int, key: int, value: int, block: int) -> int:
    values = 0 if shape.latent_kv else math.ceil(heads * value / 32)
    return (math.ceil(heads * key / 32) + values) * block


def padded(tokens: int) -> int:
    """Tokens rounded up to whole steps of the cache."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


# ----------------------------------------------------------------------------------------- the compute buffer


def compute_bytes(shape: Shape, context: int, ubatch: int = UBATCH, outputs: int = 1, flash: bool = True) -> int:
    """Bytes of the graph's temporary tensors: the largest of logits, feed-forward and attention.

    With u = ubatch, V the vocabulary, d the embedding: logits 4(outputs·V + 2ud); feed-forward 4u(3·ff + 4d) + 2u·n_kv;
    attention without flash attention 4u(n_kv(H + 1) + 3d + 2·H·hd + 2·Hkv·hd). Exact for dense models (8B at 8,192:
    124.0 MiB); for experts and latent attention an estimate, with `used` rows of d a token besides.
    """
    n_kv = padded(context)
    u = min(ubatch, n_kv)
    d = shape.embedding_length or typical_width(shape)
    used = shape.expert_used_count
    ff = shape.feed_forward_length or 4 * d
    logits = 4 * (outputs * (shape.vocab_size or 0) + 2 * u * d)
    feed_forward = 4 * u * (3 * ff + (4 + used) * d) + 2 * u * n_kv
    if flash:
        return max(logits, feed_forward)
    heads = shape.head_count or max(1, d // max(shape.key_length, 1))
    kv = max(shape.kv_heads, default=0) * shape.key_length
    attention = 4 * u * (n_kv * (heads + 1) + 3 * d + 2 * heads * shape.key_length + 2 * kv)
    return max(logits, feed_forward, attention)


def typical_width(shape: Shape) -> int:
    """Width of a dense transformer of that many parameters and layers: P ≈ 12·L·d² (Kaplan et al. 2020)."""
    return round(math.sqrt((shape.active_params or shape.params) / (12 * shape.n_layers)))
