"""What a loaded model can be asked to do: the protocols of the engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from localai.domain.generation import Event, GenerationRequest, Message
from localai.errors import LocalaiError


@dataclass(frozen=True, slots=True)
class KvState:
    """What an engine holds of a conversation: the text, its tokens, where the two are known to meet, and the KV cache.

    `borders` are pairs of characters and tokens; the cache has the first `held` tokens. `data` is llama.cpp's, of use
    to the same model and engine only.
    """

    text: str
    tokens: tuple[int, ...]
    borders: tuple[tuple[int, int], ...]
    held: int
    data: memoryview


class ChatEngine(Protocol):
    """A loaded model. The real one is `localai.engine.model.LlamaEngine`; tests have a scripted one."""

    context: int
    load_ms: float

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included."""
        ...

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """Yield events, the last an `AnswerEnd`; `cancelled` is asked between tokens and prompt batches.

        Raises ContextOverflow before anything is evaluated, EngineError if llama.cpp fails.
        """
        ...

    def keep_only(self, messages: Sequence[Message], think: bool | None = None) -> None:
        """Let go of what is held of other conversations than this one, and of its turns that were taken back."""
        return

    def state(self, affordable: Callable[[int], bool]) -> KvState | None:
        """A copy of what is held of the last conversation; None for nothing, or where its bytes aren't `affordable`."""
        return None

    def resume(self, state: KvState) -> bool:
        """Take up a conversation where it was; False, and nothing held, where that cannot be done.

        The state must be this model's, made by this engine with the same plan: llama.cpp believes what it reads.
        """
        return False

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        ...


class Ticket(Protocol):
    """A request that a `BatchEngine` has taken."""

    def cancel(self) -> None:
        """End it as soon as may be, from any thread: its last event is an `AnswerEnd`, "interrupted". Idempotent."""
        ...


Delivery = Event | LocalaiError


class BatchEngine(Protocol):
    """A loaded model that answers many requests at once. The real one is `localai.engine.scheduler.Scheduler`."""

    context: int
    load_ms: float

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more, be it by a fault of its own."""
        return False

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        """Take a request, from any thread; it takes a few milliseconds (the prompt is rendered and split).

        `deliver` is called in the engine's own thread with each event, the last an `AnswerEnd` or a `LocalaiError`;
        it must be quick, and what it raises is lost. Raises QueueFull, ContextOverflow.
        """
        ...

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included. From any thread."""
        ...

    def share(self, one: Sequence[Message], other: Sequence[Message], think: bool | None = None) -> int:
        """Evaluate what two conversations begin with once for all that begin so; returns its tokens."""
        ...

    def close(self) -> None:
        """Fail what is under way with EngineClosed, and free the memory. Idempotent."""
        ...
