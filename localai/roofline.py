"""How long a token takes on a calibrated machine: weights by tensor type, layers, attention, over CPU and GPU. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from localai.buffers import UBATCH
from localai.domain.rates import Calibration, DeviceRates
from localai.domain.shape import Shape, Weights
from localai.tensor_types import BY_NAME

# What a type that was not measured counts as: the nearest in how it is computed; bytes decide between several.
_LIKE = {
    "BF16": "F16",
    "F32": "F16",
    "Q4_1": "Q5_0",
    "IQ4_NL": "Q4_0",
    "MXFP4": "Q4_0",
    "NVFP4": "Q4_0",
    "Q5_1": "Q4_1",
    "Q5_K": "Q6_K",
    "Q3_K": "Q6_K",
    "Q2_K": "Q4_K",
    "IQ4_XS": "Q6_K",
    "IQ2_S": "IQ3_XXS",
    "IQ2_XS": "IQ3_XXS",
    "IQ2_XXS": "IQ3_XXS",
    "IQ1_M": "IQ3_XXS",
    "IQ1_S": "IQ3_XXS",
}
# The caches hold a part of a model at most: what they hold of a small one is not known, since the smallest that was
# measured was larger than they.
MOST_KEPT = 0.3
PCIE_BYTES_S = 16e9  # PCIe 4.0 x8, over which weights on the CPU reach the GPU for long prompts


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a model's layers is on the GPU, and the share of the experts that is not although they are."""

    gpu_share: float
    cpu_experts: float = 0.0


def known(shape: Shape, weights: Weights, calibration: Calibration, split: Split) -> bool:
    """Whether the calibration can tell: a header or catalog's facts, and rates of every device that is used."""
    if not weights.layer_kinds or (split.gpu_share and calibration.gpu is None):
        return False
    return shape.n_layers > 0


def sure(shape: Shape, weights: Weights, calibration: Calibration) -> bool:
    """Whether every part was measured: no tensor type stands in for another, no layer is of another kind."""
    measured = {kind for kind, _ in calibration.cpu.decode}
    whole = sum(count for _, count in weights.layer_kinds)
    strange = sum(count for kind, count in weights.layer_kinds if kind not in measured and kind != "F32")
    return strange <= 0.02 * whole and not shape.recurrent_state_bytes and not shape.latent_kv


def decode_s(shape: Shape, weights: Weights, calibration: Calibration, split: Split, depth: int) -> float:
    """Seconds to write one token with so many in the cache."""
    experts = min(weights.expert_weights, sum(count for _, count in weights.layer_kinds))
    all_of_them = max(1, sum(count for _, count in weights.layer_kinds))
    moved = split.cpu_experts * experts / all_of_them  # share of the layers' weights that the CPU computes
    total = 0.0
    for rates, share in _devices(calibration, split.gpu_share):
        on_gpu = rates is not calibration.cpu
        norms = max(weights.norms, 2 * shape.n_layers)  # a layer without any has as many small operations
        beside = norms * rates.norm_s
        if shape.expert_count:
            beside = shape.n_layers * rates.expert_layer_s if rates.expert_layer_s else 2 * beside
        matrices = sum(count * _rate(rates.decode, kind) for kind, count in weights.layer_kinds)
        read = share * matrices * (1 - moved if on_gpu else 1)
        read += share * weights.output_kind[1] * _rate(rates.decode, weights.output_kind[0])
        rows = sum(count * _rate(rates.row, kind) for kind, count in weights.row_kinds)
        total += share * (beside + rows) + read - min(rates.kept_s, MOST_KEPT * read)
        numbers = shape.key_length + shape.value_length
        heads = attention_cells(shape, depth)[0] / numbers if numbers else 0.0
        total += share * heads * _attention_s(rates.attention_decode, numbers)
    if moved and split.gpu_share:
        cpu = calibration.cpu
        matrices = sum(count * _rate(cpu.decode, kind) for kind, count in weights.layer_kinds)
        total += moved * matrices + split.cpu_experts * 2 * shape.n_layers * cpu.norm_s
    return total


def prompt_s(shape: Shape, weights: Weights, calibration: Calibration, split: Split, tokens: int, depth: int) -> float:
    """Seconds to read a prompt of so many tokens, with `depth` in the cache before."""
    share_of_experts = weights.expert_weights / max(1, sum(count for _, count in weights.layer_kinds))
    total = 0.0
    # on a GPU also the weights in RAM are multiplied there, once they have come over the bus
    for rates, share in [(calibration.gpu, 1.0)] if split.gpu_share and calibration.gpu else [(calibration.cpu, 1.0)]:
        slower = 1 + share_of_experts * ((rates.expert_prompt or 1.5) - 1) if shape.expert_count else 1.0
        matrices = sum(count * _rate(rates.prompt, kind) for kind, count in weights.prompt_kinds)
        total += share * tokens * (matrices * slower + weights.prompt_numbers * rates.number_s)
        total += share * tokens * attention_cells(shape, depth + tokens / 2)[0] * rates.attention_prompt_s
        total += weights.output_kind[1] * _rate(rates.decode, weights.output_kind[0])
    if split.gpu_share and (split.gpu_share < 1 or split.cpu_experts):
        batches = -(-tokens // UBATCH)
        in_ram = (1 - split.gpu_share) * weights.total_bytes + split.cpu_experts * sum(weights.expert_bytes)
        total += batches * in_ram / PCIE_BYTES_S
    return total


def attention_cells(shape: Shape, depth: float) -> tuple[float, float]:
    """Numbers of keys and values that a token is compared with, over all layers: of all heads, and of the KV heads."""
    heads_seen = kv_seen = 0.0
    for layer, kv_heads in enumerate(shape.kv_heads):
        slides = layer < len(shape.sliding_layers) and shape.sliding_layers[layer]
        seen = min(depth, shape.sliding_window or depth) if slides else depth
        numbers = shape.key_length + shape.value_length
        heads_seen += (shape.head_count or kv_heads) * numbers * seen if kv_heads else 0
        kv_seen += kv_heads * numbers * seen
    return heads_seen, kv_seen


def _attention_s(measured: tuple[tuple[int, float], ...], numbers: int) -> float:
    """Seconds for one head and one token of depth: on the line between the lengths that were measured, beyond them in
    proportion.

    It is no matter of length alone, so no single rate would do: on two cores Llama's heads of 64 numbers took 11 ns,
    Qwen3's of 128 29 and Gemma's of 256 19.
    """
    below = [each for each in measured if each[0] < numbers]
    above = [each for each in measured if each[0] >= numbers]
    if not below or not above:
        return next((seconds * numbers / length for length, seconds in (*below[-1:], *above[:1])), 0.0)
    (shorter, less), (longer, more) = below[-1], above[0]
    return less + (more - less) * (numbers - shorter) / (longer - shorter)


def _devices(calibration: Calibration, gpu_share: float) -> list[tuple[DeviceRates, float]]:
    found = [(calibration.cpu, 1 - gpu_share)] if gpu_share < 1 else []
    return found + ([(calibration.gpu, gpu_share)] if gpu_share and calibration.gpu else [])


def _rate(rates: tuple[tuple[str, float], ...], kind: str) -> float:
    """Seconds a weight of that type; of one that was not measured those of its like, else by its bytes."""
    measured = dict(rates)
    if (found := measured.get(kind)) is not None:
        return found
    if (like := measured.get(_LIKE.get(kind, ""))) is not None and kind != "F32":
        return like
    bits = {name: each.size_bytes * 8 / each.block for name, each in BY_NAME.items()}
    own = bits.get(kind, 4.5)
    nearest = min(measured, key=lambda name: abs(bits.get(name, 16.0) - own), default=None)
    return 0.0 if nearest is None else measured[nearest] * max(1.0, own / bits[nearest])
