"""A llama.cpp context of many sequences: what the cache of each holds, what they share, and evaluating a batch.

Each sequence has a cache of its own (a stream, in llama.cpp's words). One cache for all would hold a common beginning
once, but on a CPU every token is then held against the cells of all the sequences: 32 of them at a depth of 300 are
several times slower. So a common beginning is evaluated once and copied, which takes a hundredth of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localai.domain.plan import Plan
from localai.domain.units import MIB
from localai.engine import library
from localai.engine.cache import Cancelled, new_context
from localai.errors import EngineError

MARKS_LIMIT_BYTES = 256 * MIB
MOST_MARKS = 8
WORTH_COPYING = 16  # tokens; fewer are evaluated as soon as a cache is copied


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two lists have in common at their heads."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class _Mark:
    """A beginning that several prompts have. `state` is the whole cache after it, None where caches can be cut."""

    tokens: list[int]
    state: ctypes.Array[ctypes.c_uint8] | None


class Sequences:
    """`held[n]` is what the cache of sequence n holds, whatever was cancelled or failed. Not for several threads.

    A sliding window or a recurrent state cannot be cut back to a beginning: of such models the state at a `mark` is
    kept and put back. With `step` no result depends on what was evaluated before: only whole steps of so many tokens,
    and what is marked, are taken over from another prompt.
    """

    def __init__(self, api: Any, model: Any, plan: Plan, step: int | None = None) -> None:
        self._api = api
        self.pointer: Any = new_context(api, model, plan)
        self._memory = api.llama_get_memory(self.pointer)
        self.count = plan.sequences
        self.capacity = int(api.llama_n_ctx_seq(self.pointer))
        self.held: list[list[int]] = [[] for _ in range(self.count)]
        self._window = max(1, api.llama_model_n_swa(model))
        self._recurrent = bool(api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
        self.needs_marks = self._recurrent or api.llama_model_n_swa(model) > 0
        self._step = step
        self._marks: list[_Mark] = []  # the last made at the end
        self._abort = api.ggml_abort_callback(lambda _: self._cancelled())
        self._cancelled: Callable[[], bool] = lambda: False
        self._make_batch(plan.batch)

    # ------------------------------------------------------------------------------------------- what is held already

    def keep(self, number: int, prompt: Sequence[int]) -> int:
        """Let sequence `number` hold as much of the beginning of `prompt` as is held anywhere, and nothing else.

        Returns how many tokens that is, at most all but one.
        """
        length, mark = self._own(number, prompt), self._longest_mark(prompt)
        if mark is not None and mark.state is not None and len(mark.tokens) > length:
            length = self._put_back(number, mark)
        elif not self.needs_marks:
            lengths = [self._own(other, prompt) for other in range(self.count)]
            donor = max(range(self.count), key=lengths.__getitem__)
            if lengths[donor] >= length + WORTH_COPYING:
                # the cells are copied when the next batch is evaluated, before anything is written
                self._api.llama_memory_seq_cp(self._memory, donor, number, -1, -1)
                self.held[number] = self.held[donor].copy()
                length = lengths[donor]
        self._cut(number, length)
        return len(self.held[number])

    def available(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens `keep` would find, at least."""
        mark = self._longest_mark(prompt)
        marked = len(mark.tokens) if mark is not None and mark.state is not None else 0
        if self.needs_marks:
            return marked
        return max(marked, *(self._own(number, prompt) for number in range(self.count)))

    def _own(self, number: int, prompt: Sequence[int]) -> int:
        """How many of the prompt's tokens sequence `number` holds and can be cut back to, all but one at most."""
        held = self.held[number]
        length = min(common_length(held, prompt), len(prompt) - 1)
        if self._step is not None:
            mark = self._longest_mark(prompt)
            marked = len(mark.tokens) if mark is not None else 0
            length = max(length // self._step * self._step, marked if marked <= length else 0)
        return length if length == len(held) or self._goes_back(number, length) else 0

    def _goes_back(self, number: int, length: int) -> bool:
        if not length or not self.needs_marks:
            return True
        if self._recurrent:
            return False
        oldest = self._api.llama_memory_seq_pos_min(self._memory, number)
        lost = 0 if self._step is not None else max(0, length - self._window)
        return bool(0 <= oldest <= lost)

    def _cut(self, number: int, length: int) -> None:
        held = self.held[number]
        if length == len(held):
            return
        if length and self._api.llama_memory_seq_rm(self._memory, number, length, -1):
            del held[length:]
        else:
            self.clear(number)

    def clear(self, number: int) -> None:
        """Forget what sequence `number` holds."""
        self._api.llama_memory_seq_rm(self._memory, number, -1, -1)
        self.held[number] = []

    def move(self, number: int, to: int) -> None:
        """Let sequence `to` go on with what `number` holds, which then holds nothing."""
        self.clear(to)
        # the cells are copied when the next batch is evaluated: nothing may be put into `number` before
        self._api.llama_memory_seq_cp(self._memory, number, to, -1, -1)
        self.held[to] = self.held[number]
        self.clear(number)

    # ----------------------------------------------------------------------------------------------- common beginnings

    def mark(self, number: int) -> None:
        """Remember what sequence `number` holds now as a beginning that other prompts have, too."""
        tokens = self.held[number].copy()
        if not tokens or any(each.tokens == tokens for each in self._marks):
            return
        state = None
        if self.needs_marks:
            size = self._api.llama_state_seq_get_size_ext(self.pointer, number, 0)
            if not 0 < size <= MARKS_LIMIT_BYTES:
                return
            while self._marks and size + sum(len(each.state or ()) for each in self._marks) > MARKS_LIMIT_BYTES:
                del self._marks[0]
            state = (ctypes.c_uint8 * size)()
            if self._api.llama_state_seq_get_data_ext(self.pointer, state, size, number, 0) != size:
                return
        del self._marks[: max(0, len(self._marks) + 1 - MOST_MARKS)]
        self._marks.append(_Mark(tokens, state))

    def _longest_mark(self, prompt: Sequence[int]) -> _Mark | None:
        found = [mark for mark in self._marks if len(mark.tokens) < len(prompt)]
        found = [mark for mark in found if mark.tokens == prompt[: len(mark.tokens)]]
        return max(found, key=lambda each: len(each.tokens), default=None)

    def _put_back(self, number: int, mark: _Mark) -> int:
        self.clear(number)
        size = len(mark.state or ())
        if self._api.llama_state_seq_set_data_ext(self.pointer, mark.state, size, number, 0) != size:
            self.clear(number)
            return 0
        self.held[number] = mark.tokens.copy()
        return len(mark.tokens)

    # ------------------------------------------------------------------------------------------------------ evaluating

    def _make_batch(self, size: int) -> None:
        self.room = self._size = size  # tokens that still go into the batch
        self._parts: list[tuple[int, Sequence[int]]] = []
        self._token = (ctypes.c_int32 * size)()
        self._position = (ctypes.c_int32 * size)()
        self._one_each = (ctypes.c_int32 * size)(*[1] * size)
        self._output = (ctypes.c_int8 * size)()
        self._numbers = (ctypes.c_int32 * self.count)(*range(self.count))
        self._sequence = (ctypes.c_void_p * size)()
        self._batch = self._api.llama_batch(
            token=self._token,
            pos=self._position,
            n_seq_id=self._one_each,
            seq_id=ctypes.cast(self._sequence, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._output,
        )

    def add(self, number: int, tokens: Sequence[int], output: bool = True) -> int:
        """Put the next tokens of sequence `number` into the batch, at most `room`; returns the row of the last one.

        With `output` that row's logits can be sampled once the batch is evaluated.
        """
        start, count, position = self._size - self.room, len(tokens), len(self.held[number])
        end = start + count
        self._token[start:end] = list(tokens)
        self._position[start:end] = list(range(position, position + count))
        self._sequence[start:end] = [ctypes.addressof(self._numbers) + 4 * number] * count
        self._output[start:end] = [0] * count
        self._output[end - 1] = output
        self.room -= count
        self._parts.append((number, tokens))
        return end - 1

    def evaluate(self, cancelled: Callable[[], bool] | None = None) -> None:
        """Evaluate the batch and empty it. Raises EngineError; Cancelled within one node of the graph (on a GPU: one
        micro-batch) where `cancelled` says so: it is asked very often, too often for a batch of a few tokens.

        Where it fails, the sequences of the batch are emptied; cancelled, they hold what they held, or nothing.
        """
        if self.pointer is None:  # llama.cpp would crash
            raise RuntimeError("the engine is closed")
        parts, self._parts = self._parts, []
        self._batch.n_tokens, self.room = self._size - self.room, self._size
        library.forget_log()
        if cancelled is not None:
            self._cancelled = cancelled
            self._api.llama_set_abort_callback(self.pointer, self._abort, None)
        try:
            code = self._api.llama_decode(self.pointer, self._batch)
        finally:
            if cancelled is not None:
                self._api.llama_set_abort_callback(self.pointer, self._api.ggml_abort_callback(), None)
        if not code:
            for number, tokens in parts:
                self.held[number] += tokens
        elif code == library.ABORTED:
            for number, _ in parts:
                if not self._api.llama_memory_seq_rm(self._memory, number, len(self.held[number]), -1):
                    self.clear(number)
            raise Cancelled
        else:
            for number, _ in parts:
                self.clear(number)
            raise EngineError(
                f"llama.cpp failed to evaluate: {library.reason() or f'llama_decode returned {code}'}",
                "try a smaller --context, or another model: localai recommend",
            )

    def settle(self) -> None:
        """Have the rows of logits put in order, which llama.cpp does when it is first asked for one.

        From then on several threads may look at them, until the next batch.
        """
        self._api.llama_get_logits(self.pointer)

    def close(self) -> None:
        """Free it. Idempotent."""
        pointer, self.pointer = self.pointer, None
        if pointer is not None:
            self._api.llama_free(pointer)
