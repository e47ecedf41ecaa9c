"""`localai pull` against curl and `hf download` of the same file, from a Hub on loopback.

    python benchmarks/pull.py [--size-mb 2000] [--pairs 5] [--folder PATH]
        [--per-connection MB_PER_SECOND] [--json PATH]

Whole processes are timed, from start to exit; ours hashes every byte and syncs it to the disk, curl does neither, so it
is also shown with `sync` and `sha256sum` after it. Runs alternate, each round in another order; a figure is the median
of the rounds' ratios. To reach (spec): at least curl's rate, peak memory at most 150 MB.
With `--per-connection` the server bounds each connection's rate: what parallel ranges are for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from loopback_hub import COMMIT, NAME, REPO

SERVER = Path(__file__).with_name("loopback_hub.py")


@dataclass(frozen=True)
class Run:
    """One download: seconds from start to exit, and the peak of the process's resident memory in bytes."""

    seconds: float
    peak_bytes: int


def measured(arguments: list[str], environment: dict[str, str]) -> Run:
    """Run to the end, and fail loudly if that fails. The peak is the kernel's own count (`ru_maxrss`)."""
    began = time.monotonic()
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments[0]} failed: {told}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.monotonic() - began, usage.ru_maxrss * unit)


@contextmanager
def a_hub(file: Path, bytes_per_s: float | None) -> Any:
    rate = ["--per-connection", str(bytes_per_s)] if bytes_per_s else []
    with subprocess.Popen([sys.executable, str(SERVER), str(file), *rate], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def contenders(url: str, folder: Path) -> dict[str, Callable[[], Run]]:
    """What is compared, by name; each starts with nothing on the disk."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "hf"),
        "LOCALAI_HOME": str(folder / "localai"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    target = folder / "curl.gguf"
    address = f"{url}/{REPO}/resolve/{COMMIT}/{NAME}"
    curl = f"curl -sS -o {target} {address}"

    def fresh(arguments: list[str]) -> Run:
        shutil.rmtree(folder / "hf", ignore_errors=True)
        shutil.rmtree(folder / "localai", ignore_errors=True)
        target.unlink(missing_ok=True)
        os.sync()
        return measured(arguments, environment)

    found: dict[str, Callable[[], Run]] = {
        "localai": lambda: fresh([sys.executable, "-m", "localai", "pull", REPO, "--yes"]),
        "curl": lambda: fresh(["sh", "-c", f"exec {curl}"]),
        "curl, synced and hashed": lambda: fresh(["sh", "-c", f"{curl} && sync {target} && sha256sum {target}"]),
    }
    hf = Path(sys.executable).with_name("hf")
    if hf.exists():
        found["hf download"] = lambda: fresh([str(hf), "download", REPO, NAME])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to download to (default: the system's temporary folder)")
    parser.add_argument("--per-connection", type=float, metavar="MB_PER_SECOND")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bound = options.per_connection * 1e6 if options.per_connection else None
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        file = folder / "source"
        with file.open("wb") as stream:
            for _ in range(options.size_mb):
                stream.write(os.urandom(1_000_000))
        with a_hub(file, bound) as url:
            rounds = compete(contenders(url, folder), options.pairs)
    report(rounds, options.size_mb * 1_000_000, options.json)


def compete(ways: dict[str, Callable[[], Run]], count: int) -> list[dict[str, Run]]:
    """Every way once in each round, in an order that turns from round to round; one round before them warms up."""
    names = list(ways)
    rounds = []
    for index in range(count + 1):
        order = names[index % len(names) :] + names[: index % len(names)]
        rounds.append({name: ways[name]() for name in order})
        print(f"round {index}: " + ", ".join(f"{name} {rounds[-1][name].seconds:.2f} s" for name in names), flush=True)
    return rounds[1:]


def report(rounds: list[dict[str, Run]], size_bytes: int, path: Path | None) -> None:
    rows = {}
    print(f"\n{'':26}{'seconds':>9}{'MB/s':>8}{'peak MB':>9}{'rate over localai':>20}")
    for name in rounds[0]:
        seconds = median(each[name].seconds for each in rounds)
        peak = max(each[name].peak_bytes for each in rounds)
        ratio = median(each["localai"].seconds / each[name].seconds for each in rounds)
        rows[name] = {"seconds": seconds, "peak_bytes": peak, "rate_over_localai": ratio}
        print(f"{name:26}{seconds:9.2f}{size_bytes / seconds / 1e6:8.0f}{peak / 1e6:9.0f}{ratio:20.2f}")
    over_curl = median(each["curl"].seconds / each["localai"].seconds for each in rounds)
    print(
        f"\nlocalai pull over curl: {over_curl:.2f} (to reach: 1.0), peak {rows['localai']['peak_bytes'] / 1e6:.0f} MB"
    )
    if path:
        machine = {"machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()}
        told = {**machine, "size_bytes": size_bytes, "rounds": len(rounds), "over_curl": over_curl, "ways": rows}
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
