"""Waiting for what another process does."""

from __future__ import annotations

import threading
from collections.abc import Callable


def wait_for(condition: Callable[[], bool]) -> None:
    """Until what another process writes is there: the file system has no event to wait on."""
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it never came")
