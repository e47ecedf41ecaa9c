"""How a probe sees a machine: files under a root and commands, so that a captured tree of another machine is a test."""

from __future__ import annotations

import logging
import os
import platform
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from localai.domain.units import MIB

TEXT_LIMIT = MIB  # /proc/cpuinfo of 512 cores is about 800 kB
GLOB_LIMIT = 1024
COMMAND_SECONDS = 2.0

Runner = Callable[[Sequence[str], float], str | None]
_log = logging.getLogger(__name__)


def run_command(command: Sequence[str], seconds: float) -> str | None:
    """Standard output of a command in the C locale; None if it is absent, fails or takes longer than `seconds`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
            check=True,
        )
    except subprocess.TimeoutExpired:
        _log.debug("%s took longer than %g s and was given up", " ".join(command), seconds)
        return None
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout[:TEXT_LIMIT].decode("utf-8", "replace")


def psutil_figures() -> Mapping[str, int]:
    """What psutil knows of this machine, for systems whose files and commands do not tell it (Windows)."""
    import psutil

    memory = psutil.virtual_memory()
    figures = {"memory_total": memory.total, "memory_available": memory.available}
    try:
        figures["swap_total"] = psutil.swap_memory().total
    except (OSError, RuntimeError):
        _log.debug("psutil does not know the swap")
    counts = {"physical_cores": psutil.cpu_count(logical=False), "logical_cores": psutil.cpu_count()}
    return {**figures, **{name: count for name, count in counts.items() if count}}


@dataclass(frozen=True, slots=True)
class Source:
    """A machine's files and commands; nothing here raises, what cannot be had is None or empty.

    `system` and `architecture` are what `platform` calls them: Linux, Darwin, Windows; x86_64, aarch64, arm64.
    """

    root: Path = Path("/")
    run: Runner = run_command
    system: str = field(default_factory=platform.system)
    architecture: str = field(default_factory=platform.machine)
    figures: Callable[[], Mapping[str, int]] = psutil_figures

    def text(self, path: str, limit: int = TEXT_LIMIT) -> str | None:
        """The first `limit` bytes of a regular file, stripped; pipes and devices are not opened."""
        try:
            descriptor = os.open(
                self._at(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            content = b""
            while len(content) < limit and (piece := os.read(descriptor, limit - len(content))):
                content += piece
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return content.decode("utf-8", "replace").strip("\0 \t\r\n")

    def integer(self, path: str) -> int | None:
        """A file's content as a number, decimal or 0x…; None where it is no whole number from 0 to 2^63."""
        try:
            value = int(self.text(path, 64) or "", 0)
        except ValueError:
            return None
        return value if 0 <= value < 2**63 else None

    def glob(self, pattern: str) -> list[str]:
        """Paths that match, from the root and with a leading slash, sorted."""
        try:
            found = list(islice(self.root.glob(pattern.lstrip("/")), GLOB_LIMIT))
        except (OSError, ValueError):
            return []
        return sorted("/" + path.relative_to(self.root).as_posix() for path in found)

    def exists(self, path: str) -> bool:
        try:
            return self._at(path).exists()
        except (OSError, ValueError):
            return False

    def output(self, *command: str) -> str | None:
        """What a command prints; None where it is absent, fails or takes too long."""
        return self.run(command, COMMAND_SECONDS)

    def _at(self, path: str) -> Path:
        return self.root / path.lstrip("/")
