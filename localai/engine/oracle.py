"""What llama.cpp itself would allocate for a model, asked without the weights: its header and a hole are enough.

The header is written to a sparse file of the model's full size and loaded with `no_alloc` and without mmap (with it
llama.cpp asserts); llama.cpp then reserves its graphs and logs the buffers, and allocates nothing. A header is hostile
input and llama.cpp aborts on some: so all of it happens in a child process, within limits of time and memory.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localai import gguf
from localai.domain.units import GIB, MIB
from localai.errors import EngineError
from localai.tensor_types import KV_TYPES

TIMEOUT_S = 20.0
MEMORY_LIMIT_BYTES = 4 * GIB  # of addresses, Linux: libraries and a vocabulary take under 1 GiB
ANSWER_LIMIT = MIB
CHUNK = MIB
_FLASH_ON, _FLASH_OFF = 1, 0  # enum llama_flash_attn_type
_ERROR = 4  # enum ggml_log_level
_NO_MMAP = 0  # enum llama_load_mode: LLAMA_LOAD_MODE_NONE

_COMPUTE = re.compile(r"compute buffer size = +([0-9.]+) MiB")
_CACHE = re.compile(r": size = +[0-9.]+ MiB \(.*?\), (.*)$", re.MULTILINE)
_PART = re.compile(r"[A-Z] \([a-z0-9_]+\): +([0-9.]+) MiB")


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


def measure(
    files: Sequence[HeaderFile], settings: Sequence[Setting], timeout_s: float = TIMEOUT_S
) -> tuple[Reading, ...]:
    """Ask llama.cpp, in a child process, what each context would take; `files` are all the shards, in order.

    Takes 0.2 to 0.6 s, most of it the child's start and the vocabulary. Raises EngineError where llama.cpp refuses the
    model or a setting, dies of it, or needs too long; and where the disk has no room for a sparse file.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="localai-oracle-") as folder:
            copies = [_sparse_copy(Path(folder), file, at, len(files)) for at, file in enumerate(files)]
            request = {"path": str(copies[0]), "settings": [asdict(setting) for setting in settings]}
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__],
                input=json.dumps(request),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            )
    except subprocess.TimeoutExpired:
        raise _failed(f"it needs more than {timeout_s:.0f} s") from None
    except OSError as error:
        raise _failed(error.strerror or str(error)) from error
    return _answer(done.stdout[-ANSWER_LIMIT:], done.returncode, len(settings))


def _answer(text: str, code: int, count: int) -> tuple[Reading, ...]:
    """The child's last line, checked."""
    try:
        answer = json.loads(text.splitlines()[-1])
        if isinstance(answer, dict):
            raise _failed(str(answer.get("error"))[:300])
        readings = tuple(Reading(int(kv), int(compute), int(weights)) for kv, compute, weights in answer)
    except (ValueError, TypeError, IndexError):
        raise _failed(f"its process ended with {code}") from None
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


# ------------------------------------------------------------------------------------------------ the child process


def main() -> None:
    """Read one question as JSON from stdin, print one line of JSON: bytes, or what went wrong."""
    _limit_memory()
    request = json.load(sys.stdin)
    try:
        answer: Any = _ask(request["path"], [Setting(**each) for each in request["settings"]])
    except EngineError as error:
        answer = {"error": error.message}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _limit_memory() -> None:
    if sys.platform != "linux":  # elsewhere the limit is not enforced, or counts what is only mapped
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _ask(path: str, settings: Sequence[Setting]) -> list[tuple[int, int, int]]:
    from localai.engine import library

    api = library.api()
    lines: list[str] = []
    errors: list[str] = []

    def collect(level: int, text: bytes | None, _: object) -> None:
        line = (text or b"").decode("utf-8", "replace")
        lines.append(line)
        if level == _ERROR:
            errors.append(line)

    log = api.llama_log_callback(collect)
    api.llama_log_set(log, None)
    parameters = api.llama_model_default_params()
    nothing = (ctypes.c_void_p * 1)()  # an empty list of GPUs: the question is what it all takes, wherever it goes
    parameters.devices = ctypes.cast(nothing, ctypes.c_void_p)
    parameters.n_gpu_layers = 0
    parameters.no_alloc = True
    parameters.load_mode = _NO_MMAP
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise EngineError(library.printable(errors[0] if errors else "it gives no reason"), "")
    found = []
    for setting in settings:
        lines.clear()
        errors.clear()
        context = api.llama_init_from_model(model, _context_parameters(api, setting))
        if not context:
            raise EngineError(library.printable(errors[0] if errors else "it refuses the context"), "")
        found.append((*_logged("".join(lines)), int(api.llama_model_size(model))))
        api.llama_free(context)
    return found


def _context_parameters(api: Any, setting: Setting) -> Any:
    parameters = api.llama_context_default_params()
    parameters.n_ctx, parameters.n_ubatch = setting.context, setting.ubatch
    parameters.n_batch = max(setting.ubatch, 2048)
    parameters.n_outputs_max, parameters.n_seq_max = setting.outputs, setting.sequences
    parameters.flash_attn_type = _FLASH_ON if setting.flash else _FLASH_OFF
    parameters.type_k = parameters.type_v = KV_TYPES[setting.kv_type].number
    parameters.swa_full = False
    parameters.kv_unified = setting.unified and setting.sequences > 1
    return parameters


def _logged(text: str) -> tuple[int, int]:
    """Bytes of the caches and of the compute buffers in a log; K, V and states are given to 10 KiB each."""
    cache = sum(float(part) for line in _CACHE.findall(text) for part in _PART.findall(line))
    compute = sum(float(size) for size in _COMPUTE.findall(text))
    return round(cache * MIB), round(compute * MIB)


if __name__ == "__main__":
    main()
