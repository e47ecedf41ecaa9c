"""Small models with random weights, made with `gguf`: they load, answer and make vectors, which mean nothing."""

from __future__ import annotations

from pathlib import Path

import numpy
from gguf import GGUFWriter, LlamaFileType, PoolingType, TokenType

WORDS = ("the", "cat", "dog", "sleeps", "runs", "in", "garden", "a", "house", "red", ".", ",", "é", "le", "chat")
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"\u2581{word}" for word in WORDS] + ["s", "ing"]
START, END = "<|im_start|>", "<|im_end|>"
LAYERS, HEADS = 2, 4


def _byte_letters() -> list[str]:
    """The character that GPT-2's tokenizers write for each byte: itself where it can be seen, else one from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(256, 512))
    return [chr(byte if byte in seen else next(unseen)) for byte in range(256)]


BYTE_TOKENS = [*_byte_letters(), "th", START, END]


def add_byte_tokenizer(writer: GGUFWriter, ends: bool = False) -> None:
    """A tokenizer of one token a byte, with ChatML's two control tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(BYTE_TOKENS)
    writer.add_token_types([TokenType.NORMAL] * (len(BYTE_TOKENS) - 2) + [TokenType.CONTROL] * 2)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(BYTE_TOKENS.index(START))
    writer.add_eos_token_id(BYTE_TOKENS.index(END))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(ends)


class Made(dict[str, numpy.ndarray]):
    """The tensors of a model, by name."""


class Noise(Made):
    """Tensors that are drawn; the same `seed` draws the same."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self._generator = numpy.random.default_rng(list(seed.encode()))

    def of(self, *shape: int) -> numpy.ndarray:
        """Numbers of the size that keeps a signal's."""
        return (self._generator.standard_normal(shape) / shape[-1] ** 0.5).astype(numpy.float32)


def bert(path: Path, pooling: str | None = "MEAN", width: int = 64, context: int = 512) -> Made:
    """An encoder as bge and MiniLM are: WordPiece, positions that were learnt, no cache."""
    made = Noise(path.name)
    feed = 2 * width
    made |= {
        "token_embd.weight": made.of(len(BERT_TOKENS), width),
        "token_types.weight": made.of(2, width),
        "position_embd.weight": made.of(context, width),
        **norm(made, "token_embd_norm", width),
    }
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            made |= linear(made, f"blk.{layer}.{name}", width, width)
        made |= linear(made, f"blk.{layer}.ffn_up", width, feed) | linear(made, f"blk.{layer}.ffn_down", feed, width)
        made |= norm(made, f"blk.{layer}.attn_output_norm", width) | norm(made, f"blk.{layer}.layer_output_norm", width)
    writer = GGUFWriter(path, "bert")
    writer.add_name("random bert")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(PoolingType[pooling])
    writer.add_tokenizer_model("bert")
    writer.add_token_list(BERT_TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 5 + [TokenType.NORMAL] * (len(BERT_TOKENS) - 5))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    return written(writer, made)


def decoder(path: Path, pooling: str | None = None, width: int = 64, context: int = 4096) -> Made:
    """A qwen3 decoder, as Qwen3-Embedding is, a token a byte; where it pools, texts end with the end token."""
    made = Noise(path.name)
    head = width // HEADS
    made |= {"token_embd.weight": made.of(len(BYTE_TOKENS), width), "output_norm.weight": 1 + made.of(width)}
    for layer in range(LAYERS):
        shapes = {"attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width)}
        shapes |= {"attn_output": (width, width), "ffn_gate": (2 * width, width), "ffn_up": (2 * width, width)}
        for name, shape in (shapes | {"ffn_down": (width, 2 * width)}).items():
            made[f"blk.{layer}.{name}.weight"] = made.of(*shape)
        for name, size in {"attn_norm": width, "ffn_norm": width, "attn_q_norm": head, "attn_k_norm": head}.items():
            made[f"blk.{layer}.{name}.weight"] = 1 + made.of(size)
    writer = GGUFWriter(path, "qwen3")
    writer.add_name("random qwen3")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-6)
    if pooling is not None:
        writer.add_pooling_type(PoolingType[pooling])
    add_byte_tokenizer(writer, ends=pooling is not None)
    return written(writer, made)


def linear(noise: Noise, name: str, inputs: int, outputs: int) -> Made:
    return Made({f"{name}.weight": noise.of(outputs, inputs), f"{name}.bias": noise.of(outputs)})


def norm(noise: Noise, name: str, width: int) -> Made:
    return Made({f"{name}.weight": 1 + noise.of(width), f"{name}.bias": noise.of(width)})


def written(writer: GGUFWriter, made: Made) -> Made:
    for name, tensor in made.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made
