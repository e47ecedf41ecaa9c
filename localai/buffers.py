"""Memory of a loaded model beside its weights: KV cache and compute buffer, in closed form.

The formulas are llama.cpp's (the tree that llama-cpp-python 0.3.36 vendors).
"""

from __future__ import annotations

import math

from localai.architectures import ENCODERS, WITHOUT_CACHE
from localai.domain.shape import Shape
from localai.tensor_types import KV_TYPES

CONTEXT_STEP = 256  # llama.cpp pads the KV cache to it (llama_kv_cache)
UBATCH = 512  # llama.cpp's default n_ubatch


def kv_cache_bytes(shape: Shape, context: int, kv_type: str = "f16", ubatch: int = UBATCH) -> int:
    """Bytes of the KV cache and the recurrent state of one sequence of `context` tokens (`swa_full` off).

    llama_kv_cache: the context padded to 256 cells; layers with a sliding window hold
    pad256(min(cells, window × sequences + ubatch)); latent attention (MLA) keeps no values.
    """
    return sum(kv_layers(shape, context, kv_type, ubatch)) + shape.recurrent_state_bytes


def kv_layers(shape: Shape, context: int, kv_type: str, ubatch: int, sequences: int = 1) -> list[int]:
    """Bytes of each layer's KV cache, as `kv_cache_bytes` adds them up."""
    kind = KV_TYPES[kv_type]
    block = 32 // kind.block * kind.size_bytes  # bytes of 32 numbers
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
    values = 0 if shape.latent_kv else math.ceil(heads * value * block / 32)
    return math.ceil(heads * key * block / 32) + values + math.ceil(shape.indexer_length * block / 32)


def padded(tokens: int) -> int:
    """Tokens rounded up to whole steps of the cache."""
    return -(-tokens // CONTEXT_STEP) * CONTEXT_STEP


# ----------------------------------------------------------------------------------------- the compute buffer


def compute_bytes(
    shape: Shape, context: int, ubatch: int = UBATCH, outputs: int = 1, flash: bool = True, kv_type: str = "f16"
) -> int:
    """Bytes of the graph's temporary tensors: the largest of logits, feed-forward and attention.

    With u = ubatch, V the vocabulary, d the embedding: logits 4(outputs·V + 2ud); feed-forward 4u(3·ff + 4d) and the
    masks, 2u·n_kv each; attention 4u(3d + 2·H·hd) and the masks, without flash attention 4u(n_kv(H + 1) + 3d + 2·H·hd +
    2·Hkv·hd). Exact for dense models (8B at 8,192: 124.0 MiB); with experts (k used, f wide) 4u(3kf + 5d), narrow ones
    4u(k(d + 3f) + 5d), which like the rest is fitted to llama.cpp's own figures: see docs/estimation.md for how near
    each architecture comes. Without a cache a token sees no more than the micro-batch, and encoders give no logits.
    Flash attention converts a layer's F32 cache to F16: 2·n_kv numbers of its row more.
    """
    u = max(1, min(ubatch, context))
    n_kv = u if shape.architecture in WITHOUT_CACHE else padded(context)
    d = shape.embedding_length or typical_width(shape)
    attends = any(shape.kv_heads) or not shape.recurrent_state_bytes
    masks = 2 * u * n_kv if attends else 0
    if any(shape.sliding_layers):
        masks += 2 * u * padded(min(n_kv, (shape.sliding_window or 0) + ubatch))
    if shape.indexer_length:  # its scores (F32), and which of them count (F16)
        masks += 6 * u * n_kv
    rows = 0 if shape.architecture in ENCODERS else outputs
    logits = 4 * (rows * (shape.vocab_size or 0) + 2 * u * d)
    every_layer = shape.n_layers * (shape.per_layer_embedding_length or 0)
    feed_forward = 4 * u * (_feed_forward_width(shape, d) + every_layer) + masks
    if not attends:
        return max(logits, feed_forward)
    heads = shape.head_count or max(1, d // max(shape.key_length, 1))
    kv = max(shape.kv_heads, default=0)
    width = 3 * d + 2 * heads * shape.key_length
    if flash and shape.architecture not in _WITHOUT_FLASH:
        row = kv * (shape.key_length + (0 if shape.latent_kv else shape.value_length)) if kv_type == "f32" else 0
        attention = 4 * u * width + 2 * n_kv * row + masks
    else:
        attention = 4 * u * (n_kv * (heads + 1) + width + 2 * kv * shape.key_length)
    return max(logits, feed_forward, attention)


# Rows of the embedding's width that are alive beside the feed-forward's own three; fused projections need one less, and
# Qwen3-VL takes three more inputs as wide (deepstack), which two phases hold.
_LIVE_ROWS = {"bert": 3, "lfm2": 3, "phi3": 3, "qwen35": 3, "qwen3vl": 10}
# Numbers of a feed-forward's width that are alive where it has no gate, instead of three.
_UNGATED = (
    *("apertus", "arcee", "bert", "bloom", "codeshell", "falcon", "gpt2", "gptneox", "jina-bert-v3", "mpt", "nemotron"),
    *("nomic-bert-moe", "phi2", "starcoder"),
)
_WITHOUT_FLASH = ("grok",)  # llama_init_from_model forces it off
_WIDTHS = {"nemotron_h": 2, "starcoder2": 1} | dict.fromkeys(_UNGATED, 1)


def _feed_forward_width(shape: Shape, d: int) -> int:
    """Numbers alive at once for each token while a layer's feed-forward runs, dense or with experts."""
    used, width = shape.expert_used_count, shape.expert_feed_forward_length or shape.feed_forward_length
    dense = shape.feed_forward_length or (0 if used and width else 4 * d)
    if not used:
        return _WIDTHS.get(shape.architecture, 3) * dense + _LIVE_ROWS.get(shape.architecture, 4) * d
    if not width:
        of_experts = (2 * used + 6) * d
    else:  # what comes back from narrow experts is wider than the room that their inside leaves
        of_experts = (3 * used * width if 2 * width >= d else used * (d + 3 * width)) + 5 * d
    if shape.latent_kv:  # its first layers have no experts; in the others ff is that of a dense layer that is not there
        of_attention = (4 if shape.indexer_length else 3) * (shape.head_count or 0) * shape.key_length
        of_experts = max(of_experts, 3 * dense + 4 * d, of_attention)
    return of_experts


def typical_width(shape: Shape) -> int:
    """Width of a dense transformer of that many parameters and layers: P ≈ 12·L·d² (Kaplan et al. 2020)."""
    return round(math.sqrt((shape.active_params or shape.params) / (12 * shape.n_layers)))
