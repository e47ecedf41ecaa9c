"""The engine and what it could use: cards, NPUs, the processor's instructions, the driver."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localai.checks.building import Installation, missing_tools, rebuild
from localai.checks.finding import Finding, fault, ok, warning
from localai.domain.machine import Gpu, Machine, Npu

# docs.nvidia.com, CUDA Compatibility, "Minor Version Compatibility", table 1: CUDA 12.x needs a driver of at least 525,
# CUDA 13.x of 580.
OLDEST_NVIDIA_DRIVER = 525
CUDA_13_DRIVER = 580

# What llama_print_system_info calls an instruction set, and its flag in /proc/cpuinfo (Linux,
# arch/x86/include/asm/cpufeatures.h and arch/arm64/kernel/cpuinfo.c). AMX and SVE are left out: compilers of the day
# leave them out too.
_X86 = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX2": "avx2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}
_ARM = {"NEON": "asimd", "FP16_VA": "asimdhp", "DOTPROD": "asimddp", "MATMUL_INT8": "i8mm"}


def check_engine(machine: Machine, here: Installation) -> Finding:
    """Whether llama.cpp is installed and loads."""
    engine = machine.engine
    if engine.version is None:
        return fault(
            "engine",
            "llama-cpp-python is not installed or does not load: nothing can run",
            rebuild(here, ["GGML_NATIVE"]),
        )
    return ok("engine", f"llama-cpp-python {engine.version} with {', '.join(engine.backends) or 'no named backend'}")


def check_rpc(machine: Machine, here: Installation) -> Finding:
    """Whether models can be spread over several machines."""
    if "RPC" in machine.engine.backends:
        return ok("rpc", "models can be spread over several machines: localai worker there, --rpc here")
    return ok(
        "rpc",
        "the engine cannot spread a model over several machines (GGML_RPC is off); for those who want --rpc",
        rebuild(here, ["GGML_RPC"], machine.engine.backends),
    )


def check_gpus(machine: Machine, here: Installation) -> Iterable[Finding]:
    """Each card, and whether the engine is built for it. One command mends all that are not."""
    if not machine.gpus:
        yield ok("gpu", "no GPU found: models run on the processor")
    unused = [gpu for gpu in machine.gpus if not gpu.usable_by_engine]
    options = dict.fromkeys(option for gpu in unused if (option := _option_for(gpu, here)) is not None)
    command = rebuild(here, options, machine.engine.backends) if options else None
    for gpu in machine.gpus:
        if gpu.usable_by_engine:
            yield ok("gpu", f"{gpu.name}: used by the engine")
        elif (option := _option_for(gpu, here)) is None:
            yield ok("gpu", f"{gpu.name}: llama.cpp has no backend for it; the processor is used")
        elif gpu.shared_memory and gpu.vendor not in ("Apple", "NVIDIA"):
            yield warning(
                "gpu",
                f"{gpu.name}: the installed engine is not built for it ({option} is off). It shares the processor's "
                f"memory, so writing gains little by it; reading long prompts can" + _lacking(here, option),
                command,
            )
        else:
            yield fault(
                "gpu",
                f"{gpu.name}: the installed engine is not built for it ({option} is off), so everything runs on the "
                "processor, several times slower" + _lacking(here, option),
                command,
            )


def _option_for(gpu: Gpu, here: Installation) -> str | None:
    match gpu.vendor.lower():
        case "nvidia":
            return "GGML_CUDA"
        case "amd":
            return "GGML_HIP" if here.has("hipcc") else "GGML_VULKAN"
        case "intel":
            return "GGML_VULKAN"
        case "apple":
            return "GGML_METAL"
        case "qualcomm":
            return "GGML_OPENCL"
    return None


def _lacking(here: Installation, option: str) -> str:
    missing = missing_tools(here, [option])
    return f". Building it needs {', '.join(missing)}, which is not found here" if missing else ""


_NPU_OPTIONS = {
    # llama.cpp's backends that reach NPUs (ggml/src of the version that is vendored); each needs the maker's own SDK
    "intel": ("GGML_OPENVINO", "Intel's OpenVINO"),
    "qualcomm": ("GGML_HEXAGON", "Qualcomm's Hexagon SDK"),
    "huawei": ("GGML_CANN", "Huawei's CANN"),
    "ascend": ("GGML_CANN", "Huawei's CANN"),
}


def check_npus(machine: Machine, here: Installation) -> Iterable[Finding]:
    """Each NPU: used, usable by another build, or of no use to llama.cpp at all."""
    for npu in machine.npus:
        yield _npu(npu, machine, here)


def _npu(npu: Npu, machine: Machine, here: Installation) -> Finding:
    if npu.usable_by_engine:
        return ok("npu", f"{npu.name}: used by the engine")
    known = _NPU_OPTIONS.get(npu.vendor.lower())
    if known is None:
        return ok("npu", f"{npu.name}: llama.cpp has no backend for it, so no build can use it; nothing is wrong")
    option, kit = known
    return warning(
        "npu",
        f"{npu.name}: the installed engine is not built for it ({option} is off). Building it needs {kit}; models run "
        "well without",
        rebuild(here, [option], machine.engine.backends),
    )


def check_instructions(system_info: str | None, cpuinfo: str | None, here: Installation) -> Finding:
    """Whether the engine uses the instructions that this processor has, and no others."""
    if system_info is None:
        return warning("processor", "the engine does not say which instructions it was built for")
    built = {name for name, value in re.findall(r"(\w+) = (\d+)", system_info) if value != "0"}
    flags = set(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo or "", re.M)[:1])
    words = set(next(iter(flags), "").split())
    if not words:
        return ok("processor", "this system does not list the processor's instructions: not compared")
    known = _ARM if "asimd" in words else _X86
    command = rebuild(here, ["GGML_NATIVE"])
    if lacking := [name for name, flag in known.items() if name in built and flag not in words]:
        return fault(
            "processor",
            f"the engine was built for {', '.join(lacking)}, which this processor lacks: it may crash",
            command,
        )
    if unused := [name for name, flag in known.items() if name not in built and flag in words]:
        return warning(
            "processor",
            f"the engine was built without {', '.join(unused)}, which this processor has: slower than it could be",
            command,
        )
    return ok("processor", "the engine uses the instructions that this processor has")


def check_driver(machine: Machine, here: Installation) -> Iterable[Finding]:
    """Whether the NVIDIA driver is new enough for the CUDA that llama.cpp is built with today."""
    cards = [gpu for gpu in machine.gpus if gpu.vendor == "NVIDIA"]
    drivers = {gpu.driver for gpu in cards}
    if not cards:
        return
    for driver in sorted(each for each in drivers if each):
        number = re.match(r"(\d+)\.", driver)
        if number is None:
            continue
        if int(number.group(1)) < OLDEST_NVIDIA_DRIVER:
            yield fault(
                "driver",
                f"NVIDIA driver {driver} is too old: CUDA 12 needs {OLDEST_NVIDIA_DRIVER} or newer",
                _driver_command(here),
            )
        else:
            later = "" if int(number.group(1)) >= CUDA_13_DRIVER else f" (CUDA 13 needs {CUDA_13_DRIVER})"
            yield ok("driver", f"NVIDIA driver {driver} is new enough for CUDA 12{later}")
    if drivers == {None} and not any(gpu.usable_by_engine or gpu.shared_memory for gpu in cards):
        yield fault(
            "driver", f"{cards[0].name}: no NVIDIA driver is loaded, so nothing can use it", _driver_command(here)
        )


def _driver_command(here: Installation) -> str:
    for program, command in (
        ("ubuntu-drivers", "sudo ubuntu-drivers install"),
        ("apt-get", "sudo apt-get install -y nvidia-driver"),
        ("pacman", "sudo pacman -S nvidia-open"),
        ("dnf", "sudo dnf install -y akmod-nvidia"),
    ):
        if here.has(program):
            return command
    return "see www.nvidia.com/drivers"


def check_calibration(machine: Machine) -> Finding:
    """Whether speeds are predicted from this machine's own, and what makes it so."""
    if machine.experience.calibration is None:
        return ok("speed", "speeds are predicted from bandwidth alone; this measures them", "localai bench --calibrate")
    return ok("speed", "speeds are predicted from this machine's calibration")
