"""A model in memory that answers conversations: llama.cpp's C API, one context, every token sampled in C."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

from localai.domain.engine import KvState
from localai.domain.generation import Event, GenerationRequest, Message, PromptProgress
from localai.domain.plan import Plan
from localai.engine.answer import Answer
from localai.engine.cache import Cancelled, SequenceCache
from localai.engine.drafting import Drafts, Lookup
from localai.engine.prompts import Prompt, Prompts
from localai.engine.rendering import Renderer
from localai.engine.sampling import NOTHING, Sampler
from localai.engine.speculation import Speculation
from localai.engine.transcript import Transcript
from localai.engine.weights import open_for_text


def load(
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    notice: Callable[[str], None] | None = None,
    projector: Path | None = None,
) -> LlamaEngine:
    """Load the model of `path` (the first shard of several) as `plan` says.

    `progress` is told the share that is read (0 to 1), `notice` a line the user should see when the model's chat
    template cannot be used; `projector` is the file for pictures, read when the first one comes. Raises EngineError
    for a missing, corrupt or unsupported file, DoesNotFit when memory is refused, KeyboardInterrupt when `cancelled`
    says so.
    """
    started = perf_counter()
    with ExitStack() as undo:
        api, model, renderer = open_for_text(undo, path, plan, progress, cancelled)
        cache = SequenceCache(api, model, plan)
        undo.callback(cache.close)
        engine = LlamaEngine(api, model, cache, renderer, plan.context, notice or (lambda text: None), plan, projector)
        undo.pop_all()
    engine.load_ms = (perf_counter() - started) * 1000
    return engine


class LlamaEngine:
    """A loaded model, made by `load`; implements `domain.engine.ChatEngine`."""

    load_ms: float = 0.0

    def __init__(
        self,
        api: Any,
        model: Any,
        cache: SequenceCache,
        renderer: Renderer,
        context: int,
        notice: Callable[[str], None],
        plan: Plan,
        projector: Path | None,
    ) -> None:
        self._api = api
        self._model = model
        self._cache = cache
        self._renderer = renderer
        self.context = min(context, cache.capacity)
        self._prompts = Prompts(api, model, renderer, notice)
        self._vocabulary = self._prompts.vocabulary
        self._asked: tuple[tuple[Message, ...], bool | None, Prompt] | None = None
        self._transcript = Transcript()
        self._plan = plan
        self._drafts: Drafts = Lookup()
        self._speculation = Speculation(cache, plan, self._drafts)
        self._projector_path = projector

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        """Tokens that the rendered conversation takes, the opening of the answer included."""
        return len(self.prompt_tokens(messages, think))

    def prompt_tokens(self, messages: Sequence[Message], think: bool | None = None) -> Sequence[int]:
        """The tokens of the rendered conversation, the opening of the answer included."""
        return self._prompt(tuple(messages), think).tokens

    def forget(self) -> None:
        """Empty the KV cache: the next prompt is evaluated whole."""
        self._cache.clear()

    def keep_only(self, messages: Sequence[Message], think: bool | None = None) -> None:
        """Let go of what is held of other conversations than this one, and of its turns that were taken back."""
        self._transcript.cut(self._prompt(tuple(messages), think).text)
        self._cache.keep_prefix([*self._transcript.tokens, 0])  # a prompt's last token is never kept

    def state(self, affordable: Callable[[int], bool]) -> KvState | None:
        """A copy of what is held of the last conversation; None for nothing, or where its bytes aren't `affordable`."""
        data = self._cache.copy_out(affordable)
        if data is None:
            return None
        transcript, held = self._transcript, self._cache.tokens
        if held != transcript.tokens[: len(held)]:  # a prompt was broken off since
            transcript = Transcript(tokens=held)
        return KvState(transcript.text, tuple(transcript.tokens), tuple(transcript.borders), len(held), data)

    def resume(self, state: KvState) -> bool:
        """Take up a conversation where it was; False, and nothing held, where that cannot be done."""
        self._asked = None
        if not self._cache.put_back(state.tokens[: state.held], state.data):
            return False
        self._transcript = Transcript(state.text, state.tokens, state.borders)
        return True

    def _prompt(self, messages: tuple[Message, ...], think: bool | None) -> Prompt:
        self._check_open()
        if self._asked is not None and self._asked[:2] == (messages, think):
            return self._asked[2]
        if any(message.images for message in messages):
            self._open_projector()
        prompt = self._prompts.prompt(messages, think, self._transcript.beginning)
        self._asked = (messages, think, prompt)
        return prompt

    def draft_with(self, path: Path, plan: Plan, cost: float, cancelled: Callable[[], bool] | None = None) -> bool:
        """Have the small model of `path` guess from now on; one of its evaluations takes `cost` of this model's.

        False, and all as before, where that is too much for guesses to pay. Raises UsageError for a model that cannot
        draft for this one, EngineError, DoesNotFit, KeyboardInterrupt.
        """
        from localai.engine import draft_model

        drafts = draft_model.load(path, plan, self._model, cost, cancelled)
        speculation = Speculation(self._cache, self._plan, drafts)
        if not speculation.pays():
            drafts.close()
            return False
        self._drafts.close()
        self._drafts, self._speculation = drafts, speculation
        return True

    @property
    def sees(self) -> bool:
        """Whether messages may have images."""
        return self._projector_path is not None

    def _open_projector(self) -> None:
        """Read the projector, where there is one and it is not read yet."""
        if self._projector_path is None or self._prompts.projector is not None:
            return
        from localai.engine.vision import Projector

        projector = Projector(self._api, self._model, self._projector_path, self._plan)
        self._prompts.projector = projector
        self._cache.see_with(projector)

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        """Yield events, the last an `AnswerEnd`; `cancelled` is asked at every token and inside the prompt.

        Closing the iterator early is safe. Raises ContextOverflow before anything is evaluated, EngineError if
        llama.cpp fails.
        """
        try:
            yield from self._answered(request, cancelled)
        finally:
            self._prompts.next_request()

    def _answered(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        self._check_open()
        started = perf_counter()
        self._prompts.refuse_far_too_long(request, self.context, cancelled)
        prompt = self._prompt(request.messages, request.think)
        self._prompts.refuse_too_long(prompt, self.context, request)
        total = len(prompt.tokens)
        kept = self._cache.keep_prefix(prompt.tokens)
        answer = Answer(self._vocabulary, prompt, request, self.load_ms, kept, started)
        yield PromptProgress(kept, total)
        try:
            for part in self._parts(request, prompt, kept):
                before = len(self._cache.tokens)
                for done in self._cache.evaluate(part, cancelled):
                    yield PromptProgress(before + done, total)
                    self._check_open()
        except Cancelled:
            answer.finish_reason = "interrupted"
        else:
            answer.prompt_done()
            try:
                yield from self._decode(request, prompt, answer, cancelled)
            except Cancelled:
                answer.finish_reason = "interrupted"
            finally:
                self._settle()
                answer.guessed = self._speculation.guessed
                self._transcript.say(prompt.text, prompt.tokens, answer.raw, answer.tokens)
        yield from answer.finish()

    def _parts(self, request: GenerationRequest, prompt: Prompt, kept: int) -> Iterator[list[int]]:
        """What is to be evaluated of the prompt: in one part, or with marks at the turn's borders between them."""
        rest = prompt.tokens[kept:]
        if request.revisable and self._cache.needs_marks:
            self._cache.mark()  # the end of the last answer, or what is left of it
            border = len(prompt.tokens) - self._prompts.opening_length(request.messages, request.think, prompt)
            if kept < border < len(prompt.tokens):
                yield prompt.tokens[kept:border]
                self._cache.mark()
                rest = prompt.tokens[border:]
        yield rest

    def _decode(
        self, request: GenerationRequest, prompt: Prompt, answer: Answer, cancelled: Callable[[], bool]
    ) -> Iterator[Event]:
        cache, vocabulary, row = self._cache, self._vocabulary, -1
        room = self.context - len(prompt.tokens)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        grammar = request.grammar and self._prompts.held(request.grammar, prompt.text, request.think)
        self._speculation.begin(prompt.tokens, cancelled)
        with Sampler(self._api, vocabulary.pointer, request.sampling, prompt.tokens, grammar) as sampler:
            while len(answer.tokens) < limit:
                if cancelled():
                    answer.finish_reason = "interrupted"
                    return
                token = sampler.draw(cache.pointer, row)
                answer.sampled()
                if token == NOTHING or vocabulary.is_end(token):
                    answer.finish_reason = "stop"
                    return
                yield from answer.add(token)
                if answer.finish_reason:
                    return
                if len(answer.tokens) < limit:
                    row = self._speculation.add(token, limit - len(answer.tokens))
        answer.finish_reason = "length"

    def _settle(self) -> None:
        if self._model is not None:  # else it was closed while an answer was under way
            self._speculation.settle()

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the engine is closed")

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        self._renderer.close()
        self._cache.close()
        self._drafts.close()
        if self._prompts.projector is not None:
            self._prompts.projector.close()
        model, self._model = self._model, None
        if model is not None:
            self._api.llama_model_free(model)
