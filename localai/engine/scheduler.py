"""Many requests answered at once by one model: each step evaluates the next token of every answer, and some prompt.

Everything that touches llama.cpp's context happens in the scheduler's own thread. Requests come from any thread: their
prompts are rendered there, then they wait in a queue until a sequence is free.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from localai.domain.engine import Delivery
from localai.domain.generation import GenerationRequest, Message
from localai.domain.plan import Plan
from localai.engine.cache import Cancelled
from localai.engine.drawing import Drawers
from localai.engine.job import Drawn, Job
from localai.engine.prefill import STEP, Prefill
from localai.engine.prompts import Prompts
from localai.engine.rendering import Renderer
from localai.engine.sequences import WORTH_COPYING, Sequences, common_length
from localai.engine.slots import Slots
from localai.engine.weights import open_for_text
from localai.errors import EngineClosed, EngineError, LocalaiError, QueueFull, unexpected

QUEUE = 64  # requests that may wait beside those that are being answered
PATIENCE_S = 0.5  # how long the answers under way stand still, at most, while a part of a prompt is evaluated
GAPS = 2  # between the answers under way, from which on they are closed


def load(
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    notice: Callable[[str], None] | None = None,
    *,
    queue: int = QUEUE,
    repeatable: bool = False,
    patience_s: float = PATIENCE_S,
    converses: bool = True,
) -> Scheduler:
    """Load the model of `path` as `plan` says, to answer `plan.sequences` requests at once.

    Beside these, `queue` may wait. `repeatable`, for one sequence: an answer does not depend, to the byte, on what was
    asked before it. Where prompts are read while answers are written, these stand still for `patience_s` at a time:
    the longer, the more is done in all. Without `converses`, what a request leaves behind is not kept for a next turn.
    Raises as `model.load` does.
    """
    started = perf_counter()
    with ExitStack() as undo:
        api, model, renderer = open_for_text(undo, path, plan, progress, cancelled)
        sequences = Sequences(api, model, plan, STEP if repeatable else None)
        undo.callback(sequences.close)
        prompts = Prompts(api, model, renderer, notice or (lambda text: None))
        undo.pop_all()
    return Scheduler(api, model, sequences, prompts, renderer, plan, queue, repeatable, patience_s, converses, started)


class Scheduler:
    """A loaded model that answers many requests at once, made by `load`; implements `domain.engine.BatchEngine`."""

    def __init__(
        self,
        api: Any,
        model: Any,
        sequences: Sequences,
        prompts: Prompts,
        renderer: Renderer,
        plan: Plan,
        queue: int,
        repeatable: bool,
        patience_s: float,
        converses: bool,
        started: float,
    ) -> None:
        self._api, self._model, self._sequences = api, model, sequences
        self._prompts, self._renderer = prompts, renderer
        self._repeatable, self._converses = repeatable, converses
        self.context = min(plan.context, sequences.capacity)
        self.sequences = sequences.count
        self._most = sequences.count + queue
        self._unfinished = 0
        self._slots = Slots(sequences)
        self._rendering = threading.Lock()
        self._changed = threading.Condition()
        self._new: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._writing: list[Job] = []
        self._last: dict[int, int] = {}  # the last token of each answer, by sequence
        self._closing = False
        self._drawers = Drawers(plan.threads)
        self._vocabulary_size = int(api.llama_vocab_n_tokens(prompts.vocabulary.pointer))
        self.load_ms = (perf_counter() - started) * 1000
        prompt_tps = plan.prompt_tps.mid if plan.prompt_tps else None
        self._prefill = Prefill(sequences, prompts, self.load_ms, prompt_tps, patience_s, repeatable)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ from any thread

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included."""
        with self._rendering:
            self._check_open()
            return len(self._prompts.prompt(messages, think).tokens)

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Evaluate what two conversations have in common at their head once for all that begin so; returns its tokens.

        Common beginnings are found by themselves; told before, they are also where the model's memory must be copied
        just there, and where nothing may depend on what came before (`repeatable`).
        """
        with self._rendering:
            self._check_open()
            first, second = (self._prompts.prompt(each, think).tokens for each in (one, other))
        length = common_length(first, second)
        if length >= WORTH_COPYING:
            self._prefill.share(first[:length])
        return length

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Job:
        """Take a request. Raises QueueFull, ContextOverflow, UsageError; see `domain.engine.BatchEngine`."""
        self._refuse_if_full()
        with self._rendering:
            self._check_open()
            self._prompts.refuse_far_too_long(request, self.context)
            known = (lambda text: ("", [])) if self._repeatable else self._slots.beginning
            try:
                prompt = self._prompts.requested(request, known)
            finally:
                self._prompts.next_request()
            self._prompts.refuse_too_long(prompt, self.context, request)
            grammar = self._prompts.grammar(request, prompt)  # here, where a bad schema fails its own request only
        job = Job(request, prompt, self.context, deliver, grammar)
        with self._changed:
            self._refuse_if_full()
            self._unfinished += 1
            self._new.append(job)
            self._changed.notify()
        return job

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more, be it by a fault of its own."""
        return self._closing

    def _check_open(self) -> None:
        if self._closing:
            raise EngineClosed("the engine is closed", "load the model again")

    def _refuse_if_full(self) -> None:
        self._check_open()
        if self._unfinished >= self._most:
            raise QueueFull(f"{self._unfinished} requests are under way, and no more are taken", "try again later")

    def close(self) -> None:
        """Fail what is under way with EngineClosed, and free the memory. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # ------------------------------------------------------------------------------------------- the scheduler's thread

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._end_cancelled()
                self._admit()
                self._step()
        except Exception as error:  # a fault of ours: tell everybody that waits, and take nothing more
            self._fail_all(unexpected(error))
            raise
        finally:
            self._shut_down()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._closing or self._new or self._waiting or self._prefill.jobs or self._writing):
                self._changed.wait()
            self._waiting += self._new
            self._new.clear()
            return not self._closing

    def _jobs(self) -> list[Job]:
        return [*self._writing, *self._prefill.jobs, *self._waiting]

    def _end_cancelled(self) -> None:
        for job in self._jobs():
            if job.cancelled:
                self._end(job)

    def _admit(self) -> None:
        while self._waiting and self._slots.free:
            job = self._waiting.popleft()
            job.sequence = self._slots.take(job.prompt.tokens)
            self._prefill.jobs.append(job)

    def _end(self, job: Job, error: LocalaiError | None = None) -> None:
        """Tell the end of a job and free its place."""
        for jobs in (self._writing, self._prefill.jobs, self._waiting):
            if job in jobs:
                jobs.remove(job)
        try:
            if error is None:
                job.end(self._prompts, self.load_ms)
        except Exception as fault:  # noqa: BLE001 - whoever waits must be told
            error = unexpected(fault)
        if error is not None:
            job.fail(error)
        if job.sequence >= 0:
            self._slots.release(job)
        with self._changed:
            self._unfinished -= 1

    def _fail_all(self, error: LocalaiError) -> None:
        with self._changed:
            self._closing = True
            self._waiting += self._new
            self._new.clear()
        for job in self._jobs():
            self._end(job, error)

    def _shut_down(self) -> None:
        with self._changed:
            self._closing = True
            self._waiting += self._new
            self._new.clear()
        for job in self._jobs():
            self._end(job, None if job.cancelled else EngineClosed())  # cut off, it must not pass for a whole answer
        self._drawers.close()
        with self._rendering:  # nobody is tokenizing
            self._renderer.close()
            self._sequences.close()
            self._api.llama_model_free(self._model)

    # ---------------------------------------------------------------------------------------------------------- a step

    def _step(self) -> None:
        """Evaluate one batch, and draw from it."""
        if not self._converses and not self._waiting:
            self._close_gap()
        parts: list[tuple[Job, list[int]]] = [(job, [self._last[job.sequence]]) for job in self._writing]
        parts += self._prefill.parts(len(self._writing), self._waiting)
        if not parts:
            return
        parts.sort(key=lambda part: part[0].sequence)  # llama.cpp evaluates neighbours together
        held = self._sequences.held
        rows: list[tuple[Job, int]] = []
        read = 0
        for job, tokens in parts:
            writes = job in self._writing or len(held[job.sequence]) + len(tokens) == job.total
            row = self._sequences.add(job.sequence, tokens, writes)
            read += len(tokens)
            if writes:
                rows.append((job, row))
        jobs = [job for job, _ in parts]
        started = perf_counter()
        try:
            self._sequences.evaluate(self._unwanted(jobs) if read > len(jobs) else None)
        except Cancelled:
            return
        except EngineError as error:
            for job in jobs:
                self._end(job, error)
            return
        if read >= 2 * len(jobs):
            self._prefill.took(read, perf_counter() - started)
        for job in jobs:
            if job in self._prefill.jobs and self._prefill.was_read(job):
                self._writing.append(job)
        if rows:
            self._draw(rows)

    def _close_gap(self) -> None:
        """Move an answer down where answers that have ended leave gaps.

        llama.cpp evaluates only neighbours together: each gap costs one more reading of all the weights, a move the
        copying of a cache.
        """
        taken = sorted(job.sequence for job in (*self._writing, *self._prefill.jobs))
        gaps = sum(after > before + 1 for before, after in itertools.pairwise(taken))
        last = max(self._writing, key=lambda job: job.sequence, default=None)
        free = self._slots.lowest_free()
        if gaps >= GAPS and last is not None and free is not None and free < last.sequence:
            token = self._last.pop(last.sequence)
            self._slots.move(last, free)
            self._last[free] = token

    def _unwanted(self, jobs: Sequence[Job]) -> Callable[[], bool]:
        return lambda: self._closing or all(job.cancelled for job in jobs)

    def _draw(self, rows: Sequence[tuple[Job, int]]) -> None:
        """Draw a token of each job by its row of logits, and tell of them."""
        given = (self._api, self._prompts.vocabulary, self._sequences.pointer)
        tasks = [functools.partial(job.draw, *given, row) for job, row in rows]
        self._sequences.settle()
        for (job, _), drawn in zip(rows, self._drawers.draw(tasks, len(rows) * self._vocabulary_size), strict=True):
            self._take(job, drawn)

    def _take(self, job: Job, drawn: Drawn | Exception) -> None:
        error: LocalaiError | None = None
        try:
            if isinstance(drawn, Exception):
                raise drawn
            if job.take(drawn, self._prompts.vocabulary):
                self._last[job.sequence] = drawn.token
                return
        except LocalaiError as refused:  # a grammar that llama.cpp does not take
            error = refused
        except Exception as fault:  # noqa: BLE001 - a fault with one answer is no reason to fail the others
            error = unexpected(fault)
        self._end(job, error)
