"""A small model that sees, with random weights: a decoder and its projector, made with `gguf`."""

from __future__ import annotations

from pathlib import Path

import numpy
from gguf import GGUFWriter, LlamaFileType
from vector_models import BYTE_TOKENS, HEADS, LAYERS, Noise, add_byte_tokenizer, linear, norm, written

WIDTH, PATCH, SIDE = 64, 8, 32
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pair(folder: Path, kind: str = "llava", template: str = TEMPLATE) -> tuple[Path, Path]:
    """A model and its projector, beside each other: `llava`; `qwen2vl`, whose pictures have rows and columns; `gemma3`,
    where the tokens of a picture see each other, and layers have windows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, projector = folder / f"{kind}.gguf", folder / f"mmproj-{kind}.gguf"
    _decoder(model, "llama" if kind == "llava" else kind, template)
    {"llava": _llava, "qwen2vl": _qwen2vl, "gemma3": _gemma3}[kind](projector)
    return model, projector


def _decoder(path: Path, architecture: str, template: str) -> None:
    made = Noise(path.name)
    made |= {"token_embd.weight": made.of(len(BYTE_TOKENS), WIDTH), "output_norm.weight": 1 + made.of(WIDTH)}
    for layer in range(LAYERS):
        shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
        shapes |= {"ffn_gate": (2 * WIDTH, WIDTH), "ffn_up": (2 * WIDTH, WIDTH), "ffn_down": (WIDTH, 2 * WIDTH)}
        for name, shape in shapes.items():
            made[f"blk.{layer}.{name}.weight"] = made.of(*shape)
        for name in ("attn_norm", "ffn_norm"):
            made[f"blk.{layer}.{name}.weight"] = 1 + made.of(WIDTH)
        if architecture == "qwen2vl":
            for name in ("attn_q", "attn_k", "attn_v"):
                made[f"blk.{layer}.{name}.bias"] = made.of(WIDTH)
        if architecture == "gemma3":
            for name in ("post_attention_norm", "post_ffw_norm"):
                made[f"blk.{layer}.{name}.weight"] = 1 + made.of(WIDTH)
            for name in ("attn_q_norm", "attn_k_norm"):
                made[f"blk.{layer}.{name}.weight"] = 1 + made.of(WIDTH // HEADS)
    writer = GGUFWriter(path, architecture)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    if architecture == "qwen2vl":
        writer.add_rope_dimension_sections([4, 2, 2, 0])
    if architecture == "gemma3":
        writer.add_sliding_window(32)
        writer.add_key_length(WIDTH // HEADS)
        writer.add_value_length(WIDTH // HEADS)
    add_byte_tokenizer(writer)
    writer.add_chat_template(template)
    written(writer, made)


def _vision(path: Path, kind: str) -> GGUFWriter:
    writer = GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", kind)
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "embedding_length": WIDTH,
        "feed_forward_length": 2 * WIDTH,
        "block_count": LAYERS,
        "projection_dim": WIDTH,
        "attention.head_count": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    writer.add_file_type(LlamaFileType.ALL_F32)
    return writer


def _layers(made: Noise) -> None:
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            made |= linear(made, f"v.blk.{layer}.{name}", WIDTH, WIDTH)
        made |= linear(made, f"v.blk.{layer}.ffn_up", WIDTH, 2 * WIDTH)
        made |= linear(made, f"v.blk.{layer}.ffn_down", 2 * WIDTH, WIDTH)
        made |= norm(made, f"v.blk.{layer}.ln1", WIDTH) | norm(made, f"v.blk.{layer}.ln2", WIDTH)


def _llava(path: Path) -> None:
    made = Noise(path.name)
    made["v.patch_embd.weight"] = made.of(WIDTH, 3, PATCH, PATCH)
    made["v.position_embd.weight"] = made.of((SIDE // PATCH) ** 2, WIDTH)
    _layers(made)
    made |= norm(made, "v.post_ln", WIDTH)
    made |= linear(made, "mm.0", WIDTH, WIDTH) | linear(made, "mm.2", WIDTH, WIDTH)
    written(_vision(path, "mlp"), made)


def _qwen2vl(path: Path) -> None:
    made = Noise(path.name)
    made["v.patch_embd.weight"] = made.of(WIDTH, 3, PATCH, PATCH)
    made["v.patch_embd.weight.1"] = made.of(WIDTH, 3, PATCH, PATCH)
    _layers(made)
    made |= norm(made, "v.post_ln", WIDTH)
    made |= linear(made, "mm.0", 4 * WIDTH, 4 * WIDTH) | linear(made, "mm.2", 4 * WIDTH, WIDTH)
    written(_vision(path, "qwen2vl_merger"), made)


def _gemma3(path: Path) -> None:
    made = Noise(path.name)
    made["v.patch_embd.weight"] = made.of(WIDTH, 3, PATCH, PATCH)
    made["v.position_embd.weight"] = made.of((SIDE // PATCH) ** 2, WIDTH)
    _layers(made)
    made |= norm(made, "v.post_ln", WIDTH)
    made["mm.input_projection.weight"] = made.of(WIDTH, WIDTH)
    made["mm.soft_emb_norm.weight"] = 1 + made.of(WIDTH)
    writer = _vision(path, "gemma3")
    writer.add_uint32("clip.vision.projector.scale_factor", 2)
    written(writer, made)


def pixels(width: int, height: int, seed: int) -> bytes:
    """A picture of noise."""
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="uint8").tobytes()
