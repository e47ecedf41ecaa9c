"""An engine that answers one request at a time behind the interface of those that answer many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from localai.domain.engine import BatchEngine, ChatEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Timings, Usage
from localai.errors import EngineClosed, LocalaiError, QueueFull, UsageError, unexpected

QUEUE = 16


class AloneTicket(Ticket):
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class Alone(BatchEngine):
    """Each request has a thread, and they take turns. For what the scheduler cannot do: looking at pictures."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self.context, self.load_ms = engine.context, engine.load_ms
        self._turn = threading.Lock()
        self._waiting = 0
        self._tickets: set[AloneTicket] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """As `BatchEngine`; what is too long is told by `deliver`. Raises QueueFull, UsageError, EngineClosed."""
        if self._closed:
            raise EngineClosed("the engine is closed", "load the model again")
        if request.raw is not None or request.tools or request.logprobs is not None:
            raise UsageError("tools, logprobs and raw prompts cannot be combined with images", "ask for either")
        if len(self._tickets) >= QUEUE:
            raise QueueFull(f"{QUEUE} requests are under way, and no more are taken", "try again later")
        ticket = AloneTicket()
        self._tickets.add(ticket)
        threading.Thread(target=self._answer, args=(request, deliver, ticket), daemon=True).start()
        return ticket

    def _answer(self, request: GenerationRequest, deliver: Callable[[Delivery], None], ticket: AloneTicket) -> None:
        try:
            with self._turn:
                if ticket.cancelled.is_set():
                    deliver(
                        AnswerEnd("", "", Usage(0, 0, 0), Timings(self.load_ms, 0, None, None, None), "interrupted")
                    )
                    return
                if self._closed:
                    raise EngineClosed
                for event in self._engine.generate(request, lambda: ticket.cancelled.is_set() or self._closed):
                    if isinstance(event, AnswerEnd) and event.finish_reason == "interrupted" and self._closed:
                        raise EngineClosed
                    deliver(event)
        except LocalaiError as error:
            deliver(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            deliver(unexpected(error))
        finally:
            self._tickets.discard(ticket)

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        with self._turn:
            return self._engine.count_tokens(messages, think)

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Nothing is told beforehand: each conversation follows what it has in common with the last."""
        return 0

    def close(self) -> None:
        self._closed = True
        with self._turn:
            self._engine.close()
