"""Evaluates an answer's tokens one by one, or with guesses at the next ones in the same go where that pays.

A guess is never taken for the answer: each of its tokens is drawn by the same sampler from the logits of its own place,
and the guesses count only as long as they are what was drawn. So what is answered has the very distribution that it
has without guesses; the numbers behind it can differ in their last bits, as they do between any two sizes of batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from time import perf_counter

from localai.domain.plan import Placement, Plan
from localai.engine.cache import SequenceCache
from localai.engine.drafting import Drafts, Pace, Price

ROWS = 16  # tokens evaluated together at most: so many rows of logits, 10 MB at a vocabulary of 152,000
SLOW_S = 0.15  # an evaluation of guesses that takes longer can be broken off inside

# Measured on two cores, of models from 0.1B to 1B in Q4_K_M, Q8_0, Q4_0 and Q4_1: two tokens cost 1.7 to 2.2 times as
# much as one (other code computes them), 4 cost 2.7 to 3, 8 cost 3.4 to 4.5, 16 cost 4.4 to 7.5. More cores and GPUs
# have more to spare beside reading the weights; one core alone has little (4 cost 3.6 to 4, 8 cost 5.5 to 6.7), so that
# three guesses, all of them right, gain nothing. No clock decides: it would make the same question be evaluated, and so
# answered, one way now and another way then.
ON_CPU, ON_GPU = Price(0.9, 0.7), Price(0.06, 1.0)


class Speculation:
    """Evaluates the tokens of one sequence after another's answer; `drafts` None never guesses."""

    def __init__(self, cache: SequenceCache, plan: Plan, drafts: Drafts | None) -> None:
        self._cache = cache
        gpu = plan.placement is Placement.GPU
        # what has a draft model is large, which leaves even one core something to spare
        spare = gpu or plan.threads > 1 or (drafts is not None and drafts.prior is not None)
        self._drafts = drafts if cache.can_try and spare else None
        self._price = ON_GPU if gpu else ON_CPU
        self._pace = Pace(self._price, cache.rows - 1)
        self._guesses: list[int] = []
        self._right = 0
        self.guessed = 0  # tokens of this answer that were guessed right
        self._alone_s = inf  # what a token alone takes at least

    def pays(self) -> bool:
        """Whether guesses that are taken to be right as often as `drafts` says are worth what they cost."""
        if self._drafts is None:
            return False
        self._pace.begin(self._drafts.cost, self._drafts.prior)
        return self._pace.size(self._drafts.cost) > 0

    def begin(self, prompt: Sequence[int], cancelled: Callable[[], bool]) -> None:
        """An answer to this prompt begins, which the cache holds."""
        self._cancelled = cancelled
        self._guesses, self._right, self.guessed = [], 0, 0
        if self._drafts is not None:
            self._drafts.begin(prompt, cancelled)
            self._pace.begin(self._drafts.cost, self._drafts.prior)

    def add(self, token: int, room: int) -> int:
        """Take the token that was drawn last; returns the row of the logits that the next one is to be drawn from.

        It is evaluated unless it was guessed before, with guesses at up to `room` - 1 tokens after it. Raises
        Cancelled, EngineError.
        """
        if self._drafts is None:
            self._cache.decode(token)
            return -1
        if self._right == len(self._guesses):
            self.settle()
            if (expected := self._drafts.expected()) is not None:
                self._pace.foreseen(expected == token)
        self._drafts.say(token)
        if self._right < len(self._guesses) and self._guesses[self._right] == token:
            self._right += 1
            self.guessed += 1
            return self._right
        self.settle()
        size = min(self._pace.size(self._drafts.cost), room - 1)
        self._guesses = self._drafts.guess(size) if size > 0 else []
        self._evaluate(token)
        return 0 if self._guesses else -1

    def settle(self) -> None:
        """Let go of the guesses that were not drawn."""
        if not self._guesses or self._drafts is None:
            return
        size, right, self._guesses, self._right = len(self._guesses), self._right, [], 0
        self._pace.tried(size, right, self._drafts.cost)
        if right < size:
            self._cache.let_go(len(self._cache.tokens) - (size - right))

    def _evaluate(self, token: int) -> None:
        if not self._guesses:
            started = perf_counter()
            self._cache.decode(token)
            self._alone_s = min(self._alone_s, perf_counter() - started)
            self._pace.plain()
            return
        slow = self._price.of(len(self._guesses)) * self._alone_s > SLOW_S
        try:
            self._cache.try_out([token, *self._guesses], self._cancelled if slow else None)
        except BaseException:
            self._guesses = []
            raise
