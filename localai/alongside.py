"""What goes on beside a download, each in a thread of its own: its hash, and the disk's work."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from localai.domain.units import MIB

CHUNK_BYTES = MIB
_SYNC_SECONDS = 1.0
_BUFFERS = 16  # of CHUNK_BYTES each, between the network and the hash: this bounds the memory


class Digest:
    """SHA-256 in a thread of its own, so that hashing and receiving overlap (hashlib releases the GIL).

    Buffers are lent, filled from their start, and given back by the hash: no byte is copied, and no memory is asked
    for again and again, which costs the kernel as much as the copy.
    """

    def __init__(self) -> None:
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._made = 0
        self._todo: queue.SimpleQueue[tuple[memoryview, int] | None] = queue.SimpleQueue()
        self._sha256 = hashlib.sha256()
        self._buffer, self._filled = self._lent(), 0
        self._thread = threading.Thread(target=self._work, name="localai-sha256", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            buffer, count = item
            self._sha256.update(buffer[:count])
            self._free.put(buffer)

    def _lent(self) -> memoryview:
        if self._free.empty() and self._made < _BUFFERS:
            self._made += 1
            return memoryview(bytearray(CHUNK_BYTES))
        return self._free.get()

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty. Waits for the hash where it is behind."""
        if self._filled == CHUNK_BYTES:
            self._todo.put((self._buffer, self._filled))
            self._buffer, self._filled = self._lent(), 0
        return self._buffer[self._filled :]

    def filled(self, count: int) -> None:
        """The first `count` bytes of `space` are the next ones."""
        self._filled += count

    def finish(self) -> str:
        """Wait for the rest and return the hexadecimal digest; nothing may come after. Idempotent."""
        if self._thread.is_alive():
            self._todo.put((self._buffer, self._filled))
            self._todo.put(None)
            self._thread.join()
        return self._sha256.hexdigest()


class Disk:
    """Has the disk write while bytes come, in a thread of its own, so that the last sync finds little left to do.

    Each piece is handed to the disk without waiting for it; every `sync_bytes`, on a fast line every second, all of it
    is made durable and `note` told so.
    `failure` is what a sync ended with: the system tells of it once, and later syncs say that all is well.
    """

    def __init__(self, descriptor: int, position: int, sync_bytes: int, note: Callable[[int], None]) -> None:
        self._descriptor, self._position = descriptor, position
        self._sync_bytes, self._note = sync_bytes, note
        self._todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ending = self._closed = False
        self.failure: OSError | None = None
        self._thread = threading.Thread(target=self._work, name="localai-disk", daemon=True)
        self._thread.start()

    def hand_over(self, position: int, ending: bool = False) -> None:
        """Everything up to `position` is written to the file; `ending`: what makes it durable comes elsewhere, soon."""
        self._ending = ending
        self._todo.put(position)

    def close(self) -> None:
        """Stop, whatever is still to be handed over: who wants that durable syncs it, and who gave up need not wait."""
        self._ending = self._closed = True
        self._todo.put(None)
        self._thread.join()

    def _work(self) -> None:
        synced, at = self._position, -math.inf
        while (position := self._todo.get()) is not None and not self._closed:
            _begin_writing(self._descriptor, self._position, position - self._position)
            self._position = position
            is_due = position - synced >= self._sync_bytes and time.monotonic() - at >= _SYNC_SECONDS
            if is_due and not self._ending and self.failure is None:
                synced, at = position, time.monotonic()
                try:
                    os.fsync(self._descriptor)
                except OSError as error:
                    self.failure = error
                    continue
                with suppress(OSError):  # it would only have spared bytes after a power loss
                    self._note(position)


def _begin_writing(descriptor: int, start: int, count: int) -> None:
    """Have the disk begin to write that part of a file; nothing where the system has no such call."""
    if (call := _sync_file_range()) is not None:
        call(descriptor, start, count, 2)  # SYNC_FILE_RANGE_WRITE: begin, and do not wait


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """Linux's sync_file_range(2), which Python does not have."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    try:
        call = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call
