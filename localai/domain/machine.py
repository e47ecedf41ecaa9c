"""A computer: its processor, memory, graphics and neural processors, disk, and what the engine can use of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from localai.domain.rates import Experience


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
