"""Models of real shapes with random weights and a vocabulary made up here: whole files that llama.cpp loads and runs.

Speed and memory do not depend on the weights' values, and neither does what a cache must keep; zeros would not do,
since their page stays in the processor's cache. `benchmarks/` uses this too, for shapes of real size.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_headers
import numpy as np
from gguf_files import Typed, array, gguf_bytes, size_of, text

from localai.tensor_types import BY_NAME

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # enum llama_token_type
FIRST_WORD = len(SPECIAL) + 256

# Small models of the shapes whose caches differ: plain attention, a sliding window, recurrent, and both mixed.
TINY: Mapping[str, model_headers.Model] = {
    "plain": model_headers.Model(
        "tiny", "llama", model_headers.dense(2, 64, 128, 4, 2), model_headers.llama_layer, 400, tied=True
    ),
    "window": model_headers.Model(
        "tiny-window",
        "gemma3",
        model_headers.dense(7, 64, 128, 4, 2, 16) | {"attention.sliding_window": 32},
        model_headers.gemma_layer,
        400,
        tied=True,
    ),
    "recurrent": replace(
        model_headers.named("mamba2-2.7b"),
        name="tiny-recurrent",
        dims=dict(model_headers.named("mamba2-2.7b").dims)
        | {"block_count": 2, "embedding_length": 64, "ssm.inner_size": 128, "ssm.state_size": 16}
        | {"ssm.group_count": 1, "ssm.time_step_rank": 8},
        vocabulary=400,
    ),
    "hybrid": replace(
        model_headers.named("lfm2.5-1.2b"),
        name="tiny-hybrid",
        dims=dict(model_headers.named("lfm2.5-1.2b").dims)
        | {"block_count": 4, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 4}
        | {"attention.head_count_kv": (0, 2, 0, 2), "rope.dimension_count": 16},
        vocabulary=400,
    ),
}


def write(
    folder: Path,
    model: model_headers.Model,
    quantization: str = "F16",
    *,
    seed: int = 1,
    context: int = 4096,
    template: str = TEMPLATE,
    tool_template: str = "",
    spells_bytes: bool = True,
    shards: int = 1,
) -> Path:
    """A file of that shape, or the first of so many. `tool_template` is a second one, for conversations with tools.

    Without `spells_bytes` its vocabulary has no bytes: it cannot write every character.
    """
    table = model_headers.tensors(model, quantization)
    metadata = model_headers.metadata(model) | {f"{model.architecture}.context_length": context}
    metadata |= _vocabulary(model.vocabulary, spells_bytes)
    templates = {"chat_template": template, "chat_template.tool_use": tool_template}
    metadata |= {f"tokenizer.{key}": source for key, source in templates.items() if source}
    name = f"{model.name}-{quantization}"
    names = (
        [f"{name}-{number + 1:05}-of-{shards:05}.gguf" for number in range(shards)] if shards > 1 else [f"{name}.gguf"]
    )
    random = np.random.default_rng(seed)
    for number, part in enumerate(names):
        own = table[number * len(table) // shards : (number + 1) * len(table) // shards]
        split = {"split.no": _short(number), "split.count": _short(shards), "split.tensors.count": _signed(len(table))}
        facts = (metadata if number == 0 else {}) | (split if shards > 1 else {})
        with (folder / part).open("wb") as stream:
            stream.write(gguf_bytes(facts, own, data=False))
            for name, kind, dimensions in own:
                content = _weights(random, name, kind, dimensions)
                stream.write(content + b"\0" * (-len(content) % 32))
    return folder / names[0]


def _short(number: int) -> Typed:
    return Typed(2, struct.pack("<H", number))


def _signed(number: int) -> Typed:
    return Typed(5, struct.pack("<i", number))


def kept(folder: Path, name: str, quantization: str) -> Path:
    """The file of the model `name` of `model_headers` in `folder`, made where it is not there yet."""
    path = folder / f"{name}-{quantization}.gguf"
    if not path.exists():
        partial = folder / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        write(partial, model_headers.named(name), quantization).replace(path)
    return path


def words(size: int) -> list[str]:
    """The vocabulary after the special tokens and the bytes: printable characters, then made-up words."""
    characters = ["\u2581", *map(chr, range(0x21, 0x7F)), "\n"]
    return [*characters, *(f"\u2581w{number}" for number in range(size))][: size - FIRST_WORD]


def _vocabulary(size: int, spells_bytes: bool) -> dict[str, Any]:
    bytes_ = [f"<0x{byte:02X}>" if spells_bytes else f"\u2581b{byte}" for byte in range(256)]
    tokens = [*SPECIAL, *bytes_, *words(size)]
    kinds = [UNKNOWN, *[CONTROL] * (len(SPECIAL) - 1), *[BYTE if spells_bytes else NORMAL] * 256]
    kinds += [NORMAL] * (size - len(kinds))
    scores = struct.pack(f"<{size}f", *(-float(number) for number in range(size)))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": Typed(9, struct.pack("<IQ", 8, size) + b"".join(map(text, tokens))),
        "tokenizer.ggml.scores": Typed(9, struct.pack("<IQ", 6, size) + scores),
        "tokenizer.ggml.token_type": Typed(9, array(kinds)[4:]),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def _weights(random: np.random.Generator, name: str, kind: str, dimensions: tuple[int, ...]) -> bytes:
    if "norm" in name or name.endswith("ssm_d"):
        return np.ones(math.prod(dimensions), "<f4").tobytes()
    if name.endswith("ssm_a"):  # a decay: negative
        return (-random.uniform(0.1, 1.0, math.prod(dimensions)).astype("<f4")).tobytes()
    scale = 1 / math.sqrt(dimensions[0])
    if kind in ("F32", "F16"):
        values = random.standard_normal(math.prod(dimensions), "float32") * np.float32(scale)
        return values.astype("<f4" if kind == "F32" else "<f2").tobytes()
    return _blocks(random, kind, size_of(kind, dimensions), scale)


def _half(value: float) -> list[int]:
    return list(struct.pack("<e", value))


def _blocks(random: np.random.Generator, kind: str, size_bytes: int, scale: float) -> bytes:
    """Random quantized blocks (ggml-common.h) whose values have the mean 0 and the deviation `scale`."""
    block_bytes = BY_NAME[kind].size_bytes
    blocks = np.frombuffer(random.bytes(size_bytes), "u1").reshape(-1, block_bytes).copy()
    match kind:
        case "Q8_0":
            blocks[:, :2] = _half(scale / 73)
        case "Q4_0":
            blocks[:, :2] = _half(scale / 4.6)
        case "Q5_0":
            blocks[:, :2] = _half(scale / 9.2)
        case "Q4_K":  # d, dmin, 8 scales and 8 minima of 6 bits: all 1
            blocks[:, :4] = _half(scale / 4.6) + _half(7.5 * scale / 4.6)
            blocks[:, 4:12], blocks[:, 12:16] = 1, 0x11
        case "Q6_K":  # 16 scales, all 1, then d
            blocks[:, 192:208], blocks[:, 208:] = 1, _half(scale / 18.5)
        case _:
            raise ValueError(f"no random blocks of {kind}")
    return blocks.tobytes()
