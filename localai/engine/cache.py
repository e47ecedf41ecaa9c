"""A llama.cpp context of one sequence: what its KV cache holds, and evaluating more."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localai.domain.plan import Plan
from localai.engine import library, state
from localai.engine.aborting import Abort
from localai.engine.checkpoints import Checkpoints
from localai.errors import DoesNotFit, EngineError
from localai.tensor_types import KV_TYPES

if TYPE_CHECKING:
    from localai.engine.vision import Projector


class Cancelled(Exception):
    """The evaluation was broken off; the cache is as it was before its last part. Caught in this package."""


class SequenceCache:
    """The KV cache of one conversation. `tokens` is what it holds, whatever was cancelled or failed."""

    def __init__(self, api: Any, model: Any, plan: Plan) -> None:
        self._api = api
        self.pointer: Any = new_context(api, model, plan)
        self._memory = api.llama_get_memory(self.pointer)
        if not self._memory:  # an encoder's; llama.cpp would crash
            self.close()
            raise EngineError("the model is not one that writes text", "localai recommend names some that do")
        self._checkpoints = Checkpoints(api, model, self.pointer)
        self.rows = min(plan.outputs, plan.ubatch, plan.batch)
        recurrent = api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model)
        self.can_try = self.rows > 1 and not recurrent  # whose states cannot go back by single tokens
        self._window = max(1, api.llama_model_n_swa(model))
        self._step = max(1, min(plan.ubatch, plan.batch))
        self.capacity = int(api.llama_n_ctx(self.pointer))
        self.tokens: list[int] = []
        self._token = (ctypes.c_int32 * self._step)()
        self._output = (ctypes.c_int8 * self._step)()
        self._batch = api.llama_batch(token=self._token, logits=self._output)
        self._one_token = (ctypes.c_int32 * 1)()
        self._one = api.llama_batch(n_tokens=1, token=self._one_token)
        self._abort = Abort(api)
        self._projector: Projector | None = None
        self._shift = 0  # how far the next position is ahead of the number of tokens
        self._at = (ctypes.c_int32 * self._step)()

    def see_with(self, projector: Projector) -> None:
        """Take pictures from now on: negative tokens, which `projector` knows."""
        self._projector = projector
        if projector.turns_positions:  # llama.cpp would count cells
            self._batch.pos = self._one.pos = self._at

    def _position(self, length: int) -> int:
        """The position of the token after the first `length`: so many, except where pictures take fewer than cells."""
        if self._projector is None or length == len(self.tokens):
            return length + self._shift
        return length + self._projector.shift(self.tokens[:length])

    def _place(self, count: int) -> None:
        if self._batch.pos:
            first = self._position(len(self.tokens))
            self._at[:count] = list(range(first, first + count))

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Drop what is not the beginning of `prompt`; returns how many of its tokens are kept, at most all but one."""
        if not self._in_step():
            self._repair()  # an exception came between a decode and its record
        kept = 0
        limit = min(len(self.tokens), len(prompt) - 1)
        while kept < limit and self.tokens[kept] == prompt[kept]:
            kept += 1
        return self._truncate(self._projector.border(self.tokens, kept) if self._projector else kept)

    def _truncate(self, length: int) -> int:
        """Keep the first `length` tokens, fewer where the model's memory cannot go back; returns how many."""
        if length >= len(self.tokens):
            return length
        # a sliding window may have let go of cells that the next token must see; a recurrent state cannot go back
        oldest = self._api.llama_memory_seq_pos_min(self._memory, 0)
        if not (0 <= oldest <= max(0, self._position(length) - self._window) and self._let_go(length)):
            self._back_to_a_checkpoint(length)
        return len(self.tokens)

    def _let_go(self, length: int) -> bool:
        """Take the cells from `length` on out of the memory, where it can be done."""
        if not length or not self._api.llama_memory_seq_rm(self._memory, 0, self._position(length), -1):
            return False
        self._shift = self._position(length) - length
        del self.tokens[length:]
        self._checkpoints.forget_beyond(length)
        return True

    def _back_to_a_checkpoint(self, length: int) -> None:
        if not self._let_go(self._checkpoints.restore(length)):
            self.clear()

    def mark(self) -> None:
        """Remember the present state as one to come back to, where the memory cannot go back by itself."""
        self._checkpoints.take(len(self.tokens))

    @property
    def needs_marks(self) -> bool:
        """Whether coming back takes a `mark`."""
        return self._checkpoints.needed

    def copy_out(self, affordable: Callable[[int], bool]) -> memoryview | None:
        """All that is held, as llama.cpp writes it; None for nothing, or where its bytes are not `affordable`."""
        self._check_open()
        pictures = self._projector is not None and min(self.tokens, default=0) < 0  # which are kept nowhere
        return state.copy_out(self._api, self.pointer, affordable) if self.tokens and not pictures else None

    def put_back(self, tokens: Sequence[int], data: memoryview) -> bool:
        """Hold what was copied out with these tokens; False, and nothing held, where that cannot be done."""
        self._check_open()
        self.clear()
        if 0 < len(tokens) <= self.capacity and state.put_back(self._api, self.pointer, data):
            self.tokens += tokens
            if self._in_step():
                return True
        self.clear()
        return False

    def _in_step(self) -> bool:
        return bool(self._api.llama_memory_seq_pos_max(self._memory, 0) + 1 == self._position(len(self.tokens)))

    def clear(self) -> None:
        """Forget everything."""
        self._api.llama_memory_clear(self._memory, False)
        self._checkpoints.forget_beyond(0)
        self.tokens.clear()
        self._shift = 0

    def evaluate(self, tokens: Sequence[int], cancelled: Callable[[], bool]) -> Iterator[int]:
        """Add `tokens` in micro-batches, yielding how many are done; the last one's logits can then be sampled.

        Raises Cancelled within one node of llama.cpp's graph (on a GPU: one micro-batch), EngineError if it fails.
        """
        done = 0
        for part in self._parts(tokens):
            done += len(part)
            if part[0] < 0:
                self._look(part, cancelled)
            else:
                self._read(part, done == len(tokens), cancelled)
            self.tokens += part
            yield done

    def _parts(self, tokens: Sequence[int]) -> Iterable[Sequence[int]]:
        if self._projector is not None:
            return self._projector.split(tokens, self._step)
        return (tokens[start : start + self._step] for start in range(0, len(tokens), self._step))

    def _read(self, part: Sequence[int], last: bool, cancelled: Callable[[], bool]) -> None:
        ctypes.memmove(self._token, (ctypes.c_int32 * len(part))(*part), 4 * len(part))
        self._batch.n_tokens = len(part)
        self._place(len(part))
        self._output[len(part) - 1] = last
        try:
            self._interruptible(lambda: int(self._api.llama_decode(self.pointer, self._batch)), cancelled)
        finally:
            self._output[len(part) - 1] = 0

    def _look(self, run: Sequence[int], cancelled: Callable[[], bool]) -> None:
        projector = self._projector
        assert projector is not None, "tokens of pictures come from a projector"
        self._interruptible(
            lambda: projector.evaluate(self.pointer, run, self._position(len(self.tokens)), cancelled), cancelled
        )
        self._shift += projector.shift(run)

    def _interruptible(self, evaluate: Callable[[], int], cancelled: Callable[[], bool]) -> None:
        """Have llama.cpp evaluate a part of a prompt, asking on the way whether to go on."""
        self._check_open()
        if cancelled():
            raise Cancelled
        self._abort.ask(cancelled)
        library.forget_log()
        # asked at every node of the graph, too dear for a graph of one token: hence not while decoding
        self._api.llama_set_abort_callback(self.pointer, self._abort.callback, None)
        try:
            code = evaluate()
        finally:
            self._api.llama_set_abort_callback(self.pointer, self._api.ggml_abort_callback(), None)
        if code == library.ABORTED:
            self._repair()
            self._abort.raise_again()
            raise Cancelled
        if code:
            self._fail(code)

    def decode(self, token: int) -> None:
        """Add one token; its logits can then be sampled. Raises EngineError."""
        self._check_open()
        self._one_token[0] = token
        self._place(1)
        code = self._api.llama_decode(self.pointer, self._one)
        if code:
            self._fail(code)
        self.tokens.append(token)

    def try_out(self, tokens: Sequence[int], cancelled: Callable[[], bool] | None) -> None:
        """Add up to `rows` tokens at once, so that after each of them may be sampled; `let_go` takes them back.

        Raises Cancelled as `evaluate` does, where `cancelled` is given, and EngineError.
        """
        self._check_open()
        count = len(tokens)
        self._token[:count] = list(tokens)
        self._batch.n_tokens = count
        self._place(count)
        self._output[:count] = [1] * count
        try:
            if cancelled is not None:
                self._interruptible(lambda: int(self._api.llama_decode(self.pointer, self._batch)), cancelled)
            elif code := self._api.llama_decode(self.pointer, self._batch):
                self._fail(code)
        finally:
            self._output[:count] = [0] * count
        self.tokens += tokens

    def let_go(self, length: int) -> None:
        """Take back what was tried after the first `length` tokens."""
        if not self._let_go(length):
            self.clear()
            raise EngineError("llama.cpp cannot take guessed tokens back", "go on without: --no-speculate")

    def _repair(self) -> None:
        """Take the cells of a broken-off batch out of the memory again, more where that cannot be done."""
        if not self._let_go(len(self.tokens)):
            self._back_to_a_checkpoint(len(self.tokens))

    def _fail(self, code: int) -> None:
        self.clear()
        because = library.reason() or f"llama_decode returned {code}"
        raise EngineError(
            f"llama.cpp failed to evaluate: {because}",
            "try a smaller --context, or another model: localai recommend",
        )

    def _check_open(self) -> None:
        if self.pointer is None:  # llama.cpp would crash
            raise RuntimeError("the engine is closed")

    def close(self) -> None:
        """Free it. Idempotent."""
        pointer, self.pointer = self.pointer, None
        if pointer is not None:
            self._api.llama_free(pointer)


def new_context(api: Any, model: Any, plan: Plan) -> Any:
    """A context as planned, each sequence with a cache and a row of logits of its own.

    Raises DoesNotFit, EngineError.
    """
    parameters = api.llama_context_default_params()
    parameters.n_ctx = plan.context * plan.sequences
    parameters.n_batch = plan.batch
    parameters.n_ubatch = plan.ubatch
    parameters.n_seq_max = plan.sequences
    parameters.n_outputs_max = max(plan.sequences, plan.outputs)
    parameters.n_threads = parameters.n_threads_batch = plan.threads
    parameters.flash_attn_type = 1 if plan.flash_attention else 0
    parameters.type_k = parameters.type_v = KV_TYPES[plan.kv_type].number
    parameters.offload_kqv = True
    parameters.swa_full = False
    parameters.no_perf = True
    library.forget_log()
    context = api.llama_init_from_model(model, parameters)
    if context:
        return context
    if library.out_of_memory():
        raise DoesNotFit(
            f"there is not enough memory for a context of {plan.context} tokens: {library.reason()}",
            "ask for a smaller one with --context, or take a smaller model: localai recommend",
        )
    raise EngineError(f"llama.cpp cannot make a context: {library.reason()}", "try --kv-type f16, or another model")
