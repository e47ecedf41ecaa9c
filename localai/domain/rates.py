"""What was learnt of a machine by running models on it: calibration, tuned settings, corrections.

Times are seconds; a weight is one number of a matrix, whatever bytes it takes. Tensor types have GGUF's names (Q4_K).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """How long a device takes, fitted to timings of synthetic models (`fitting`).

    Writing one token: `decode` seconds a weight by tensor type, `row` a row of a matrix of it, `norm_s` a normalization
    with the small operations about it (a plain layer has two), and for each token of depth and each head
    `attention_decode`, by the numbers of its key and value, the least first; `kept_s` less for what the device's caches
    still hold of the weights since the last token. Reading one: `prompt` seconds a weight by tensor type, `number_s` a
    number that a matrix or a norm gives, and `attention_prompt_s` for each token of depth and number of the heads' keys
    and values. An expert's layer takes `expert_layer_s`, its weights in a prompt `expert_prompt` times as long as
    others'.
    """

    decode: tuple[tuple[str, float], ...]
    prompt: tuple[tuple[str, float], ...]
    row: tuple[tuple[str, float], ...]
    attention_decode: tuple[tuple[int, float], ...]
    number_s: float
    norm_s: float
    kept_s: float
    attention_prompt_s: float
    expert_layer_s: float | None = None
    expert_prompt: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rates of the processor and, where the engine has one, of the GPU; `made_at` in seconds since 1970."""

    cpu: DeviceRates
    gpu: DeviceRates | None
    made_at: int


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model can be loaded, beside context and placement."""

    repack: bool
    flash: bool
    threads: int
    ubatch: int
    kv_type: str

    @property
    def text(self) -> str:
        """For a table."""
        return (
            f"repack {'on' if self.repack else 'off'}, flash attention {'on' if self.flash else 'off'},"
            f" {self.threads} threads, micro-batch {self.ubatch}, KV {self.kv_type}"
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done: tokens to read and to write, with so many in the cache before."""

    prompt_tokens: int
    answer_tokens: int
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """How long a token takes with a setting, measured: to read and to write, at depth 0 and more for each of depth."""

    setting: Setting
    prompt_s: float
    prompt_slope_s: float
    decode_s: float
    decode_slope_s: float

    def job_s(self, job: Job) -> float:
        """Seconds that a job takes."""
        read, write, depth = job.prompt_tokens, job.answer_tokens, job.depth
        reading = read * (self.prompt_s + self.prompt_slope_s * (depth + read / 2))
        return reading + write * (self.decode_s + self.decode_slope_s * (depth + read + write / 2))


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings measured for a kind of model on this machine; the first is llama.cpp's own choice."""

    architecture: str
    kind: str  # the tensor type of most weights
    params: int
    gpu: bool
    settings: tuple[Tuned, ...]


@dataclass(frozen=True, slots=True)
class Correction:
    """Measured over predicted speed in the past runs of a model: the median, and how far nine of ten lie from it."""

    architecture: str
    kind: str
    params: int
    decode: float | None
    prompt: float | None
    decode_spread: float
    prompt_spread: float
    runs: int


@dataclass(frozen=True, slots=True)
class Experience:
    """Everything learnt of one machine; nothing of another's."""

    calibration: Calibration | None = None
    tunings: tuple[Tuning, ...] = ()
    corrections: tuple[Correction, ...] = ()
