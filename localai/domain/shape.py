"""What memory and speed follow from: a model's dimensions, and the bytes of its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory and speed follow from: a model's dimensions, from its header or from the catalog.

    Per-layer lists have one entry a layer that holds a KV cache of its own (`kv_heads`), 0 where the layer has none.
    `basis` is "header", "catalog" or "size" (guessed from the file size alone).
    """

    architecture: str
    params: int
    n_layers: int
    embedding_length: int | None
    vocab_size: int | None
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    context_length: int | None
    feed_forward_length: int | None = None
    head_count: int | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    swa_kv_heads: int | None = None
    swa_key_length: int | None = None
    swa_value_length: int | None = None
    latent_kv: bool = False  # MLA: keys only, values are a view of them
    recurrent_state_bytes: int = 0
    expert_count: int = 0
    expert_used_count: int = 0
    active_params: int | None = None
    basis: str = "header"
    expert_feed_forward_length: int | None = None
    per_layer_embedding_length: int | None = None  # Gemma 3n and 4: a second embedding, of every layer
    indexer_length: int = 0  # sparse attention (DeepSeek 3.2): each layer keeps the keys of its indexer, too


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's tensors. `read_per_token_bytes` is what decoding one token must read."""

    total_bytes: int
    read_per_token_bytes: int
    embedding_bytes: int = 0  # the token embedding, which stays on the CPU
    output_bytes: int = 0
    tied_bytes: int = field(default=0, compare=False)  # the part of the embedding that is the output, too
    layer_bytes: tuple[int, ...] = field(default=(), compare=False)  # of each layer, () where no header was read
    expert_bytes: tuple[int, ...] = field(default=(), compare=False)  # the part of them that is routed experts
    # weights of the layers that a token is multiplied with, by tensor type, and those of the output
    layer_kinds: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    output_kind: tuple[str, int] = field(default=("", 0), compare=False)
    expert_weights: int = field(default=0, compare=False)  # the part of `layer_kinds` that is routed experts
    # what every token of a prompt is multiplied with: the last layer's feed-forward is computed for the last token only
    prompt_kinds: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    prompt_numbers: int = field(default=0, compare=False)  # that those matrices, norms and activations give
    # rows of all matrices that a token is multiplied with, by type, and the numbers looked up in a table (GELU)
    row_kinds: tuple[tuple[str, int], ...] = field(default=(), compare=False)
    norms: int = field(default=0, compare=False)  # normalizations of a token in the layers

    @property
    def rows(self) -> int:
        """Those of every type."""
        return sum(count for _, count in self.row_kinds)
