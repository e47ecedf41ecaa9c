"""One request on its way through the scheduler: waiting, its prompt being read, its answer being written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from localai.domain.engine import Delivery
from localai.domain.generation import GenerationRequest, PromptProgress, TokenLogprob
from localai.engine.answer import Answer
from localai.engine.prompts import Prompt, Prompts
from localai.engine.sampling import NOTHING, Sampler
from localai.engine.vocabulary import Vocabulary
from localai.errors import LocalaiError


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, or NOTHING; with the logarithm of its probability and the likeliest in its place where asked for."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Job:
    """Implements `domain.engine.Ticket`. All but `cancel` is for the scheduler's thread."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        capacity: int,
        deliver: Callable[[Delivery], None],
        grammar: tuple[str | None, int | None],
    ) -> None:
        self.prompt = prompt
        self.cancelled = False
        self.sequence = -1  # that it has been given
        self.borders: list[int] = []  # lengths of the prompt at which its evaluation stops for a mark
        self.answer: Answer | None = None
        self.ended = False
        self._request = request
        self._deliver = deliver
        self._grammar = grammar
        self._started = perf_counter()
        room = capacity - len(prompt.tokens)
        self._limit = room if request.max_tokens is None else min(room, request.max_tokens)
        self._sampler: Sampler | None = None

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def total(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.tokens)

    def start(self, prompts: Prompts, load_ms: float, kept: int) -> Answer:
        """Begin with so many of the prompt's tokens held already."""
        self.answer = Answer(
            prompts.vocabulary, self.prompt, self._request, load_ms, kept, self._started, self.prompt.tool_form
        )
        self._give([PromptProgress(kept, self.total)])
        return self.answer

    def read(self, done: int) -> None:
        """So many of the prompt's tokens are evaluated."""
        self._give([PromptProgress(done, self.total)])
        if done == self.total and self.answer is not None:
            self.answer.prompt_done()

    def draw(self, api: Any, vocabulary: Vocabulary, context: Any, row: int) -> Drawn:
        """The next token by a row of logits. For any thread, since nothing of another job is touched."""
        if self._sampler is None:
            sampling, tokens = self._request.sampling, self.prompt.tokens
            self._sampler = Sampler(api, vocabulary.pointer, sampling, tokens, *self._grammar)
        token, wanted = self._sampler.draw(context, row), self._request.logprobs
        if wanted is None or token == NOTHING or vocabulary.is_end(token):
            return Drawn(token)
        return Drawn(token, *self._sampler.logprob(context, row, token, wanted))

    def take(self, drawn: Drawn, vocabulary: Vocabulary) -> bool:
        """Add what was drawn to the answer and tell of it; False when the answer is done."""
        answer = self.answer
        assert answer is not None, "it is started"
        answer.sampled()
        if drawn.token == NOTHING or vocabulary.is_end(drawn.token):
            answer.finish_reason = "stop"
            return False
        if drawn.logprob is not None:
            top = tuple((vocabulary.piece(each), value) for each, value in drawn.top)
            answer.measured(TokenLogprob(vocabulary.piece(drawn.token), drawn.logprob, top))
        self._give(answer.add(drawn.token))
        if not answer.finish_reason and len(answer.tokens) >= self._limit:
            answer.finish_reason = "length"
        return not answer.finish_reason

    def end(self, prompts: Prompts, load_ms: float) -> None:
        """Tell the end, as interrupted where no other reason is known."""
        answer = self.answer or self.start(prompts, load_ms, 0)
        answer.finish_reason = answer.finish_reason or "interrupted"
        self._give(answer.finish())
        self.free()

    def fail(self, error: LocalaiError) -> None:
        """Tell that it cannot be answered."""
        self._give([error])
        self.free()

    def free(self) -> None:
        """Free its sampler. Idempotent."""
        self.ended = True
        if self._sampler is not None:
            self._sampler.close()

    def _give(self, events: Iterable[Delivery]) -> None:
        for event in events:
            with contextlib.suppress(Exception):  # a receiver's fault is no reason to fail the others
                self._deliver(event)
