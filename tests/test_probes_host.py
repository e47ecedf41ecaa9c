"""The processor, the system's name and the memory, on captured machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machines import captured

from localai import hardware
from localai.domain.machine import Cpu, SystemMemory
from localai.domain.units import GIB
from localai.probes import host, memory
from localai.probes.source import Source, run_command

KIB = 1024


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests may take longer than a user is to wait."""
    monkeypatch.setattr(hardware, "PROBES_SECONDS", 60)


@pytest.mark.parametrize(
    ("name", "system", "cpu"),
    [
        ("this-vm", "Debian GNU/Linux 12 (bookworm)", Cpu("AMD EPYC", "x86_64", 2, 2)),
        (
            "laptop-intel",
            "Ubuntu 24.04.1 LTS",
            Cpu("11th Gen Intel(R) Core(TM) i5-1135G7 @ 2.40GHz", "x86_64", 4, 8),
        ),
        (
            "raspberry-pi-5",
            "Debian GNU/Linux 12 (bookworm)",
            Cpu("Cortex-A76 (Raspberry Pi 5 Model B Rev 1.0)", "aarch64", 4, 4),
        ),
        ("rk3588", "Armbian 24.11.1 bookworm", Cpu("Cortex-A55 + Cortex-A76 (Radxa ROCK 5B)", "aarch64", 8, 8)),
        ("phone-snapdragon", "Android 15", Cpu("Cortex-A520 + Cortex-A720 + Cortex-X4 (SM8650)", "aarch64", 8, 8)),
        ("nothing", "Plan9", Cpu("unknown", "", None, 1)),
        ("macbook-air-m2", "macOS 14.6.1", Cpu("Apple M2", "arm64", 8, 8)),
    ],
)
def test_the_system_and_its_processor(name: str, system: str, cpu: Cpu, tmp_path: Path) -> None:
    source, _ = captured(name, tmp_path)
    assert host.os_name(source) == system
    assert host.cpu(source) == cpu


def test_windows_names_its_processor_and_version(tmp_path: Path) -> None:
    source, _ = captured("windows-laptop", tmp_path)
    assert host.os_name(source) == "Windows 10.0.22631.4317"
    assert host.cpu(source).name == "AMD Ryzen 7 7840U w/ Radeon 780M Graphics"


def test_an_unknown_arm_core_shows_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nCPU implementer : 0x99\nCPU part : 0xabc\n")
    source = Source(tmp_path, lambda command, seconds: None, "Linux", "aarch64")
    assert host.cpu(source).name == "ARM core 0x99:0xabc"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("this-vm", SystemMemory(24684092 * KIB, 24359096 * KIB, None, 0, "/proc/meminfo")),
        ("laptop-intel", SystemMemory(16058124 * KIB, 10485760 * KIB, None, 2097148 * KIB, "/proc/meminfo")),
        ("raspberry-pi-5", SystemMemory(8255280 * KIB, 7340032 * KIB, None, 204796 * KIB, "/proc/meminfo")),
        # 4 GiB − (3 GiB − 2 GiB of file cache)
        (
            "container-v1",
            SystemMemory(65829888 * KIB, 3 * GIB, 4 * GIB, 0, "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        ),
        # 2 GiB − (1 GiB − 256 MiB)
        ("container-v2", SystemMemory(65829888 * KIB, 1280 * KIB**2, 2 * GIB, 0, "/sys/fs/cgroup/memory.max")),
        # the slice: 6 − 5
        (
            "container-nested",
            SystemMemory(65829888 * KIB, GIB, 6 * GIB, 0, "/sys/fs/cgroup/kubepods.slice/memory.max"),
        ),
        ("macbook-air-m2", SystemMemory(16 * GIB, 340000 * 16384, None, 2 * GIB, "vm_stat")),
        ("windows-laptop", SystemMemory(33550336000, 20 * GIB, None, 2 * GIB, "psutil")),
        ("nothing", None),
    ],
)
def test_memory_that_is_really_there(name: str, expected: SystemMemory | None, tmp_path: Path) -> None:
    source, _ = captured(name, tmp_path)
    assert memory.memory(source) == expected


def test_a_limit_that_is_looser_than_the_free_memory_is_still_named(tmp_path: Path) -> None:
    source, _ = captured("container-v2", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(str(32 * GIB))
    (tmp_path / "proc/meminfo").write_text("MemTotal: 67108864 kB\nMemAvailable: 1048576 kB\n")
    found = memory.memory(source)
    assert found == SystemMemory(64 * GIB, GIB, 32 * GIB, 0, "/proc/meminfo, within the control group's limit")


def test_what_ulimit_leaves_of_the_addresses_counts(tmp_path: Path) -> None:
    source, _ = captured("container-v2", tmp_path)
    (tmp_path / "proc/self/limits").write_text(
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        f"Max address space         {GIB:<20} unlimited            bytes     \n"
    )
    (tmp_path / "proc/self/status").write_text("VmPeak:\t  300000 kB\nVmSize:\t  262144 kB\n")
    total = 65829888 * KIB
    assert memory.memory(source) == SystemMemory(total, GIB * 3 // 4, GIB, 0, "ulimit -v")
    (tmp_path / "proc/self/limits").write_text("Max address space         unlimited            unlimited    bytes\n")
    assert memory.memory(source) == SystemMemory(total, 1280 * KIB**2, 2 * GIB, 0, "/sys/fs/cgroup/memory.max")


def test_a_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    source, _ = captured("container-v2", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(str(9 * GIB))
    found = memory.memory(source)
    assert found is not None
    assert found.available_bytes == 0


def test_a_container_that_sees_only_its_own_group_knows_the_limit_above(tmp_path: Path) -> None:
    source, _ = captured("container-v1", tmp_path)
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712")
    found = memory.memory(source)
    assert found is not None
    assert found.limit_bytes == 4 * GIB  # hierarchical_memory_limit


def test_a_group_path_cannot_lead_out_of_the_mount(tmp_path: Path) -> None:
    source, _ = captured("container-v2", tmp_path)
    (tmp_path / "proc/self/cgroup").write_text("0::/../../../../etc\n")
    found = memory.memory(source)
    assert found is not None
    assert found.limit_bytes == 2 * GIB


def test_an_old_kernel_without_memavailable(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 2048 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\n")
    found = memory.memory(Source(tmp_path, lambda command, seconds: None, "Linux", "x86_64"))
    assert found is not None
    assert found.available_bytes == 420 * KIB


def test_this_machine_agrees_with_psutil() -> None:
    source = Source()
    found = memory.memory(source)
    assert found is not None
    assert found.total_bytes == psutil.virtual_memory().total
    assert 0 <= found.available_bytes <= found.total_bytes
    cpu = host.cpu(source)
    assert cpu.physical_cores is None or 1 <= cpu.physical_cores <= cpu.logical_cores


# ---------------------------------------------------------------------------------------------------- the source


def test_a_source_reads_regular_files_only(tmp_path: Path) -> None:
    source = Source(tmp_path)
    (tmp_path / "long").write_text("x" * 100)
    assert source.text("/long", 10) == "x" * 10
    assert source.text("/") is None
    assert source.text("/absent") is None
    assert source.text("/nul\0") is None
    assert source.integer("/long") is None
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        assert source.text("/pipe") is None


@pytest.mark.parametrize(("text", "value"), [("12", 12), ("0x10", 16), ("-1", None), ("max", None), (str(2**64), None)])
def test_a_source_reads_numbers(text: str, value: int | None, tmp_path: Path) -> None:
    (tmp_path / "number").write_text(text)
    assert Source(tmp_path).integer("number") == value


def test_commands_never_raise() -> None:
    assert run_command([sys.executable, "-c", "print('é')"], 30) is not None
    assert run_command([sys.executable, "-c", "raise SystemExit(1)"], 30) is None
    assert run_command(["no-such-command-anywhere"], 1) is None
    assert run_command([sys.executable, "-c", "import time; time.sleep(60)"], 0.05) is None
    assert run_command(["nul\0"], 1) is None


# ---------------------------------------------------------------------------------------------------- any machine

_PATHS = (
    "proc/meminfo",
    "proc/cpuinfo",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/device-tree/model",
    "etc/os-release",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/memory.current",
    "sys/fs/cgroup/memory.stat",
    "sys/fs/cgroup/memory/memory.limit_in_bytes",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "sys/class/drm/card0/device/vendor",
    "sys/class/drm/card0/device/device",
    "sys/class/drm/card0/device/uevent",
    "sys/class/drm/card0/device/mem_info_vram_total",
    "sys/class/drm/card0/device/mem_info_vram_used",
    "sys/class/drm/card0/device/mem_info_gtt_total",
    "sys/class/drm/card0/device/tile0/physical_vram_size_bytes",
    "sys/class/drm/card0/lmem_total_bytes",
    "proc/driver/nvidia/gpus/x/information",
    "proc/driver/nvidia/version",
    "proc/device-tree/compatible",
    "proc/device-tree/npu@fdab0000/compatible",
    "sys/class/drm/card0/device/product_name",
    "sys/class/drm/card0/device/tile0/vram0",
    "sys/class/accel/accel0/device/vendor",
    "sys/class/accel/accel0/device/device",
    "sys/class/accel/accel0/device/vbnv",
    "sys/class/accel/accel0/device/uevent",
    "sys/bus/pci/devices/0000:00:0b.0/vendor",
    "sys/bus/pci/devices/0000:00:0b.0/device",
    "sys/bus/usb/devices/1-1/idVendor",
    "sys/bus/usb/devices/1-1/idProduct",
    "sys/class/devfreq/x.npu/cur_freq",
    "sys/class/remoteproc/remoteproc0/name",
    "sys/devices/system/cpu/cpu0/cache/index3/size",
    "run/udev/data/+dmi:id",
    "system/build.prop",
    "etc/nv_tegra_release",
    "dev/fastrpc-cdsp",
    "dev/davinci0",
)
_WORDS = st.sampled_from(
    [
        b"MemTotal: 100 kB\n",
        b"MemAvailable: 9999 kB\n",
        b"0::/a/b\n",
        b"4:memory:/x\n",
        b"0x8086",
        b"0x1002",
        b"max",
        b"-5",
        b"processor : 0\n",
        b"CPU part : 0xd0b\n",
        b"model name :\n",
        b"Model: \n",
        b"0-99999999",
        b"9" * 400,
        b"\xff\x00\n",
        b"1 2 3:4 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        b"17179869184",
        b"DRIVER=x\n",
        b"1 2 3 4 5 - cgroup\n",
        b"0x7d1d",
        b"0x1022",
        b"0x17f0",
        b"NPU Strix",
        b"1ac1",
        b"rockchip,rk3588\n",
        b"nvidia,tegra234\n",
        b"qcom,sm8650\n",
        b"cdsp",
        b"E:MEMORY_DEVICE_0_CONFIGURED_SPEED_MTS=6400\n",
        b"E:MEMORY_DEVICE_0_DATA_WIDTH=64\n",
        b"E:MEMORY_DEVICE_0_LOCATOR=CHANNEL A\n",
        b"32768K",
    ]
)
PIPE, LOOP, FOLDER = "pipe", "loop", "folder"
_CONTENTS = st.one_of(
    st.binary(max_size=40), st.lists(_WORDS, max_size=6).map(b"".join), st.sampled_from([PIPE, LOOP, FOLDER])
)
_OUTPUTS = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.sampled_from(
        [
            "8",
            "Apple M2",
            "Pages free: 5.\npage size of 9 bytes",
            "    MatchingDeviceId  REG_SZ  PCI\\VEN_1002&DEV_15BF\n    HardwareInformation.qwMemorySize  REG_QWORD 0x9",
            "9" * 400,
        ]
    ),
)


def lay_out(root: Path, files: dict[str, bytes | str]) -> None:
    for path, content in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        elif content == LOOP:
            place.symlink_to(place)
        elif content == PIPE and sys.platform != "win32":
            os.mkfifo(place)
        else:
            place.mkdir()


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.fixed_dictionaries(dict.fromkeys(_PATHS, _CONTENTS)),
    output=_OUTPUTS,
    system=st.sampled_from(["Linux", "Linux", "Linux", "Android", "Darwin", "Windows", ""]),
    figures=st.dictionaries(
        st.sampled_from(["memory_total", "memory_available", "logical_cores"]), st.integers(-9, 99)
    ),
)
def test_no_probe_raises_or_blocks_on_any_tree(
    files: dict[str, bytes | str],
    output: str | None,
    system: str,
    figures: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("tree")
    lay_out(root, files)
    source = Source(root, lambda command, seconds: output, system, "x86_64", lambda: figures)
    found = hardware.detect(engine=False, source=source)
    assert found.failures == ()
    assert found.os
    assert found.cpu.name
    assert found.cpu.logical_cores >= 1
    memory = found.memory
    limit = memory.limit_bytes
    assert 0 <= memory.available_bytes <= memory.total_bytes
    assert limit is None or memory.available_bytes <= limit < memory.total_bytes
    assert found.bandwidth.gbps is None or 0 < found.bandwidth.gbps < 1e7
    for card in found.gpus:
        total, free = card.vram_total_bytes, card.vram_free_bytes
        assert total is None or total > 0
        assert free is None or (total is not None and 0 <= free <= total)
        assert not card.usable_by_engine
    assert all(npu.name and not npu.usable_by_engine for npu in found.npus)


@given(total=st.integers(1, 2**40), free=st.integers(0, 2**40), limit=st.integers(0, 2**40), used=st.integers(0, 2**40))
def test_no_total_exceeds_what_its_source_says(
    total: int, free: int, limit: int, used: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    lay_out(
        root,
        {
            "proc/meminfo": f"MemTotal: {total} kB\nMemAvailable: {free} kB\n".encode(),
            "proc/self/cgroup": b"0::/",
            "sys/fs/cgroup/memory.max": str(limit).encode(),
            "sys/fs/cgroup/memory.current": str(used).encode(),
            "sys/class/drm/card0/device/vendor": b"0x1002",
            "sys/class/drm/card0/device/mem_info_vram_total": str(limit).encode(),
            "sys/class/drm/card0/device/mem_info_vram_used": str(used).encode(),
            "sys/class/drm/card0/device/mem_info_gtt_total": str(total).encode(),
        },
    )
    source = Source(root, lambda command, seconds: None, "Linux", "x86_64", dict)
    found = hardware.detect(engine=False, source=source)
    assert found.memory.total_bytes == total * KIB
    assert found.memory.available_bytes <= free * KIB
    if limit < total * KIB:
        assert found.memory.available_bytes <= max(limit - used, 0)
    (card,) = found.gpus
    assert (card.vram_total_bytes or 0) == limit
    assert (card.vram_free_bytes or 0) == max(limit - used, 0)
    assert card.shared_total_bytes in (None, total)


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({}, None),
        ({"proc/self/status": "Name:\tx\nCpus_allowed_list:\t0,2-3\n"}, 3),
        ({"proc/self/status": "Cpus_allowed_list:\t0-7\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 0\n"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
    ],
)
def test_the_cores_that_a_process_may_use(tmp_path: Path, files: dict[str, str], usable: int | None) -> None:
    cores = "".join(f"processor : {n}\ncore id : {n}\nphysical id : 0\n\n" for n in range(4))
    for name, text in {"proc/cpuinfo": cores, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = host.cpu(Source(tmp_path, lambda command, seconds: None, "Linux", "x86_64"))
    assert (found.physical_cores, found.usable_cores) == (4, usable)
