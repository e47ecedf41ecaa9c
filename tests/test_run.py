"""`localai run` through its real entry point, with the real small model: the pipeline contract."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from conftest import Cli
from fake_engine import FakeEngine
from real_model import model_file, plan

from localai import aliases, library, loading, render
from localai.commands import answer, model_loading
from localai.commands.answer import write_answer
from localai.commands.question import Question
from localai.commands.run import hint_at_model, with_room_for
from localai.domain.generation import AnswerEnd, Event, GenerationRequest, ThinkingText, Timings, Usage
from localai.errors import DoesNotFit, EngineError
from localai.interrupt import Interrupts
from localai.loading import Loaded

MODEL = ("-m", "smollm2-135m")
QUESTION = "Name the capital of France."
GREEDY = ("--temperature", "0")


def test_the_answer_and_nothing_else(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, input=QUESTION + "\n")
    assert result.returncode == 0
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n")
    assert not result.stdout.endswith("\n\n")
    assert "\x1b" not in result.stdout + result.stderr


def test_arguments_and_stdin_are_joined_by_a_blank_line(cli: Cli) -> None:
    joined = cli("run", *MODEL, *GREEDY, "--max-tokens", "8", input="Name the capital\n\nof France.\n")
    both = cli("run", *MODEL, *GREEDY, "--max-tokens", "8", "Name the", "capital", input="of France.\n")
    assert both.returncode == 0
    assert both.stdout == joined.stdout


def test_json_has_the_fixed_keys(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, "--max-tokens", "5", "--output", "json", QUESTION)
    told = json.loads(result.stdout)
    assert told["schema_version"] == 1
    assert told["model"] == "smollm2-135m"
    assert told["finish_reason"] == "length"
    assert told["usage"]["completion_tokens"] == 5
    assert told["usage"]["prompt_tokens"] > 5
    assert set(told["timings"]) == {"load_ms", "prompt_ms", "first_token_ms", "prompt_tps", "decode_tps"}
    assert all(value > 0 for value in told["timings"].values())
    plain = cli("run", *MODEL, *GREEDY, "--max-tokens", "5", QUESTION)
    assert plain.stdout.rstrip("\n") == told["text"].rstrip("\n")


def test_ndjson_ends_with_the_whole(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, "--max-tokens", "6", "-o", "ndjson", QUESTION)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in (events[0], events[-1])] == ["start", "end"]
    assert "".join(event["text"] for event in events if event["event"] == "text") == events[-1]["text"]


def test_a_seed_draws_the_same_again(cli: Cli) -> None:
    first, second, other = (
        cli("run", *MODEL, "--seed", seed, "--temperature", "1.5", "--max-tokens", "24", "Tell me a story.").stdout
        for seed in ("7", "7", "8")
    )
    assert first == second
    assert first != other


def test_stop_ends_the_answer_before_its_text(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, "--stop", "Paris", QUESTION)
    assert result.returncode == 0
    assert "Paris" not in result.stdout


def test_stats_are_on_stderr(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, "--max-tokens", "4", "--stats", QUESTION)
    assert "4 answer tokens" in result.stderr
    assert "tokens" not in result.stdout


def test_an_answer_that_is_cut_off_says_which_limit_it_was(cli: Cli) -> None:
    for limit, told in [
        (("--max-tokens", "4"), "cut off after 4 tokens; --max-tokens allows more"),
        (("--context", "256"), "the context of 256 tokens is full: --context allows more"),
    ]:
        result = cli("run", *MODEL, *GREEDY, *limit, "--output", "json", "Write a very long story about a river.")
        assert (result.returncode, json.loads(result.stdout)["finish_reason"]) == (0, "length")
        assert told in result.stderr


def test_a_terminal_is_not_left_dim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Breaks(FakeEngine):
        def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
            yield ThinkingText("Hm.")
            raise EngineError("broken")

    monkeypatch.setattr(render.answers, "colour_wanted", lambda stream: True)
    prepared = loading.Prepared(library.Found(None, Path("x"), "x"), plan(), 1, None)
    loaded = loading.Loaded(prepared, None, Breaks())
    with pytest.raises(EngineError):
        write_answer(loaded, GenerationRequest(()), "text", Interrupts())
    assert capsys.readouterr().err == "\x1b[2mHm.\x1b[0m\n\n"


def test_without_a_model_it_says_which_it_takes(cli: Cli) -> None:
    result = cli("run", *GREEDY, "--max-tokens", "4", QUESTION)
    assert result.returncode == 0
    assert "smollm2-135m" in result.stderr


def test_the_configured_model_is_taken(in_process: Cli) -> None:
    result = in_process("run", "hi", env={"LOCALAI_MODEL": "nosuch"})
    assert result.returncode == 3


@pytest.mark.parametrize("words", [("smollm2-135m", "hi"), ("SmolLM2-135M hi",), ("small", "hi"), ("Why:", "hi")])
def test_ollamas_habit_gets_a_hint(cli: Cli, words: tuple[str, ...]) -> None:
    aliases.save("small", "smollm2-135m")
    result = cli("run", *words, "--max-tokens", "2")
    assert result.returncode == 0
    assert (f"-m {words[0].split()[0]}" in result.stderr) == (words[0] != "Why:")


@pytest.mark.parametrize(("word", "hinted"), [("llama3.2:3b", True), ("mistral", False), ("2b", False)])
def test_a_model_that_could_be_pulled_gets_the_hint_too(
    word: str, hinted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    hint_at_model([word, "hi"], None)
    assert (f"localai pull {word}" in capsys.readouterr().err) == hinted


@pytest.mark.parametrize("name", ["nosuch", "nosuch/nosuch", "smollm2-135m:q9_9", "./nosuch.gguf", "ünïcødé", ""])
def test_a_model_that_is_not_here_exits_3(in_process: Cli, name: str) -> None:
    result = in_process("run", "-m", name, "hi")
    assert result.returncode == (2 if name == "" else 3)
    assert result.stdout == ""
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def test_nearest_names_are_offered(in_process: Cli) -> None:
    assert "smollm2-135m" in in_process("run", "-m", "smolm2-135m", "hi").stderr


def test_a_path_is_a_model(cli: Cli, isolated: Path) -> None:
    folder = isolated / "un dossier à moi"
    folder.mkdir()
    (folder / "modèle.gguf").symlink_to(model_file())
    result = cli("run", "-m", str(folder / "modèle.gguf"), *GREEDY, QUESTION)
    assert result.returncode == 0
    assert "Paris" in result.stdout


@pytest.mark.parametrize("kind", ["random", "truncated", "empty", "text"])
def test_a_broken_file_exits_6(cli: Cli, isolated: Path, kind: str) -> None:
    path = isolated / "broken.gguf"
    content = model_file().read_bytes()[:2_000_000]
    path.write_bytes({"random": os.urandom(5000), "truncated": content, "empty": b"", "text": b"hello"}[kind])
    result = cli("run", "-m", str(path), "hi")
    assert result.returncode == 6
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["error", "hint"]


def test_an_input_longer_than_the_context_exits_7_with_both_counts(cli: Cli) -> None:
    result = cli("run", *MODEL, "--context", "100", input="word " * 2000)
    assert result.returncode == 7
    assert result.stdout == ""
    assert "the context has 100" in result.stderr
    as_json = cli("run", *MODEL, "--context", "100", "-o", "json", input="word " * 2000)
    assert json.loads(as_json.stdout)["error"]["exit_code"] == 7


def test_a_context_beyond_the_memory_exits_4(cli: Cli) -> None:
    result = cli("run", *MODEL, "--context", "2000000000", "hi")
    assert result.returncode == 4
    assert "made for 8192 tokens; --context " in result.stderr
    assert "close other programs" not in result.stderr


def test_more_threads_than_the_machine_has_are_refused(cli: Cli) -> None:
    assert cli("run", *MODEL, "--threads", "4000", "hi", timeout=20).returncode == 2


@pytest.mark.parametrize("text", [" ".join(map(str, range(1, 160))), "地球は丸い。" * 40], ids=["digits", "Japanese"])
def test_the_context_is_large_enough_for_any_script(cli: Cli, text: str) -> None:
    result = cli("run", *MODEL, "--max-tokens", "1", input=text)
    assert result.returncode == 0, result.stderr


def test_what_is_far_too_long_is_refused_quickly_and_can_be_interrupted(cli: Cli) -> None:
    result = cli("run", *MODEL, input="word " * 1_000_000)
    assert result.returncode == 7
    assert "about 1" in result.stderr
    assert "8192" in result.stderr
    assert "--context" not in result.stderr


def test_half_a_character_is_never_written(cli: Cli) -> None:
    result = cli("run", *MODEL, *GREEDY, "--max-tokens", "1", "Repeat: 🎉 日本")
    assert "\ufffd" not in result.stdout


def test_many_ctrl_c_leave_no_traceback(isolated: Path) -> None:
    process = start("run", *MODEL, *LONG)
    assert process.stdout is not None
    assert process.stdout.read(8)
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told


def test_thoughts_without_an_answer_are_told_of() -> None:
    end = AnswerEnd("", "Hm.", Usage(1, 0, 3), Timings(1, 1, 1, None, None), "stop")
    loaded = cast(Loaded, None)
    assert "no answer follows" in answer.warning(end, loaded)
    assert answer.warning(replace(end, text="Yes."), loaded) == ""
    assert answer.warning(replace(end, finish_reason="interrupted"), loaded) == ""


@pytest.mark.parametrize("fits", [True, False], ids=["fits", "does not fit"])
def test_a_context_that_leaves_no_room_for_the_answer_is_made_larger(
    fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the memory of the present one is free again; where there is no room for more it comes back as it was."""
    planned = loading.prepare(library.find("smollm2-135m"), loading.LoadOptions(), 512)
    larger = replace(planned, plan=replace(planned.plan, context=1024))
    engine = FakeEngine(context=512)
    loaded = Loaded(planned, None, engine)
    wanted: list[int] = []

    def prepare(found: library.Found, options: loading.LoadOptions, want_context: int, **_: object) -> loading.Prepared:
        assert engine.closed
        wanted.append(want_context)
        if not fits:
            raise DoesNotFit("there is no room", "")
        return larger

    def load(prepared: loading.Prepared, _: Interrupts) -> Loaded:
        return Loaded(prepared, None, FakeEngine(context=prepared.plan.context))

    monkeypatch.setattr(loading, "prepare", prepare)
    monkeypatch.setattr(model_loading, "load_prepared", load)
    short = Question(None, "", "a " * 100, "")
    assert with_room_for(loaded, short, 100, loading.LoadOptions(), None, Interrupts()) is loaded
    assert not engine.closed
    long = Question(None, "", "a " * 500, "")
    found = with_room_for(loaded, long, 100, loading.LoadOptions(), None, Interrupts())
    assert wanted == [501 + 164]
    assert found.engine.context == (1024 if fits else 512)
    warm = replace(loaded, prepared=replace(planned, warm=loaded.engine))
    with_room_for(warm, long, 100, loading.LoadOptions(), None, Interrupts())
    assert len(wanted) == 1


def test_an_unknown_type_of_cache_is_wrong_usage(in_process: Cli) -> None:
    result = in_process("run", *MODEL, "--kv-type", "q3_k", "hi")
    assert result.returncode == 2
    assert "q8_0" in result.stderr


def test_an_empty_prompt_is_wrong_usage(in_process: Cli) -> None:
    for text in ("", "\n", "  \n"):
        assert in_process("run", *MODEL, input=text).returncode == 2


def test_a_closed_stdin_is_no_prompt(cli: Cli, isolated: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" <&-', "-", sys.executable, "-m", "localai", "run", "-m", "smollm2-135m"]
    assert subprocess.run([*closed, "--max-tokens", "2", "hi"], capture_output=True, timeout=60).returncode == 0


def test_bytes_that_are_no_text_are_read(cli: Cli, isolated: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "localai", "run", *MODEL, "--max-tokens", "2"],
        input=b"\xff\xfe\x00caf\xe9 \xf0\x9f",
        capture_output=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "localai", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


LONG = ("Write a very long story about a river.", "--temperature", "0", "--repeat-penalty", "1.2")


def test_a_reader_that_leaves_ends_it_quietly(isolated: Path) -> None:
    with start("run", *MODEL, *LONG) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""


def test_ctrl_c_keeps_what_was_said_and_exits_130(isolated: Path) -> None:
    process = start("run", *MODEL, *LONG)
    assert process.stdout is not None
    begun = process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(begun) == 8
    assert rest.endswith("\n")
    assert "Traceback" not in told


def test_ctrl_c_under_json_gives_what_there_is(isolated: Path) -> None:
    process = start("run", *MODEL, *LONG, "-o", "ndjson")
    assert process.stdout is not None
    while '"text"' not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(rest.splitlines()[-1])["finish_reason"] == "interrupted"


def test_chat_without_a_terminal_answers_like_run(cli: Cli) -> None:
    chatted = cli("chat", "smollm2-135m", *GREEDY, input=QUESTION)
    ran = cli("run", *MODEL, *GREEDY, input=QUESTION)
    assert chatted.returncode == 0
    assert chatted.stdout == ran.stdout


def test_chat_without_a_terminal_has_what_run_has(cli: Cli, in_process: Cli, isolated: Path) -> None:
    (isolated / "notes.txt").write_text("The meeting is on Monday.")
    (isolated / "s.json").write_text('{"enum": ["Monday", "Friday"]}')
    words = ("--file", "notes.txt", "--preset", "document-analyst", "--language", "fr", "--json-schema", "s.json")
    chatted = cli("chat", "smollm2-135m", *GREEDY, *words, "--stop", "!", "--stats", "-o", "json", input="When?")
    ran = cli("run", *MODEL, *GREEDY, *words, "-o", "json", input="When?")
    assert chatted.returncode == 0, chatted.stderr
    told, expected = json.loads(chatted.stdout), json.loads(ran.stdout)
    assert (told["text"], told["usage"]) == (expected["text"], expected["usage"])
    assert "answer tokens" in chatted.stderr
    assert in_process("chat", "smollm2-135m", "--var", "a=b", input="hi").returncode == 2


def no_network() -> list[str]:
    """A command prefix that leaves a process without any network interface, where this system allows it."""
    prefix = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        return prefix
    return []


@pytest.mark.skipif(not no_network(), reason="needs unprivileged network namespaces")
@pytest.mark.parametrize(
    "arguments",
    [
        ("hardware", "--json"),
        ("recommend", "--json"),
        ("list", "--json"),
        ("show", "smollm2-135m", "--json"),
        ("pull", "smollm2-135m", "--json"),
        ("run", *MODEL, "--output", "json", "--max-tokens", "4", QUESTION),
        ("chat", "smollm2-135m", "--max-tokens", "4"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_everything_works_without_a_network(isolated: Path, arguments: tuple[str, ...]) -> None:
    process = subprocess.run(
        [*no_network(), sys.executable, "-m", "localai", *arguments],
        input=QUESTION,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert process.returncode == 0, process.stderr
    if "json" in " ".join(arguments):
        assert json.loads(process.stdout)["schema_version"] == 1
