"""Weights and dimensions of a model whose header has not been read, from the catalog's facts or from its size alone."""

from __future__ import annotations

from dataclasses import replace

from localai import quantization
from localai.catalog import CatalogModel
from localai.domain.shape import Shape, Weights
from localai.tensor_types import BY_NAME


def shape_from_catalog(model: CatalogModel) -> Shape:
    """The dimensions of a catalog model; cautious ones (basis "size") where no source gives them."""
    guessed = shape_from_params(model.params_b, model.active_params_b)
    return model.shape or replace(guessed, context_length=model.context_length)


def weights_from_catalog(model: CatalogModel, quant: str) -> Weights:
    """Weights of a catalog model at a quantization: its file's size where known, else its parts at their real bits.

    Within about 3 % of the published sizes. Raises ValueError for a quantization whose bits nobody knows.
    """
    shape = shape_from_catalog(model)
    file = model.file(quant)
    tied = _is_tied(model)
    embedding, output, rest = _parts(round(model.params_b * 1e9), shape, quant, tied)
    if file is not None and file.size_bytes is not None:
        rest = max(0, file.size_bytes - embedding - output)
        embedding = min(embedding, file.size_bytes)
    return _weights(embedding, output, rest, shape, quant)


def weights_from_size(size_bytes: int, shape: Shape, quant: str, tied: bool | None = None) -> Weights:
    """Weights of a file whose header has not been read: all of its bytes, split as the shape suggests.

    `tied` says whether the output is the embedding, None that nobody knows.
    """
    tied = shape.params < 5e9 if tied is None else tied
    embedding, output, _ = _parts(shape.params, shape, quant if quantization.bits(quant) else "Q8_0", tied)
    embedding, output = min(embedding, size_bytes // 2), min(output, size_bytes // 4)
    return _weights(embedding, output, size_bytes - embedding - output, shape, quant)


def weights_like(read: Weights, read_quant: str, shape: Shape, size_bytes: int, quant: str) -> Weights:
    """Weights of another quantization of a model one of whose headers was read: all of its bytes.

    Embedding and output have the types that go with it; the rest is in the proportions of what was read.
    """
    tied = not read.output_bytes
    before, after = (
        _parts(shape.params, shape, each if quantization.bits(each) else "Q8_0", tied) for each in (read_quant, quant)
    )
    embedding = min(round(read.embedding_bytes * after[0] / max(1, before[0])), size_bytes // 2)
    output = min(round(read.output_bytes * after[1] / max(1, before[1])), size_bytes // 4)
    tied_bytes = min(round(read.tied_bytes * after[0] / max(1, before[0])), embedding)
    body = read.total_bytes - read.embedding_bytes - read.output_bytes
    share = (size_bytes - embedding - output) / max(1, body)
    elements, of_prompt = (sum(count for _, count in kinds) for kinds in (read.layer_kinds, read.prompt_kinds))
    bits = sum(count * _bits_of(kind) for kind, count in read.layer_kinds) / max(1, elements) * share

    def scaled(count: int) -> int:
        return round(count * share)

    of_layers = read.read_per_token_bytes - (read.output_bytes or read.tied_bytes)
    return replace(
        read,
        total_bytes=size_bytes,
        read_per_token_bytes=scaled(of_layers) + (output or tied_bytes),
        embedding_bytes=embedding,
        output_bytes=output,
        tied_bytes=tied_bytes,
        layer_bytes=tuple(map(scaled, read.layer_bytes)),
        expert_bytes=tuple(map(scaled, read.expert_bytes)),
        layer_kinds=_kinds(quant, elements, bits),
        output_kind=(_output_type(quant), read.output_kind[1]),
        prompt_kinds=_kinds(quant, of_prompt, bits),
    )


def _bits_of(kind: str) -> float:
    return BY_NAME[kind].size_bytes * 8 / BY_NAME[kind].block


# Weights of a usual vision encoder with its projector: Gemma 3 4B's in F16 has 851,251,104 bytes, Qwen3-VL 2B's in Q8_0
# 445 MB (as published), both 0.42 billion; models of less than a billion have encoders of about 0.1 (SmolVLM2 500M).
_VISION_PARAMS, _SMALL_VISION_PARAMS = 0.42e9, 0.1e9


def projector_bytes(model: CatalogModel) -> int:
    """About what a vision model's projector takes, by the type in its file's name; 0 for a model without one."""
    if model.projector is None:
        return 0
    bits = quantization.bits(quantization.of_filename(model.projector) or "F16") or 16
    return round((_VISION_PARAMS if model.params_b >= 1 else _SMALL_VISION_PARAMS) * bits / 8)


_ROW = 1.25  # length of an average row over the model's width: 1.25 in Qwen3 0.6B, 1.24 in Llama 3.1 8B
_FEED_FORWARD = 0.75  # of a layer's weights: 0.60 in Qwen3 0.6B, 0.81 in Llama 3.1 8B


def _weights(embedding: int, output: int, rest: int, shape: Shape, quant: str) -> Weights:
    read = rest * (shape.active_params / shape.params if shape.active_params else 1) + (output or embedding)
    total = rest + embedding + output
    vocabulary = (shape.vocab_size or 0) * (shape.embedding_length or 0)
    active = max(0, (shape.active_params or shape.params) - vocabulary * (2 if output else 1))
    width = shape.embedding_length or 2048
    body = rest * 8 / max(1, shape.params - vocabulary * (2 if output else 1))
    kinds = _kinds(quant, active, body)
    of_prompt = active - round(active * _FEED_FORWARD / max(1, shape.n_layers))  # all but the last feed-forward
    return Weights(
        total,
        round(min(read, rest + (output or embedding))),
        embedding,
        output,
        layer_kinds=kinds,
        output_kind=(_output_type(quant), vocabulary),
        expert_weights=active // 2 if shape.expert_count or shape.active_params else 0,
        prompt_kinds=_kinds(quant, of_prompt, body),
        prompt_numbers=round(of_prompt / (_ROW * width)) + 2 * shape.n_layers * width,
        row_kinds=(
            *((kind, round(count / (_ROW * width))) for kind, count in kinds),
            (_output_type(quant), shape.vocab_size or 0),
        ),
        norms=2 * shape.n_layers,
    )


def _output_type(quant: str) -> str:
    return "Q8_0" if _digit(quant) == 8 else "F16" if "16" in quant or "32" in quant else "Q6_K"


def _kinds(quant: str, weights: int, bits: float) -> tuple[tuple[str, int], ...]:
    """The tensor types of the layers' weights: the main one, and as much of Q6_K as makes up the average `bits`."""
    plain = quant.upper().removeprefix("UD-")
    if "16" in plain or "32" in plain:
        return (("F16" if plain != "BF16" else "BF16", weights),)
    main = "_".join(plain.split("_")[:2])
    at, more = _MAIN_BITS.get(_digit(plain)), 6.5625
    if not plain.startswith("Q") or "_K" not in plain or at is None or at >= more or bits <= at:
        return ((main, weights),)
    larger = round(weights * min(1.0, (bits - at) / (more - at)))
    return ((main, weights - larger), ("Q6_K", larger))


def _is_tied(model: CatalogModel) -> bool:
    """Whether the output is the embedding: so in every Gemma and LFM2, and in other models of less than 5B."""
    if model.untied_embedding is not None:
        return not model.untied_embedding
    return model.architecture.startswith(("gemma", "lfm2")) or model.params_b < 5


# Tensor types of the embedding and the output (llama-quant.cpp, llama_tensor_get_type): the output, also a tied
# embedding, is Q6_K, but Q8_0 in Q8_0 files; another embedding has the file's main type.
_OUTPUT_BITS = 6.5625
_MAIN_BITS = {2: 2.625, 3: 3.4375, 4: 4.5, 5: 5.5, 6: 6.5625, 8: 8.5}
_MEASURED_PARAMS, _MEASURED_EMBEDDING = 8.0303e9, 128256 * 4096  # Llama 3.1 8B, whose averages quantization.bits gives


def _parts(params: int, shape: Shape, quant: str, tied: bool) -> tuple[int, int, int]:
    """Bytes of the embedding, the output (0 if tied) and all the rest."""
    average = quantization.bits(quant)
    if average is None:
        raise ValueError(f"unknown quantization {quant!r}")
    if average >= 16:
        main = output = body = average
    else:
        main = _MAIN_BITS.get(_digit(quant), average)
        output = max(_OUTPUT_BITS, main) if average > 4 else main
        body = (average * _MEASURED_PARAMS - _MEASURED_EMBEDDING * (main + output)) / (
            _MEASURED_PARAMS - 2 * _MEASURED_EMBEDDING
        )
        if quant.upper().startswith("MXFP4"):  # only the experts are; the rest is Q8_0 (convert_hf_to_gguf.py)
            main, output, body = 8.5, 8.5, average
        elif (shape.embedding_length or 256) % 256:  # K-quants fall back (llama-quant.cpp): Q4_K to Q5_0, Q6_K to Q8_0
            body, output = body + (0.7 if "_K" in quant.upper() else 0), 8.5
    vocabulary = (shape.vocab_size or 0) * (shape.embedding_length or 0)
    others = max(0, params - vocabulary * (1 if tied else 2))
    if tied:
        return round(vocabulary * output / 8), 0, round(others * body / 8)
    return round(vocabulary * main / 8), round(vocabulary * output / 8), round(others * body / 8)


def _digit(quant: str) -> int:
    return next((int(character) for character in quant if character.isdigit()), 0)


# Dimensions typical of released models of at least that many billions: layers, width, KV heads, head size. The widest
# common choice of each size, so that the cache is over- rather than underestimated.
_TYPICAL = (
    (100, 94, 8192, 8, 128),
    (50, 80, 8192, 8, 128),
    (30, 64, 5120, 8, 128),
    (17, 48, 5120, 8, 128),
    (11, 40, 5120, 8, 128),
    (6, 36, 4096, 8, 128),
    (3.2, 36, 2560, 8, 128),
    (1.5, 28, 2048, 8, 128),
    (0.8, 24, 1536, 4, 128),
    (0.4, 28, 1024, 4, 128),
    (0.2, 24, 1024, 4, 64),
    (0.0, 30, 576, 3, 64),
)
_TYPICAL_VOCABULARY = 128256


def shape_from_params(params_b: float, active_params_b: float | None = None) -> Shape:
    """Cautious dimensions of a model of which only the size is known (billions); basis "size"."""
    layers, width, heads, length = next(row[1:] for row in _TYPICAL if params_b >= row[0])
    return Shape(
        architecture="unknown",
        params=round(params_b * 1e9),
        n_layers=layers,
        embedding_length=width,
        vocab_size=min(_TYPICAL_VOCABULARY, round(params_b * 1e9 / width / 3)),
        kv_heads=(heads,) * layers,
        key_length=length,
        value_length=length,
        context_length=None,
        active_params=round(active_params_b * 1e9) if active_params_b else None,
        basis="size",
    )


def params_from_size(size_bytes: int, quant: str) -> int:
    """About how many parameters a file of that size has; of an unknown quantization 4.5 bits each, as of most files."""
    return round(max(size_bytes, 1) * 8 / (quantization.bits(quant) or 4.5))


def shape_from_size(size_bytes: int, quant: str) -> Shape:
    """Cautious dimensions of a file that neither the catalog nor a header describes, from its size; basis "size"."""
    return shape_from_params(params_from_size(size_bytes, quant) / 1e9)
