"""Work in threads of its own, daemons all: none of them holds up the program's end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """A call that goes on beside what follows it; `result` waits for it, and raises what it raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: list[T] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="localai-later", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asks
            self._failure = error

    def result(self) -> T:
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._value[0]


def in_parallel(jobs: Iterable[Callable[[], None]], at_once: int, seconds: float = threading.TIMEOUT_MAX) -> None:
    """Run the jobs, which raise nothing, `at_once` at a time; those that still run after `seconds` are left behind."""
    todo = iter(jobs)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(todo, None)
            if job is None:
                return
            job()

    workers = [threading.Thread(target=work, name="localai-parallel", daemon=True) for _ in range(at_once)]
    for each in workers:
        each.start()
    end = time.monotonic() + seconds
    for each in workers:
        each.join(max(0.0, end - time.monotonic()))
