"""Scripted models: they answer what they are told to, a token a word, and remember what they were asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from localai.domain.engine import BatchEngine, ChatEngine, Delivery, Ticket
from localai.domain.generation import (
    AnswerEnd,
    AnswerText,
    Event,
    GenerationRequest,
    Message,
    PromptProgress,
    Timings,
    Usage,
)
from localai.errors import ContextOverflow, LocalaiError, QueueFull


class FakeEngine(ChatEngine):
    """Gives `answers` in turn, the last one again and again; an error among them is raised.

    A token is a word, and each message costs one more. `requests` are what was asked, `closed` whether it was freed.
    """

    def __init__(self, answers: Sequence[str | LocalaiError] = ("Hello.",), context: int = 1000) -> None:
        self.answers = list(answers)
        self.context = context
        self.load_ms = 1.0
        self.requests: list[GenerationRequest] = []
        self.closed = False

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        return sum(len(message.content.split()) + 1 for message in messages)

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        prompt = self.count_tokens(request.messages)
        if prompt + 1 > self.context:
            raise ContextOverflow(f"{prompt} tokens for {self.context}", "shorten it")
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        yield PromptProgress(0, prompt)
        yield PromptProgress(prompt, prompt)
        if isinstance(answer, LocalaiError):
            raise answer
        said: list[str] = []
        finish = "stop"
        for word in answer.split(" "):
            if cancelled():
                finish = "interrupted"
                break
            if request.max_tokens is not None and len(said) == request.max_tokens:
                finish = "length"
                break
            said.append(word if not said else f" {word}")
            yield AnswerText(said[-1])
        yield AnswerEnd("".join(said), "", Usage(prompt, 0, len(said)), Timings(1.0, 1.0, 1.0, 100.0, 50.0), finish)

    def close(self) -> None:
        self.closed = True


class FakeTicket(Ticket):
    """A request's events, given one a time by `FakeBatchEngine.step`."""

    def __init__(
        self, events: Iterator[Event], deliver: Callable[[Delivery], None], cancelled: threading.Event
    ) -> None:
        self.events, self.deliver, self.cancelled = events, deliver, cancelled

    def cancel(self) -> None:
        self.cancelled.set()


class FakeBatchEngine(BatchEngine):
    """Answers as `FakeEngine` does, every request a word a step.

    It steps in a thread of its own, or, with `stepping` False, only when the test calls `step`: then everything stands
    still between two calls. At most `queue` requests are under way.
    """

    def __init__(
        self,
        answers: Sequence[str | LocalaiError] = ("Hello.",),
        context: int = 1000,
        queue: int = 64,
        stepping: bool = True,
    ) -> None:
        self.engine = FakeEngine(answers, context)
        self.context = context
        self.load_ms = 1.0
        self.queue = queue
        self.tickets: list[FakeTicket] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True) if stepping else None
        if self._thread is not None:
            self._thread.start()

    @property
    def requests(self) -> list[GenerationRequest]:
        return self.engine.requests

    @property
    def closed(self) -> bool:
        return self.engine.closed

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        return self.engine.count_tokens(messages, think)

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        cancelled = threading.Event()
        with self._changed:
            if len(self.tickets) >= self.queue:
                raise QueueFull(f"{self.queue} requests are waiting already", "try again later")
            events = self.engine.generate(request, cancelled.is_set)
            first = next(events)  # raises what is too long
            self.tickets.append(FakeTicket(events, deliver, cancelled))
            deliver(first)
            self._changed.notify()
            return self.tickets[-1]

    def step(self) -> None:
        """Let every request have its next event."""
        for ticket in list(self.tickets):
            try:
                event: Delivery | None = next(ticket.events, None)
            except LocalaiError as error:
                event = error
            if event is None or isinstance(event, AnswerEnd | LocalaiError):
                self.tickets.remove(ticket)
            if event is not None:
                ticket.deliver(event)

    def _run(self) -> None:
        while not self.engine.closed:
            with self._changed:
                self._changed.wait_for(lambda: bool(self.tickets) or self.engine.closed)
                self.step()

    def close(self) -> None:
        with self._changed:
            self.engine.close()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
