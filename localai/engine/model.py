"""A model in memory that answers conversations: llama.cpp's C API, one context, every token sampled in C."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from localai.domain import Event, GenerationRequest, KvState, Message, Plan, PromptProgress
from localai.engine import library, thinking
from localai.engine.answer import Answer
from localai.engine.cache import Cancelled, SequenceCache
from localai.engine.prompts import Prompt, Prompts
from localai.engine.sampling import NOTHING, Sampler
from localai.engine.templates import Renderer
from localai.engine.told import Told
from localai.errors import DoesNotFit, EngineError

_MMAP, _NO_MMAP = 1, 0  # enum llama_load_mode


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
    check_magic(path)
    renderer = Renderer()  # starts while the model is read
    model = cache = None
    api = None
    try:
        api = library.api()
        model = load_model(api, path, plan, progress, cancelled)
        cache = SequenceCache(api, model, plan)
        engine = LlamaEngine(api, model, cache, renderer, plan.context, notice or (lambda text: None), plan, projector)
    except BaseException:
        renderer.close()
        if cache is not None:
            cache.close()
        if model is not None and api is not None:
            api.llama_model_free(model)
        raise
    engine.load_ms = (perf_counter() - started) * 1000
    return engine


def check_magic(path: Path) -> None:
    """Raise EngineError for a file that cannot be read or is no GGUF file at all."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise EngineError(
            f"cannot read {path}: {error.strerror}", "localai list shows the models on this disk"
        ) from error
    if magic != b"GGUF":
        raise EngineError(f"{path.name} is not a GGUF model file", "localai pull MODEL fetches one")


def load_model(
    api: Any,
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Any:
    """llama.cpp's model of `path`, which the caller frees. Raises as `load` does; so for one without a vocabulary."""
    model = read_model(api, path, plan, progress, cancelled)
    if api.llama_model_has_encoder(model) or not api.llama_vocab_type(api.llama_model_get_vocab(model)):
        api.llama_model_free(model)
        raise EngineError(
            f"{path.name} is not a model that chats or makes embeddings", "localai recommend names some that do"
        )
    return model


def read_model(
    api: Any,
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Any:
    """llama.cpp's model of `path` whatever kind it is, which the caller frees. Raises as `load` does."""
    raised: list[BaseException] = []

    def go_on(share: float, _: object) -> bool:
        try:
            if progress is not None:
                progress(share)
            return not (cancelled is not None and cancelled())
        except BaseException as error:  # noqa: BLE001 - an exception cannot pass through C; it is raised again behind it
            raised.append(error)
            return False

    callback = api.llama_progress_callback(go_on)
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = plan.gpu_layers
    kept = library.experts_on_cpu(plan.cpu_expert_layers)
    parameters.tensor_buft_overrides = ctypes.addressof(kept) if kept is not None else None
    parameters.load_mode = _MMAP if plan.use_mmap else _NO_MMAP
    parameters.use_extra_bufts = plan.repack
    parameters.progress_callback = callback
    library.forget_log()
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        if raised:
            raise raised[0]
        if cancelled is not None and cancelled():
            raise KeyboardInterrupt
        if library.out_of_memory():
            raise DoesNotFit(
                f"there is not enough memory for {path.name}: {library.reason()}",
                "take a smaller model or quantization: localai recommend",
            )
        raise EngineError(
            f"llama.cpp cannot load {path.name}: {library.reason() or 'it gives no reason'}",
            "localai verify tells whether it is damaged; a model newer than the engine needs a newer llama-cpp-python",
        )
    return model


class LlamaEngine:
    """A loaded model, made by `load`; implements `domain.ChatEngine`."""

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
        projector: Path | None = None,
    ) -> None:
        self._api = api
        self._model = model
        self._cache = cache
        self._renderer = renderer
        self.context = min(context, cache.capacity)
        self._prompts = Prompts(api, model, renderer, notice)
        self._vocabulary = self._prompts.vocabulary
        self._asked: tuple[tuple[Message, ...], bool | None, Prompt] | None = None
        self._told = Told()
        self._plan = plan
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

    def state(self, affordable: Callable[[int], bool]) -> KvState | None:
        """A copy of what is held of the last conversation; None for nothing, or where its bytes aren't `affordable`."""
        data = self._cache.copy_out(affordable)
        if data is None:
            return None
        told, held = self._told, self._cache.tokens
        if held != told.tokens[: len(held)]:  # a prompt was broken off since
            told = Told(tokens=held)
        return KvState(told.text, tuple(told.tokens), tuple(told.borders), len(held), data)

    def resume(self, state: KvState) -> bool:
        """Take up a conversation where it was; False, and nothing held, where that cannot be done."""
        self._asked = None
        if not self._cache.put_back(state.tokens[: state.held], state.data):
            return False
        self._told = Told(state.text, state.tokens, state.borders)
        return True

    def _prompt(self, messages: tuple[Message, ...], think: bool | None) -> Prompt:
        self._check_open()
        if self._asked is not None and self._asked[:2] == (messages, think):
            return self._asked[2]
        if any(message.images for message in messages):
            self._open_projector()
        prompt = self._prompts.prompt(messages, think, self._told.beginning)
        self._asked = (messages, think, prompt)
        return prompt

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
        started = perf_counter()
        self._prompts.refuse_far_too_long(request.messages, self.context, cancelled)
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
            finally:
                self._told.say(prompt.text, prompt.tokens, answer.raw, answer.tokens)
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
        cache, vocabulary = self._cache, self._vocabulary
        room = self.context - len(prompt.tokens)
        limit = room if request.max_tokens is None else min(room, request.max_tokens)
        grammar = request.grammar and thinking.after_thoughts(request.grammar, prompt.text)
        with Sampler(self._api, vocabulary.pointer, request.sampling, prompt.tokens, grammar) as sampler:
            while len(answer.tokens) < limit:
                if cancelled():
                    answer.finish_reason = "interrupted"
                    return
                token = sampler.draw(cache.pointer, -1)
                answer.sampled()
                if token == NOTHING or vocabulary.is_end(token):
                    answer.finish_reason = "stop"
                    return
                yield from answer.add(token)
                if answer.finish_reason:
                    return
                if len(answer.tokens) < limit:
                    cache.decode(token)
        answer.finish_reason = "length"

    def _check_open(self) -> None:
        if self._model is None:
            raise RuntimeError("the engine is closed")

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        self._renderer.close()
        self._cache.close()
        if self._prompts.projector is not None:
            self._prompts.projector.close()
        model, self._model = self._model, None
        if model is not None:
            self._api.llama_model_free(model)
