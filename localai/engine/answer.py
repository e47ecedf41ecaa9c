"""One answer as it grows: from tokens to events, with what is to be reported at its end."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from localai.domain.generation import (
    AnswerEnd,
    AnswerText,
    Event,
    GenerationRequest,
    ThinkingText,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from localai.engine import thinking
from localai.engine.prompts import Prompt
from localai.engine.text import StopMatcher, Utf8Stream
from localai.engine.tools import Form, ToolSplitter
from localai.engine.vocabulary import Vocabulary


class Answer:
    """Collects an answer's tokens; `finish_reason` is "" until it is known."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Prompt,
        request: GenerationRequest,
        load_ms: float,
        cached_tokens: int,
        started: float,
        tool_form: Form | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._utf8 = Utf8Stream()
        self._splitter = thinking.PlainSplitter() if prompt.plain else thinking.splitter(prompt.text)
        self._tools = (
            ToolSplitter(tool_form, request.tools)
            if tool_form is not None and request.tools and request.tool_choice != "none"
            else None
        )
        self._one_call = request.one_call
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._stop = StopMatcher((*request.stop, *prompt.stops))
        self._strip = vocabulary.leading_space
        self._prompt_tokens = len(prompt.tokens)
        self._cached_tokens = cached_tokens
        self._load_ms = load_ms
        self._started = started
        self._prompt_started = perf_counter()
        self._prompt_ended: float | None = None
        self._first_sample: float | None = None
        self._last_sample = 0.0
        self._samples = 0
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._raw: list[str] = []
        self.tokens: list[int] = []
        self.finish_reason = ""
        self.guessed = 0  # tokens that were guessed right

    @property
    def raw(self) -> str:
        """Everything the model has written, thoughts and stop strings included."""
        return "".join(self._raw)

    def prompt_done(self) -> None:
        self._prompt_ended = perf_counter()

    def sampled(self) -> None:
        self._last_sample = perf_counter()
        self._samples += 1
        if self._first_sample is None:
            self._first_sample = self._last_sample

    def measured(self, logprob: TokenLogprob) -> None:
        """Tell the token that is added next with its probability."""
        self._logprobs.append(logprob)

    def _measures(self) -> tuple[TokenLogprob, ...]:
        found, self._logprobs = tuple(self._logprobs), []
        return found

    def add(self, token: int) -> Iterator[Event]:
        piece = self._vocabulary.piece(token)
        if self._strip:
            self._strip, piece = False, piece.removeprefix(b" ")
        self.tokens.append(token)
        text = self._utf8.feed(piece)
        if text:
            yield from self._split(text)

    def _split(self, text: str) -> Iterator[Event]:
        self._raw.append(text)
        yield from self._give(self._splitter.feed(text))

    def _give(self, pieces: list[thinking.Piece]) -> Iterator[Event]:
        for piece in pieces:
            if isinstance(piece, ThinkingText):
                self._thinking.append(piece.text)
                self._logprobs.clear()
                yield piece
            elif self._tools is None:
                yield from self._say(piece.text)
            else:
                yield from self._sort(self._tools.feed(piece.text))
        if self._stop.stopped:
            self.finish_reason = "stop"

    def _sort(self, pieces: list[str | ToolCall]) -> Iterator[Event]:
        for piece in pieces:
            if isinstance(piece, ToolCall):
                if self._one_call and self._calls:
                    continue
                self._calls.append(piece)
                self._logprobs.clear()
                yield piece
            else:
                yield from self._say(piece)

    def _say(self, piece: str) -> Iterator[Event]:
        if text := self._stop.feed(piece):
            self._text.append(text)
            yield AnswerText(text, self._measures())

    def finish(self) -> Iterator[Event]:
        """What was held back, then the end."""
        if not self._stop.stopped:
            # where the answer is cut off, so may be its last character: half a character is nothing anybody wrote
            if (rest := self._utf8.finish()) and self.finish_reason == "stop":
                yield from self._split(rest)
            yield from self._give(self._splitter.finish())
            if self._tools is not None:
                yield from self._sort(self._tools.finish())
            if not self._stop.stopped and (rest := self._stop.finish()):
                self._text.append(rest)
                yield AnswerText(rest, self._measures())
        yield AnswerEnd(
            text="".join(self._text),
            thinking="".join(self._thinking),
            usage=Usage(self._prompt_tokens, self._cached_tokens, len(self.tokens), self.guessed),
            timings=self._timings(),
            finish_reason=self.finish_reason,
            tool_calls=tuple(self._calls),
        )

    def _timings(self) -> Timings:
        prompt_s = (self._prompt_ended or perf_counter()) - self._prompt_started
        evaluated = self._prompt_tokens - self._cached_tokens
        first = self._first_sample
        decode_s = self._last_sample - first if first is not None else 0.0
        return Timings(
            load_ms=self._load_ms,
            prompt_ms=prompt_s * 1000,
            first_token_ms=None if first is None else (first - self._started) * 1000,
            prompt_tps=evaluated / prompt_s if self._prompt_ended is not None and evaluated > 1 else None,
            decode_tps=(self._samples - 1) / decode_s if self._samples > 1 and decode_s > 0 else None,
        )
