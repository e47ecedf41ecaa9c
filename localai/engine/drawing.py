"""Drawing the next tokens of many answers at once, on several threads.

A sampler looks at the whole vocabulary: of 150,000 tokens for 0.15 ms, which is for 64 answers a twentieth of a step on
two cores. llama.cpp gives them no thread but the caller's, while its own stand still.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

WORTH_SHARING = 400_000  # logits; fewer are looked through before another thread has woken up


class Drawers:
    """`threads` that take a list of tasks together, the caller's among them. Not for several callers."""

    def __init__(self, threads: int) -> None:
        self._helpers = max(0, threads - 1)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = False

    def draw(self, tasks: Sequence[Callable[[], T]], logits: int) -> list[T | Exception]:
        """What each task returned or raised, in their order; `logits` is how many they look at together."""
        left = deque(enumerate(tasks))
        done = threading.Semaphore(0)
        found: dict[int, T | Exception] = {}

        def take() -> None:
            while left:
                try:
                    number, task = left.popleft()
                except IndexError:  # another thread has taken the last one
                    return
                try:
                    found[number] = task()
                except Exception as error:  # noqa: BLE001 - it is told to whoever asked
                    found[number] = error
                done.release()

        helpers = min(self._helpers, len(tasks) - 1) if logits >= WORTH_SHARING else 0
        for _ in range(helpers):
            self._help(take)
        take()
        for _ in tasks:
            done.acquire()
        return [found[number] for number in range(len(tasks))]

    def _help(self, take: Callable[[], None]) -> None:
        if not self._started:
            self._started = True
            for _ in range(self._helpers):
                threading.Thread(target=self._run, name="drawer", daemon=True).start()
        self._work.put(take)

    def _run(self) -> None:
        while (take := self._work.get()) is not None:
            take()

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._started:
            self._started = False
            for _ in range(self._helpers):
                self._work.put(None)
