"""A loaded model whose reading and writing are timed: bare `llama_decode` calls, no text, no sampling, no template."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from localai.domain.plan import Plan
from localai.engine import library
from localai.engine.cache import new_context
from localai.engine.weights import check_magic, read_model
from localai.errors import EngineError

_TOKEN = 17  # any: what is computed takes as long whatever the token


class Stopwatch:
    """One model in one context, as `plan` says. `depth` is how many tokens its cache holds."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        cancelled: Callable[[], bool] | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """Load it; times are those of `clock`, in seconds.

        Raises EngineError, DoesNotFit, KeyboardInterrupt where `cancelled` says so.
        """
        check_magic(path)
        self._api = library.api()
        self._clock = clock
        self._cancelled = cancelled or (lambda: False)
        self._model = read_model(self._api, path, plan, None, cancelled)
        self._context: Any = None
        try:
            if self._api.llama_model_has_encoder(self._model):
                raise EngineError(f"{path.name} is not a model that writes", "name another: localai list")
            self._context = new_context(self._api, self._model, plan)
            self._memory = self._api.llama_get_memory(self._context)
            if not self._memory:
                raise EngineError(f"{path.name} is not a model that writes", "name another: localai list")
        except BaseException:
            self.close()
            raise
        vocabulary = int(self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model)))
        self._step = min(plan.batch, plan.context)
        self._tokens = (ctypes.c_int32 * self._step)(*((_TOKEN * i) % max(vocabulary, 1) for i in range(self._step)))
        self._last = (ctypes.c_int8 * self._step)()
        self.depth = 0

    def read(self, count: int) -> float:
        """Seconds that reading so many more tokens takes, in batches as a prompt's are."""
        started, left = self._clock(), count
        while left:
            part = min(left, self._step)
            left -= part
            self._last[part - 1] = left == 0
            try:
                self._evaluate(part)
            finally:
                self._last[part - 1] = 0
        return self._clock() - started

    def write(self, count: int) -> float:
        """Seconds that writing so many more tokens takes, each alone."""
        started = self._clock()
        self._last[0] = 1
        try:
            for _ in range(count):
                self._evaluate(1)
        finally:
            self._last[0] = 0
        return self._clock() - started

    def clear(self) -> None:
        """Empty the cache."""
        self._api.llama_memory_clear(self._memory, False)
        self.depth = 0

    def back_to(self, depth: int) -> None:
        """Forget what was added after that depth; everything, where the model's memory cannot go back."""
        if self._api.llama_memory_seq_rm(self._memory, 0, depth, -1):
            self.depth = depth
        else:
            self.clear()

    def _evaluate(self, count: int) -> None:
        if self._cancelled():
            raise KeyboardInterrupt
        batch = self._api.llama_batch(n_tokens=count, token=self._tokens, logits=self._last)
        library.forget_log()
        code = self._api.llama_decode(self._context, batch)
        self._api.llama_synchronize(self._context)
        if code:
            raise EngineError(
                f"llama.cpp failed to evaluate: {library.reason() or f'llama_decode returned {code}'}",
                "another model may do: localai list",
            )
        self.depth += count

    def close(self) -> None:
        """Free it. Idempotent."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context is not None:
            self._api.llama_free(context)
        if model is not None:
            self._api.llama_model_free(model)

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
