"""A small model of the same vocabulary that guesses what the large one will write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from localai.domain.plan import Plan
from localai.engine import library
from localai.engine.cache import SequenceCache
from localai.engine.drafting import Drafts
from localai.engine.weights import check_magic, load_model
from localai.errors import UsageError


class DraftModel(Drafts):
    """Guesses greedily, with a cache of its own that follows what the large model has said."""

    prior = 2.85, 3.0  # 19 of 20

    def __init__(self, api: Any, model: Any, cache: SequenceCache, cost: float) -> None:
        self._api, self._model, self._cache, self.cost = api, model, cache, cost
        self._likeliest = api.llama_sampler_init_greedy()
        self._said: list[int] = []
        self._cancelled: Callable[[], bool] = lambda: False

    def begin(self, prompt: Sequence[int], cancelled: Callable[[], bool]) -> None:
        self._said, self._cancelled = list(prompt), cancelled
        self._follow()

    def say(self, token: int) -> None:
        self._said.append(token)

    def expected(self) -> None:
        return None

    def guess(self, most: int) -> list[int]:
        if not self._follow():
            return []
        guesses: list[int] = []
        while True:
            guesses.append(int(self._api.llama_sampler_sample(self._likeliest, self._cache.pointer, -1)))
            if len(guesses) == most or len(self._cache.tokens) >= self._cache.capacity:
                return guesses
            self._cache.decode(guesses[-1])

    def _follow(self) -> bool:
        """Read what was said since; False where that cannot be held, or is a picture, which this model cannot see."""
        said = self._said
        if len(said) >= self._cache.capacity or min(said, default=-1) < 0:
            return False
        kept = self._cache.keep_prefix(said)
        for _ in self._cache.evaluate(said[kept:], self._cancelled):
            pass
        return True

    def close(self) -> None:
        """Free the model's memory. Idempotent."""
        self._cache.close()
        model, self._model = self._model, None
        if model is not None:
            self._api.llama_sampler_free(self._likeliest)
            self._api.llama_model_free(model)


def load(path: Path, plan: Plan, target: Any, cost: float, cancelled: Callable[[], bool] | None = None) -> DraftModel:
    """Load a model to guess for `target`, llama.cpp's loaded model; `cost` is one evaluation of it in those of that.

    Raises UsageError where the two have different vocabularies or this one cannot take guesses back, EngineError,
    DoesNotFit, KeyboardInterrupt.
    """
    api = library.api()
    check_magic(path)
    model = load_model(api, path, plan, None, cancelled)
    cache = None
    try:
        if difference := _difference(api, target, model):
            raise UsageError(
                f"{path.name} cannot draft for this model: {difference}",
                "take a smaller model of the same family for --draft, or leave it out",
            )
        cache = SequenceCache(api, model, plan)
        return DraftModel(api, model, cache, cost)
    except BaseException:
        if cache is not None:
            cache.close()
        api.llama_model_free(model)
        raise


def _difference(api: Any, target: Any, model: Any) -> str:
    if api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model):
        return "it is recurrent, and cannot take a guess back"
    if api.llama_model_is_recurrent(target) or api.llama_model_is_hybrid(target):
        return "the model itself is recurrent, and cannot take a guess back"
    ours, theirs = api.llama_model_get_vocab(target), api.llama_model_get_vocab(model)
    size = api.llama_vocab_n_tokens(ours)
    facts = (api.llama_vocab_type, api.llama_vocab_n_tokens, api.llama_vocab_bos, api.llama_vocab_eos)
    text = api.llama_vocab_get_text
    if any(fact(ours) != fact(theirs) for fact in facts) or any(
        text(ours, token) != text(theirs, token) for token in range(size)
    ):
        return "its vocabulary is another"
    return ""
