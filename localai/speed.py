"""How fast a model reads and writes on a machine: a roofline over memory bandwidth and compute, always a range.

On a calibrated machine the times are those of `roofline`; else they come from measured or published bandwidths and
typical processors. Past runs of the model, or of its kind, correct either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from localai import experts, past_runs, roofline, tiers
from localai.buffers import UBATCH, kv_cache_bytes, typical_width
from localai.domain.machine import Gpu, Machine
from localai.domain.plan import SpeedRange
from localai.domain.rates import Calibration
from localai.domain.shape import Shape, Weights

# Share of the nominal memory bandwidth that decoding reaches, and seconds a layer takes beside its bytes. CPU: solving
# SmolLM2-135M Q4_1 (170 t/s) and a Qwen3-0.6B shape Q4_K_M (73 t/s) on the same 2 cores gives 80 µs. GPU: 46–88 µs
# measured. Mixtures of experts launch more kernels a layer: about twice as many where most layers are recurrent, too
# (Qwen3.6 35B-A3B writes 130 tokens per second on an RTX 3090, 65 on a GB10), else a quarter more on a GPU (Qwen3
# 30B-A3B: 196 on an RTX 4090, 152 on an RX 7900 XT, in Q8_0 59 on a GB10, 76 on an M2 Ultra).
_EFFICIENCY = 0.8
# The processors of phones and boards draw less from their memory: Llama 3.2 1B in BF16 (2,358 MiB) decodes with 19.2
# tokens per second on a Snapdragon 8 Gen 3 (executorch, examples/models/llama/README.md), 47 of 76.8 GB/s: 0.62;
# a Raspberry Pi 5 sustains 11.4 of 17.1, 0.67 (hellomatik.com, distributed-llama, 2026).
_SMALL_ARM_EFFICIENCY = 0.64
_CPU_LAYER_S = 80e-6
_GPU_LAYER_S = 60e-6
_EXPERT_LAYERS, _GPU_EXPERT_LAYERS = 2.0, 1.25
# A token's experts lie here and there in RAM: DeepSeek V3 Q4_K_S, some 21 GB a token of which 12 are experts, decodes
# with 7 to 8 tokens per second on an EPYC 9374F of 460 GB/s (llama.cpp issue 10981).
_CPU_EXPERT_EFFICIENCY = 0.5
# Experts alone, beside a GPU that does the rest: Qwen3.5 35B-A3B Q4_K_M with the experts of 24 and of all 40 layers on
# DDR5-4800 writes 69.6 and 51 tokens per second (RTX 5080; r/LocalLLaMA, 2026-02-25), Qwen3 30B-A3B with those of 36
# layers on 102 GB/s 36.7 (RTX 2080; llmfit PR 755).
_CPU_EXPERT_EFFICIENCY_BESIDE_GPU = 0.7
_CACHES_BYTES = 30e6  # of a model, that the processor's caches may still hold from the token before
_DEPTH = 1024  # tokens already in the cache that a decode speed is given for

# Prompt speed of a CPU core in FLOP/s: the two models above reach 57 and 216 GFLOP/s a core with AVX-512; laptops with
# AVX2 and Apple's cores are between; a Cortex-A76 (Raspberry Pi 5) is nearer 25.
_CPU_CORE_FLOPS = 80e9
_ARM_CORE_FLOPS = 25e9
# Cores of ARMv8.0 have no dot products of 8-bit numbers: TinyLlama 1.1B Q8_0 reads 10 tokens per second on a Raspberry
# Pi 4, 35 to 45 on a Pi 5 (justine.lol, "LLaMA Now Goes Faster on CPUs"): 2 x 1.03e9 x 10 / 4 cores.
_OLD_ARM_CORE_FLOPS = 5e9
_OLD_ARM_CORES = re.compile(r"Cortex-A(?:35|53|57|72|73)\b")
# A phone's cores have int8 matrix instructions: Llama 3.2 1B at 4 bits reads 260 tokens per second on a Snapdragon 8
# Gen 3 (the same page): 2 x 0.97e9 parameters beside the embedding x 260 / 8 cores.
_PHONE_CORE_FLOPS = 60e9
# Where the processor's matrix product was measured (numpy, 32-bit floats; 490 GFLOP/s on 2 cores with AVX-512): what 7
# shapes of 0.1 to 4B reached there in 3 types of tensors is in docs/accuracy.md. Writing is bound by arithmetic, not by
# memory, at 0.15 (Q8_0) to 0.3 (Q4_K) of it; prompts reach 0.4 to 1 of it; a row of a matrix takes a core 8 ns beside
# its weights. A token's attention reaches 0.064 of it, and each number of the cache counts nearly twice as much again.
_DECODE_OF_COMPUTE = 0.235
_PROMPT_OF_COMPUTE = 0.61
_ROW_S = 8e-9
_ATTENTION_OF_COMPUTE, _CACHE_OVER_HEADS = 0.064, 1.8
# Reading with ordinary pages, as llama.cpp does, gave 0.9 of what is measured with the large pages numpy asks for.
_MEASURED_EFFICIENCY = 0.9
# Prompt FLOP per byte of a GPU's bandwidth: RTX 3090 60 (8B Q5_0, 3,500 t/s; llama.cpp PR 7676), RTX 2080 Ti 63
# (13B Q4_K, 1,494 t/s), RX 7900 XTX 50 (8B Q4_K_M, 3,227 t/s; PR 26284), P40 36 (7B Q4_0, 935 t/s; PR 4766), GB10 113
# (7B Q8_0, 2,380 t/s; benches/dgx-spark.md); Apple M-series about 28 (discussion 4167).
_GPU_FLOP_PER_BYTE = 60.0
_APPLE_FLOP_PER_BYTE = 28.0
# Of 512 tokens few meet in one expert. What of the above is left at that micro-batch: RTX 3090 0.41 (Gemma 4 26B-A4B
# Q4_K_M, 3,734 t/s; PR 22298), RX 7900 XTX 0.41 (Q6_K, 3,198 t/s; PR 24546), P40 0.35 (Qwen3 30B-A3B, 715 t/s;
# PR 15631), M2 Ultra 0.62 (Q8_0, 2,045 t/s where a dense 7B has 1,420; PR 15616).
_GPU_EXPERTS_OF_PROMPT = 0.45
_GPU_GBPS = 300.0  # a mid-range card (RTX 4060 272, RTX 3060 360), where neither card nor tier says


@dataclass(frozen=True, slots=True)
class _Rates:
    """Bytes per second of RAM and GPU, how far off they may be, and how they are known."""

    ram: float
    gpu: float
    low: float
    high: float
    basis: str


def _rates(machine: Machine, gpus: Sequence[Gpu], only_gpu: bool) -> _Rates:
    gbps, source = machine.bandwidth.gbps, machine.bandwidth.source
    tier = None
    if gbps is None:
        tier = tiers.tier(machine)
        gbps, source = tier.typical_ram_gbps, "typical for the tier"
    known = [gpu.bandwidth_gbps for gpu in gpus if gpu.bandwidth_gbps]
    if gpus and not known:
        tier = tier or tiers.tier(machine)
    of_gpu = min(known) if known else ((tier.typical_vram_gbps if tier else None) or _GPU_GBPS)
    if only_gpu:
        real = known and all(gpu.source != "assumed" for gpu in gpus)
        source = "spec sheet" if real else "typical for the tier"
        shown = of_gpu
    else:
        shown = gbps
    if "measured" in source.lower():
        low, high = 0.735, 1.57
    elif "typical" in source.lower() or "assumed" in source.lower():
        low, high = 0.5, 1.7
    else:
        low, high = 0.6, 1.3
    of_ram = _SMALL_ARM_EFFICIENCY if _is_small_arm(machine) else _EFFICIENCY
    efficiency = _MEASURED_EFFICIENCY if "measured" in source.lower() and not only_gpu else of_ram
    return _Rates(gbps * 1e9 * efficiency, of_gpu * 1e9 * _EFFICIENCY, low, high, f"{source}: {shown:.0f} GB/s")


def decode_speed(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    gpu_layers: int = 0,
    depth: int = _DEPTH,
    kv_type: str = "f16",
    cpu_expert_layers: int = 0,
    corrected: bool = True,
) -> SpeedRange:
    """Tokens per second of writing: bytes read over bandwidth, plus a constant a layer, over CPU and GPU.

    Of a mixture of experts the first `cpu_expert_layers` layers' experts are read and computed on the CPU.
    """
    gpus = engine_gpus(machine)
    share = _gpu_share(shape, gpu_layers) if gpus else 0.0
    calibration, split = machine.experience.calibration, _split(shape, share, cpu_expert_layers)
    if calibration is not None and roofline.known(shape, weights, calibration, split):
        seconds = roofline.decode_s(shape, weights, calibration, split, min(depth, shape.context_length or depth))
        found = _calibrated(shape, weights, calibration, split, seconds, 1)
        return _corrected(found, machine, shape, weights, "decode") if corrected else found
    rates = _rates(machine, gpus, share == 1 and not cpu_expert_layers)
    read = weights.read_per_token_bytes + kv_cache_bytes(shape, min(depth, shape.context_length or depth), kv_type)
    per_layer = _EXPERT_LAYERS if _has_experts(shape) else 1.0
    beside = shape.n_layers * _GPU_LAYER_S
    beside *= _GPU_EXPERT_LAYERS if per_layer > 1 and not shape.recurrent_state_bytes else per_layer
    if share and cpu_expert_layers:
        moved = experts.read_bytes(shape, weights, cpu_expert_layers)
        on_gpu = (read - moved) / rates.gpu + beside
        on_cpu = moved / (rates.ram * _CPU_EXPERT_EFFICIENCY_BESIDE_GPU) + cpu_expert_layers * _CPU_LAYER_S
    else:
        on_gpu = share * (read / rates.gpu + beside)
        of_experts = experts.read_bytes(shape, weights, shape.n_layers) or (read // 2 if per_layer > 1 else 0)
        from_ram = read - of_experts + of_experts / _CPU_EXPERT_EFFICIENCY
        arithmetic, more = _decode_arithmetic_s(shape, weights, machine, depth)
        layers = shape.n_layers * per_layer * _CPU_LAYER_S
        on_cpu = (1 - share) * (max(from_ram / rates.ram, arithmetic) + layers + more)
    here = not share and rates.basis.startswith("measured")
    from_caches = min(roofline.MOST_KEPT, _CACHES_BYTES / max(1, read)) if here else 0.0
    found = _range(1 / max(on_gpu + on_cpu, 1e-9), rates.low, rates.high / (1 - from_caches), rates.basis)
    return _corrected(found, machine, shape, weights, "decode") if corrected else found


def prompt_speed(
    shape: Shape,
    weights: Weights,
    machine: Machine,
    gpu_layers: int = 0,
    cpu_expert_layers: int = 0,
    tokens: int = UBATCH,
    depth: int = 0,
    corrected: bool = True,
) -> SpeedRange:
    """Tokens per second of reading so many at a depth: max(2·P_active·u / FLOPS, bytes / bandwidth) a micro-batch.

    `tokens` and `depth` count where the machine is calibrated; elsewhere it is one micro-batch in an empty cache.
    """
    gpus = engine_gpus(machine)
    share = _gpu_share(shape, gpu_layers) if gpus else 0.0
    calibration, split = machine.experience.calibration, _split(shape, share, cpu_expert_layers)
    if calibration is not None and roofline.known(shape, weights, calibration, split):
        seconds = roofline.prompt_s(shape, weights, calibration, split, tokens, depth)
        found = _calibrated(shape, weights, calibration, split, seconds, tokens)
        return _corrected(found, machine, shape, weights, "prompt") if corrected else found
    rates = _rates(machine, gpus, share == 1)
    active = sum(count for _, count in weights.prompt_kinds) or shape.active_params or shape.params
    width = shape.embedding_length or typical_width(shape)
    flop = 2 * active * UBATCH + 2 * UBATCH * UBATCH * width * sum(1 for heads in shape.kv_heads if heads)
    apple = any(gpu.vendor.lower() == "apple" for gpu in gpus)
    per_byte = _APPLE_FLOP_PER_BYTE if apple else _GPU_FLOP_PER_BYTE
    gpu_flops = rates.gpu / _EFFICIENCY * per_byte * (_GPU_EXPERTS_OF_PROMPT if _has_experts(shape) else 1.0)
    on_gpu = share * max(flop / gpu_flops, weights.total_bytes / rates.gpu)
    if share and cpu_expert_layers:
        on_cpu = sum(experts.layer_bytes(shape, weights)[:cpu_expert_layers]) / roofline.PCIE_BYTES_S
    elif gpus and share:
        on_cpu = (1 - share) * (weights.total_bytes / roofline.PCIE_BYTES_S + flop / gpu_flops)
    else:
        on_cpu = max(flop / _cpu_flops(machine), weights.total_bytes / rates.ram)
    mid = UBATCH / max(on_gpu + on_cpu, 1e-9)
    if share:
        found = _range(mid, 0.35, 2.5, "the cards' bandwidth")
    elif machine.compute.gflops:
        found = _range(mid, 0.4, 2.2, f"measured: {machine.compute.gflops:.0f} GFLOP/s")
    else:
        found = _range(mid, 0.35, 3.0, f"{cores(machine)} CPU cores of a typical kind")
    return _corrected(found, machine, shape, weights, "prompt") if corrected else found


def _split(shape: Shape, share: float, cpu_expert_layers: int) -> roofline.Split:
    return roofline.Split(share, min(1.0, cpu_expert_layers / max(1, shape.n_layers)) if share else 0.0)


def _calibrated(
    shape: Shape, weights: Weights, calibration: Calibration, split: roofline.Split, seconds: float, tokens: int
) -> SpeedRange:
    """The range of a calibrated prediction: ±15 % for dense models, 20 with experts, 30 on several devices or where a
    part of the model was not among what was measured.
    """
    off = 0.2 if _has_experts(shape) else 0.15
    if 0 < split.gpu_share < 1 or split.cpu_experts:
        off = 0.3
    if not roofline.sure(shape, weights, calibration):
        off = max(off, 0.35)
    return _range(tokens / max(seconds, 1e-9), 1 / (1 + off), 1 + off, "calibrated")


def _corrected(found: SpeedRange, machine: Machine, shape: Shape, weights: Weights, what: str) -> SpeedRange:
    """The range moved to what past runs of this model were like, and as narrow as they; its kind's runs move it too."""
    past, own = past_runs.for_model(machine.experience.corrections, shape, weights)
    if past is None:
        return found
    ratio, spread = (past.decode, past.decode_spread) if what == "decode" else (past.prompt, past.prompt_spread)
    if ratio is None:
        return found
    basis = f"{found.basis}; {past.runs} past run{'s' if past.runs > 1 else ''}{'' if own else ' of its kind'}"
    low, high = (1 / (1 + spread), 1 + spread) if own else (found.low / found.mid, found.high / found.mid)
    return _range(found.mid * ratio, low, high, basis)


def _range(mid: float, low: float, high: float, basis: str) -> SpeedRange:
    return SpeedRange(mid * low, mid, mid * high, basis)


def _has_experts(shape: Shape) -> bool:
    return shape.expert_count > 0 or (shape.active_params is not None and shape.active_params < 0.3 * shape.params)


def _gpu_share(shape: Shape, gpu_layers: int) -> float:
    return min(gpu_layers, shape.n_layers + 1) / (shape.n_layers + 1)


def cores(machine: Machine) -> int:
    """Threads to compute with: the physical cores, since two threads of one core share its arithmetic; fewer where
    this process may use fewer.
    """
    cpu = machine.cpu
    physical = cpu.physical_cores or max(1, cpu.logical_cores // 2)
    return physical if cpu.usable_cores is None else min(physical, cpu.usable_cores)


def _decode_arithmetic_s(shape: Shape, weights: Weights, machine: Machine, depth: int) -> tuple[float, float]:
    """Seconds of arithmetic of one token on the processor: of the weights, while they are read, and of rows and
    attention beside them. 0 where its speed is not measured.
    """
    if not machine.compute.gflops:
        return 0.0, 0.0
    flops = machine.compute.gflops * 1e9
    heads, kv_heads = roofline.attention_cells(shape, min(depth, shape.context_length or depth))
    attention = 2 * (heads + _CACHE_OVER_HEADS * kv_heads) / (_ATTENTION_OF_COMPUTE * flops)
    of_weights = 2 * (shape.active_params or shape.params) / (_DECODE_OF_COMPUTE * flops)
    return of_weights, weights.rows * _ROW_S / cores(machine) + attention


def _cpu_flops(machine: Machine) -> float:
    if machine.compute.gflops:
        return _PROMPT_OF_COMPUTE * machine.compute.gflops * 1e9
    return _core_flops(machine) * cores(machine)


def _core_flops(machine: Machine) -> float:
    if not _is_small_arm(machine):
        return _CPU_CORE_FLOPS
    if _OLD_ARM_CORES.search(machine.cpu.name):
        return _OLD_ARM_CORE_FLOPS
    return _PHONE_CORE_FLOPS if tiers.is_phone(machine) else _ARM_CORE_FLOPS


def _is_small_arm(machine: Machine) -> bool:
    arm = machine.cpu.architecture.lower().startswith(("aarch", "arm"))
    return arm and "apple" not in machine.cpu.name.lower() and machine.os.lower() not in ("darwin", "macos")


def engine_gpus(machine: Machine) -> tuple[Gpu, ...]:
    """The GPUs that a model can be put on: usable by the engine, with memory of their own or unified.

    Another integrated GPU is not among them: its memory is the system's, counted once, and the CPU reads it as fast.
    """
    usable = [gpu for gpu in machine.gpus if gpu.usable_by_engine]
    dedicated = tuple(gpu for gpu in usable if not gpu.shared_memory and gpu.vram_free_bytes)
    return dedicated or tuple(gpu for gpu in usable if tiers.unified(gpu))
