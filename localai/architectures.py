"""How llama.cpp reads a model's header, architecture by architecture.

The rules are llama.cpp's (src/llama-model.cpp, src/llama-hparams.cpp and src/models/*.cpp of the tree that
llama-cpp-python 0.3.36 vendors): which layers hold a KV cache, how wide it is, what slides, what is recurrent.
"""

from __future__ import annotations

import re

from localai.domain.shape import Shape
from localai.errors import EngineError
from localai.gguf import Header, TensorInfo
from localai.gguf_reader import Skipped

LAYERS_LIMIT = 512  # LLAMA_MAX_LAYERS
NUMBER_LIMIT = 2**31  # no dimension of a model comes near; keeps hostile products small

# Architectures with sliding windows whose pattern llama.cpp fixes: (every nth layer is global, the first is).
# A `sliding_window_pattern` in the header, one flag a layer or a period, goes before it. load_swa_pattern calls.
_WINDOW_PERIOD: dict[str, tuple[int, bool]] = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "modern-bert": (3, True),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
# Windows that llama.cpp assumes where the header has none, and the two it sets whatever the header says.
_WINDOW_DEFAULT = {"gemma2": 4096, "exaone-moe": 128, "llama4": 8192}
_WINDOW_FIXED = {"llama4": 8192, "smallthinker": 4096}

# Whose feed-forward has GELU, which ggml looks up in a table, number by number; others compute SiLU or ReLU.
_GELU = frozenset(
    {
        "bert",
        "bloom",
        "codeshell",
        "falcon",
        "gemma",
        "gemma-embedding",
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4",
        "gpt2",
        "gptneox",
        "grok",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "mpt",
        "nomic-bert-moe",
        "phi2",
        "starcoder",
        "starcoder2",
        "t5",
        "t5encoder",
    }
)
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# Hybrids whose layers without KV heads are the recurrent ones.
_HYBRID_BY_HEADS = frozenset(
    {
        "bailingmoe3",
        "glm5-next",
        "granitehybrid",
        "jamba",
        "kimi-k3",
        "kimi-linear",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "plamo2",
    }
)
# Hybrids with attention in every nth layer, and that n where the header has none.
_HYBRID_BY_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
# Encoders: llama.cpp makes no cache for them, and they give no logits.
ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    }
)
# All that have no cache: those, and diffusion models (create_memory).
WITHOUT_CACHE = ENCODERS | {"dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec"}
_GEMMA3N_OWN_KV_LAYERS = 20  # src/models/gemma3n.cpp

_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_EXPERTS = re.compile(r"_(?:ch)?exps\b")


def layer_of(tensor: TensorInfo) -> int | None:
    """The number of the layer that a tensor is part of; None for the embedding, the output and the like."""
    found = _LAYER.match(tensor.name)
    return int(found.group(1)) if found else None


def is_of_experts(tensor: TensorInfo) -> bool:
    """Whether it holds the routed experts of a layer."""
    return _EXPERTS.search(tensor.name) is not None


class HeaderReading:
    """A header read as llama.cpp reads it: each value checked, arrays a layer and single values alike."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.architecture = header.text("general.architecture") or ""
        self.n_layers = self.integer("block_count")
        self.loops = self.integer("num_loops", 1) if self.architecture == "nanbeige" else 1
        if not 0 < self.n_layers * self.loops <= LAYERS_LIMIT:
            kind = self.architecture or "unknown"
            raise EngineError(f"{kind[:40]!a} is not a language model that llama.cpp can run", "pull a GGUF text model")
        self.n_trunk = self.n_layers - min(self.n_layers, self.integer("nextn_predict_layers"))
        self.embedding = self.integer("embedding_length")
        self.heads = self.per_layer("attention.head_count", 0)
        self.head_count = next((count for count in self.heads if count), 0)
        self.expert_count = self.integer("expert_count")
        self.experts_used = self.per_layer("expert_used_count", 0)

    @property
    def looks_up(self) -> bool:
        """Whether the feed-forward's activation is looked up in a table."""
        return self.architecture in _GELU

    def normed(self, norm: TensorInfo, layer: int) -> int:
        """Numbers that the norm of a layer is taken of: those of all heads, where it is as long as one's."""
        if norm.elements == self.integer("attention.key_length", self.embedding // max(1, self.head_count)):
            if "attn_q_norm" in norm.name:
                return norm.elements * self.heads[layer]
            if "attn_k_norm" in norm.name:
                return norm.elements * self.per_layer("attention.head_count_kv", self.head_count)[layer]
        return norm.elements

    def integer(self, name: str, default: int = 0) -> int:
        """A whole number of this architecture. Raises EngineError where it is none, negative or absurd."""
        value = self.header.metadata.get(f"{self.architecture}.{name}", default)
        if type(value) is not int or not 0 <= value < NUMBER_LIMIT:
            raise self.wrong(name)
        return value

    def per_layer(self, name: str, default: int) -> tuple[int, ...]:
        """One number a layer, from an array or a single value."""
        value = self.header.metadata.get(f"{self.architecture}.{name}", default)
        if not isinstance(value, tuple):
            return (self.integer(name, default),) * self.n_layers
        if len(value) != self.n_layers:
            raise self.wrong(name)
        numbers = tuple(int(each) for each in value if isinstance(each, int) and 0 <= each < NUMBER_LIMIT)
        if len(numbers) != self.n_layers:
            raise self.wrong(name)
        return numbers

    def wrong(self, name: str) -> EngineError:
        key = f"{self.architecture}.{name}"[:80]
        return EngineError(f"the model's header has no sound {key!a}", "pull the model again, or another conversion")

    def shape(self) -> Shape:
        head = self.embedding // self.head_count if self.head_count else 0
        key, value = self.integer("attention.key_length", head), self.integer("attention.value_length", head)
        window, sliding = self.sliding()
        recurrent = self.recurrent()
        kv_heads = self.kv_heads(recurrent)
        params = sum(tensor.elements for tensor in self.header.tensors)
        active = sum(tensor.elements * self.share_used(tensor) for tensor in self.header.tensors)
        return Shape(
            architecture=self.architecture,
            params=params,
            n_layers=self.n_layers * self.loops,
            embedding_length=self.embedding or None,
            vocab_size=self.vocabulary(),
            kv_heads=kv_heads * self.loops,
            key_length=key,
            value_length=value,
            context_length=self.integer("context_length") or None,
            feed_forward_length=max(self.per_layer("feed_forward_length", 0)) or None,
            head_count=max(self.heads) or None,
            sliding_window=window or None,
            sliding_layers=sliding * self.loops if window else (),
            swa_key_length=self.integer("attention.key_length_swa") or None,
            swa_value_length=self.integer("attention.value_length_swa") or None,
            latent_kv=bool(self.integer("attention.key_length_mla") and self.integer("attention.value_length_mla")),
            recurrent_state_bytes=sum(recurrent) * self.state_bytes(),
            expert_count=self.expert_count,
            expert_used_count=max(self.experts_used),
            active_params=round(active) if self.expert_count else None,
            expert_feed_forward_length=max(self.per_layer("expert_feed_forward_length", 0)) or None,
            per_layer_embedding_length=self.integer("embedding_length_per_layer_input") or None,
            indexer_length=self.integer("attention.indexer.key_length"),
        )

    def vocabulary(self) -> int | None:
        if size := self.integer("vocab_size"):
            return size
        tokens = self.header.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, Skipped):
            return tokens.length
        return len(tokens) if isinstance(tokens, tuple) else None

    def sliding(self) -> tuple[int, tuple[bool, ...]]:
        """The window in tokens (0: none) and which layers have it."""
        pattern = self.header.metadata.get(f"{self.architecture}.attention.sliding_window_pattern")
        period = _WINDOW_PERIOD.get(self.architecture)
        window = self.integer("attention.sliding_window", _WINDOW_DEFAULT.get(self.architecture, 0))
        if self.architecture == "exaone4" and self.n_trunk != 64:  # only its 32B slides
            return 0, ()
        if not window or self.architecture == "phi3":  # phi3: switched off in llama.cpp
            return 0, ()
        window = _WINDOW_FIXED.get(self.architecture, window)
        if self.architecture == "lfm2":
            return window, tuple(heads > 0 for heads in self.per_layer("attention.head_count_kv", self.head_count))
        if isinstance(pattern, tuple):
            flags = tuple(bool(flag) for flag in pattern[: self.n_layers])
            return window, flags + (False,) * (self.n_layers - len(flags))
        if period is None:
            return 0, ()
        every, first = self.integer("attention.sliding_window_pattern", period[0]), period[1]
        return window, tuple(
            layer < self.n_trunk and (every == 0 or layer % every != (0 if first else every - 1))
            for layer in range(self.n_layers)
        )

    def kv_heads(self, recurrent: tuple[bool, ...]) -> tuple[int, ...]:
        """KV heads of each layer, 0 where a layer has no cache of its own."""
        if self.architecture in WITHOUT_CACHE or self.architecture in _RECURRENT:
            return (0,) * self.n_layers
        counts = self.heads
        if f"{self.architecture}.attention.head_count_kv" in self.header.metadata:
            counts = self.per_layer("attention.head_count_kv", 0)
        own = self.n_trunk
        if self.architecture == "gemma3n":
            own = min(own, _GEMMA3N_OWN_KV_LAYERS)
        if shared := self.integer("attention.shared_kv_layers"):
            own = min(own, max(self.n_layers - shared, 0))
        if self.architecture.startswith("nemotron_h"):  # a layer that is a feed-forward is nothing else
            wide = self.per_layer("feed_forward_length", 0)
            counts = tuple(0 if length else count for count, length in zip(counts, wide, strict=True))
        both = self.architecture == "falcon-h1"  # attention and a state in every layer
        return tuple(
            count if layer < own and (both or not recurrent[layer]) else 0 for layer, count in enumerate(counts)
        )

    def recurrent(self) -> tuple[bool, ...]:
        """Which layers keep a recurrent state."""
        trunk = tuple(layer < self.n_trunk for layer in range(self.n_layers))
        if self.architecture in _RECURRENT or self.architecture == "falcon-h1":
            return trunk
        if self.architecture in _HYBRID_BY_HEADS:
            heads = self.per_layer("attention.head_count_kv", self.head_count)
            idle = [False] * self.n_layers
            if self.architecture.startswith("nemotron"):  # its feed-forward layers have neither
                idle = [length > 0 for length in self.per_layer("feed_forward_length", 0)]
            return tuple(run and count == 0 and not skip for run, count, skip in zip(trunk, heads, idle, strict=True))
        if default := _HYBRID_BY_INTERVAL.get(self.architecture):
            if isinstance(self.header.metadata.get(f"{self.architecture}.attention.recurrent_layers"), tuple):
                flags = self.per_layer("attention.recurrent_layers", 0)
                return tuple(run and bool(flag) for run, flag in zip(trunk, flags, strict=True))
            every = self.integer("full_attention_interval", default) or 1
            return tuple(run and (layer + 1) % every != 0 for layer, run in enumerate(trunk))
        return (False,) * self.n_layers

    def state_bytes(self) -> int:
        """Bytes of one layer's state for one sequence, F32. llama_hparams::n_embd_r and n_embd_s."""
        kernel = self.integer("ssm.conv_kernel")
        inner, state = self.integer("ssm.inner_size"), self.integer("ssm.state_size")
        if wkv := self.integer("wkv.head_size"):
            rolling, kept = self.integer("token_shift_count", 2) * self.embedding, self.embedding * wkv
        elif cache := self.integer("shortconv.l_cache"):
            rolling, kept = self.embedding * (cache - 1), state * inner
        elif head := self.integer("kda.head_dim"):
            rolling = 3 * (kernel - 1 if kernel else 3) * self.head_count * head
            kept = head * head * self.head_count
        elif self.architecture == "minimax-01":
            head = self.integer("attention.key_length", self.embedding // max(self.head_count, 1))
            rolling, kept = 0, head * head * self.head_count
        else:
            rolling = max(kernel - 1, 0) * (inner + 2 * self.integer("ssm.group_count") * state)
            kept = state * inner
        return 4 * (rolling + kept)

    def share_used(self, tensor: TensorInfo) -> float:
        """What part of a tensor one token uses: experts used / all, nothing of the prediction layers."""
        layer = layer_of(tensor)
        if layer is not None and self.n_trunk and layer >= self.n_trunk:
            return 0.0
        if self.expert_count and is_of_experts(tensor):
            used = self.experts_used[layer] if layer is not None and layer < self.n_layers else max(self.experts_used)
            return min(used / self.expert_count, 1.0) if used else 1.0
        return 1.0
