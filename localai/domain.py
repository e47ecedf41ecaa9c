"""The words that every other module speaks in: frozen dataclasses and protocols, no behaviour beyond arithmetic.

Units stand in the names: `_bytes`, `_gbps` (10^9 bytes per second), `_tps` (tokens per second), `_ms`.
What is unknown is `None`, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from localai.errors import LocalaiError
from localai.rates import Experience

KIB = 1024
MIB = 1024**2
GIB = 1024**3

# --------------------------------------------------------------------------------------------------- the machine


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as the operating system names it.

    `usable_cores` is set where affinity or a control group's quota leaves this process fewer cores than there are.
    """

    name: str
    architecture: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: int | None = None


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """RAM that this process may really use.

    `available_bytes` is already the smaller of what the system has free and what the cgroup still allows;
    `limit_bytes` is the tightest cgroup limit, None where there is none; `swap_total_bytes` is None where nobody knows.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None = None
    swap_total_bytes: int | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How fast system memory is read, and how that is known ("unknown" while `gbps` is None)."""

    gbps: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Compute:
    """How fast all physical cores together multiply matrices (32-bit floats), and how that is known."""

    gflops: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card. `shared_memory` means that its memory is the system's RAM: never add the two."""

    vendor: str
    name: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    shared_memory: bool = False
    usable_by_engine: bool = False
    bandwidth_gbps: float | None = None
    driver: str | None = None
    source: str = ""
    shared_total_bytes: int | None = None  # system memory that an integrated GPU may map (AMD's GTT): part of the RAM


@dataclass(frozen=True, slots=True)
class Npu:
    """A neural processor. Shown always, counted as capacity only if a loaded backend offers it."""

    vendor: str
    name: str
    tops: float | None
    usable_by_engine: bool = False
    source: str = ""
    driver: str | None = None  # the kernel's, None where none is bound to it


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds the models."""

    path: str
    free_bytes: int | None
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineDevice:
    """A device as the loaded llama.cpp lists it; `kind` is cpu, gpu, igpu or accel."""

    name: str
    description: str
    kind: str
    memory_total_bytes: int | None
    memory_free_bytes: int | None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the installed llama.cpp is and can use. `version` is None where none is installed."""

    version: str | None
    backends: tuple[str, ...] = ()
    gpu_offload: bool = False
    devices: tuple[EngineDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything known about a computer, this one or another that a user describes."""

    os: str
    cpu: Cpu
    memory: SystemMemory
    bandwidth: Bandwidth
    disk: Disk
    engine: EngineInfo
    gpus: tuple[Gpu, ...] = ()
    npus: tuple[Npu, ...] = ()
    notes: tuple[str, ...] = ()  # what was assumed, for machines that are not this one
    compute: Compute = Compute(None, "not measured")
    failures: tuple[str, ...] = ()  # probes that failed or hung, for `--debug`
    experience: Experience = field(default_factory=Experience)  # what running models here has taught


@dataclass(frozen=True, slots=True)
class Tier:
    """A row of the hardware table: the model sizes a machine is for and what they are good at."""

    id: str
    size: str
    hardware: str
    tasks: tuple[str, ...]
    min_params_b: float
    max_params_b: float
    typical_ram_gbps: float
    typical_vram_gbps: float | None


# ------------------------------------------------------------------------------------------------------- models


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
    layer_rows: int = field(default=0, compare=False)  # rows of those matrices


class Placement(StrEnum):
    GPU = "gpu"
    SPLIT = "split"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Predicted memory in bytes; `total_bytes` is weights + KV cache + compute (+ the projector, 0 of text models),
    without `overhead_bytes`.
    """

    weights_bytes: int
    kv_cache_bytes: int
    compute_bytes: int
    overhead_bytes: int
    projector_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_cache_bytes + self.compute_bytes + self.projector_bytes


@dataclass(frozen=True, slots=True)
class SpeedRange:
    """Tokens per second, with its basis: "spec sheet", "typical for the tier", "measured"."""

    low: float
    mid: float
    high: float
    basis: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is to be loaded on a machine, and what that costs. `fits` False means: do not load.

    The routed experts of the first `cpu_expert_layers` layers stay in RAM and are computed there, whatever `gpu_layers`
    says of the rest of those layers. `context` is that of each of the `sequences` that are answered at once. `repack`:
    llama.cpp rearranges tensors for this processor as it loads them: quicker or slower, by quantization and job.
    `outputs`: tokens of one sequence whose logits can be had at once; more than 1 lets guesses at them be checked.
    """

    context: int
    placement: Placement
    gpu_layers: int
    threads: int
    batch: int
    ubatch: int
    kv_type: str
    flash_attention: bool
    use_mmap: bool
    memory: MemoryNeed
    available_bytes: int
    fits: bool
    decode_tps: SpeedRange | None
    prompt_tps: SpeedRange | None
    warnings: tuple[str, ...] = ()
    cpu_expert_layers: int = 0
    sequences: int = 1
    workers: tuple[str, ...] = ()  # HOST:PORT of other machines that hold layers
    repack: bool = True
    outputs: int = 1


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a Hub repository. `sha256` is None where the Hub gives none (files outside LFS)."""

    name: str
    size_bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantization of a model: one GGUF file, or all the shards of one."""

    quantization: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """One verified file of an installed model."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model on this disk, every byte of it verified.

    `source` is hub, embedded, file, or the program whose file it is: ollama, lmstudio, llama.cpp, hf.
    `revision` is the Hub's branch, tag or commit that was asked for, None for the main branch.
    """

    model: str
    repo: str | None
    commit: str | None
    quantization: str
    files: tuple[InstalledFile, ...]
    projector: InstalledFile | None
    verified_at: str | None
    source: str
    last_used_at: str | None = None
    read_only: bool = False
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The file llama.cpp is given: the only one, or the first shard."""
        return self.files[0].path

    @property
    def size_bytes(self) -> int:
        """What the model takes on the disk, its projector included."""
        return sum(file.size_bytes for file in self.files) + (self.projector.size_bytes if self.projector else 0)


# --------------------------------------------------------------------------------------------------- generation


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: three bytes a pixel (red, green, blue), a row after the other. `sha256` is that of size and pixels."""

    name: str
    width: int
    height: int
    pixels: bytes = field(repr=False, compare=False)
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to have called; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that a model asks to have called; `arguments` is a JSON object as text. Also an event."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: `role` is system, user, assistant or tool. The pictures of a turn stand before its text.

    `tool_calls` are what an assistant asked for; `name` is, of a tool's turn, whose result it is.
    """

    role: str
    content: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. The defaults are llama.cpp's own; temperature 0 is greedy.

    `seed` None draws a fresh one. `logit_bias` adds to the logits of single tokens: (number of the token, what to add).
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer. `cached_tokens` of the prompt were not evaluated again; `guessed_tokens` of the answer were
    guessed right, and so evaluated together with others.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    guessed_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Timings:
    """How long one answer took. A speed is None where too little was done to tell."""

    load_ms: float
    prompt_ms: float
    first_token_ms: float | None
    prompt_tps: float | None
    decode_tps: float | None


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """So many of the prompt's tokens are evaluated."""

    done_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ThinkingText:
    """A piece of what a thinking model says to itself; never part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token as bytes, the logarithm of its probability, and the likeliest tokens in its place with theirs."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerText:
    """A piece of the answer, whole characters only. `logprobs` are of the tokens since the last piece, where wanted."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """So many of the conversation's oldest turns, a question and its answer each, no longer fit and are forgotten."""

    count: int


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """The last event: the whole answer. `finish_reason` is stop, length or interrupted."""

    text: str
    thinking: str
    usage: Usage
    timings: Timings
    finish_reason: str
    tool_calls: tuple[ToolCall, ...] = ()


Event = TurnsDropped | PromptProgress | ThinkingText | AnswerText | ToolCall | AnswerEnd


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to answer and how. `max_tokens` None means: until the model stops or the context is full.

    `think` None leaves it to the model's template. `grammar` (GBNF) is what the answer must be a text of. `revisable`:
    the conversation may be taken up again before this answer or its question, so keep what going back there needs.

    The rest is for a `BatchEngine`. `raw` is a text to continue, without template, instead of the messages. `tools`
    may be asked for as `tool_choice` says: auto, none, required, or the name of the one that must be. `logprobs` is
    how many of the likeliest tokens are told beside each token; None tells none.
    `reserve`: tokens of the context that must be left for the answer; a prompt that leaves fewer does not fit.
    """

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    grammar: str | None = None
    revisable: bool = False
    raw: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    logprobs: int | None = None
    reserve: int = 1


EMBEDDING_STEP = 512  # tokens of a batch: more at a time is no faster on a CPU, and each takes a row of logits


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a model makes one vector of a text's tokens: `name` is mean, cls, last or rank (a reranker's: no vector).

    `causal`: each token sees those before it. `declared` False: the header names no pooling, as those of models that
    chat don't; the mean is taken then.
    """

    name: str
    causal: bool
    declared: bool

    @property
    def in_pieces(self) -> bool:
        """Whether a text may be longer than a batch: not where all of it must be seen, or pooled, at once."""
        return self.causal and (self.name == "last" or not self.declared)

    def batch(self, context: int) -> int:
        """The tokens that are evaluated at a time for texts of up to `context` tokens."""
        return EMBEDDING_STEP if self.in_pieces else max(EMBEDDING_STEP, context)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of a text, and how many tokens the text takes."""

    vector: list[float]
    tokens: int


@dataclass(frozen=True, slots=True)
class KvState:
    """What an engine holds of a conversation: the text, its tokens, where the two are known to meet, and the KV cache.

    `borders` are pairs of characters and tokens; the cache has the first `held` tokens. `data` is llama.cpp's, of use
    to the same model and engine only.
    """

    text: str
    tokens: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    held: int
    data: memoryview


class ChatEngine(Protocol):
    """A loaded model. The real one is `localai.engine.model.LlamaEngine`; tests have a scripted one."""

    context: int
    load_ms: float

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included."""
        ...

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """Yield events, the last an `AnswerEnd`; `cancelled` is asked between tokens and prompt batches.

        Raises ContextOverflow before anything is evaluated, EngineError if llama.cpp fails.
        """
        ...

    def state(self, affordable: Callable[[int], bool]) -> KvState | None:
        """A copy of what is held of the last conversation; None for nothing, or where its bytes aren't `affordable`."""
        return None

    def resume(self, state: KvState) -> bool:
        """Take up a conversation where it was; False, and nothing held, where that cannot be done.

        The state must be this model's, made by this engine with the same plan: llama.cpp believes what it reads.
        """
        return False

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        ...


class Ticket(Protocol):
    """A request that a `BatchEngine` has taken."""

    def cancel(self) -> None:
        """End it as soon as may be, from any thread: its last event is an `AnswerEnd`, "interrupted". Idempotent."""
        ...


Delivery = Event | LocalaiError


class BatchEngine(Protocol):
    """A loaded model that answers many requests at once. The real one is `localai.engine.scheduler.Scheduler`."""

    context: int
    load_ms: float

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more, be it by a fault of its own."""
        return False

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """Take a request, from any thread; it takes a few milliseconds (the prompt is rendered and split).

        `deliver` is called in the engine's own thread with each event, the last an `AnswerEnd` or a `LocalaiError`;
        it must be quick, and what it raises is lost. Raises QueueFull, ContextOverflow.
        """
        ...

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included. From any thread."""
        ...

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Evaluate what two conversations begin with once for all that begin so; returns its tokens."""
        ...

    def close(self) -> None:
        """End what is under way as interrupted, and free the memory. Idempotent."""
        ...
