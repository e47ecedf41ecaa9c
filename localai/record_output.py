"""The output of a batch in a file that a later run goes on with: locked, whole records only, none made again.

A record is one write of one line, so that a run that is killed leaves at most the last line torn; that is cut off.
Each line carries a fingerprint of what was asked, by which a changed input or template is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from localai.errors import LocalaiError, UsageError
from localai.record_input import Record

SYNCED_S = 2.0  # so much of the work a power failure may take back; a killed process loses nothing
_LONGEST_LINE = 1 << 26
_HEAD = b'{"schema_version": 1, "index": '


def job_of(settings: Any) -> str:
    """A short fingerprint of what is the same for all records: template, model, sampling (plain data)."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


def fingerprint(job: str, record: Record) -> str:
    """Of one record and how it is asked about."""
    return f"{job}-{record.digest}"


class ResumedOutput:
    """OUT, made if need be. Raises UsageError where another process writes it, or it is something else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._stream: BinaryIO = open(path, "a+b", buffering=0)  # noqa: SIM115 - it is closed by close()
        except (OSError, ValueError) as error:  # what cannot be read twice, a pipe, is a ValueError as well
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot write {path}: {why}", "--resume takes a file to write to") from error
        try:
            _lock(self._stream, path)
        except BaseException:
            self._stream.close()
            raise
        self._synced = monotonic()
        self._end = 0

    def skip_done(self, records: Iterator[Record], job: str) -> tuple[int, int]:
        """Pass by the records that are answered already, checking that they are the same; cut off a torn last line.

        Returns how many there are, and how many of them failed. Raises UsageError where the input or the job differs.
        """
        done = failed = 0
        for line in self._whole_lines():
            found = _parsed(line)
            if found is None or found.get("index") != done:
                raise UsageError(f"line {done + 1} of {self.path} is no record {done} of map", "give another --resume")
            record = next(records, None)
            self._check(found, record, job)
            done += 1
            failed += found.get("error") is not None
        if os.fstat(self._stream.fileno()).st_size != self._end:
            self._stream.truncate(self._end)
        return done, failed

    def _whole_lines(self) -> Iterator[bytes]:
        """The lines up to the last whole one; `_end` is where that ends."""
        with open(self.path, "rb") as stream:
            line = stream.readline(_LONGEST_LINE)
            while line:
                following = stream.readline(_LONGEST_LINE)
                if not following and (not line.endswith(b"\n") or _parsed(line) is None):
                    if not _may_be_torn(line):
                        raise UsageError(
                            f"{self.path} holds something else than the output of map", "give another --resume"
                        )
                    return
                yield line
                self._end += len(line)
                line = following

    def _check(self, found: dict[str, Any], record: Record | None, job: str) -> None:
        index = found["index"]
        if record is None:
            raise UsageError(f"{self.path} has a record {index} that the input has not", "give the same input")
        known_job, _, known_record = str(found.get("fingerprint")).partition("-")
        if known_job != job:
            raise UsageError(
                f"{self.path} was made with another template, model or setting",
                "give the same ones, or another --resume",
            )
        if known_record != record.digest:
            raise UsageError(
                f"the input has changed: its record {index} is not the one that {self.path} answers",
                "give the same input, or another --resume",
            )

    def write(self, line: str) -> None:
        """Add one line. Raises LocalaiError where the disk takes no more; what it took of the line is cut off."""
        content = line.encode("utf-8", "replace")
        try:
            written = self._stream.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end += len(content)
            if monotonic() - self._synced >= SYNCED_S:
                self.sync()
        except OSError as error:
            with contextlib.suppress(OSError):  # the next run cuts it off
                self._stream.truncate(self._end)
            raise LocalaiError(
                f"cannot write {self.path}: {error.strerror}", "make room, then run the same command again"
            ) from error

    def sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = monotonic()

    def close(self) -> None:
        """Make what is written safe, and let go of the lock."""
        try:
            self.sync()
        except OSError:
            pass  # /dev/null and its like
        finally:
            self._stream.close()


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another process writes {path} now", "wait for it, or give another --resume") from error
    except OSError:
        pass  # a file system without locks


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _may_be_torn(line: bytes) -> bool:
    """Whether it is the beginning of a record and what a power failure leaves behind it: nothing of anybody else's."""
    beginning = line.rstrip(b"\0\n")
    return beginning.startswith(_HEAD) or _HEAD.startswith(beginning)
