"""How a model is to be loaded on a machine, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
