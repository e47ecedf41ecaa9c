"""The chain of llama.cpp samplers that draws the next token: all of it in C, no logits in Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from localai.domain import Sampling
from localai.errors import EngineError

PENALTY_WINDOW = 64  # tokens looked back on, llama.cpp's own default (common_params_sampling.penalty_last_n)
FRESH_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: llama.cpp draws one


@contextmanager
def sampler_chain(
    api: Any, vocab: Any, sampling: Sampling, prompt: Sequence[int], grammar: str | None = None
) -> Iterator[Any]:
    """A chain in llama.cpp's own order (penalties, top-k, top-p, min-p, temperature, draw), freed at the end.

    The repeat penalty counts the prompt's last tokens too, as in llama.cpp's programs. With a grammar (GBNF) only
    tokens that continue a text of it can be drawn. Raises EngineError for a grammar that llama.cpp does not take.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        if sampling.repeat_penalty != 1.0:
            penalties = api.llama_sampler_init_penalties(
                api.llama_vocab_n_tokens(vocab), PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0
            )
            for token in prompt[-PENALTY_WINDOW:]:
                api.llama_sampler_accept(penalties, token)
            api.llama_sampler_chain_add(chain, penalties)
        if grammar is not None:
            api.llama_sampler_chain_add(chain, _constraint(api, vocab, grammar))
        for sampler in _samplers(api, sampling):
            api.llama_sampler_chain_add(chain, sampler)
        yield chain
    finally:
        api.llama_sampler_free(chain)


def _constraint(api: Any, vocab: Any, grammar: str) -> Any:
    constraint = api.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not constraint:
        raise EngineError("llama.cpp does not take the grammar of this JSON schema", "simplify the schema")
    return constraint


def _samplers(api: Any, sampling: Sampling) -> Iterator[Any]:
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
