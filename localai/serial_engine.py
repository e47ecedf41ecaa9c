"""An engine that answers one request at a time behind the interface of those that answer many."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

from localai.domain.engine import BatchEngine, ChatEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Timings, Usage
from localai.errors import EngineClosed, LocalaiError, QueueFull, UsageError, unexpected

QUEUE = 16  # requests that wait for their turn


class SerialTicket(Ticket):
    """A request, and whom its events go to; `forget` takes it out of the queue."""

    def __init__(
        self,
        request: GenerationRequest,
        deliver: Callable[[Delivery], None],
        forget: Callable[[SerialTicket], None],
    ) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self._deliver, self._forget = deliver, forget

    def tell(self, event: Delivery) -> None:
        with contextlib.suppress(Exception):  # a receiver's fault is no reason to fail the others
            self._deliver(event)

    def cancel(self) -> None:
        self.cancelled.set()
        self._forget(self)


class SerialEngine(BatchEngine):
    """Requests take turns, in a thread of their own. For what the scheduler cannot do: looking at pictures."""

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self.context, self.load_ms = engine.context, engine.load_ms
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: deque[SerialTicket] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="localai-serial", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """As `BatchEngine`; what is too long is told by `deliver`. Raises QueueFull, UsageError, EngineClosed."""
        if request.raw is not None or request.tools or request.logprobs is not None:
            raise UsageError("tools, logprobs and raw prompts cannot be combined with images", "ask for either")
        ticket = SerialTicket(request, deliver, self._forget)
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine is closed", "load the model again")
            if len(self._waiting) >= QUEUE:
                raise QueueFull(f"{QUEUE} requests wait, and no more are taken", "try again later")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def _forget(self, ticket: SerialTicket) -> None:
        """End one that was cancelled before its turn: its place is free at once, and its pictures too."""
        with self._changed:
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
        ticket.tell(self._nothing())

    def _nothing(self) -> AnswerEnd:
        return AnswerEnd("", "", Usage(0, 0, 0), Timings(self.load_ms, 0, None, None, None), "interrupted")

    def _run(self) -> None:
        while (ticket := self._next()) is not None:
            with self._turn:
                self._answer(ticket)
        with self._changed:
            waiting = [*self._waiting]
            self._waiting.clear()
        for each in waiting:
            each.tell(EngineClosed())

    def _next(self) -> SerialTicket | None:
        """The next request, once there is one; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            return None if self._closed else self._waiting.popleft()

    def _answer(self, ticket: SerialTicket) -> None:
        try:
            for event in self._engine.generate(ticket.request, lambda: ticket.cancelled.is_set() or self._closed):
                if isinstance(event, AnswerEnd) and event.finish_reason == "interrupted" and self._closed:
                    raise EngineClosed
                ticket.tell(event)
        except LocalaiError as error:
            ticket.tell(error)
        except KeyboardInterrupt:  # it was cancelled before anything was evaluated
            ticket.tell(EngineClosed() if self._closed else self._nothing())
        except Exception as error:  # noqa: BLE001 - whoever waits must be told
            ticket.tell(unexpected(error))

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        with self._turn:
            return self._engine.count_tokens(messages, think)

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Nothing is told beforehand: each conversation follows what it has in common with the last."""
        return 0

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        self._engine.close()
