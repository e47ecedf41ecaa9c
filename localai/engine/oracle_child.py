"""The process of `oracle`: loads a model without its weights, and says what each context would take.

A line of JSON for each question: `settings`, as `oracle.Setting` has them, and in the first the model's `path`. A line
for each answer: bytes of KV cache, of compute buffers and of weights for each setting, or an `error`. It imports as
little as it can: its start is most of what a question takes.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from contextlib import suppress
from typing import Any

from localai.domain.units import GIB, MIB
from localai.engine import library
from localai.errors import EngineError
from localai.tensor_types import KV_TYPES

MEMORY_LIMIT_BYTES = 4 * GIB  # of addresses, Linux: libraries and a vocabulary take under 1 GiB
_FLASH_ON, _FLASH_OFF = 1, 0  # enum llama_flash_attn_type
_ERROR = 4  # enum ggml_log_level
_NO_MMAP = 0  # enum llama_load_mode: LLAMA_LOAD_MODE_NONE

_COMPUTE = re.compile(r"compute buffer size = +([0-9.]+) MiB")
_CACHE = re.compile(r": size = +[0-9.]+ MiB \(.*?\), (.*)$", re.MULTILINE)
_PART = re.compile(r"[A-Z] \([a-z0-9_]+\): +([0-9.]+) MiB")


def main() -> None:
    """Answer until stdin ends, or llama.cpp refuses."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else may come between the answers
    _limit_memory()
    with suppress(EngineError):
        library.api()  # while nothing has been asked yet
    model: _Model | None = None
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            model = model or _Model(question["path"])
            answer: Any = [model.takes(setting) for setting in question["settings"]]
        except EngineError as error:
            answer = {"error": error.message}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_memory() -> None:
    if sys.platform != "linux":  # elsewhere the limit is not enforced, or counts what is only mapped
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


class _Model:
    """A model as llama.cpp loads it without allocating anything. Raises EngineError with llama.cpp's reason."""

    def __init__(self, path: str) -> None:
        self._api = api = library.api()
        self._lines: list[str] = []
        self._errors: list[str] = []
        self._log = api.llama_log_callback(self._collect)  # llama.cpp keeps the pointer
        api.llama_log_set(self._log, None)
        parameters = api.llama_model_default_params()
        self._no_gpus = (ctypes.c_void_p * 1)()  # the question is what it all takes, wherever it goes
        parameters.devices = ctypes.cast(self._no_gpus, ctypes.c_void_p)
        parameters.n_gpu_layers = 0
        parameters.no_alloc = True
        parameters.load_mode = _NO_MMAP
        self._model = api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise self._refusal("it gives no reason")

    def _collect(self, level: int, text: bytes | None, _: object) -> None:
        line = (text or b"").decode("utf-8", "replace")
        self._lines.append(line)
        if level == _ERROR:
            self._errors.append(line)

    def _refusal(self, otherwise: str) -> EngineError:
        return EngineError(library.printable(self._errors[0] if self._errors else otherwise), "")

    def takes(self, setting: dict[str, Any]) -> tuple[int, int, int]:
        """Bytes of KV cache, of compute buffers and of weights."""
        self._lines.clear()
        self._errors.clear()
        context = self._api.llama_init_from_model(self._model, self._parameters(setting))
        if not context:
            raise self._refusal("it refuses the context")
        found = (*_logged("".join(self._lines)), int(self._api.llama_model_size(self._model)))
        self._api.llama_free(context)
        return found

    def _parameters(self, setting: dict[str, Any]) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx, parameters.n_ubatch = setting["context"], setting["ubatch"]
        parameters.n_batch = max(setting["ubatch"], 2048)
        parameters.n_outputs_max, parameters.n_seq_max = setting["outputs"], setting["sequences"]
        parameters.flash_attn_type = _FLASH_ON if setting["flash"] else _FLASH_OFF
        parameters.type_k = parameters.type_v = KV_TYPES[setting["kv_type"]].number
        parameters.swa_full = False
        parameters.kv_unified = setting["unified"] and setting["sequences"] > 1
        return parameters


def _logged(text: str) -> tuple[int, int]:
    """Bytes of the caches and of the compute buffers in a log; K, V and states are given to 10 KiB each."""
    cache = sum(float(part) for line in _CACHE.findall(text) for part in _PART.findall(line))
    compute = sum(float(size) for size in _COMPUTE.findall(text))
    return round(cache * MIB), round(compute * MIB)


if __name__ == "__main__":
    main()
