"""How fast memory is read and matrices are multiplied: measured here, or from the spec sheet of the memory.

A benchmark that copies or sums floating point shows a fraction of what memory gives. Here every physical core reads its
own part of a buffer that no cache holds, by numpy's maximum of 32-bit integers: it releases the GIL, and of numpy's
reductions it has the most room above the memory (110 GB/s a core in cache with SSE alone; a sum of floats has 28).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from localai.domain.units import KIB, MIB
from localai.probes import apple, chips
from localai.probes.source import Source

READ_SECONDS = 0.9
COMPUTE_SECONDS = 0.5
SMALLEST_BYTES = 256 * MIB
LARGEST_BYTES = 2048 * MIB
SHARE_OF_FREE = 3  # at most a third of the available memory
QUIET_SHARE = 0.9  # of a pass that its threads must be running
MOST_CORRECTED = 2.0  # times as fast as the best product that was seen: beyond that it is a guess
UNKNOWN_L3 = 32 * MIB
_OF_ANOTHER_PROCESSOR = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_APART_S = 30.0  # until a process that measures is given up
MATRIX = 768  # a product of 0.9 GFLOP: a tenth of a second on the slowest board


@dataclass(frozen=True, slots=True)
class Measured:
    """10^9 bytes read per second by all physical cores, and their 10^9 floating-point operations per second.

    `quiet` False: other programs had the cores for a part of the time, so that the machine can do more.
    """

    gbps: float | None
    gflops: float | None
    quiet: bool = True


def measure(cores: int, available_bytes: int, l3_bytes: int | None) -> Measured:
    """Measure both, in about two seconds; None without numpy, or with too little free memory to get past the caches."""
    threads = max(1, min(cores, len(_allowed())))
    size = buffer_bytes(available_bytes, l3_bytes)
    try:
        gbps, quiet = _read(threads, size) if size is not None else (None, True)
        gflops, alone = _multiply_apart()
        return Measured(gbps, gflops, quiet and alone)
    except (ImportError, MemoryError, RuntimeError):
        return Measured(None, None)


def _allowed() -> range | set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def buffer_bytes(available_bytes: int, l3_bytes: int | None) -> int | None:
    """How much to read: more than four times the L3 caches, within reason; None where that is not free."""
    wanted = min(max(SMALLEST_BYTES, 4 * (l3_bytes or UNKNOWN_L3) + 64 * MIB), LARGEST_BYTES)
    return wanted if available_bytes >= SHARE_OF_FREE * wanted else None


def _read(threads: int, size: int) -> tuple[float, bool]:
    """The best of several passes over the whole buffer, each thread reading the part that it touched first itself.

    Returns 10^9 bytes per second, and whether the threads had their cores to themselves in that pass.
    """
    import numpy

    words = size // threads // 4
    parts: list[object] = [None] * threads

    def touch(index: int) -> None:
        parts[index] = numpy.full(words, index, dtype=numpy.int32)

    def read(index: int) -> None:
        numpy.max(parts[index])  # type: ignore[call-overload]

    with _Team(threads) as team:
        team.run(touch)
        seconds, share = min(team.passes(read, READ_SECONDS))
    return threads * words * 4 / seconds / 1e9, share >= QUIET_SHARE


def _multiply_apart() -> tuple[float, bool]:
    """`_multiply` in a process of its own, without what the environment tells OpenBLAS of the processor: a setting for
    all machines of a farm halves it on one with AVX-512. Where that process fails, in this one.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_PROCESSOR}
    command = "from localai.probes import bandwidth; print(*bandwidth._multiply())"
    with suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            [sys.executable, "-P", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_APART_S,
            check=True,
        )
        gflops, alone = done.stdout.decode().split()
        return float(gflops), alone == "True"
    return _multiply()


def _multiply() -> tuple[float, bool]:
    """The best of several products of two matrices of 32-bit floats; numpy's BLAS brings its own threads.

    Returns 10^9 floating-point operations per second, and whether other programs left the processor to it. Where they
    wanted all of it, the average is taken for what the share that was left would do with the whole.
    """
    import numpy
    import psutil

    values = numpy.random.default_rng(0).random((MATRIX, MATRIX), dtype=numpy.float32)
    result = numpy.empty_like(values)
    before, ours = psutil.cpu_times(), time.process_time()
    began, taken = time.perf_counter(), list[float]()
    while len(taken) < 2 or time.perf_counter() - began < COMPUTE_SECONDS:
        start = time.perf_counter()
        numpy.matmul(values, values, out=result)
        taken.append(time.perf_counter() - start)
    ours, after = time.process_time() - ours, psutil.cpu_times()
    busy, idle = _between(before, after)
    share = ours / max(busy, ours, 1e-9)
    seconds = min(taken)
    if share < QUIET_SHARE and idle < (1 - QUIET_SHARE) * busy:
        seconds = max(min(seconds, sum(taken) / len(taken) * share), seconds / MOST_CORRECTED)
    return 2 * MATRIX**3 / max(seconds, 1e-9) / 1e9, share >= QUIET_SHARE


def _between(before: Any, after: Any) -> tuple[float, float]:
    """Seconds that all the system's processors worked and were idle, from two readings of psutil's `cpu_times`."""
    idle = sum(getattr(after, name, 0.0) - getattr(before, name, 0.0) for name in ("idle", "iowait"))
    counted_twice = ("guest", "guest_nice", "idle", "iowait")  # a guest's time is in user's, too
    names = [name for name in after._fields if name not in counted_twice]
    return sum(getattr(after, name) - getattr(before, name) for name in names), idle


class _Team:
    """Threads that each do their share of a pass at the same time."""

    def __init__(self, threads: int) -> None:
        self._barrier = threading.Barrier(threads + 1)
        self._spans = [(0.0, 0.0, 0.0)] * threads
        self._work: Callable[[int], None] | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> _Team:
        for index in range(len(self._spans)):
            threading.Thread(target=self._serve, args=(index,), name=f"measure {index}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work = None
        self._barrier.wait()

    def _serve(self, index: int) -> None:
        while True:
            self._barrier.wait()
            work = self._work
            if work is None:
                return
            try:
                began, running = time.perf_counter(), time.thread_time()
                work(index)
                self._spans[index] = began, time.perf_counter(), time.thread_time() - running
            except BaseException as error:  # noqa: BLE001 - raised again by run()
                self._error = error
            self._barrier.wait()

    def run(self, work: Callable[[int], None]) -> tuple[float, float]:
        """Seconds from the first one's beginning to the last one's end, and the share of them that all were running.

        Raises what one of them raised.
        """
        self._work = work
        self._barrier.wait()
        self._barrier.wait()
        if self._error is not None:
            raise self._error
        seconds = max(max(end for _, end, _ in self._spans) - min(began for began, _, _ in self._spans), 1e-9)
        return seconds, sum(running for _, _, running in self._spans) / len(self._spans) / seconds

    def passes(self, work: Callable[[int], None], seconds: float) -> list[tuple[float, float]]:
        """What `run` says of each pass, as many as fit into `seconds`, at least two."""
        began, taken = time.perf_counter(), list[tuple[float, float]]()
        while len(taken) < 2 or time.perf_counter() - began < seconds:
            taken.append(self.run(work))
        return taken


# ------------------------------------------------------------------------------------------------- the spec sheet


def l3_bytes(source: Source) -> int | None:
    """All L3 caches together (Linux); None where the system does not tell, and on chips without one."""
    caches = {}
    for path in source.glob("/sys/devices/system/cpu/cpu[0-9]*/cache/index3/size"):
        size = re.fullmatch(r"(\d{1,9})([KM]?)", source.text(path, 32) or "")
        if size:
            shared = source.text(path.replace("/size", "/shared_cpu_list"), 4096) or path
            caches[shared] = int(size.group(1)) * {"K": KIB, "M": MIB, "": 1}[size.group(2)]
    return sum(caches.values()) or None


def spec_gbps(source: Source) -> float | None:
    """Peak bandwidth of the system's memory by the chip, the board, or the modules; None where none of them tells."""
    if chip := apple.chip_name(source):
        known = chips.apple_chip(chip, apple.cores(source))
        return known.gbps if known else None
    if board := source.text("/proc/device-tree/model", 256):
        return chips.board_gbps(board)
    return _modules_gbps(source.text("/run/udev/data/+dmi:id") or "")


def _modules_gbps(properties: str) -> float | None:
    """Transfers per second × width of each channel with a module in it, as udev read them from the firmware's tables.

    None where the tables do not name the channels: how many there are cannot be told from the number of modules.
    """
    devices: dict[str, dict[str, str]] = {}
    for number, name, value in re.findall(r"^E: ?MEMORY_DEVICE_(\d{1,3})_(\w+)=(.*)$", properties, re.M):
        devices.setdefault(number, {})[name] = value.strip()
    channels: dict[str, float] = {}
    for device in devices.values():
        speed, width = device.get("CONFIGURED_SPEED_MTS", ""), device.get("DATA_WIDTH") or device.get("TOTAL_WIDTH", "")
        if device.get("PRESENT") == "0" or not re.fullmatch(r"[1-9]\d{2,4}", speed):
            continue
        place = f"{device.get('BANK_LOCATOR', '')} {device.get('LOCATOR', '')}"
        channel = re.search(r"(?:controller ?(\d+).*?)?chan(?:nel)?[ _-]?([A-Z]|\d{1,2})(?![a-z])", place, re.I)
        if channel is None or not re.fullmatch(r"16|32|64|72", width):
            return None
        bits = 64 if width == "72" else int(width)  # 8 of the 72 are for correcting errors
        channels[f"{channel.group(1)}/{channel.group(2)}".upper()] = int(speed) * 1e6 * bits / 8 / 1e9
    return round(sum(channels.values()), 1) or None
