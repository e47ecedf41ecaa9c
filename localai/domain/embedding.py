"""Vectors of texts, and how a model makes them."""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING_STEP = 512  # tokens of a batch: more at a time is no faster on a CPU, and each takes a row of logits


@dataclass(frozen=True, slots=True)
class Pooling:
    """How a model makes one vector of a text's tokens: `name` is mean, cls, last or rank (a reranker's: no vector).

    `causal`: each token sees those before it. `declared` False: the header names no pooling, as those of models that
    chat don't; the mean is taken then.
    """

    name: str
    causal: bool
    declared: bool

    @property
    def in_pieces(self) -> bool:
        """Whether a text may be longer than a batch: not where all of it must be seen, or pooled, at once."""
        return self.causal and (self.name == "last" or not self.declared)

    def batch(self, context: int) -> int:
        """The tokens that are evaluated at a time for texts of up to `context` tokens."""
        return EMBEDDING_STEP if self.in_pieces else max(EMBEDDING_STEP, context)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of a text, and how many tokens the text takes."""

    vector: list[float]
    tokens: int
