"""Guesses at the next tokens, and how many of them are worth a try.

A model checks several guessed tokens in one evaluation for less than as many evaluations cost. Where an answer repeats
its prompt (a summary that quotes, a correction, an edit of code), what followed the same words before is a good guess;
elsewhere guessing costs, so it is given up quickly. All decisions follow from the tokens alone, never from a clock:
the same question with the same seed is evaluated in the same batches, and answered the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

MATCH = 3  # so many tokens must have been there before
STEADY = 6  # after so many right guesses in a row, one wrong one is taken for a word replaced


class Drafts(Protocol):
    """Where guesses come from.

    `cost` is what one guessed token takes, in evaluations of the model itself; `prior` how many of how many guesses are
    taken to have been right before anything is known, None where it costs nothing to see that first (`expected`).
    """

    cost: float
    prior: tuple[float, float] | None

    def begin(self, prompt: Sequence[int], cancelled: Callable[[], bool]) -> None:
        """An answer to this prompt begins. Raises Cancelled."""
        ...

    def say(self, token: int) -> None:
        """The answer goes on with this token."""
        ...

    def expected(self) -> int | None:
        """The next token if the text goes on as it did before; None where that is not known without work."""
        ...

    def guess(self, most: int) -> list[int]:
        """What may come next, `most` tokens at most; nothing where there is nothing to go by. Raises Cancelled."""
        ...

    def close(self) -> None:
        """Free what it takes. Idempotent."""
        ...


class Lookup(Drafts):
    """Guesses that what followed the last tokens before follows again (prompt lookup, Saxena 2023)."""

    cost = 0.0
    prior = None

    def __init__(self) -> None:
        self.begin([], lambda: False)

    def begin(self, prompt: Sequence[int], cancelled: Callable[[], bool]) -> None:
        self._said: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # three tokens → where what follows them stands
        self._source: int | None = None  # where the next token stands if the text goes on as it did before
        self._streak = 0
        for token in prompt:
            self._append(token)

    def _append(self, token: int) -> None:
        said = self._said
        if len(said) >= MATCH:
            self._after[tuple(said[-MATCH:])] = len(said)
        said.append(token)

    def say(self, token: int) -> None:
        if self._source is not None:
            if self._said[self._source] == token:
                self._streak += 1
            elif self._streak >= STEADY:
                self._streak = 0  # perhaps one word is another now, and the rest follows
            else:
                self._source = None
            if self._source is not None:
                self._source += 1
        self._append(token)
        if self._source is None:
            self._source, self._streak = self._after.get(tuple(self._said[-MATCH:])), 0

    def expected(self) -> int | None:
        return None if self._source is None else self._said[self._source]

    def guess(self, most: int) -> list[int]:
        guesses = self._said[self._source : self._source + most] if self._source is not None else []
        return list(itertools.takewhile(lambda token: token >= 0, guesses))  # below 0 are pictures

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Price:
    """What so many tokens more in an evaluation cost, an evaluation of one token being 1: slope × tokens ^ power."""

    slope: float
    power: float

    def of(self, tokens: int) -> float:
        return self.slope * float(tokens**self.power)


class Pace:
    """How many guessed tokens to try: as many as promise the most, within what earlier guesses have gained.

    What is lost by wrong guesses stays under 1 % of the answer and RISK evaluations, unless right ones have paid for
    it, and 0.1 of an evaluation for each token that would have been guessed right when none was tried.

    The longer a text has been seen repeating itself, the longer it goes on: of 19 runs of at least 8 tokens, in as many
    answers (corrections, edits, summaries, lists, stories), 16 went on for 3 more, 10 for 7 more.
    """

    SIZES = (3, 7, 11, 15)
    RISK, MOST_CREDIT, LOSS = 3.0, 8.0, 0.01
    FORESEEN = 0.1
    DOUBT = 2  # of a run of n tokens the next is taken to be right n times in n + so many
    FADING = 0.97

    def __init__(self, price: Price, most: int) -> None:
        self._price = price
        self._sizes = [size for size in self.SIZES if size <= most]
        self.begin()

    def begin(self, cost: float = 0.0, prior: tuple[float, float] | None = None) -> None:
        """A new answer: nothing but `prior` is known of how well its tokens can be guessed, at `cost` each."""
        self._hits = self._tries = 0.0
        self._run = 0  # of tokens that were guessed right, or would have been
        self._prior = prior
        self._credit = 0.0  # what is gained, less than 0 where more was lost
        self._risk = max(self.RISK, self._price.of(self.SIZES[0]) + self.SIZES[0] * cost)

    def size(self, cost: float) -> int:
        """How many guesses to try now, at `cost` each beside the evaluation; 0 for none."""
        best, most = 0, 0.0
        if self._credit >= 0:
            right = self._likely()
            for size in self._sizes:
                price = self._price.of(size) + size * cost
                expected = sum(right**number for number in range(1, size + 1))
                if price <= self._risk + self._credit and (gain := expected - price) > most:
                    best, most = size, gain
        return best

    def _likely(self) -> float:
        """How likely the next guess is right."""
        if self._prior is None:
            return self._run / (self._run + self.DOUBT)
        hits, tries = self._prior
        return (self._hits + hits) / (self._tries + tries)

    def foreseen(self, right: bool) -> None:
        """A token came that would have been guessed, rightly or not, had any guess been tried."""
        self._run = self._run + 1 if right else 0
        if right and self._credit < 0:
            self._credit = min(0.0, self._credit + self.FORESEEN)

    def plain(self) -> None:
        """A token was evaluated alone."""
        self._credit = min(self.MOST_CREDIT, self._credit + self.LOSS)
        self._hits, self._tries = self._hits * self.FADING, self._tries * self.FADING

    def tried(self, size: int, right: int, cost: float) -> None:
        """Of `size` guesses the first `right` were."""
        gain = right - self._price.of(size) - size * cost
        self._credit = min(self.MOST_CREDIT, self._credit + gain + self.LOSS)
        self._run = self._run + size if right == size else 0
        self._hits = self._hits * 0.8 + right
        self._tries = self._tries * 0.8 + min(right + 1, size)
