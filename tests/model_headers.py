"""Headers of real models' shapes: the metadata and tensor tables that llama.cpp's loaders ask for, with no weights.

The dimensions are those of the published models' configurations; the tensors those of src/models/*.cpp of the tree
that llama-cpp-python 0.3.36 vendors. `benchmarks/memory.py` uses them too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_files import Typed, gguf_bytes, size_of

Tensor = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Model:
    """A shape: `dims` are the architecture's keys, `extra` whole keys, `layer` the tensors of layer i."""

    name: str
    architecture: str
    dims: Mapping[str, Any]
    layer: Callable[[Model, int], Iterable[tuple[str, tuple[int, ...]]]]
    vocabulary: int
    tied: bool = False
    shared: Iterable[tuple[str, tuple[int, ...]]] = field(default=())
    output_norm: str = "output_norm.weight"

    def dim(self, key: str, layer: int = 0) -> int:
        value = self.dims[key]
        return int(value[layer] if isinstance(value, tuple) else value)


def floats(*values: float) -> Typed:
    return Typed(9, struct.pack("<IQ", 6, len(values)) + struct.pack(f"<{len(values)}f", *values))


# ----------------------------------------------------------------------------------------------- parts of layers

Part = tuple[str, tuple[int, ...]]


def attention(m: Model, i: int, *, norms: bool = False, biases: bool = False, gated: bool = False) -> Iterable[Part]:
    d = m.dim("embedding_length")
    heads, kv = m.dim("attention.head_count", i), m.dim("attention.head_count_kv", i)
    size = m.dims.get("attention.key_length") or d // heads
    yield "attn_norm.weight", (d,)
    yield "attn_q.weight", (d, heads * size * (2 if gated else 1))
    yield "attn_k.weight", (d, kv * size)
    yield "attn_v.weight", (d, kv * size)
    if biases:
        yield "attn_q.bias", (heads * size,)
        yield "attn_k.bias", (kv * size,)
        yield "attn_v.bias", (kv * size,)
    yield "attn_output.weight", (heads * size, d)
    if norms:
        yield "attn_q_norm.weight", (size,)
        yield "attn_k_norm.weight", (size,)


def feed_forward(m: Model, i: int, norm: str = "ffn_norm.weight") -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length", i)
    yield norm, (d,)
    yield "ffn_gate.weight", (d, ff)
    yield "ffn_down.weight", (ff, d)
    yield "ffn_up.weight", (d, ff)


def experts(m: Model, ff: int) -> Iterable[Part]:
    d, n = m.dim("embedding_length"), m.dim("expert_count")
    yield "ffn_gate_inp.weight", (d, n)
    yield "ffn_gate_exps.weight", (d, ff, n)
    yield "ffn_down_exps.weight", (ff, d, n)
    yield "ffn_up_exps.weight", (d, ff, n)


def shared_experts(m: Model, ff: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    yield "ffn_gate_shexp.weight", (d, ff)
    yield "ffn_down_shexp.weight", (ff, d)
    yield "ffn_up_shexp.weight", (d, ff)


def mamba2(m: Model) -> Iterable[Part]:
    d, inner, state = m.dim("embedding_length"), m.dim("ssm.inner_size"), m.dim("ssm.state_size")
    groups, heads = m.dim("ssm.group_count"), m.dim("ssm.time_step_rank")
    conv = inner + 2 * groups * state
    yield "attn_norm.weight", (d,)
    yield "ssm_in.weight", (d, inner + conv + heads)
    yield "ssm_conv1d.weight", (m.dim("ssm.conv_kernel"), conv)
    yield "ssm_conv1d.bias", (conv,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, d)


# -------------------------------------------------------------------------------------------------- whole layers


def llama_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i)
    yield from feed_forward(m, i)


def qwen2_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i, biases=True)
    yield from feed_forward(m, i)


def qwen3_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i, norms=True)
    yield from feed_forward(m, i)


def gemma_layer(m: Model, i: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    yield from attention(m, i, norms=m.architecture == "gemma3")
    yield "post_attention_norm.weight", (d,)
    yield from feed_forward(m, i)
    yield "post_ffw_norm.weight", (d,)


def gemma4_layer(m: Model, i: int) -> Iterable[Part]:
    d, width, ff = m.dim("embedding_length"), m.dim("embedding_length_per_layer_input"), m.dim("feed_forward_length", i)
    slides = m.dims["attention.sliding_window_pattern"][i]
    size = m.dim("attention.key_length_swa" if slides else "attention.key_length")
    heads, kv = m.dim("attention.head_count"), m.dim("attention.head_count_kv")
    yield "attn_norm.weight", (d,)
    yield "attn_q.weight", (d, heads * size)
    if i < m.dim("block_count") - m.dim("attention.shared_kv_layers"):
        yield "attn_k.weight", (d, kv * size)
        yield "attn_v.weight", (d, kv * size)
        yield "attn_k_norm.weight", (size,)
    yield "attn_output.weight", (heads * size, d)
    yield "attn_q_norm.weight", (size,)
    yield "post_attention_norm.weight", (d,)
    yield "layer_output_scale.weight", (1,)
    yield "ffn_norm.weight", (d,)
    yield "ffn_gate.weight", (d, ff)
    yield "ffn_up.weight", (d, ff)
    yield "ffn_down.weight", (ff, d)
    yield "post_ffw_norm.weight", (d,)
    yield "inp_gate.weight", (d, width)
    yield "proj.weight", (width, d)
    yield "post_norm.weight", (d,)


def gemma3n_layer(m: Model, i: int) -> Iterable[Part]:
    d, altup, rank, width = m.dim("embedding_length"), 4, 64, 256
    yield from attention(m, i, norms=True)
    yield "post_attention_norm.weight", (d,)
    yield from feed_forward(m, i)
    yield "post_ffw_norm.weight", (d,)
    yield "inp_gate.weight", (d, width)
    yield "proj.weight", (width, d)
    yield "post_norm.weight", (d,)
    yield "altup_correct_coef.weight", (altup, altup)
    yield "altup_correct_scale.weight", (d,)
    yield "altup_predict_coef.weight", (altup, altup * altup)
    yield "altup_router.weight", (d, altup)
    yield "altup_router_norm.weight", (d,)
    yield "laurel_l.weight", (d, rank)
    yield "laurel_r.weight", (rank, d)
    yield "laurel_post_norm.weight", (d,)


def phi3_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length")
    heads, kv = m.dim("attention.head_count"), m.dim("attention.head_count_kv")
    yield "attn_norm.weight", (d,)
    yield "attn_qkv.weight", (d, d + 2 * d // heads * kv)
    yield "attn_output.weight", (d, d)
    yield "ffn_norm.weight", (d,)
    yield "ffn_down.weight", (ff, d)
    yield "ffn_up.weight", (d, 2 * ff)


def qwen3moe_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i, norms=True)
    yield "ffn_norm.weight", (m.dim("embedding_length"),)
    yield from experts(m, m.dim("expert_feed_forward_length"))


def mixtral_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i)
    yield "ffn_norm.weight", (m.dim("embedding_length"),)
    yield from experts(m, m.dim("feed_forward_length"))


def gpt_oss_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff, n = m.dim("embedding_length"), m.dim("expert_feed_forward_length"), m.dim("expert_count")
    yield from attention(m, i, biases=True)
    yield "attn_output.bias", (d,)
    yield "post_attention_norm.weight", (d,)
    yield "attn_sinks.weight", (m.dim("attention.head_count"),)
    yield from experts(m, ff)
    yield "ffn_gate_inp.bias", (n,)
    yield "ffn_gate_exps.bias", (ff, n)
    yield "ffn_down_exps.bias", (d, n)
    yield "ffn_up_exps.bias", (ff, n)


def deepseek2_layer(m: Model, i: int) -> Iterable[Part]:
    d, heads, kv = m.dim("embedding_length"), m.dim("attention.head_count"), m.dim("attention.kv_lora_rank")
    key, value, rope = m.dim("attention.key_length_mla"), m.dim("attention.value_length_mla"), 64
    yield "attn_norm.weight", (d,)
    yield "attn_kv_a_norm.weight", (kv,)
    if rank := m.dims.get("attention.q_lora_rank"):
        yield "attn_q_a_norm.weight", (rank,)
        yield "attn_q_a.weight", (d, rank)
        yield "attn_q_b.weight", (rank, heads * key)
    else:
        yield "attn_q.weight", (d, heads * key)
    yield "attn_kv_a_mqa.weight", (d, kv + rope)
    yield "attn_k_b.weight", (key - rope, kv, heads)
    yield "attn_v_b.weight", (kv, value, heads)
    yield "attn_output.weight", (heads * value, d)
    if i < m.dim("leading_dense_block_count"):
        yield from feed_forward(m, i)
        return
    ff = m.dim("expert_feed_forward_length")
    yield "ffn_norm.weight", (d,)
    yield from experts(m, ff)
    yield from shared_experts(m, ff * m.dim("expert_shared_count"))


def qwen35_layer(m: Model, i: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    if (i + 1) % 4:
        state, keys, values = m.dim("ssm.state_size"), m.dim("ssm.group_count"), m.dim("ssm.time_step_rank")
        conv = 2 * keys * state + values * state
        yield "attn_norm.weight", (d,)
        yield "attn_qkv.weight", (d, conv)
        yield "attn_gate.weight", (d, values * state)
        yield "ssm_conv1d.weight", (m.dim("ssm.conv_kernel"), conv)
        yield "ssm_dt.bias", (values,)
        yield "ssm_a", (values,)
        yield "ssm_beta.weight", (d, values)
        yield "ssm_alpha.weight", (d, values)
        yield "ssm_norm.weight", (state,)
        yield "ssm_out.weight", (values * state, d)
    else:
        yield from attention(m, i, norms=True, gated=True)
    if "expert_count" in m.dims:
        yield "post_attention_norm.weight", (d,)
        yield from experts(m, m.dim("expert_feed_forward_length"))
        yield "ffn_gate_inp_shexp.weight", (d,)
        yield from shared_experts(m, m.dim("expert_shared_feed_forward_length"))
    else:
        yield from feed_forward(m, i, "post_attention_norm.weight")


def qwen35_draft_layer(m: Model, i: int) -> Iterable[Part]:
    """As `qwen35_layer`, with one more layer that predicts a second token."""
    d = m.dim("embedding_length")
    if i < m.dim("block_count") - 1:
        yield from qwen35_layer(m, i)
        return
    yield from attention(m, i, norms=True, gated=True)
    yield from feed_forward(m, i, "post_attention_norm.weight")
    yield "nextn.eh_proj.weight", (2 * d, d)
    yield "nextn.enorm.weight", (d,)
    yield "nextn.hnorm.weight", (d,)
    yield "nextn.shared_head_norm.weight", (d,)


def granite_hybrid_layer(m: Model, i: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    yield from attention(m, i) if m.dim("attention.head_count_kv", i) else mamba2(m)
    if "expert_count" in m.dims:
        yield "ffn_norm.weight", (d,)
        yield from experts(m, m.dim("feed_forward_length"))
        yield from shared_experts(m, m.dim("expert_shared_feed_forward_length"))
    else:
        yield from feed_forward(m, i)


def nemotron_h_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length", i)
    if ff:
        yield "attn_norm.weight", (d,)
        yield "ffn_down.weight", (ff, d)
        yield "ffn_up.weight", (d, ff)
    elif m.dim("attention.head_count_kv", i):
        yield from attention(m, i)
    else:
        yield from mamba2(m)


def lfm2_layer(m: Model, i: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    if m.dim("attention.head_count_kv", i):
        yield from attention(m, i, norms=True)
    else:
        yield "attn_norm.weight", (d,)
        yield "shortconv.conv.weight", (m.dim("shortconv.l_cache"), d)
        yield "shortconv.in_proj.weight", (d, 3 * d)
        yield "shortconv.out_proj.weight", (d, d)
    yield from feed_forward(m, i)


def falcon_h1_layer(m: Model, i: int) -> Iterable[Part]:
    yield from attention(m, i)
    yield from (part for part in mamba2(m) if part[0] != "attn_norm.weight")
    yield from feed_forward(m, i, "ffn_norm")


def olmo2_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff, heads = m.dim("embedding_length"), m.dim("feed_forward_length"), m.dim("attention.head_count")
    for name, dims in attention(m, i):
        if name != "attn_norm.weight":
            yield name, dims
    yield "attn_q_norm.weight", (d,)
    yield "attn_k_norm.weight", (m.dim("attention.head_count_kv") * d // heads,)
    yield "post_attention_norm.weight", (d,)
    yield "ffn_gate.weight", (d, ff)
    yield "ffn_up.weight", (d, ff)
    yield "ffn_down.weight", (ff, d)
    yield "post_ffw_norm.weight", (d,)


def olmoe_layer(m: Model, i: int) -> Iterable[Part]:
    d = m.dim("embedding_length")
    yield from attention(m, i)
    yield "attn_q_norm.weight", (d,)
    yield "attn_k_norm.weight", (d,)
    yield "ffn_norm.weight", (d,)
    yield from experts(m, m.dim("feed_forward_length"))


def cohere2_layer(m: Model, i: int) -> Iterable[Part]:
    yield from (part for part in llama_layer(m, i) if part[0] != "ffn_norm.weight")


def starcoder2_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length")
    yield from attention(m, i, biases=True)
    yield "attn_norm.bias", (d,)
    yield "attn_output.bias", (d,)
    yield "ffn_norm.weight", (d,)
    yield "ffn_norm.bias", (d,)
    yield "ffn_down.weight", (ff, d)
    yield "ffn_up.weight", (d, ff)
    yield "ffn_down.bias", (d,)
    yield "ffn_up.bias", (ff,)


def glm4_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("feed_forward_length")
    yield from attention(m, i)
    yield "post_attention_norm.weight", (d,)
    yield "ffn_norm.weight", (d,)
    yield "ffn_down.weight", (ff, d)
    yield "ffn_up.weight", (d, 2 * ff)
    yield "post_ffw_norm.weight", (d,)


def minicpm3_layer(m: Model, i: int) -> Iterable[Part]:
    d, heads = m.dim("embedding_length"), m.dim("attention.head_count")
    q, kv, rope = m.dim("attention.q_lora_rank"), m.dim("attention.kv_lora_rank"), m.dim("rope.dimension_count")
    key, value = m.dim("attention.key_length"), m.dim("attention.value_length")
    yield "attn_norm.weight", (d,)
    yield "attn_q_a_norm.weight", (q,)
    yield "attn_kv_a_norm.weight", (kv,)
    yield "attn_q_a.weight", (d, q)
    yield "attn_q_b.weight", (q, heads * key)
    yield "attn_kv_a_mqa.weight", (d, kv + rope)
    yield "attn_kv_b.weight", (kv, heads * (key - rope + value))
    yield "attn_output.weight", (heads * value, d)
    yield from feed_forward(m, i)


def glm4moe_layer(m: Model, i: int) -> Iterable[Part]:
    d, ff = m.dim("embedding_length"), m.dim("expert_feed_forward_length")
    yield from attention(m, i, biases=True)
    yield "post_attention_norm.weight", (d,)
    if i < m.dim("leading_dense_block_count"):
        yield from (part for part in feed_forward(m, i) if part[0] != "ffn_norm.weight")
        return
    yield from experts(m, ff)
    yield "exp_probs_b.bias", (m.dim("expert_count"),)
    yield from shared_experts(m, ff * m.dim("expert_shared_count"))


def mamba2_layer(m: Model, i: int) -> Iterable[Part]:
    yield from mamba2(m)


# -------------------------------------------------------------------------------------------------------- models


def dense(layers: int, d: int, ff: int, heads: int, kv: int, size: int = 0, **more: Any) -> dict[str, Any]:
    found = {
        "block_count": layers,
        "embedding_length": d,
        "feed_forward_length": ff,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "context_length": 131072,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": size or d // heads,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    if size:
        found |= {"attention.key_length": size, "attention.value_length": size}
    return found


def _experts(count: int, used: int, ff: int, **more: Any) -> dict[str, Any]:
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": ff, **more}


def _window(tokens: int) -> dict[str, Any]:
    return {"attention.sliding_window": tokens}


def _mamba(inner: int, state: int, groups: int, heads: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": heads,
    }


def _every(n: int, layers: int, value: int) -> tuple[int, ...]:
    return tuple(value if (i + 1) % n == 0 else 0 for i in range(layers))


_GEMMA4 = tuple((i + 1) % 5 != 0 for i in range(35))
_LFM2 = tuple(8 if i in (2, 5, 8, 10, 12, 14) else 0 for i in range(16))
_GRANITE = tuple(8 if i in (5, 15, 25, 35) else 0 for i in range(40))
_NEMOTRON = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"  # Nemotron-H-8B

# Shapes that the closed forms were not developed against: what the table says of these is what to expect of others.
UNSEEN = (
    Model("llama-3.1-405b", "llama", dense(126, 16384, 53248, 128, 8), llama_layer, 128256),
    Model("mistral-nemo-12b", "llama", dense(40, 5120, 14336, 32, 8, 128), llama_layer, 131072),
    Model(
        "granite-3.3-8b",
        "granite",
        dense(40, 4096, 12800, 32, 8) | {"logit_scale": 16.0},
        llama_layer,
        49159,
        tied=True,
    ),
    Model("olmo-2-13b", "olmo2", dense(40, 5120, 13824, 40, 40), olmo2_layer, 100352),
    Model("olmo-3-7b", "olmo2", dense(32, 4096, 11008, 32, 32) | _window(4096), olmo2_layer, 100278),
    Model(
        "command-r7b",
        "cohere2",
        dense(32, 4096, 14336, 32, 8) | _window(4096) | {"attention.layer_norm_epsilon": 1e-5, "logit_scale": 0.25},
        cohere2_layer,
        256000,
        tied=True,
    ),
    Model(
        "starcoder2-7b",
        "starcoder2",
        dense(32, 4608, 18432, 36, 4) | {"attention.layer_norm_epsilon": 1e-5},
        starcoder2_layer,
        49152,
        tied=True,
        shared=(("output_norm.bias", (4608,)),),
    ),
    Model("glm-4-9b-0414", "glm4", dense(40, 4096, 13696, 32, 2, 128), glm4_layer, 151552),
    Model(
        "minicpm3-4b",
        "minicpm3",
        dense(62, 2560, 6400, 40, 40)
        | {
            "attention.key_length": 96,
            "attention.value_length": 64,
            "attention.q_lora_rank": 768,
            "attention.kv_lora_rank": 256,
            "rope.dimension_count": 32,
        },
        minicpm3_layer,
        73448,
        tied=True,
    ),
    Model(
        "olmoe-1b-7b",
        "olmoe",
        dense(16, 2048, 1024, 16, 16) | {"expert_count": 64, "expert_used_count": 8},
        olmoe_layer,
        50304,
    ),
    Model(
        "glm-4.5-air",
        "glm4moe",
        dense(46, 4096, 10944, 96, 8, 128) | _experts(128, 8, 1408, expert_shared_count=1, leading_dense_block_count=1),
        glm4moe_layer,
        151552,
    ),
    Model(
        "mamba2-2.7b",
        "mamba2",
        dense(64, 2560, 0, 1, 0) | _mamba(5120, 128, 1, 80) | {"attention.head_count": 0},
        mamba2_layer,
        50288,
        tied=True,
    ),
)

MODELS = (
    Model("smollm2-135m", "llama", dense(30, 576, 1536, 9, 3), llama_layer, 49152, tied=True),
    Model("llama-3.2-1b", "llama", dense(16, 2048, 8192, 32, 8, 64), llama_layer, 128256, tied=True),
    Model("llama-3.1-8b", "llama", dense(32, 4096, 14336, 32, 8), llama_layer, 128256),
    Model("llama-3.3-70b", "llama", dense(80, 8192, 28672, 64, 8), llama_layer, 128256),
    Model("qwen2.5-0.5b", "qwen2", dense(24, 896, 4864, 14, 2), qwen2_layer, 151936, tied=True),
    Model("qwen2.5-32b", "qwen2", dense(64, 5120, 27648, 40, 8), qwen2_layer, 152064),
    Model("qwen3-0.6b", "qwen3", dense(28, 1024, 3072, 16, 8, 128), qwen3_layer, 151936, tied=True),
    Model("qwen3-4b", "qwen3", dense(36, 2560, 9728, 32, 8, 128), qwen3_layer, 151936, tied=True),
    Model("qwen3-14b", "qwen3", dense(40, 5120, 17408, 40, 8, 128), qwen3_layer, 151936),
    Model("smollm3-3b", "smollm3", dense(36, 2048, 11008, 16, 4), llama_layer, 128256, tied=True),
    Model("ministral-3-8b", "mistral3", dense(34, 4096, 14336, 32, 8, 128), llama_layer, 131072),
    Model("phi-4", "phi3", dense(40, 5120, 17920, 40, 10), phi3_layer, 100352),
    Model("phi-3-mini", "phi3", dense(32, 3072, 8192, 32, 32) | _window(2047), phi3_layer, 32064),
    Model("gemma-2-9b", "gemma2", dense(42, 3584, 14336, 16, 8, 256) | _window(4096), gemma_layer, 256000, tied=True),
    Model("gemma-3-270m", "gemma3", dense(18, 640, 2048, 4, 1, 256) | _window(512), gemma_layer, 262144, tied=True),
    Model("gemma-3-4b", "gemma3", dense(34, 2560, 10240, 8, 4, 256) | _window(1024), gemma_layer, 262208, tied=True),
    Model("gemma-3-27b", "gemma3", dense(62, 5376, 21504, 32, 16, 128) | _window(1024), gemma_layer, 262208, tied=True),
    Model(
        "gemma-3n-e2b",
        "gemma3n",
        dense(30, 2048, 8192, 8, 2, 256)
        | _window(512)
        | {
            "altup.active_idx": 0,
            "altup.num_inputs": 4,
            "embedding_length_per_layer_input": 256,
            "attention.shared_kv_layers": 10,
            "activation_sparsity_scale": floats(*[1.6] * 10 + [0.0] * 20),
        },
        gemma3n_layer,
        262144,
        tied=True,
        shared=(
            ("altup_proj.weight", (2048, 2048, 3)),
            ("altup_unembd_proj.weight", (2048, 2048, 3)),
            ("per_layer_token_embd.weight", (256 * 30, 262144)),
            ("per_layer_model_proj.weight", (2048, 256 * 30)),
            ("per_layer_proj_norm.weight", (256,)),
        ),
    ),
    Model(
        "gemma-4-e2b",
        "gemma4",
        dense(35, 1536, 0, 8, 1, 512)
        | _window(512)
        | {
            "feed_forward_length": (6144,) * 15 + (12288,) * 20,
            "attention.sliding_window_pattern": _GEMMA4,
            "attention.shared_kv_layers": 20,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "rope.dimension_count_swa": 256,
            "embedding_length_per_layer_input": 256,
        },
        gemma4_layer,
        262144,
        tied=True,
        shared=(
            ("per_layer_token_embd.weight", (256 * 35, 262144)),
            ("per_layer_model_proj.weight", (1536, 256 * 35)),
            ("per_layer_proj_norm.weight", (256,)),
            ("rope_freqs.weight", (256,)),
        ),
    ),
    Model(
        "qwen3-30b-a3b",
        "qwen3moe",
        dense(48, 2048, 6144, 32, 4, 128) | _experts(128, 8, 768),
        qwen3moe_layer,
        151936,
    ),
    Model(
        "qwen3-235b-a22b",
        "qwen3moe",
        dense(94, 4096, 12288, 64, 4, 128) | _experts(128, 8, 1536),
        qwen3moe_layer,
        151936,
    ),
    Model(
        "mixtral-8x7b",
        "llama",
        dense(32, 4096, 14336, 32, 8) | {"expert_count": 8, "expert_used_count": 2},
        mixtral_layer,
        32000,
    ),
    Model(
        "gpt-oss-20b",
        "gpt-oss",
        dense(24, 2880, 2880, 64, 8, 64) | _window(128) | _experts(32, 4, 2880),
        gpt_oss_layer,
        201088,
    ),
    Model(
        "deepseek-v2-lite",
        "deepseek2",
        dense(27, 2048, 10944, 16, 1)
        | _experts(64, 6, 1408, expert_shared_count=2, leading_dense_block_count=1)
        | {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "attention.kv_lora_rank": 512,
            "rope.dimension_count": 64,
        },
        deepseek2_layer,
        102400,
    ),
    Model(
        "glm-4.7-flash",
        "deepseek2",
        dense(47, 2048, 10240, 20, 1)
        | _experts(64, 4, 1536, expert_shared_count=1, leading_dense_block_count=1)
        | {
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 256,
            "attention.value_length_mla": 256,
            "attention.kv_lora_rank": 512,
            "attention.q_lora_rank": 768,
            "rope.dimension_count": 64,
        },
        deepseek2_layer,
        154880,
    ),
    Model(
        "qwen3.5-4b",
        "qwen35",
        dense(32, 2560, 9216, 16, 4, 256)
        | _mamba(4096, 128, 16, 32)
        | {"full_attention_interval": 4, "rope.dimension_count": 64, "rope.dimension_sections": (11, 11, 10, 0)},
        qwen35_layer,
        248320,
        tied=True,
    ),
    Model(
        "qwen3.5-0.8b-draft",
        "qwen35",
        dense(25, 1024, 3584, 8, 2, 256)
        | _mamba(2048, 128, 16, 16)
        | {"full_attention_interval": 4, "rope.dimension_count": 64, "rope.dimension_sections": (11, 11, 10, 0)}
        | {"nextn_predict_layers": 1},
        qwen35_draft_layer,
        248320,
        tied=True,
    ),
    Model(
        "qwen3.6-35b-a3b",
        "qwen35moe",
        dense(40, 2048, 0, 16, 2, 256)
        | _mamba(4096, 128, 16, 32)
        | _experts(256, 8, 512, expert_shared_feed_forward_length=512)
        | {"full_attention_interval": 4, "rope.dimension_count": 64, "rope.dimension_sections": (11, 11, 10, 0)},
        qwen35_layer,
        248320,
    ),
    Model(
        "granite-4.0-h-tiny",
        "granitehybrid",
        dense(40, 1536, 512, 12, 0)
        | _mamba(3072, 128, 1, 48)
        | {
            "attention.head_count_kv": tuple(4 if kv else 0 for kv in _GRANITE),
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_feed_forward_length": 1024,
        },
        granite_hybrid_layer,
        100352,
        tied=True,
    ),
    Model(
        "granite-4.0-h-1b",
        "granitehybrid",
        dense(40, 1536, 4096, 12, 0)
        | _mamba(3072, 128, 1, 48)
        | {"attention.head_count_kv": tuple(4 if kv else 0 for kv in _GRANITE)},
        granite_hybrid_layer,
        100352,
        tied=True,
    ),
    Model(
        "lfm2.5-1.2b",
        "lfm2",
        dense(16, 2048, 8192, 32, 0) | {"attention.head_count_kv": _LFM2, "shortconv.l_cache": 3},
        lfm2_layer,
        65536,
        tied=True,
        output_norm="token_embd_norm.weight",
    ),
    Model(
        "nemotron-h-8b",
        "nemotron_h",
        dense(len(_NEMOTRON), 4096, 0, 32, 0, 128)
        | _mamba(8192, 128, 8, 128)
        | {
            "feed_forward_length": tuple(21504 if c == "-" else 0 for c in _NEMOTRON),
            "attention.head_count_kv": tuple(8 if c == "*" else 0 for c in _NEMOTRON),
            "attention.layer_norm_epsilon": 1e-5,
        },
        nemotron_h_layer,
        131072,
    ),
    Model(
        "falcon-h1-1.5b",
        "falcon-h1",
        dense(24, 2048, 4096, 8, 2, 128) | _mamba(3072, 256, 1, 48),
        falcon_h1_layer,
        65537,
    ),
    *UNSEEN,
)


def named(name: str) -> Model:
    return next(model for model in MODELS if model.name == name)


# --------------------------------------------------------------------------------------------------------- files

# The main type, that of the output, and that of the more delicate tensors (llama-quant.cpp, llama_tensor_get_type).
QUANTIZATIONS = {
    "F16": ("F16", "F16", "F16"),
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0"),
    "Q4_0": ("Q4_0", "Q6_K", "Q4_0"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"),
}
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256
_FULL = ("ssm_conv1d", "ssm_a", "ssm_d", "_inp.", "shortconv.conv", "altup_", "laurel", "inp_gate", "norm", ".bias")
_FULL_TOO = ("rope_freqs", "sinks", "_scale", "ssm_beta", "ssm_alpha", "per_layer_model_proj")


def tensors(model: Model, quantization: str) -> list[Tensor]:
    main, output, better = QUANTIZATIONS[quantization]
    d = model.dim("embedding_length")

    def typed(name: str, dims: tuple[int, ...], kind: str) -> Tensor:
        if len(dims) == 1 or any(part in name for part in (*_FULL, *_FULL_TOO)):
            return name, "F32", dims
        kind = _FALLBACK.get(kind, kind) if dims[0] % 256 else kind
        return name, "F16" if dims[0] % 32 else kind, dims

    result = [typed("token_embd.weight", (d, model.vocabulary), output if model.tied else main)]
    result.append((model.output_norm, "F32", (d,)))
    if not model.tied:
        result.append(typed("output.weight", (d, model.vocabulary), output))
    result += [typed(name, dims, main) for name, dims in model.shared]
    layers = model.dim("block_count")
    for i in range(layers):
        delicate = i < layers // 8 or i >= 7 * layers // 8 or (i - layers // 8) % 3 == 2
        for name, dims in model.layer(model, i):
            kind = better if delicate and ("attn_v" in name or "ffn_down" in name) else main
            result.append(typed(f"blk.{i}.{name}", dims, kind))
    return result


def metadata(model: Model) -> dict[str, Any]:
    found = {f"{model.architecture}.{key}": value for key, value in model.dims.items()}
    return {
        "general.architecture": model.architecture,
        "general.name": model.name,
        "tokenizer.ggml.model": "no_vocab",
        f"{model.architecture}.vocab_size": model.vocabulary,
        **found,
    }


def write_sparse(folder: Path, model: Model, quantization: str = "Q4_K_M") -> Path:
    """A file of the model's real size that takes no room: the header and a hole."""
    table = tensors(model, quantization)
    header = gguf_bytes(metadata(model), table, data=False)
    path = folder / f"{model.name}-{quantization}.gguf"
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(-(-size_of(kind, dims) // 32) * 32 for _, kind, dims in table))
    return path
