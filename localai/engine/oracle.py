"""What llama.cpp itself would allocate for a model, asked without the weights: its header and a hole are enough.

The header is written to a sparse file of the model's full size and loaded with `no_alloc` and without mmap (with it
llama.cpp asserts); llama.cpp then reserves its graphs and logs the buffers, and allocates nothing. A header is hostile
input and llama.cpp aborts on some: so all of it happens in a child process, within limits of time and memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from localai import gguf
from localai.domain.units import MIB
from localai.errors import EngineError

TIMEOUT_S = 20.0
ANSWER_LIMIT = MIB
CHUNK = MIB
_CHILD = "localai.engine.oracle_child"


@dataclass(frozen=True, slots=True)
class HeaderFile:
    """One GGUF file, or its beginning: the first `header_bytes` of `path`, of a file of `size_bytes` in all.

    `header` is what they say, where that is known: the vocabulary is then left out, which takes llama.cpp longer than
    all the rest.
    """

    path: Path
    header_bytes: int
    size_bytes: int
    header: gguf.Header | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A context to ask about, as llama.cpp's parameters."""

    context: int
    kv_type: str = "f16"
    ubatch: int = 512
    outputs: int = 1
    flash: bool = True
    sequences: int = 1
    unified: bool = True  # one cache for all the sequences, else each has its share of it


@dataclass(frozen=True, slots=True)
class Reading:
    """What llama.cpp says of one context on the CPU: KV cache with recurrent states and compute buffer, to 10 KiB.

    `weights_bytes` is its own sum of the tensors, to the byte.
    """

    kv_cache_bytes: int
    compute_bytes: int
    weights_bytes: int


class Oracle:
    """llama.cpp asked about one model, in a child process that keeps it loaded for the next question.

    The child gets ready meanwhile. `close` ends it, and so does the end of this object.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        """Start the child. Raises EngineError where that is not possible."""
        self._timeout_s = timeout_s
        self._loaded = False
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
        except OSError as error:
            raise _failed(error.strerror or str(error)) from error
        self.close = weakref.finalize(self, _end, self._child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, files: Sequence[HeaderFile], settings: Sequence[Setting]) -> tuple[Reading, ...]:
        """What each context would take; `files` are all the shards, in order, the same at each call.

        Takes 0.2 s at first, most of it the child's start, then some 5 ms for each setting. Raises EngineError where
        llama.cpp refuses the model or a setting, dies of it, or needs too long; and where the disk has no room for a
        sparse file. It can then be asked no more.
        """
        request: dict[str, Any] = {"settings": [asdict(setting) for setting in settings]}
        try:
            if self._loaded:
                return _answer(self._told(request), self._child, len(settings))
            with tempfile.TemporaryDirectory(prefix="localai-oracle-") as folder:
                copies = [_sparse_copy(Path(folder), file, at, len(files)) for at, file in enumerate(files)]
                self._loaded = True
                return _answer(self._told({**request, "path": str(copies[0])}), self._child, len(settings))
        except OSError as error:
            raise _failed(error.strerror or str(error)) from error

    def _told(self, request: Mapping[str, Any]) -> bytes:
        """The child's answer, b"" where it has died."""
        asked, answers = self._child.stdin, self._child.stdout
        assert asked is not None
        assert answers is not None
        late = threading.Event()

        def cut() -> None:
            late.set()
            self._child.kill()

        watch = threading.Timer(self._timeout_s, cut)
        watch.daemon = True
        watch.start()
        try:
            asked.write(json.dumps(request).encode() + b"\n")
            asked.flush()
            answer = answers.readline(ANSWER_LIMIT)
        except (BrokenPipeError, ValueError):  # it has died, or was ended
            answer = b""
        finally:
            watch.cancel()
        if late.is_set():
            raise _failed(f"it needs more than {self._timeout_s:.0f} s")
        return answer


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()


def measure(
    files: Sequence[HeaderFile], settings: Sequence[Setting], timeout_s: float = TIMEOUT_S
) -> tuple[Reading, ...]:
    """`Oracle.measure` of a model that is asked about once."""
    with Oracle(timeout_s) as asked:
        return asked.measure(files, settings)


def _answer(line: bytes, child: subprocess.Popen[bytes], count: int) -> tuple[Reading, ...]:
    """The child's line, checked."""
    try:
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise _failed(str(answer.get("error"))[:300])
        readings = tuple(Reading(int(kv), int(compute), int(weights)) for kv, compute, weights in answer)
    except (ValueError, TypeError):
        raise _failed(f"its process ended with {child.poll()}") from None
    if len(readings) != count:
        raise _failed(f"it answered {len(readings)} of {count} questions")
    return readings


def _failed(why: str) -> EngineError:
    return EngineError(
        f"llama.cpp cannot tell what the model would take: {why}", "if the model is new, update llama-cpp-python"
    )


def _sparse_copy(folder: Path, file: HeaderFile, index: int, count: int) -> Path:
    """The header and a hole behind it, under the name that llama.cpp gives shards."""
    path = folder / f"model-{index + 1:05}-of-{count:05}.gguf"
    with file.path.open("rb") as source, path.open("wb") as copy:
        if file.header is not None and file.header.vocabulary_at:
            lean = gguf.without_vocabulary(file.header, source.read(file.header_bytes))
            copy.write(lean)
            copy.truncate(file.size_bytes - file.header_bytes + len(lean) + file.header.alignment)
            return path
        left = file.header_bytes
        while left and (chunk := source.read(min(left, CHUNK))):
            copy.write(chunk)
            left -= len(chunk)
        copy.truncate(file.size_bytes)
    return path
