"""Copies of what a cache cannot go back to by itself: sliding windows and recurrent states, at the borders of turns.

A plain KV cache goes back by letting go of its last cells. A window has overwritten what an earlier token must see,
and a recurrent state holds the present alone: for these models the part that changes is copied where a conversation
may be taken up again (`/undo`, `/retry`, another question), and put back when it is.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from localai.domain.units import MIB

LIMIT_BYTES = 256 * MIB  # a few turns of a 4B model with a window of 1,024, many of smaller ones
MOST = 32
_PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: not the cells of layers that see everything
_SEQUENCE = 0


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """The state after so many tokens."""

    length: int
    data: ctypes.Array[ctypes.c_uint8]


class Checkpoints:
    """The checkpoints of one sequence, the newest of LIMIT_BYTES at most; none where the model needs none."""

    def __init__(self, api: Any, model: Any, context: Any) -> None:
        self._api, self._context = api, context
        recurrent = bool(api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
        self.needed = recurrent or api.llama_model_n_swa(model) > 0
        self._kept: list[_Checkpoint] = []  # by length, ascending

    def take(self, length: int) -> None:
        """Remember the present state, that after `length` tokens."""
        if not self.needed or not length or any(each.length == length for each in self._kept):
            return
        size = self._api.llama_state_seq_get_size_ext(self._context, _SEQUENCE, _PARTIAL)
        if not 0 < size <= LIMIT_BYTES:
            return
        while self._kept and (len(self._kept) >= MOST or size + self._bytes() > LIMIT_BYTES):
            del self._kept[0]
        data = (ctypes.c_uint8 * size)()
        if self._api.llama_state_seq_get_data_ext(self._context, data, size, _SEQUENCE, _PARTIAL) == size:
            self._kept.append(_Checkpoint(length, data))

    def restore(self, length: int) -> int:
        """Put back the newest state of at most `length` tokens; returns after how many it was, 0 for none.

        The cells of the layers that see everything are left for the caller to let go of.
        """
        self.forget_beyond(length)
        while self._kept:
            newest = self._kept[-1]
            size = len(newest.data)
            if self._api.llama_state_seq_set_data_ext(self._context, newest.data, size, _SEQUENCE, _PARTIAL) == size:
                return newest.length
            del self._kept[-1]
        return 0

    def forget_beyond(self, length: int) -> None:
        """Let go of the states of more than `length` tokens: the tokens there are others now."""
        while self._kept and self._kept[-1].length > length:
            del self._kept[-1]

    def _bytes(self) -> int:
        return sum(len(each.data) for each in self._kept)
