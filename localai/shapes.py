"""What a GGUF header says about a model: shape, weights, quantization, card. Pure functions over `gguf.Header`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localai.architectures import NUMBER_LIMIT, WITHOUT_CACHE, HeaderReading, is_of_experts, layer_of
from localai.domain.embedding import Pooling
from localai.domain.shape import Shape, Weights
from localai.errors import EngineError
from localai.gguf import Header

# general.file_type, enum llama_ftype of include/llama.h, named as files are.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
_POOLINGS = ("mean", "mean", "cls", "last", "rank")  # enum llama_pooling_type of llama.h; 0 is none
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED
_LIKE_A_FILE = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_LOOKED_UP = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})  # a row a token, never read whole
# Looking GELU up takes as long as so many more numbers in a prompt, and as a row each while writing (ggml's own table;
# 512 tokens of Gemma 3 270M on 2 cores, operation by operation: 1.1 ns a number, where SwiGLU takes 0.26).
_LOOKED_UP_AS_NUMBERS = 2


@dataclass(frozen=True, slots=True)
class Card:
    """What a model says of itself; None where its header is silent."""

    name: str | None
    architecture: str | None
    license: str | None
    context_length: int | None
    has_chat_template: bool
    params: int
    embeds: bool = False  # it makes vectors, and writes nothing


def card(header: Header) -> Card:
    """The model's card; never fails on a header that could be read."""
    architecture = header.text("general.architecture")
    context = header.metadata.get(f"{architecture}.context_length")
    license = header.text("general.license")
    if license in (None, "other"):  # one of the maker's own: it has a name
        license = header.text("general.license.name") or license
    try:
        embeds = not makes_text(header)
    except EngineError:
        embeds = False
    return Card(
        name=header.text("general.name"),
        architecture=architecture,
        license=license,
        context_length=context if type(context) is int and 0 < context < NUMBER_LIMIT else None,
        has_chat_template=bool(header.metadata.get("tokenizer.chat_template")),
        params=sum(tensor.elements for tensor in header.tensors),
        embeds=embeds,
    )


def quantization(header: Header) -> str:
    """The file type's name (`Q4_K_M`); where the header has none, that of the tensor type with the most bytes."""
    number = header.metadata.get("general.file_type")
    if type(number) is int and (name := _FILE_TYPES.get(number & ~_GUESSED)):
        return name
    size: dict[str, int] = {}
    for tensor in header.tensors:
        size[tensor.type] = size.get(tensor.type, 0) + tensor.size_bytes
    if not size:
        return "F32"
    most = max(size, key=lambda kind: size[kind])
    return _LIKE_A_FILE.get(most, most)


def pooling(header: Header) -> Pooling:
    """How the model makes vectors. Raises EngineError for a way that llama.cpp doesn't know."""
    architecture = header.text("general.architecture")
    number = header.metadata.get(f"{architecture}.pooling_type", 0)
    causal = header.metadata.get(f"{architecture}.attention.causal", True) is not False
    causal = causal and architecture not in WITHOUT_CACHE
    if type(number) is not int or not 0 <= number < len(_POOLINGS):
        raise EngineError("the model's pooling_type is unknown", "a newer engine may know it")
    return Pooling(_POOLINGS[number], causal, declared=number > 0)


def makes_text(header: Header) -> bool:
    """Whether the model is one that writes: embedding models and rerankers are not."""
    found = pooling(header)
    return found.causal and not found.declared


def may_see_for(projector: Header, width: int | None) -> bool:
    """Whether a projector may be that of a model whose embeddings are so wide: something behind its encoders is.

    Its `projection_dim` alone does not tell: in LLaVA's projectors it is the encoder's own.
    """
    widths = {projector.metadata.get(f"clip.{kind}.projection_dim") for kind in ("vision", "audio")}
    for tensor in projector.tensors:
        if not tensor.name.startswith(("v.", "a.")):
            widths.update(tensor.dimensions)
    return width is None or widths <= {None} or width in widths


def shape(header: Header) -> Shape:
    """The model's dimensions. Raises EngineError for a header that is not a language model's, or out of bounds."""
    return HeaderReading(header).shape()


def shape_of_beginning(header: Header, params: int) -> Shape:
    """The dimensions of a model of about `params` parameters whose tensor table was not read (`parse_beginning`).

    Of a mixture of experts the part that one token uses is reckoned from the experts' dimensions. Raises EngineError as
    `shape` does.
    """
    found = HeaderReading(header).shape()
    active = None
    width = found.expert_feed_forward_length or found.feed_forward_length
    if found.expert_count and found.expert_used_count and width and found.embedding_length:
        of_experts = found.n_layers * 3 * found.embedding_length * width * found.expert_count
        idle = round(min(of_experts, 0.97 * params) * max(0.0, 1 - found.expert_used_count / found.expert_count))
        active = params - idle
    return replace(found, params=params, active_params=active)


def weights(header: Header) -> Weights:
    """Bytes of the tensors; what one token reads leaves out embeddings that are only looked up, idle experts and
    prediction layers that decoding does not run. `output_bytes` 0: the output is tied to the embedding.

    Raises EngineError as `shape` does.
    """
    reading = HeaderReading(header)
    total = embedding = output = 0
    read = 0.0
    tied_bytes = 0
    layers, of_experts = [0] * reading.n_layers, [0] * reading.n_layers
    tied = not any(tensor.name == "output.weight" for tensor in header.tensors)
    kinds: dict[str, float] = {}
    of_prompt: dict[str, float] = {}
    output_kind = ("", 0)
    row_kinds: dict[str, float] = {}
    expert_weights = numbers = 0.0
    norms = 0
    for tensor in header.tensors:
        total += tensor.size_bytes
        layer = layer_of(tensor)
        if layer is not None and layer < len(layers):
            layers[layer] += tensor.size_bytes
            if reading.expert_count and is_of_experts(tensor):
                of_experts[layer] += tensor.size_bytes
        if tensor.name in _LOOKED_UP:
            embedding += tensor.size_bytes
            if not (tied and tensor.name == "token_embd.weight"):
                continue
            tied_bytes = tensor.size_bytes
        elif tensor.name == "output.weight":
            output = tensor.size_bytes
        used = reading.share_used(tensor)
        read += tensor.size_bytes * used
        if used and layer is not None and "_norm" in tensor.name:
            norms += 1
            numbers += reading.normed(tensor, layer)
        of_token = tensor.elements / max(1, tensor.dimensions[0]) * used if len(tensor.dimensions) > 1 else 0
        looked_up = of_token if reading.looks_up and ".ffn_up" in tensor.name else 0
        if of_token:
            row_kinds[tensor.type] = row_kinds.get(tensor.type, 0) + of_token + looked_up
        if tensor.name in ("token_embd.weight", "output.weight"):
            output_kind = (tensor.type, tensor.elements)
        elif len(tensor.dimensions) > 1:
            kinds[tensor.type] = kinds.get(tensor.type, 0) + tensor.elements * used
            if layer != reading.n_trunk - 1 or ".ffn_" not in tensor.name:
                of_prompt[tensor.type] = of_prompt.get(tensor.type, 0) + tensor.elements * used
                numbers += of_token + _LOOKED_UP_AS_NUMBERS * looked_up
            expert_weights += tensor.elements * used if is_of_experts(tensor) else 0
    return Weights(
        total,
        round(read),
        embedding,
        output,
        tied_bytes,
        tuple(layers),
        tuple(of_experts),
        _counted(kinds),
        output_kind,
        round(expert_weights),
        _counted(of_prompt),
        round(numbers),
        _counted(row_kinds),
        norms,
    )


def _counted(kinds: dict[str, float]) -> tuple[tuple[str, int], ...]:
    return tuple((kind, round(count)) for kind, count in sorted(kinds.items()))
