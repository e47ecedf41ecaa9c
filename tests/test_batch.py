"""A batch around a scripted engine: order, bounded windows, errors that end it, a larger engine where one is needed."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import FakeBatchEngine
from hypothesis import given
from hypothesis import strategies as st

from localai import record_input, record_template
from localai.batch import Asking, Batch, Result
from localai.domain.engine import BatchEngine
from localai.domain.generation import Sampling
from localai.errors import ContextOverflow, EngineError, LocalaiError, UsageError
from localai.record_input import Record, Source
from localai.record_output import ResumedOutput

WINDOW, AT_ONCE = 16, 4


def asking(max_tokens: int = 20, seed: int | None = 0) -> Asking:
    return Asking(record_template.parse("{text}"), None, Sampling(seed=seed), max_tokens)


def many(count: int, started: list[int] | None = None) -> Iterator[Record]:
    for index in range(count):
        if started is not None:
            started.append(index)
        yield Record(index, index, "", {"text": f"record {index}"})


def results(batch: Batch) -> Iterator[Result]:
    return (result for result in batch.results(lambda: False) if result is not None)


def test_however_many_records_only_a_window_of_them_is_held() -> None:
    started: list[int] = []
    engine = FakeBatchEngine(["yes"])
    batch = Batch(engine, asking(), many(3000, started), at_once=AT_ONCE, window=WINDOW)
    for expected, result in enumerate(results(batch)):
        assert result.record.index == expected
        assert len(started) <= expected + WINDOW + 2
    assert expected == 2999
    assert not batch._tickets
    engine.close()


def test_seeds_are_of_the_record_alone() -> None:
    seeds = [asking().request(record).sampling.seed for record in many(50)]
    assert len(set(seeds)) == 50
    assert seeds == [asking().request(record).sampling.seed for record in many(50)]
    assert asking(seed=1).request(next(many(1))).sampling.seed != seeds[0]
    assert asking(seed=None).request(next(many(1))).sampling.seed is None


def test_an_error_of_the_engine_ends_the_batch() -> None:
    """A record that is not at fault must not be written as failed: a resumed run would never ask about it again."""
    engine = FakeBatchEngine(["yes", "yes", EngineError("out of memory")])
    batch = Batch(engine, asking(), many(9), at_once=1, window=4)
    found = []
    with pytest.raises(EngineError):
        found += list(results(batch))
    engine.close()


def test_an_error_of_a_record_is_its_result() -> None:
    def records() -> Iterator[Record]:
        yield Record(0, "a", "", {"text": "a"})
        yield Record(1, "b", "", error=UsageError("no JSON"))
        yield Record(2, "c", "", {"other": "c"})
        yield Record(3, "d", "", {"text": "d"})

    engine = FakeBatchEngine(["yes"])
    found = list(results(Batch(engine, asking(), records())))
    assert [result.error is None for result in found] == [True, False, False, True]
    engine.close()


def test_a_source_that_fails_ends_it_after_what_was_read() -> None:
    def records() -> Iterator[Record]:
        yield from many(2)
        raise LocalaiError("cannot read stdin")

    engine = FakeBatchEngine(["yes"])
    found = results(Batch(engine, asking(), records()))
    assert [next(found).record.index for _ in range(2)] == [0, 1]
    with pytest.raises(LocalaiError, match="cannot read"):
        next(found)
    engine.close()


def test_a_long_record_gets_a_larger_engine_once_the_others_are_answered() -> None:
    small, large = FakeBatchEngine(["small"], context=30), FakeBatchEngine(["large"], context=500)
    long = "word " * 40
    needs: list[int] = []

    def records() -> Iterator[Record]:
        for index, text in enumerate(("one", "two", long, "three")):
            yield Record(index, index, "", {"text": text})

    def grow(needed: int) -> BatchEngine:
        assert not small.tickets
        needs.append(needed)
        return large

    def overflow(*_: object) -> None:
        raise ContextOverflow("too long", "", 41)

    submit = small.submit
    small.submit = lambda request, deliver: (  # type: ignore[method-assign]
        overflow() if len(request.messages[-1].content) > 100 else submit(request, deliver)
    )
    found = list(results(Batch(small, asking(), records(), at_once=AT_ONCE, grow=grow)))
    assert [result.end.text if result.end else "" for result in found] == ["small", "small", "large", "large"]
    assert needs == [41]
    small.close()
    large.close()


def test_cancelled_it_ends_at_once_and_cancels_what_is_under_way() -> None:
    engine = FakeBatchEngine(["a b c d"], stepping=False)
    stop = threading.Event()
    batch = Batch(engine, asking(), many(50), at_once=AT_ONCE, window=WINDOW)
    for result in batch.results(stop.is_set):
        assert result is None
        if len(batch._tickets) == AT_ONCE:
            stop.set()
    assert all(ticket.cancelled.is_set() for ticket in engine.tickets[:AT_ONCE])
    engine.close()


# -------------------------------------------------------------------------------------------------------------- sources


@given(lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b" "))), end=st.booleans())
def test_lines_are_what_was_written_however_they_arrive(lines: list[bytes], end: bool) -> None:
    content = b"\n".join(lines) + (b"\n" if end else b"")
    text = content.removeprefix(b"\xef\xbb\xbf")
    expected = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    if not expected[-1] and text[-1:] in (b"", b"\n"):
        expected.pop()
    whole = list(record_input._lines(iter([content])))
    assert whole == expected
    if not content.startswith(b"\xef"):
        assert list(record_input._lines(content[at : at + 1] for at in range(len(content)))) == expected


def test_a_line_beyond_all_measure_is_one_bad_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_input, "LONGEST_LINE_BYTES", 10)
    chunks = iter([b"one\n" + b"x" * 8, b"y" * 8, b"z\ntwo\n", b"w" * 11])
    found = list(record_input.records(record_input._lines(chunks), "lines"))
    assert [record.values.get("text") for record in found] == ["one", None, "two", None]
    assert [record.index for record in found] == [0, 1, 2, 3]
    assert found[1].error is not None


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "[-1e999]"])
def test_numbers_that_json_has_not_are_no_json(number: str) -> None:
    (record,) = record_input.records(iter([f'{{"id": {number}}}'.encode()]), "jsonl")
    assert isinstance(record.error, UsageError)
    assert record.shown == f'{{"id": {number}}}'


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found = list(record_input.records(iter([b"-", b"/dev/zero", os.fsencode(pipe), os.fsencode(tmp_path)]), "files"))
    assert [isinstance(record.error, UsageError) for record in found] == [True, True, True, False]
    with pytest.raises(LocalaiError):
        found[3].fields()


def test_the_size_of_files_and_pipes(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_bytes(b"one\nthree\nno end")
    source = Source([file, file])
    assert source.size() == record_input.Size(6, 6)
    assert list(source.lines()) == [b"one", b"three", b"no end"] * 2
    source.close()
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"one\nfour\n"))
    writer.start()
    source = Source([fifo])
    assert source.size() == record_input.Size(None, 4)
    assert list(source.lines()) == [b"one", b"four"]
    writer.join()
    source.close()


# --------------------------------------------------------------------------------------------------------------- output

JOB = "00000000"


def line(record: Record) -> str:
    content = {
        "schema_version": 1,
        "index": record.index,
        "input": "naïve \u2028",
        "fingerprint": f"{JOB}-{record.digest}",
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


@given(done=st.integers(0, 3), cut=st.integers(0, 200), nuls=st.integers(0, 3))
def test_cut_anywhere_only_whole_records_are_kept(
    tmp_path_factory: pytest.TempPathFactory, done: int, cut: int, nuls: int
) -> None:
    path = tmp_path_factory.mktemp("out") / "out.jsonl"
    whole = [line(record).encode() for record in many(done + 1)]
    torn = whole[-1][: min(cut, len(whole[-1]) - 1)] + b"\0" * nuls
    path.write_bytes(b"".join(whole[:done]) + torn)
    out = ResumedOutput(path)
    records = many(done + 1)
    assert out.skip_done(records, JOB) == (done, 0)
    out.write(line(next(records)))
    out.close()
    assert path.read_bytes() == b"".join(whole)


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    out = ResumedOutput(path)
    records = list(many(2))
    out.skip_done(iter(records), JOB)
    out.write(line(records[0]))

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(stream, name)

        def write(self, content: bytes) -> int:
            return stream.write(content[:20])

    stream = out._stream
    monkeypatch.setattr(out, "_stream", Full())
    with pytest.raises(LocalaiError) as error:
        out.write(line(records[1]))
    assert "No space" in error.value.message
    out.close()
    assert path.read_text("utf-8") == line(records[0])
