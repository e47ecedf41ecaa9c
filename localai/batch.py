"""Many records asked about with one model: read as they come, answered at once, told in their order.

One thread reads the records and hands them to the engine, whose own thread answers; the caller takes the results. No
more than a window of records is ever held, however many there are.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from localai import presets
from localai.answer_schema import AnswerSchema
from localai.domain.engine import BatchEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Sampling
from localai.errors import ContextOverflow, LocalaiError, NotFound, SchemaIncomplete, UsageError
from localai.presets import Preset, PresetText
from localai.record_input import Record
from localai.record_template import Template

OF_THE_RECORD = (UsageError, NotFound, ContextOverflow, SchemaIncomplete)  # another error ends the whole batch
_WAKE_S = 0.1
_PROBES = ("0", "Zebra")  # two contents with nothing in common at their heads


@dataclass(frozen=True, slots=True)
class Asking:
    """What is the same for all records. `sampling.seed` is that of the batch: each record has one of its own."""

    template: Template
    system: str | None
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    think: bool | None = None
    schema: AnswerSchema | None = None
    preset: Preset | None = None
    text: PresetText | None = None
    variables: Mapping[str, str] | None = None

    def messages(self, values: Mapping[str, Any]) -> tuple[Message, ...]:
        """The conversation for one record. Raises UsageError for a field or a variable that is missing."""
        user, system = self.template.fill(values), self.system
        if self.preset is not None and self.text is not None:
            filled = presets.fill(self.preset, self.text, self.variables or {}, user)
            user, system = filled.user, filled.system if system is None else system
        return (*([Message("system", system)] if system else []), Message("user", user))

    def probes(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """Conversations that have in common only what those of all records have."""
        one, other = (self.messages(dict.fromkeys(self.template.fields, probe)) for probe in _PROBES)
        return one, other

    def request(self, record: Record) -> GenerationRequest:
        """What is asked for one record; the same whenever and beside whatever it is asked. Raises UsageError."""
        seed = self.sampling.seed
        if seed is not None:
            seed = int.from_bytes(hashlib.sha256(f"{seed}:{record.index}".encode()).digest()[:4], "big") >> 1
        return GenerationRequest(
            self.messages(record.fields()),
            replace(self.sampling, seed=seed),
            self.max_tokens,
            self.stop,
            self.think,
            self.schema.grammar if self.schema else None,
            reserve=self.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a record: an answer, or the error that says why there is none."""

    record: Record
    end: AnswerEnd | None
    error: LocalaiError | None


@dataclass(frozen=True, slots=True)
class _End:
    """There are so many records in all; `error` is what ended the reading before its time."""

    count: int
    error: BaseException | None = None


class Batch:
    """Asks `engine` about all `records`, of which the first is number `first`.

    At most `at_once` are with the engine and `window` away from the next result. `grow` makes an engine that holds a
    prompt of so many tokens beside its answer, or None; the one before is closed by then.
    """

    def __init__(
        self,
        engine: BatchEngine,
        asking: Asking,
        records: Iterator[Record],
        *,
        first: int = 0,
        at_once: int = 8,
        window: int = 64,
        grow: Callable[[int], BatchEngine | None] = lambda needed: None,
    ) -> None:
        self.engine = engine
        self._asking, self._records, self._first, self._grow = asking, records, first, grow
        self._at_once = at_once
        self._places = threading.Semaphore(at_once)
        self._window = threading.Semaphore(max(window, at_once))
        self._results: queue.SimpleQueue[Result | _End] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._stopped = False

    def results(self, cancelled: Callable[[], bool]) -> Iterator[Result | None]:
        """The results in the order of the records; None where nothing has happened for a while.

        Ends early where `cancelled` says so. Raises what ended the batch: EngineError for one.
        """
        threading.Thread(target=self._feed, name="records", daemon=True).start()
        early: dict[int, Result] = {}
        index, count = self._first, None
        failure: BaseException | None = None  # of the reading: what was read is told before
        try:
            while index != count and not cancelled():
                try:
                    found = self._results.get(timeout=_WAKE_S)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(found, _End):
                    count, failure = found.count, found.error
                else:
                    early[found.record.index] = self._checked(found)
                while (result := early.pop(index, None)) is not None:
                    self._window.release()
                    index += 1
                    yield result
            if failure is not None and index == count:
                raise failure
        finally:
            self._stop()

    def _checked(self, result: Result) -> Result:
        """The result held against the schema. Raises an error that is not the record's own."""
        if result.error is not None and not isinstance(result.error, OF_THE_RECORD):
            raise result.error
        if result.end is not None and self._asking.schema is not None:
            try:
                self._asking.schema.check(result.end.text, cut=result.end.finish_reason == "length")
            except SchemaIncomplete as error:
                return replace(result, error=error)
        return result

    def _stop(self) -> None:
        self._stopped = True
        self._window.release()
        self._places.release(self._at_once)
        for ticket in list(self._tickets.values()):
            ticket.cancel()

    # ------------------------------------------------------------------------------------------- the reading thread

    def _feed(self) -> None:
        count = self._first
        try:
            for record in self._records:
                self._window.acquire()
                if self._stopped:
                    return
                self._ask(record)
                count = record.index + 1
            self._results.put(_End(count))
        except BaseException as error:  # noqa: BLE001 - it is raised again where the results are taken
            self._results.put(_End(count, error))

    def _ask(self, record: Record) -> None:
        try:
            request = self._asking.request(record)
            self._places.acquire()
            try:
                self._submit(record, request)
            except BaseException:
                self._places.release()
                raise
        except LocalaiError as error:
            self._results.put(Result(record, None, error))

    def _submit(self, record: Record, request: GenerationRequest) -> None:
        ended = threading.Event()

        def deliver(event: Delivery) -> None:
            if isinstance(event, AnswerEnd | LocalaiError):
                ended.set()
                self._tickets.pop(record.index, None)
                self._places.release()
                end, error = (event, None) if isinstance(event, AnswerEnd) else (None, event)
                self._results.put(Result(record, end, error))

        if self._stopped:
            return
        try:
            ticket = self.engine.submit(request, deliver)
        except ContextOverflow as error:
            if error.needed_tokens is None:
                raise
            self._take_larger(error.needed_tokens)
            ticket = self.engine.submit(replace(request, reserve=1), deliver)
        self._tickets[record.index] = ticket
        if ended.is_set():
            self._tickets.pop(record.index, None)
        elif self._stopped:
            ticket.cancel()

    def _take_larger(self, needed: int) -> None:
        """Take an engine with a larger context if there is one, once the present one has answered what it has."""
        for _ in range(self._at_once - 1):
            self._places.acquire()
        try:
            if not self._stopped:
                self.engine = self._grow(needed) or self.engine
        finally:
            self._places.release(self._at_once - 1)
