"""Prefill: how much of which prompt is read in a step, so that answers under way go on and nothing is read twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from localai.engine.job import Job
from localai.engine.prompts import Prompts
from localai.engine.sequences import WORTH_COPYING, Sequences, common_length

STEP = 256  # tokens of a prompt evaluated at a time where results must not depend on what came before
ALONE_S = 1.0  # how long a step may take where no answer is under way: new requests wait that long
LEAST_PART = 16  # tokens of a prompt that are evaluated in a step all the same
LOOK_AHEAD = 64  # waiting prompts that are looked through for a common beginning
LIKELY_TPS = 200.0  # where no speed was planned


class Prefill:
    """The prompts that are being read: `jobs`, the oldest first. But for `share` all is for the scheduler's thread.

    `prompt_tps` is the speed that was planned; `patience_s` and `repeatable` are those of `scheduler.load`.
    """

    def __init__(
        self,
        sequences: Sequences,
        prompts: Prompts,
        load_ms: float,
        prompt_tps: float | None,
        patience_s: float,
        repeatable: bool,
    ) -> None:
        self.jobs: list[Job] = []
        self._sequences, self._prompts, self._load_ms = sequences, prompts, load_ms
        self._prompt_tps = LIKELY_TPS if prompt_tps is None else prompt_tps
        self._patience_s, self._repeatable = patience_s, repeatable
        self._shared: list[list[int]] = []
        self._oldest_first = False

    def share(self, beginning: list[int]) -> None:
        """Stop the reading of every prompt that begins so where this ends, to keep it for the others."""
        self._shared.append(beginning)

    def took(self, tokens: int, seconds: float) -> None:
        """So many tokens were evaluated in one step, of prompts most of them."""
        self._prompt_tps += 0.3 * (tokens / max(seconds, 1e-6) - self._prompt_tps)

    def was_read(self, job: Job) -> bool:
        """A part of a job's prompt is evaluated: whether that was the last, and the job no longer one of these."""
        done = len(self._sequences.held[job.sequence])
        if done in job.borders:
            self._sequences.mark(job.sequence)
        job.read(done)
        if done < job.total:
            return False
        self.jobs.remove(job)
        return True

    def parts(self, writing: int, waiting: Iterable[Job]) -> Iterator[tuple[Job, list[int]]]:
        """What is read of the prompts in this step: little while answers are under way, so that these go on.

        `writing` answers are, and `waiting` are the requests that have no sequence yet.
        """
        left = self._tokens_to_read(writing)
        for job in self._in_turn():
            if left <= 0:
                return
            if job.answer is None:
                if self._waits_for_another(job):
                    continue
                kept = self._sequences.keep(job.sequence, job.prompt.tokens)
                job.borders = self._borders(job, kept, waiting)
                job.start(self._prompts, self._load_ms, kept)
            done = len(self._sequences.held[job.sequence])
            end = min(job.total, done + left, *(border for border in job.borders if border > done))
            if self._repeatable:
                end = min(end, (done // STEP + 1) * STEP)
            left -= end - done
            yield job, job.prompt.tokens[done:end]

    def _in_turn(self) -> list[Job]:
        """The prompts, first the one that is read now: by turns the oldest and the shortest of the others.

        So a long one does not hold up short ones, nor they it. Not a part of each at a time: llama.cpp's attention is
        fast where one sequence brings 64 tokens and more.
        """
        self._oldest_first = not self._oldest_first
        others = sorted(self.jobs[1:], key=self._left)
        return [*self.jobs[:1], *others] if self._oldest_first else [*others, *self.jobs[:1]]

    def _left(self, job: Job) -> int:
        return job.total if job.answer is None else job.total - len(self._sequences.held[job.sequence])

    def _tokens_to_read(self, writing: int) -> int:
        room = self._sequences.room - writing
        if self._repeatable:
            return room
        seconds = self._patience_s if writing else max(self._patience_s, ALONE_S)
        return min(room, max(LEAST_PART, round(self._prompt_tps * seconds)))

    def _waits_for_another(self, job: Job) -> bool:
        """Whether a prompt that is being read will hold more of this one's beginning than there is now."""
        available = -1
        for other in self.jobs:
            if other.answer is None or other is job:
                continue
            common = min(common_length(other.prompt.tokens, job.prompt.tokens), job.total - 1)
            if self._sequences.needs_marks or self._repeatable:
                common = max((border for border in other.borders if border <= common), default=0)
            if len(self._sequences.held[other.sequence]) >= common:
                continue
            if available < 0:
                available = self._sequences.available(job.prompt.tokens)
            if common >= available + WORTH_COPYING:
                return True
        return False

    def _borders(self, job: Job, kept: int, waiting: Iterable[Job]) -> list[int]:
        """Where the evaluation of a prompt is to stop, to keep what other prompts begin with, too."""
        tokens = job.prompt.tokens
        borders = {len(each) for each in self._shared if len(each) < job.total and tokens[: len(each)] == each}
        if self._sequences.needs_marks and not self._repeatable:
            others = [*self.jobs, *itertools.islice(waiting, LOOK_AHEAD)]
            common = (
                common_length(tokens, each.prompt.tokens) for each in others if each.answer is None and each is not job
            )
            borders.add(min(max(common, default=0), job.total - 1))
        least = kept + (1 if self._repeatable else WORTH_COPYING)
        return sorted(border for border in borders if border >= least)
