"""What goes on beside a download, in threads of its own."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from localai import alongside


def test_a_failed_sync_is_the_last_and_what_an_earlier_one_made_durable_stays_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced, notes = [], []
    begun: dict[int, threading.Event] = {position: threading.Event() for position in (1, 2, 3, 4)}

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(alongside, "_SYNC_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(alongside, "_begin_writing", lambda _, start, count: begun[start + count].set())
    disk = alongside.Disk(7, 0, 1, notes.append)
    for position in begun:
        disk.hand_over(position)
    assert begun[4].wait(20)  # which comes after the third one's sync, if there is any
    disk.close()
    assert (synced, notes) == ([7, 7], [1])
    assert disk.failure is not None
    assert disk.failure.errno == errno.ENOSPC
