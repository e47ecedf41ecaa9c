"""A conversation as it is kept while it goes on: each turn once it is said, and again with the next one where the disk
refused it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from localai import sessions
from localai.errors import LocalaiError


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn to be written, in place of the last one with the question that it `replaces`."""

    model: str
    system: str | None
    question: str
    answer: str
    replaces: str | None


class KeptTurns:
    """The turns of one conversation on this disk; none of them where it is `private`.

    `session` is the kept conversation, None while there is none. What is written and what waits to be are together
    what was said.
    """

    def __init__(self, private: bool, session: int | None = None) -> None:
        self.session = None if private else session
        self._private = private
        self._waiting: list[_Turn] = []

    def ask(self, model: str, system: str | None, question: str) -> None:
        """Keep a question before it is answered. A disk that refuses is told of with the answer."""
        if not self._private:
            with contextlib.suppress(LocalaiError):
                self.session = sessions.ask(self.session, model, system, question)

    def unask(self) -> None:
        """There is no answer to it."""
        if self.session is not None:
            with contextlib.suppress(LocalaiError):
                if not sessions.unask(self.session):
                    self.session = None

    def add(self, model: str, system: str | None, question: str, answer: str, replaces: str | None = None) -> None:
        """Keep a turn, in place of the last one where it `replaces` that one's question. Raises LocalaiError; it is
        then tried again with the next.
        """
        if self._private:
            return
        turn = _Turn(model, system, question, answer, replaces)
        if replaces is not None and self._waiting:
            turn = replace(turn, replaces=self._waiting.pop().replaces)
        self._waiting.append(turn)
        while self._waiting:
            turn = self._waiting[0]
            self.session = sessions.keep(
                self.session, turn.model, turn.system, turn.question, turn.answer, instead_of=turn.replaces
            )
            del self._waiting[0]

    def take_back(self, question: str) -> None:
        """Forget the last turn, which has this question. Raises LocalaiError where it stays."""
        written = self._waiting[-1].replaces if self._waiting else question
        if self.session is not None and written is not None and not sessions.take_back(self.session, written):
            self.session = None
        del self._waiting[-1:]
