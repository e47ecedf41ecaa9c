"""A scripted model: answers what it is told to, a token a word, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from localai.domain import (
    AnswerEnd,
    AnswerText,
    ChatEngine,
    Event,
    GenerationRequest,
    Message,
    PromptProgress,
    Timings,
    Usage,
)
from localai.errors import ContextOverflow, LocalaiError


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
