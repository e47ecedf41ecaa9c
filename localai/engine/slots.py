"""Which sequence answers which request: the one that holds most of the prompt, or the one least missed."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from localai.engine.job import Job
from localai.engine.sequences import Sequences, common_length
from localai.engine.transcript import Transcript


class Slots:
    """The sequences of a context, free or taken. `beginning` may be asked from any thread."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._free = list(range(sequences.count))  # the one least recently used first
        self._transcripts = [Transcript() for _ in range(sequences.count)]

    @property
    def free(self) -> bool:
        """Whether there is one."""
        return bool(self._free)

    def take(self, prompt: Sequence[int]) -> int:
        """The free sequence that goes on with what it holds, if one does; else the one that was used longest ago.

        One that holds another conversation with the same beginning is left alone: its beginning can be copied.
        """
        best = max(self._free, key=lambda number: self._gain(number, prompt))
        number = best if self._gain(best, prompt) > 0 else self._free[0]
        self._free.remove(number)
        return number

    def _gain(self, number: int, prompt: Sequence[int]) -> int:
        """Tokens that need no evaluation, less those that would be forgotten."""
        held = self._sequences.held[number]
        same = common_length(held, prompt)
        return 2 * same - len(held)

    def lowest_free(self) -> int | None:
        """The free sequence with the lowest number."""
        return min(self._free, default=None)

    def move(self, job: Job, to: int) -> None:
        """Let a job go on in a free sequence; what was said there is forgotten."""
        self._sequences.move(job.sequence, to)
        self._free[self._free.index(to)] = job.sequence
        self._transcripts[to] = Transcript()
        job.sequence = to

    def release(self, job: Job) -> None:
        """Make a job's sequence free, and remember what was said there."""
        self._free.append(job.sequence)
        if job.answer is not None and job.answer.tokens:
            transcript = copy.copy(self._transcripts[job.sequence])  # another thread may be reading the present one
            transcript.say(job.prompt.text, job.prompt.tokens, job.answer.raw, job.answer.tokens)
            self._transcripts[job.sequence] = transcript

    def beginning(self, rendered: str) -> tuple[str, list[int]]:
        """The longest beginning of `rendered` that was said in one of the sequences, and its tokens."""
        return max((each.beginning(rendered) for each in self._transcripts), key=lambda found: len(found[0]))
