"""An embedding model in memory: texts to vectors, many in one batch, pooled by llama.cpp as the model's header says."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from localai.domain.embedding import EMBEDDING_STEP, Embedding, Pooling
from localai.domain.plan import Plan
from localai.engine import library
from localai.engine.aborting import Abort
from localai.engine.vocabulary import Vocabulary
from localai.engine.weights import check_magic, load_model
from localai.errors import ContextOverflow, DoesNotFit, EngineError, UsageError
from localai.tensor_types import KV_TYPES

_UNSPECIFIED, _NONE = -1, 0  # enum llama_pooling_type of llama.h
_MOST_TEXTS = 64  # of a batch, one llama.cpp sequence each


def load(
    path: Path,
    plan: Plan,
    pooling: Pooling,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Embedder:
    """Load the model of `path` (the first shard of several) for texts of up to `plan.context` tokens.

    Raises EngineError for a file that is none, or a model that makes no vectors, DoesNotFit, KeyboardInterrupt.
    """
    started = perf_counter()
    check_magic(path)
    if pooling.name == "rank":
        raise EngineError(f"{path.name} is a model that ranks texts", "localai pull nomic-embed-text-v1.5 brings one")
    api = library.api()
    model = load_model(api, path, plan, progress, cancelled)
    made = Embedder(api, model, plan, pooling)
    made.load_ms = (perf_counter() - started) * 1000
    return made


class Embedder:
    """A loaded embedding model, made by `load`. `context` is the longest text, in tokens; `dimensions` of a vector.

    Not for two threads at once. Its llama.cpp context grows with the longest text that has come.
    """

    load_ms: float = 0.0

    def __init__(self, api: Any, model: Any, plan: Plan, pooling: Pooling) -> None:
        self._api = api
        self._model = model
        self._plan = plan
        self._pooling = pooling
        self._vocabulary = Vocabulary(api, model)
        self._pointer: Any = None
        self._capacity = 0
        self._abort = Abort(api)
        # positions beyond those it was made for do not exist in models that have learnt one vector for each
        self.context = min(plan.context, int(api.llama_model_n_ctx_train(model)) or plan.context)
        self.dimensions = int(api.llama_model_n_embd_out(model))

    def tokens(self, text: str) -> list[int]:
        """The tokens of `text` with those that the model wants at its ends; what looks like a control token is text."""
        return self._vocabulary.tokenize(text, parse_special=False, add_special=True)

    def cut(self, text: str) -> str:
        """As much of the beginning of `text` as the context holds."""
        if len(self.tokens(text)) <= self.context:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self.tokens(text[:middle])) <= self.context:
                low = middle
            else:
                high = middle - 1
        return text[:low]

    def embed(
        self,
        texts: Sequence[str],
        *,
        normalize: bool = True,
        numbers: Sequence[int] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Embedding]:
        """A vector for each text, in their order, of length 1 if `normalize`; all of them are counted first.

        `numbers` are what messages call the texts, 0 and up without. Raises ContextOverflow for a text that is too
        long and UsageError for an empty one before any is evaluated, EngineError, KeyboardInterrupt when `cancelled`
        says so.
        """
        if self._model is None:
            raise EngineError("the model is no longer in memory", "ask again: it is then loaded anew")
        tokenized = [self.tokens(text) for text in texts]
        for number, tokens in zip(numbers or range(len(texts)), tokenized, strict=True):
            self._check(number, tokens)
        self._make_room(max(map(len, tokenized), default=0))
        self._abort.ask(cancelled)
        rows = [row for group in self._groups(tokenized) for row in self._evaluate(group)]
        return [
            Embedding(_unit(row) if normalize else row, len(tokens))
            for row, tokens in zip(map(_sound, rows), tokenized, strict=True)
        ]

    def _check(self, number: int, tokens: Sequence[int]) -> None:
        if not tokens:
            raise UsageError(f"text {number} is empty", "leave empty texts out")
        if len(tokens) > self.context:
            made_for = int(self._api.llama_model_n_ctx_train(self._model))
            more = f"--context {len(tokens)}, or shorten it" if len(tokens) <= made_for else "shorten the text"
            raise ContextOverflow(
                f"text {number} takes {len(tokens)} tokens, the context has {self.context}", more, len(tokens)
            )

    def _groups(self, tokenized: Sequence[list[int]]) -> Iterator[list[list[int]]]:
        """The texts in turn, as many together as one batch holds; one that is longer than a batch comes alone."""
        group: list[list[int]] = []
        size = 0
        for tokens in tokenized:
            if group and (size + len(tokens) > EMBEDDING_STEP or len(group) == _MOST_TEXTS):
                yield group
                group, size = [], 0
            group.append(tokens)
            size += len(tokens)
        if group:
            yield group

    # ---------------------------------------------------------------------------------------------- llama.cpp

    def _make_room(self, longest: int) -> None:
        """A llama.cpp context that holds a text of so many tokens, made anew where the present one is too small."""
        if self._pointer is not None and longest <= self._capacity:
            return
        self._free_context()
        capacity = EMBEDDING_STEP
        while capacity < longest:
            capacity *= 2
        capacity = max(EMBEDDING_STEP, min(capacity, self.context))  # no more than was planned for
        api, pooling = self._api, self._pooling
        parameters = api.llama_context_default_params()
        parameters.n_ctx = capacity
        parameters.n_batch = parameters.n_ubatch = pooling.batch(capacity)
        parameters.n_seq_max = min(_MOST_TEXTS, api.llama_max_parallel_sequences())
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = self._plan.threads
        parameters.flash_attn_type = 1 if self._plan.flash_attention else 0
        parameters.type_k = parameters.type_v = KV_TYPES[self._plan.kv_type].number
        parameters.embeddings = True
        parameters.pooling_type = _UNSPECIFIED if pooling.declared else _NONE
        parameters.no_perf = True
        library.forget_log()
        self._pointer = api.llama_init_from_model(self._model, parameters)
        if not self._pointer:
            self._pointer = None
            error = DoesNotFit if library.out_of_memory() else EngineError
            raise error(
                f"llama.cpp cannot make a context of {capacity} tokens: {library.reason() or 'it gives no reason'}",
                "ask for a smaller one with --context, or take a smaller model",
            )
        self._capacity = capacity
        api.llama_set_abort_callback(self._pointer, self._abort.callback, None)

    def _evaluate(self, group: list[list[int]]) -> list[list[float]]:
        """The vectors of texts that one batch holds, or of one text in pieces."""
        api = self._api
        memory = api.llama_get_memory(self._pointer)
        if memory:
            api.llama_memory_clear(memory, True)
        longest = max(map(len, group))
        if sum(map(len, group)) <= self._pooling.batch(self._capacity):
            spans = [(0, longest)]
        else:
            spans = list(pairwise((*range(0, longest, EMBEDDING_STEP), longest)))
        sums = [[0.0] * self.dimensions for _ in group]
        for start, end in spans:
            self._decode(group, start, end)
            if not self._pooling.declared:
                self._add(sums, [len(tokens) for tokens in group] if len(group) > 1 else [end - start])
        if not self._pooling.declared:
            return [[total / len(tokens) for total in row] for row, tokens in zip(sums, group, strict=True)]
        pointers = [api.llama_get_embeddings_seq(self._pointer, sequence) for sequence in range(len(group))]
        return [list(pointer[: self.dimensions]) for pointer in pointers]

    def _decode(self, group: list[list[int]], start: int, end: int) -> None:
        """Evaluate what stands from `start` to `end` of each text, a sequence each."""
        entries = [
            (token, position, sequence)
            for sequence, tokens in enumerate(group)
            for position, token in enumerate(tokens[start:end], start)
        ]
        count = len(entries)
        numbers = ctypes.c_int32 * count
        sequences = numbers(*(sequence for _, _, sequence in entries))
        pointer = ctypes.POINTER(ctypes.c_int32)
        rows = (pointer * count)(
            *(ctypes.cast(ctypes.addressof(sequences) + 4 * index, pointer) for index in range(count))
        )
        batch = self._api.llama_batch(
            n_tokens=count,
            token=numbers(*(token for token, _, _ in entries)),
            pos=numbers(*(position for _, position, _ in entries)),
            n_seq_id=numbers(*[1] * count),
            seq_id=rows,
            logits=(ctypes.c_int8 * count)(*[1] * count),
        )
        library.forget_log()
        code = self._api.llama_decode(self._pointer, batch)
        self._abort.raise_again()
        if self._abort.cancelled():
            raise KeyboardInterrupt
        if code:
            because = library.reason() or f"llama_decode returned {code}"
            raise EngineError(f"llama.cpp failed to evaluate: {because}", "try a smaller --context, or another model")

    def _add(self, sums: list[list[float]], lengths: Sequence[int]) -> None:
        """Add the vectors of the last batch's tokens to those of their texts."""
        import numpy

        flat = self._api.llama_get_embeddings(self._pointer)
        rows = numpy.ctypeslib.as_array(flat, shape=(sum(lengths), self.dimensions))
        at = 0
        for index, length in enumerate(lengths):
            added = rows[at : at + length].sum(axis=0, dtype=numpy.float64)
            sums[index] = [total + new for total, new in zip(sums[index], added.tolist(), strict=True)]
            at += length

    def _free_context(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self._api.llama_free(pointer)

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        self._free_context()
        model, self._model = self._model, None
        if model is not None:
            self._api.llama_model_free(model)


def _sound(row: list[float]) -> list[float]:
    if not all(map(math.isfinite, row)):
        raise EngineError("the model gives no numbers", "localai verify tells whether its file is damaged")
    return row


def _unit(row: list[float]) -> list[float]:
    """`row` with length 1; of all zeros it stays as it is."""
    length = math.hypot(*row)
    return [value / length for value in row] if length else row
