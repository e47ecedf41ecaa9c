"""The chain of llama.cpp samplers that draws the next token: all of it in C, no logits in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from localai.domain import Sampling

PENALTY_WINDOW = 64  # tokens looked back on, llama.cpp's own default (common_params_sampling.penalty_last_n)
FRESH_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws one


@contextmanager
def sampler_chain(api: Any, vocab: Any, sampling: Sampling, prompt: Sequence[int]) -> Iterator[Any]:
    """A chain in llama.cpp's own order (penalties, top-k, top-p, min-p, temperature, draw), freed at the end.

    The repeat penalty counts the prompt's last tokens too, as in llama.cpp's programs.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        for sampler in _samplers(api, vocab, sampling):
            api.llama_sampler_chain_add(chain, sampler)
        if sampling.repeat_penalty != 1.0:
            for token in prompt[-PENALTY_WINDOW:]:
                api.llama_sampler_accept(chain, token)
        yield chain
    finally:
        api.llama_sampler_free(chain)


def _samplers(api: Any, vocab: Any, sampling: Sampling) -> Iterator[Any]:
    if sampling.repeat_penalty != 1.0:
        yield api.llama_sampler_init_penalties(
            api.llama_vocab_n_tokens(vocab), PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0
        )
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
