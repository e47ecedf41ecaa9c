"""The chain of llama.cpp samplers that draws the next token: all of it in C, no logits in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from localai.domain.generation import Sampling
from localai.engine.constraint import Constraint

FRESH_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws one
NOTHING = -1  # drawn where a grammar leaves no token at all


class Sampler:
    """Draws the tokens of one answer, in llama.cpp's own order: penalties, bias, top-k, top-p, min-p, temperature.

    The penalties count the prompt's last tokens too, as in llama.cpp's programs. With a grammar (GBNF) only
    tokens that continue a text of it are drawn, from the token `trigger` on where there is one. Use it in a `with`.
    Raises EngineError for a grammar that llama.cpp does not take.
    """

    def __init__(
        self,
        api: Any,
        vocab: Any,
        sampling: Sampling,
        prompt: Sequence[int],
        grammar: str | None = None,
        trigger: int | None = None,
    ) -> None:
        self._api = api
        self._vocab_size = int(api.llama_vocab_n_tokens(vocab))
        self._sample = api.llama_sampler_sample
        self._constraint: Constraint | None = None
        self.chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        try:
            penalties = _penalties(api, vocab, sampling, prompt)
            if grammar is not None:
                self._constraint = Constraint(api, vocab, grammar, penalties, trigger)
                api.llama_sampler_chain_add(self.chain, self._constraint.step)
            elif penalties is not None:
                api.llama_sampler_chain_add(self.chain, penalties)
            for sampler in _samplers(api, vocab, sampling):
                api.llama_sampler_chain_add(self.chain, sampler)
        except BaseException:
            self.close()
            raise

    def draw(self, context: Any, row: int) -> int:
        """The next token, by the logits of `row` of the last batch (-1: the last); NOTHING where none may follow."""
        if self._constraint is None:
            return int(self._sample(self.chain, context, row))
        return self._constraint.draw(lambda: int(self._sample(self.chain, context, row)))

    def logprob(self, context: Any, row: int, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """The logarithm of the probability of `token` before any of this sampling, and those of the `top` likeliest."""
        import ctypes

        import numpy

        size = self._vocab_size
        pointer = ctypes.cast(self._api.llama_get_logits_ith(context, row), ctypes.POINTER(ctypes.c_float * size))
        logits = numpy.ctypeslib.as_array(pointer.contents).astype(numpy.float64)
        logits -= logits.max()
        logits -= numpy.log(numpy.exp(logits).sum())
        best: Any = numpy.argpartition(logits, -top)[-top:] if top else ()
        ranked = sorted(((int(each), float(logits[each])) for each in best), key=lambda pair: -pair[1])
        return float(logits[token]), ranked

    def close(self) -> None:
        """Free it. Idempotent."""
        chain, self.chain = self.chain, None
        if chain is not None:
            self._api.llama_sampler_free(chain)
        if self._constraint is not None:
            self._constraint.close()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _penalties(api: Any, vocab: Any, sampling: Sampling, prompt: Sequence[int]) -> Any:
    window, presence, frequency = sampling.penalty_window, sampling.presence_penalty, sampling.frequency_penalty
    if window <= 0 or (sampling.repeat_penalty == 1.0 and not presence and not frequency):
        return None
    size = api.llama_vocab_n_tokens(vocab)
    penalties = api.llama_sampler_init_penalties(size, window, sampling.repeat_penalty, frequency, presence)
    for token in prompt[-window:]:
        if token >= 0:  # no part of a picture
            api.llama_sampler_accept(penalties, token)
    return penalties


def _samplers(api: Any, vocab: Any, sampling: Sampling) -> Iterator[Any]:
    if biases := [pair for pair in sampling.logit_bias if 0 <= pair[0] < api.llama_vocab_n_tokens(vocab)]:
        array = (api.llama_logit_bias * len(biases))(*(api.llama_logit_bias(token, bias) for token, bias in biases))
        yield api.llama_sampler_init_logit_bias(api.llama_vocab_n_tokens(vocab), len(biases), array)
    if sampling.temperature <= 0:
        yield api.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0:
        yield api.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1.0:
        yield api.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0.0:
        yield api.llama_sampler_init_min_p(sampling.min_p, 1)
    yield api.llama_sampler_init_temp(sampling.temperature)
    yield api.llama_sampler_init_dist(FRESH_SEED if sampling.seed is None else sampling.seed & 0xFFFFFFFF)
