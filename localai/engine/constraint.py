"""Holds an answer to a grammar without ever letting llama.cpp meet a token that the grammar has no place for.

A grammar inside an ordinary chain has two faults. It is applied to every token of the vocabulary each time, which
takes longer than a small model's whole evaluation. And where it leaves no token at all (the vocabulary cannot spell
what must come), llama.cpp throws through C and the process aborts. So the grammar stands beside the chain: a token is
drawn freely and kept if the grammar takes it; only else is it drawn again from those that the grammar leaves, as
llama.cpp's own programs do. Without truncation (top-k, top-p, min-p) the two are the same distribution.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from localai.errors import EngineError

_MINUS_INFINITY = float("-inf")
_SPARE = 32  # callbacks that a newer llama_sampler_i may have more than this file knows; null means: not there


class _Interface(ctypes.Structure):
    """llama_sampler_i of llama.h, of which only `apply` is wanted."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("accept", ctypes.c_void_p),
        ("apply", ctypes.c_void_p),
        ("others", ctypes.c_void_p * _SPARE),
    )


class Constraint:
    """A grammar, with the repeat penalty that goes before it; `step` is its place in the chain, which owns it.

    With a `trigger` the grammar holds from that token on, itself included, and everything goes before it.
    """

    def __init__(self, api: Any, vocab: Any, grammar: str, penalties: Any, trigger: int | None) -> None:
        self._api = api
        self._penalties = penalties
        self._grammar = self._find = None
        self._narrow = self._stuck = False
        self._failed: BaseException | None = None
        self._one = (api.llama_token_data * 1)()
        self._array = api.llama_token_data_array(self._one, 1, -1, False)
        self._apply = api.llama_sampler_i_apply(self._on_apply)
        self._interface = _Interface(apply=ctypes.cast(self._apply, ctypes.c_void_p))
        if trigger is None:
            self._grammar = api.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
        else:  # by token, never by pattern: llama.cpp's regular expressions recurse once a character
            self._grammar = api.llama_sampler_init_grammar_lazy_patterns(
                vocab, grammar.encode(), b"root", (ctypes.c_char_p * 1)(), 0, (ctypes.c_int32 * 1)(trigger), 1
            )
        if not self._grammar:
            self.close()
            raise EngineError("llama.cpp does not take the grammar of this JSON schema", "simplify the schema")
        self._find = api.llama_sampler_init_greedy()
        interface = ctypes.cast(ctypes.byref(self._interface), ctypes.POINTER(api.llama_sampler_i))
        self.step = api.llama_sampler_init(interface, None)

    def draw(self, sample: Callable[[], int]) -> int:
        """A token that `sample` draws and the grammar takes, -1 where there is none."""
        self._narrow = self._stuck = False
        token = self._checked(sample)
        if not self._takes(token):
            self._narrow = True
            token = self._checked(sample)
            if self._stuck:
                return -1
        self._api.llama_sampler_accept(self._grammar, token)
        if self._penalties is not None:
            self._api.llama_sampler_accept(self._penalties, token)
        return token

    def _checked(self, sample: Callable[[], int]) -> int:
        token = sample()
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        return token

    def _takes(self, token: int) -> bool:
        self._one[0].id, self._one[0].logit = token, 1.0
        self._array.size = 1
        self._api.llama_sampler_apply(self._grammar, ctypes.byref(self._array))
        return bool(self._one[0].logit != _MINUS_INFINITY)

    def _on_apply(self, _: object, candidates: Any) -> None:
        try:
            if self._penalties is not None:
                self._api.llama_sampler_apply(self._penalties, candidates)
            if self._narrow:
                self._narrow_down(candidates)
        except BaseException as error:  # noqa: BLE001 - an exception cannot pass through C; it is raised again behind it
            self._failed = error

    def _narrow_down(self, candidates: Any) -> None:
        self._api.llama_sampler_apply(self._grammar, candidates)
        self._api.llama_sampler_apply(self._find, candidates)  # greedy: selects the likeliest
        array = candidates.contents
        self._stuck = array.data[array.selected].logit == _MINUS_INFINITY
        if self._stuck:  # leave the rest of the chain one sound candidate: what it draws is thrown away
            array.data[0].logit, array.size = 0.0, 1
        array.selected = -1

    def close(self) -> None:
        """Free all but `step`. Idempotent."""
        for name in ("_grammar", "_find", "_penalties"):
            sampler = getattr(self, name)
            setattr(self, name, None)
            if sampler is not None and sampler:
                self._api.llama_sampler_free(sampler)
