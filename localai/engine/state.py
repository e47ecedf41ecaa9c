"""What a context holds of its one sequence, as bytes that another process may put back instead of reading it again."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_SEQUENCE = 0


def copy_out(api: Any, context: Any, affordable: Callable[[int], bool]) -> memoryview | None:
    """The state of the sequence; None where its size is not `affordable`, or llama.cpp cannot."""
    size = api.llama_state_seq_get_size_ext(context, _SEQUENCE, 0)
    if not size or not affordable(size):
        return None
    data = memoryview(bytearray(size))
    written = api.llama_state_seq_get_data_ext(context, _array(data), size, _SEQUENCE, 0)
    return data if written == size else None


def put_back(api: Any, context: Any, data: memoryview) -> bool:
    """Replace the sequence by a state that is known to be this model's and this engine's, in writable memory.

    llama.cpp believes what it reads: never call this with bytes whose origin has not been verified. Afterwards the
    sequence is as saved, or (False) to be cleared.
    """
    read = api.llama_state_seq_set_data_ext(context, _array(data), data.nbytes, _SEQUENCE, 0)
    return bool(read == data.nbytes)


def _array(data: memoryview) -> Any:
    return (ctypes.c_uint8 * data.nbytes).from_buffer(data)
