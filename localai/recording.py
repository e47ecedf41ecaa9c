"""Each real run is kept with what was predicted of it: `bench --history` shows it, and the next prediction learns.

Nothing of what was said is kept, and nothing here ever fails a run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from localai import measurement, past_runs, speed, tuning
from localai.buffers import UBATCH
from localai.domain.engine import BatchEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, GenerationRequest, Message
from localai.domain.plan import Placement, SpeedRange
from localai.domain.rates import Job, Setting
from localai.errors import LocalaiError
from localai.loading import Prepared
from localai.past_runs import Run

EVERY_S = 60.0  # a batch and a server keep one run in this time: a thousand a minute would push out all others


def predicted(prepared: Prepared, job: Job, corrected: bool = True) -> SpeedRange:
    """The speed of reading (a job without an answer) or of writing, with the settings of the plan.

    Raises ValueError for a model that nothing is known of.
    """
    facts, plan = prepared.facts, prepared.plan
    if facts is None:
        raise ValueError("nothing is known of the model")
    shape, weights, machine = facts.shape, facts.weights, facts.machine
    where = {"gpu_layers": plan.gpu_layers, "cpu_expert_layers": plan.cpu_expert_layers}
    if job.answer_tokens:
        depth = job.depth + job.prompt_tokens + job.answer_tokens // 2
        found = speed.decode_speed(
            shape, weights, machine, depth=depth, kv_type=plan.kv_type, corrected=corrected, **where
        )
    else:
        tokens = max(job.prompt_tokens, 1)
        found = speed.prompt_speed(
            shape, weights, machine, tokens=tokens, depth=job.depth, corrected=corrected, **where
        )
    known = tuning.found_for(machine, shape, weights, plan.placement is Placement.GPU)
    return tuning.adjusted(found, known, plan, job)


def keep(prepared: Prepared, end: AnswerEnd, command: str, together: bool = False) -> None:
    """Keep an answer's speeds; `together` says that it shared the model with others."""
    usage, timings = end.usage, end.timings
    _keep(
        prepared,
        command,
        Job(usage.prompt_tokens - usage.cached_tokens, 0, usage.cached_tokens),
        Job(0, usage.completion_tokens, usage.prompt_tokens),
        timings.prompt_tps,
        timings.decode_tps,
        usage.guessed_tokens,
        together,
    )


def keep_bench(prepared: Prepared, prompt_tps: float, decode_tps: float, tokens: int, written: int) -> None:
    """Keep what `bench` measured in an empty cache."""
    _keep(prepared, "bench", Job(tokens, 0), Job(0, written), prompt_tps, decode_tps)


def usual(prepared: Prepared) -> bool:
    """Whether a plan's settings are llama.cpp's own or tuned ones: of others no speed is predicted."""
    facts, plan = prepared.facts, prepared.plan
    setting = tuning.setting_of(plan)
    if facts is None or setting == Setting(True, True, speed.cores(facts.machine), UBATCH, "f16"):
        return facts is not None
    known = tuning.found_for(facts.machine, facts.shape, facts.weights, plan.placement is Placement.GPU)
    return known is not None and any(each.setting == setting for each in known.settings)


def _keep(
    prepared: Prepared,
    command: str,
    reading: Job,
    writing: Job,
    prompt_tps: float | None,
    decode_tps: float | None,
    guessed_tokens: int = 0,
    together: bool = False,
) -> None:
    facts, plan = prepared.facts, prepared.plan
    if facts is None or plan.workers or (prompt_tps is None and decode_tps is None):
        return
    with contextlib.suppress(Exception):  # whatever it is, the answer is there and must not fail for its statistics
        calibration = facts.machine.experience.calibration
        writing = replace(writing, answer_tokens=max(writing.answer_tokens, 1))
        of_reading, of_writing = predicted(prepared, reading), predicted(prepared, writing)
        past_runs.keep(
            Run(
                at=past_runs.now(),
                machine=measurement.identity(facts.machine),
                command=command,
                model=prepared.found.name,
                architecture=facts.shape.architecture,
                kind=past_runs.kind_of(facts.weights),
                params=facts.shape.params,
                placement=str(plan.placement),
                setting=tuning.setting_of(plan).text,
                depth=writing.depth,
                prompt_tokens=reading.prompt_tokens,
                answer_tokens=writing.answer_tokens,
                predicted_prompt_tps=round(of_reading.mid, 2),
                measured_prompt_tps=None if prompt_tps is None else round(prompt_tps, 2),
                predicted_decode_tps=round(of_writing.mid, 2),
                measured_decode_tps=None if decode_tps is None else round(decode_tps, 2),
                expected_prompt_tps=round(predicted(prepared, reading, corrected=False).mid, 2),
                expected_decode_tps=round(predicted(prepared, writing, corrected=False).mid, 2),
                basis=of_writing.basis,
                calibrated_at=calibration.made_at if calibration else 0,
                predicted_bytes=plan.memory.total_bytes,
                peak_bytes=past_runs.peak_bytes(),
                busy=past_runs.busy(speed.cores(facts.machine)),
                usual=usual(prepared),
                guessed_tokens=guessed_tokens,
                together=together,
            )
        )


class Recorded(BatchEngine):
    """An engine whose answers are kept now and then, those that had the model to themselves apart from the others."""

    def __init__(self, engine: BatchEngine, prepared: Prepared, command: str) -> None:
        self._engine, self._prepared, self._command = engine, prepared, command
        self.context, self.load_ms = engine.context, engine.load_ms
        self._changed = threading.Lock()
        self._under_way: set[object] = set()
        self._together: set[object] = set()
        self._kept_at = {True: -EVERY_S, False: -EVERY_S}  # of answers together, and alone

    @property
    def closed(self) -> bool:
        return self._engine.closed

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """As `BatchEngine`."""
        this = object()

        def heard(event: Delivery) -> None:
            try:
                deliver(event)
            finally:
                if isinstance(event, AnswerEnd):
                    if (together := self._ended(this)) is not None:
                        keep(self._prepared, event, self._command, together)
                elif isinstance(event, LocalaiError):
                    self._ended(this, kept=False)

        with self._changed:
            self._under_way.add(this)
            if len(self._under_way) > 1 and self._prepared.plan.sequences > 1:
                self._together |= self._under_way
        try:
            return self._engine.submit(request, heard)
        except BaseException:
            self._ended(this, kept=False)
            raise

    def _ended(self, this: object, kept: bool = True) -> bool | None:
        """Take note of an end. Returns whether others shared the model; None where one such was kept a while ago."""
        with self._changed:
            together = this in self._together
            self._under_way.discard(this)
            self._together.discard(this)
            if not kept or monotonic() - self._kept_at[together] < EVERY_S:
                return None
            self._kept_at[together] = monotonic()
            return together

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        return self._engine.count_tokens(messages, think)

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        return self._engine.share(one, other, think)

    def close(self) -> None:
        self._engine.close()
