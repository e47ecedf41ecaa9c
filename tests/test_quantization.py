"""Names of quantizations, read from the file names that repositories really use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localai import quantization

NAMES = {
    "Llama-3.2-3B-Instruct-Q4_K_M.gguf": "Q4_K_M",
    "qwen2.5-coder-7b-instruct-q4_k_m.gguf": "Q4_K_M",
    "smollm2-360m-instruct-q8_0.gguf": "Q8_0",
    "Qwen3.6-35B-A3B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "UD-Q4_K_XL/GLM-4.5-Air-UD-Q4_K_XL-00001-of-00002.gguf": "UD-Q4_K_XL",
    "Q4_K_M/Qwen3-235B-A22B-Instruct-2507-Q4_K_M-00002-of-00003.gguf": "Q4_K_M",
    "Q6_K/model-00001-of-00002.gguf": "Q6_K",
    "gemma-3-12b-it-qat-Q4_0.gguf": "Q4_0",
    "gemma-4-E2B_q4_0-it.gguf": "Q4_0",
    "gemma-4-12b-it-qat-q4_0.gguf": "Q4_0",
    "LFM2.5-350M-QAD-Q4_0.gguf": "Q4_0",
    "gemma-3-12b-it-qat-q4": "Q4",
    "phi-4-q4.gguf": "Q4",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "gpt-oss-120b-mxfp4-00001-of-00003.gguf": "MXFP4",
    "Qwen3-Coder-Next-MXFP4_MOE.gguf": "MXFP4_MOE",
    "nomic-embed-text-v1.5.Q8_0.gguf": "Q8_0",
    "nomic-embed-text-v1.5.f16.gguf": "F16",
    "model.Q4_1.gguf": "Q4_1",
    "bge-m3-FP16.gguf": "F16",
    "model-BF16.gguf": "BF16",
    "model.f32.gguf": "F32",
    "model-fp32.gguf": "F32",
    "model-IQ4_XS.gguf": "IQ4_XS",
    "model.i1-IQ1_S.gguf": "IQ1_S",
    "model-IQ3_XXS.gguf": "IQ3_XXS",
    "model-iq4_nl.gguf": "IQ4_NL",
    "model-TQ1_0.gguf": "TQ1_0",
    "model-Q4_0_4_4.gguf": "Q4_0_4_4",
    "model-Q4_K.gguf": "Q4_K_M",
    "model-Q8_0.GGUF": "Q8_0",
    "q4_k_m": "Q4_K_M",
    "ud-q4_k_xl": "UD-Q4_K_XL",
    "Q2_K": "Q2_K",
    "MiniCPM-o-2_6-Q4_K_M.gguf": "Q4_K_M",
    "dir with Q8_0/model é-Q5_K_S.gguf": "Q5_K_S",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_quantization_is_read_from_the_names_that_are_in_use(name: str, expected: str) -> None:
    assert quantization.of_filename(name) == expected


@pytest.mark.parametrize(
    "name",
    ["Qwen3-4B.gguf", "model.gguf", "", "llama-3.2-1b", "xQ4_0.gguf", "model-32.gguf", "q"],
)
def test_a_name_without_one_is_none(name: str) -> None:
    assert quantization.of_filename(name) is None


@given(st.text(max_size=2000))
def test_any_text_gives_a_canonical_name_or_none(text: str) -> None:
    found = quantization.of_filename(text)
    assert found is None or (found == found.upper() and quantization.of_filename(found) == found)


@given(st.sampled_from(sorted(set(NAMES.values()))), st.text(alphabet="abcZ019 é-.", max_size=20))
def test_a_prefix_before_a_dash_does_not_hide_it(quant: str, prefix: str) -> None:
    assert quantization.of_filename(f"{prefix}x-{quant}.gguf") == quant


def test_bits_are_averages_of_the_file_not_of_the_name() -> None:
    assert quantization.bits("Q4_K_M") == pytest.approx(4.894, abs=0.001)
    assert quantization.bits("q8_0") == pytest.approx(8.5, abs=0.01)
    assert quantization.bits("UD-Q4_K_XL") == quantization.bits("Q4_K_M")
    assert quantization.bits("nothing") is None


@pytest.mark.parametrize("quant", sorted(set(NAMES.values())))
def test_every_name_has_bits_and_a_loss(quant: str) -> None:
    bits = quantization.bits(quant)
    assert bits is not None
    assert 1 < bits <= 32
    assert 0 <= quantization.loss(quant) < 1


def test_low_bit_is_what_the_name_says() -> None:
    low = ["Q3_K_L", "Q3_K_M", "Q2_K", "IQ3_M", "IQ1_S", "UD-Q2_K_XL", "UD-IQ3_XXS", "TQ1_0", "Q1_0", "q3_k_s"]
    enough = ["Q4_K_M", "Q4_0", "IQ4_XS", "MXFP4", "UD-Q4_K_XL", "Q8_0", "F16", "BF16", "F32", "NVFP4", "Q4"]
    assert all(quantization.is_low_bit(each) for each in low)
    assert not any(quantization.is_low_bit(each) for each in enough)


def test_loss_falls_with_more_bits() -> None:
    order = ["IQ1_S", "IQ2_XXS", "Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32"]
    losses = [quantization.loss(each) for each in order]
    assert losses == sorted(losses, reverse=True)


def test_loss_is_smaller_for_a_model_trained_for_the_type() -> None:
    assert quantization.loss("Q4_0", trained_for=True) < quantization.loss("Q4_0") / 2


def test_an_unmeasured_type_counts_as_the_worst_of_its_bits() -> None:
    assert quantization.loss("Q4_K_P") == quantization.loss("Q4_0")
    assert quantization.loss("TQ1_0") >= quantization.loss("IQ1_M")
