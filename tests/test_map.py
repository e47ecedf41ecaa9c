"""`localai map`: what comes out for what goes in, what is bad, how it is resumed, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import random_models
from conftest import Cli
from document_files import docx, paragraph
from hypothesis import given
from hypothesis import strategies as st

from localai import record_template
from localai.errors import UsageError

MODEL = ("-m", "smollm2-135m", "--threads", "1")
SHORT = (*MODEL, "--max-tokens", "6", "--temperature", "0")


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def indices(path: Path) -> list[int]:
    return [record["index"] for record in records(path.read_text("utf-8"))]


def test_an_answer_for_each_line_in_its_order(cli: Cli) -> None:
    lines = ["France", "naïve café", "", "Japan\r", '{"not": "json"}']
    done = cli("map", "Name the capital of {text}.", *SHORT, "--max-tokens", "12", input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert [each["index"] for each in found] == [0, 1, 2, 3, 4]
    assert [each["input"] for each in found] == [line.removesuffix("\r") for line in lines]
    assert "Paris" in found[0]["output"]
    assert "Tokyo" in found[3]["output"]
    assert all(each["error"] is None and each["usage"]["completion_tokens"] > 0 for each in found)
    assert {"schema_version", "index", "input", "output", "usage", "error", "finish_reason"} <= set(found[0])
    assert "5 records" in done.stderr
    assert "a second" in done.stderr or "a minute" in done.stderr


def test_a_bad_record_fails_alone(cli: Cli) -> None:
    lines = [
        '{"id": "a", "land": "France", "n": 3}',
        "no JSON",
        '{"id": "c"}',
        "[1, 2]",
        "",
        '{"id": "d", "land": "Japan", "n": null}',
    ]
    done = cli("map", "Name {n} towns of {land}.", "--input", "jsonl", *SHORT, input="\n".join(lines) + "\n")
    assert done.returncode == 1
    found = records(done.stdout)
    assert [each["input"] for each in found] == ["a", "no JSON", "c", [1, 2], "d"]
    assert [each["error"] is None for each in found] == [True, False, False, False, True]
    assert [each["output"] is None for each in found] == [False, True, True, True, False]
    assert "land" in found[2]["error"]["message"] or "'n'" in found[2]["error"]["message"]
    assert found[2]["error"]["hint"]
    assert "3 of 5 records failed" in done.stderr


def test_files_are_read_as_documents_and_a_missing_one_fails_alone(cli: Cli, isolated: Path) -> None:
    folder = isolated / "a folder"
    folder.mkdir()
    (folder / "one.txt").write_text("The sky is green.", "utf-8")
    (folder / "two.docx").write_bytes(docx(paragraph("The sea is red.")))
    listed = f"{folder / 'one.txt'}\n{folder / 'none.txt'}\n\n{folder / 'two.docx'}\n"
    done = cli("map", "{name} says: {text}", "--input", "files", *SHORT, input=listed)
    assert done.returncode == 1
    found = records(done.stdout)
    assert [each["input"] for each in found] == [line for line in listed.splitlines() if line]
    assert [each["error"] and each["error"]["code"] for each in found] == [None, "not-found", None]
    named = cli("map", "{text}", str(folder / "one.txt"), "--input", "files", *SHORT)
    assert named.returncode == 0, named.stderr
    assert len(records(named.stdout)) == 1


def test_plain_lines_of_text(cli: Cli) -> None:
    done = cli("map", "Write a poem about {text}.", *MODEL, "--max-tokens", "40", "-o", "text", input="rain\nsnow\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert "\\n" in done.stdout


def test_json_schemas_hold_each_answer(cli: Cli, isolated: Path) -> None:
    schema = isolated / "schema.json"
    schema.write_text('{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}')
    done = cli("map", "Is {text} a town?", *MODEL, "--json-schema", str(schema), "--seed", "3", input="Paris\nblue\n")
    assert done.returncode == 0, done.stderr
    assert all(isinstance(json.loads(each["output"])["ok"], bool) for each in records(done.stdout))
    cut = cli("map", "Is {text}?", *MODEL, "--json-schema", str(schema), "--max-tokens", "1", input="Paris\n")
    assert cut.returncode == 1
    assert records(cut.stdout)[0]["error"]["code"] == "schema-incomplete"


def test_a_preset_asks_with_its_own_words(cli: Cli) -> None:
    done = cli("map", "--preset", "translate", "--var", "language=French", *SHORT, input="Good day.\n")
    assert done.returncode == 0, done.stderr
    assert records(done.stdout)[0]["usage"]["prompt_tokens"] > 30


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no field at all",), "has no field"),
        (("{text} {other}",), "no field 'other'"),
        (("{text} {",), "brace"),
        (('{text} {"a": 1}',), "brace"),
        ((), "no template"),
        (("{text}", "--input", "xml"), "--input is 'xml'"),
        (("{text}", "--output", "xml"), "--output is 'xml'"),
        (("{text}", "--output", "text", "--resume", "out"), "--resume"),
        (("{text}", "--preset", "translate"), "needs"),
        (("{text}", "--parallel", "0"), "parallel"),
        (("{text}", "--file", "."), "is a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(in_process: Cli, arguments: tuple[str, ...], told: str) -> None:
    done = in_process("map", *arguments, input="a\n")
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not done.stdout


def test_no_input_and_no_such_file(in_process: Cli) -> None:
    assert in_process("map", "{text}", *MODEL, input="").returncode == 2
    assert in_process("map", "{text}", *MODEL, "--file", "none.txt").returncode == 3


def test_a_record_longer_than_planned_makes_the_context_grow(cli: Cli) -> None:
    """Digits take a token each, more than was reckoned with."""
    lines = ["7", "1 2 3 4 5 6 7 8 9 " * 36, "8"]
    done = cli("map", "Repeat {text}", *SHORT, input="\n".join(lines))
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    assert found[1]["usage"]["prompt_tokens"] > 512
    kept = cli("map", "Repeat {text}", *SHORT, "--context", "256", input="\n".join(lines))
    assert kept.returncode == 1
    assert [each["error"] and each["error"]["code"] for each in records(kept.stdout)] == [
        None,
        "context-overflow",
        None,
    ]


# ------------------------------------------------------------------------------------------------------------- resuming


def command(out: Path, parallel: int) -> list[str]:
    run = [sys.executable, "-m", "localai", "map", "Tell a tale of {text}.", "--file", str(out.with_name("in.txt"))]
    return [*run, *MODEL, "--max-tokens", "12", "--parallel", str(parallel), "--resume", str(out)]


def killed_at(out: Path, lines: int, parallel: int) -> bool:
    """Run until `out` has so many lines, then kill it; False where it was done before."""
    process = subprocess.Popen(command(out, parallel), stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    try:
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                return False
        return True
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("parallel", [1, 4])
def test_killed_and_resumed_is_as_if_run_once(cli: Cli, isolated: Path, parallel: int) -> None:
    topics = [f"a {animal} {number}" for number in range(3) for animal in ("fox", "hen", "whale")]
    (isolated / "in.txt").write_text("\n".join(topics), "utf-8")
    out = isolated / "out.jsonl"
    chance = random.Random(parallel)
    for lines in (1, 6):
        killed_at(out, lines, parallel)
        with out.open("ab") as stream:  # and as a machine that loses power may leave it
            stream.write(b'{"schema_version": 1, "index": 99, "input": "a fox'[: chance.randrange(50)])
    assert subprocess.run(command(out, parallel), check=False, capture_output=True).returncode == 0
    assert indices(out) == list(range(len(topics)))
    if parallel == 1:
        whole = isolated / "whole" / "out.jsonl"
        whole.parent.mkdir()
        (isolated / "in.txt").rename(whole.with_name("in.txt"))
        subprocess.run(command(whole, parallel), check=True, capture_output=True)
        assert whole.read_bytes() == out.read_bytes()


def test_what_is_done_is_not_done_again(cli: Cli, isolated: Path) -> None:
    out = isolated / "out.jsonl"
    first = cli("map", "Say {text}", *SHORT, "--resume", str(out), input="a\nb\n")
    assert first.returncode == 0
    assert not first.stdout
    before = out.read_bytes()
    assert cli("map", "Say {text}", *SHORT, "--resume", str(out), input="a\nb\n").returncode == 0
    assert out.read_bytes() == before
    for changed, told in (("a\nx\n", "input has changed"), ("a\n", "the input has not")):
        done = cli("map", "Say {text}", *SHORT, "--resume", str(out), input=changed)
        assert done.returncode == 2
        assert told in done.stderr
    other = cli("map", "Shout {text}", *SHORT, "--resume", str(out), input="a\nb\n")
    assert other.returncode == 2
    assert "another template" in other.stderr
    kept = isolated / "of-a-file.jsonl"
    content = random_models.write(isolated, random_models.TINY["plain"]).read_bytes()
    for number, code in ((1, 0), (2, 2)):
        file = isolated / str(number) / "same.gguf"
        file.parent.mkdir()
        file.write_bytes(content + bytes(number))
        of_file = ("map", "{text}", "-m", str(file), "--max-tokens", "2", "--resume", str(kept))
        assert cli(*of_file, input="a\n").returncode == code
    more = cli("map", "Say {text}", *SHORT, "--resume", str(out), input="a\nb\nc\n")
    assert more.returncode == 0
    assert out.read_bytes().startswith(before)
    assert indices(out) == [0, 1, 2]


def test_failures_of_an_earlier_run_are_counted_too(cli: Cli, isolated: Path) -> None:
    out = isolated / "out.jsonl"
    lines = 'bad\n{"a": 1}\n'
    for _ in range(2):
        done = cli("map", "{a}", "--input", "jsonl", *SHORT, "--resume", str(out), input=lines)
        assert done.returncode == 1
        assert "1 of 2 records failed" in done.stderr
    assert indices(out) == [0, 1]


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"index": 5}\n{"index": 6}\n'])
def test_somebody_else_s_file_is_left_alone(cli: Cli, isolated: Path, content: bytes) -> None:
    out = isolated / "notes.txt"
    out.write_bytes(content)
    assert cli("map", "{text}", *SHORT, "--resume", str(out), input="a\n").returncode == 2
    assert out.read_bytes() == content


def test_two_processes_do_not_write_one_file(cli: Cli, isolated: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = isolated / "out.jsonl"
    with out.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        done = cli("map", "{text}", *SHORT, "--resume", str(out), input="a\n")
    assert done.returncode == 2
    assert "another process" in done.stderr


# --------------------------------------------------------------------------------------------------------------- pipes


@contextlib.contextmanager
def piped(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str], IO[str], IO[str]]]:
    """`localai map ARGUMENTS`, and its stdin, stdout and stderr."""
    command = [sys.executable, "-m", "localai", "map", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        yield process, process.stdin, process.stdout, process.stderr


def test_a_record_is_answered_before_the_next_one_is_written() -> None:
    with piped("Say {text}", *SHORT) as (process, stdin, stdout, _):
        for index, word in enumerate(("one", "two")):
            stdin.write(f"{word}\n")
            stdin.flush()
            assert json.loads(stdout.readline())["index"] == index
        stdin.close()
        assert process.wait(60) == 0


def test_what_is_written_is_not_read_again(cli: Cli, isolated: Path) -> None:
    file = isolated / "records.txt"
    file.write_text("one\n")
    for words, source in (((str(file),), None), ((), file)):
        with file.open("a") as out, (source or Path(os.devnull)).open() as given:
            command = [sys.executable, "-m", "localai", "map", "Say {text}", *words, *SHORT]
            done = subprocess.run(command, stdin=given, stdout=out, stderr=subprocess.PIPE, check=False, timeout=60)
        assert (done.returncode, b"read from" in done.stderr) == (2, True)
    assert file.read_text() == "one\n"


def test_a_closed_pipe_ends_it_quietly() -> None:
    words = "\n".join(f"word {number}" for number in range(4000))  # more answers than a pipe holds
    with piped("Say {text}", *SHORT) as (process, stdin, stdout, stderr):
        stdin.write(words)
        stdin.close()
        stdout.readline()
        stdout.close()
        told = stderr.read()
        assert process.wait(60) == 141
    assert "Traceback" not in told
    assert "error" not in told


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_whole_records() -> None:
    import signal

    with piped("Tell a tale of {text}", *MODEL, "--max-tokens", "16") as (process, stdin, stdout, stderr):
        stdin.write("\n".join(f"fox {number}" for number in range(200)) + "\n")
        stdin.flush()  # and it stays open: the reader waits
        first = stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, told = stdout.read(), stderr.read()  # communicate() would miss what readline() has buffered
        stdin.close()
        assert process.wait(60) == 130
    assert "Traceback" not in told
    assert [each["index"] for each in records(first + rest)] == list(range(len(records(first + rest))))


# ------------------------------------------------------------------------------------------------------------ templates

PLAIN = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)


@given(parts=st.lists(st.tuples(PLAIN, st.sampled_from(["text", "a name", "é"])), max_size=4), tail=PLAIN)
def test_templates_give_back_what_they_are_made_of(parts: list[tuple[str, str]], tail: str) -> None:
    def escaped(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    source = "".join(f"{escaped(text)}{{{name}}}" for text, name in parts) + escaped(tail)
    values = {"text": "{a name}", "a name": 5, "é": None}
    shown = {"text": "{a name}", "a name": "5", "é": ""}
    assert record_template.parse(source).fill(values) == "".join(text + shown[name] for text, name in parts) + tail


@given(st.text(max_size=30))
def test_any_template_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        record_template.parse(text)
