"""A conversation with a model: what was said, what still fits the context, the next answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from localai.domain.engine import ChatEngine
from localai.domain.generation import (
    ANSWER_RESERVE,
    AnswerEnd,
    AnswerText,
    Event,
    GenerationRequest,
    Image,
    Message,
    Sampling,
    TurnsDropped,
)

RESERVE_SHARE = 4  # at most a quarter of the context, so that a small one still holds a conversation


def reserve(context: int, max_tokens: int | None) -> int:
    """Tokens of a context that are kept free for an answer of at most `max_tokens`."""
    return min(max_tokens or ANSWER_RESERVE, context // RESERVE_SHARE)


def _never() -> bool:
    return False


class Conversation:
    """Messages in turn, and the settings that every answer is made with; they may be changed between answers.

    A turn is a question with its answer. `messages` holds the finished ones, the system text first where there is one.
    """

    def __init__(
        self,
        engine: ChatEngine,
        system: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        think: bool | None = None,
    ) -> None:
        self.engine = engine
        self.system = system
        self.sampling = sampling or Sampling()
        self.max_tokens = max_tokens
        self.stop = stop
        self.think = think
        self.grammar: str | None = None  # GBNF that the next answers must be a text of
        self._turns: list[Message] = []

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said so far that the model will read again."""
        return (*self._head(), *self._turns)

    def _head(self) -> tuple[Message, ...]:
        return (Message("system", self.system),) if self.system else ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The same without the system text: questions and answers in turn."""
        return tuple(self._turns)

    @property
    def last(self) -> Message | None:
        """The last answer; another object for each one."""
        return self._turns[-1] if self._turns else None

    def clear(self) -> None:
        """Forget what was said; the system text stays."""
        self._turns.clear()

    def recall(self, turns: Sequence[Message]) -> None:
        """Go on from these turns, a question and its answer each, as if they had been said here."""
        self._turns = list(turns)

    def undo(self) -> tuple[Message, Message] | None:
        """Forget the last turn and return it, question and answer; None where there is none.

        To ask again, or something else instead, is to `ask` afterwards: the engine still holds all that came before.
        """
        if not self._turns:
            return None
        question, answer = self._turns[-2:]
        del self._turns[-2:]
        return question, answer

    def set_system(self, text: str | None) -> None:
        """Give another system text from the next answer on; None or "" takes it away."""
        self.system = text or None

    def ask(
        self, text: str, images: tuple[Image, ...] = (), *, cancelled: Callable[[], bool] = _never
    ) -> Iterator[Event]:
        """Yield the answer's events, the last an `AnswerEnd`; a `TurnsDropped` comes first where turns had to go.

        The turn is kept when the answer is done, and as far as it was said when it is interrupted, the iterator is
        closed or the program ends; where nothing was said, or an error is raised, the conversation stays as it was.
        Raises ContextOverflow when the question does not fit even alone, EngineError.
        """
        question = Message("user", text, images)
        kept = self._that_fit(question)
        dropped = (len(self._turns) - len(kept)) // 2
        request = GenerationRequest(
            (*self._head(), *kept, question),
            self.sampling,
            self.max_tokens,
            self.stop,
            self.think,
            self.grammar,
            revisable=True,
        )
        said: list[str] = []
        end: AnswerEnd | None = None
        events = self.engine.generate(request, cancelled)
        try:
            for event in events:
                if dropped:  # not before: the engine may refuse the question, and then nothing is forgotten
                    yield TurnsDropped(dropped)
                    dropped = 0
                if isinstance(event, AnswerText):
                    said.append(event.text)
                elif isinstance(event, AnswerEnd):
                    end = event
                    if end.text:
                        self._turns = [*kept, question, Message("assistant", end.text)]
                yield event
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            if end is None and said:
                self._turns = [*kept, question, Message("assistant", "".join(said))]
            raise

    def _that_fit(self, question: Message) -> list[Message]:
        """The turns that the next prompt can hold beside an answer: all, or the newest.

        Once some must go, so many go that half of the context is free: each loss makes the model read everything
        again, so it should be rare.
        """
        context = self.engine.context
        room = context - reserve(context, self.max_tokens)

        def tokens(turns: list[Message]) -> int:
            return self.engine.count_tokens((*self._head(), *turns, question), self.think)

        kept = list(self._turns)
        if tokens(kept) <= room:
            return kept
        target = min(room, context // 2)
        while kept and tokens(kept) > target:
            kept = kept[2:]
        return kept or self._last_that_fits(tokens, room)

    def _last_that_fits(self, tokens: Callable[[list[Message]], int], room: int) -> list[Message]:
        """The newest turn, where it alone is larger than half of the context and yet fits."""
        newest = self._turns[-2:]
        return newest if newest and tokens(newest) <= room else []
