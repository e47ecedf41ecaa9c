"""What a GGUF file's quantization is called, how many bits it takes and what it costs in quality.

A file type (`Q4_K_M`) is a mix of tensor types, so its average is not the number in its name. The canonical name is
upper case; `UD-` (Unsloth's dynamic mixes) stays part of it, because a repository can hold both.
"""

from __future__ import annotations

import math
import re

_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")
_EDGE_BEFORE = r"(?:^|(?<=[-._/\\ (]))"
_EDGE_AFTER = r"(?=$|[-._/\\ )])"
_FULL = re.compile(
    _EDGE_BEFORE
    + r"((?:UD-)?(?:"
    + r"I?Q[1-9]_(?:K(?:_(?:XXL|XL|L|M|S|XS|P))?|XXS|XS|S|M|NL(?:_[48]_[48])?|[01](?:_[48]_[48])?)"
    + r"|TQ[12]_0|(?:MX|NV)FP4(?:_MOE)?|B?F16|FP16|FP?32"
    + r"))"
    + _EDGE_AFTER,
    re.IGNORECASE | re.ASCII,
)
_BARE = re.compile(_EDGE_BEFORE + r"(Q[2-8])" + _EDGE_AFTER, re.IGNORECASE | re.ASCII)
_SAME = {"FP16": "F16", "FP32": "F32", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_NAME_LIMIT = 1024  # a path longer than this is nobody's file name; the patterns stay cheap on hostile input

# Average bits per weight of the whole file. K- and I-quants, Q8_0 and F16: the table of Llama 3.1 8B in llama.cpp's
# tools/quantize/README.md. Q4_0 to Q5_1: sizes of Llama 3 8B (8.03e9 weights) in tools/perplexity/README.md.
# Q1_0, Q2_0, TQ: tools/quantize/quantize.cpp. MXFP4, NVFP4: the block's own bits (ggml-common.h).
# _L and _XL (embeddings and output kept at Q8_0): sizes of bartowski/Meta-Llama-3.1-8B-Instruct-GGUF as published.
_BITS = {
    "IQ1_S": 2.0042,
    "IQ1_M": 2.1460,
    "IQ2_XXS": 2.3824,
    "IQ2_XS": 2.5882,
    "IQ2_S": 2.7403,
    "IQ2_M": 2.9294,
    "IQ3_XXS": 3.2548,
    "IQ3_XS": 3.4977,
    "IQ3_S": 3.6606,
    "IQ3_M": 3.7628,
    "IQ4_XS": 4.4597,
    "IQ4_NL": 4.6818,
    "Q2_K_S": 2.9697,
    "Q2_K": 3.1593,
    "Q2_K_L": 3.68,
    "Q3_K_S": 3.6429,
    "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979,
    "Q3_K_XL": 4.76,
    "Q4_0": 4.64,
    "Q4_1": 5.11,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q4_K_L": 5.29,
    "Q5_0": 5.57,
    "Q5_1": 6.04,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "Q5_K_L": 6.04,
    "Q6_K": 6.5633,
    "Q6_K_L": 6.83,
    "Q8_0": 8.5008,
    "Q1_0": 1.125,
    "Q2_0": 2.25,
    "TQ1_0": 1.69,
    "TQ2_0": 2.06,
    "MXFP4": 4.25,
    "NVFP4": 4.5,
    "F16": 16.0,
    "BF16": 16.0,
    "F32": 32.0,
}
# A mix that has no entry of its own is counted as its nearest measured relative.
_BITS_LIKE = {
    "Q4_K_XL": "Q4_K_M",
    "Q5_K_XL": "Q5_K_M",
    "Q6_K_XL": "Q6_K_L",
    "Q2_K_XL": "Q2_K_L",
    "Q8_K_XL": "Q8_0",
    "MXFP4_MOE": "MXFP4",
    "Q2": "Q2_K",
    "Q3": "Q3_K_M",
    "Q4": "Q4_K_M",
    "Q5": "Q5_K_M",
    "Q6": "Q6_K",
    "Q8": "Q8_0",
}

# Mean Kullback-Leibler divergence from F16 on Llama 3 8B, "LLaMA 3 8b Scoreboard" of llama.cpp's
# tools/perplexity/README.md; the row with an importance matrix for I-quants (they need one), without for the others.
_DIVERGENCE = {
    "F32": 0.0,
    "BF16": 0.0,
    "F16": 0.000551,
    "Q8_0": 0.001355,
    "Q6_K": 0.005452,
    "Q5_K_M": 0.010762,
    "Q5_K_S": 0.016595,
    "Q5_1": 0.018045,
    "Q5_0": 0.022239,
    "Q4_K_M": 0.031273,
    "IQ4_NL": 0.035742,
    "IQ4_XS": 0.036334,
    "Q4_K_S": 0.043136,
    "Q4_1": 0.071683,
    "Q4_0": 0.071940,
    "Q3_K_L": 0.087176,
    "Q3_K_M": 0.101913,
    "IQ3_M": 0.102534,
    "IQ3_S": 0.111278,
    "IQ3_XS": 0.138693,
    "IQ3_XXS": 0.183625,
    "Q3_K_S": 0.228217,
    "IQ2_M": 0.325989,
    "IQ2_S": 0.439197,
    "Q2_K": 0.445132,
    "Q2_K_S": 0.403360,
    "IQ2_XS": 0.546290,
    "IQ2_XXS": 0.812022,
    "IQ1_M": 1.393084,
    "IQ1_S": 2.254554,
}
_DIVERGENCE_LIKE = {
    **_BITS_LIKE,
    "Q2_K_L": "Q2_K",
    "Q2_K_XL": "Q2_K",
    "Q3_K_XL": "Q3_K_L",
    "Q4_K_L": "Q4_K_M",
    "Q5_K_L": "Q5_K_M",
    "Q6_K_L": "Q6_K",
    "Q6_K_XL": "Q6_K",
    "MXFP4": "Q4_0",
    "MXFP4_MOE": "Q4_0",
    "NVFP4": "Q4_0",
}
# Google, "Gemma 3 QAT models" (2025-04): training for Q4_0 takes 54 % off the loss.
_QAT_REMAINS = 0.46


def of_filename(name: str) -> str | None:
    """The canonical quantization that a file name, a path in a repository or a user's word names, or None.

    The last one named counts, the file's own name before its folders'; shard numbers are ignored.
    """
    if len(name) > _NAME_LIMIT:
        return None
    stem = re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE)
    parts = _SHARD.sub("", stem).replace("\\", "/").split("/")
    for pattern in (_FULL, _BARE):
        for part in reversed(parts):
            if found := pattern.findall(part):
                return _canonical(found[-1])
    return None


def is_name(text: str) -> bool:
    """Whether a text is the name of a quantization, and nothing else."""
    return (_FULL.fullmatch(text) or _BARE.fullmatch(text)) is not None


def _canonical(text: str) -> str:
    upper = text.upper()
    prefix = "UD-" if upper.startswith("UD-") else ""
    rest = upper.removeprefix("UD-")
    return prefix + _SAME.get(rest, rest)


def _base(quantization: str) -> str:
    """The file type without publisher's prefix and CPU-interleaved suffix (`Q4_0_4_4` holds Q4_0's bits)."""
    plain = _canonical(quantization).removeprefix("UD-")
    return re.sub(r"(?<=_0|NL)_[48]_[48]$", "", plain)


def bits(quantization: str) -> float | None:
    """Average bits per weight of a file of that type (an 8B model's; small models take more), None if unknown."""
    base = _base(quantization)
    return _BITS.get(_BITS_LIKE.get(base, base))


def is_low_bit(quantization: str) -> bool:
    """Whether the type is of less than 4 bits by its name, where made-up answers become more likely."""
    return re.match(r"I?Q[1-3]|TQ", _base(quantization)) is not None


def loss(quantization: str, *, trained_for: bool = False) -> float:
    """The share of a model's quality that the type costs, 0 to 1: 1 − exp(−KLD), KLD the mean divergence from F16.

    `trained_for` is true of a model trained for this very type (quantization-aware training); one that is published
    in MXFP4 has no better original. A type nobody has measured counts as the worst measured one of its bits.
    """
    base = _base(quantization)
    if trained_for and base.startswith("MXFP4"):
        return 0.0
    divergence = _DIVERGENCE.get(_DIVERGENCE_LIKE.get(base, base))
    if divergence is None:
        divergence = _worst_of(int(digit.group()) if (digit := re.search(r"[1-9]", base)) else 1)
    return 1 - math.exp(-divergence * (_QAT_REMAINS if trained_for else 1))


def _worst_of(digits: int) -> float:
    same = [value for name, value in _DIVERGENCE.items() if re.match(rf"I?Q{digits}", name)]
    return max(same, default=max(_DIVERGENCE.values()))
