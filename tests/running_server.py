"""A server of its own for the tests: `localai serve` on a free port, with the real small model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """`home` is its LOCALAI_HOME."""

    url: str
    pid: int
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"localai_{name} ")))


@contextlib.contextmanager
def serving(home: Path, *words: str, offline: bool = True) -> Iterator[Running]:
    """Start one, and end it."""
    environ = {**os.environ, "LOCALAI_HOME": str(home), "LOCALAI_OFFLINE": str(int(offline))}
    process = subprocess.Popen(
        [sys.executable, "-m", "localai", "serve", "-m", "smollm2-135m", "--json", "--threads", "1", *words],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        text = b""
        for line in process.stdout:
            text += line
            if line == b"}\n":
                break
        else:
            raise AssertionError(process.stderr.read().decode())
        told = json.loads(text)
        yield Running(told["url"] or "", told["pid"], home, process)
    finally:
        process.terminate()
        process.communicate(timeout=30)
