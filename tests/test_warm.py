"""The warm engine: what `run` and `chat` answer through a server is what they answer alone; and who may ask it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import random_models
from conftest import Cli
from fake_engine import FakeEngine
from real_model import plan
from running_server import Running, serving

from localai import __version__, background, record_template, sessions, warm, wire
from localai.batch import Asking
from localai.commands import serve
from localai.commands.batch_engines import AHEAD, BatchEngines
from localai.domain.generation import AnswerEnd, GenerationRequest, Image, Message, Sampling, Timings, ToolCall, Usage
from localai.errors import ContextOverflow, EngineError, LocalaiError, NotFound, UsageError
from localai.holding import Holder
from localai.interrupt import Interrupts
from localai.library import Found
from localai.loading import LoadOptions, Prepared
from localai.server import socket_server

MODEL = ("-m", "smollm2-135m")
# one thread: two that wait for each other are slow where other tests run
ASK = ("run", *MODEL, "--threads", "1", "--temperature", "0", "--max-tokens", "12")
QUESTION = "Name the capital of France."
LONG = ("run", *MODEL, "--temperature", "0", "--repeat-penalty", "1.2", "Write a very long story about a river.")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("home"), "--socket-only", "--parallel", "2") as running:
        yield running


@pytest.fixture(autouse=True)
def home(server: Running, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALAI_HOME", str(server.home))


def requests(server: Running) -> int:
    told = warm.ask({"do": "ps"})
    assert told is not None
    return sum(each["requests"] for each in told["models"])


def test_the_same_output_without_loading(cli: Cli, isolated: Path) -> None:
    alone = {"LOCALAI_HOME": str(isolated / "other")}
    assert cli(*ASK, QUESTION).stdout == cli(*ASK, QUESTION, env=alone).stdout
    told = json.loads(cli(*ASK, "-o", "json", QUESTION).stdout)
    cold = json.loads(cli(*ASK, "-o", "json", QUESTION, env=alone).stdout)
    assert (told["text"], told["finish_reason"]) == (cold["text"], cold["finish_reason"])
    assert (told["timings"]["load_ms"], cold["timings"]["load_ms"] > 0) == (0, True)
    events = [json.loads(line) for line in cli(*ASK, "-o", "ndjson", QUESTION).stdout.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert "".join(each["text"] for each in events if each["event"] == "text") == events[-1]["text"]


def test_the_same_exit_codes(cli: Cli, isolated: Path) -> None:
    schema = isolated / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}')
    assert cli("run", *MODEL, "--json-schema", str(schema), "--max-tokens", "2", "hi").returncode == 8
    assert cli("run", *MODEL, input="word " * 20_000).returncode == 7


def test_map_asks_it_too(cli: Cli) -> None:
    result = cli("map", "Say {text}", *MODEL, "--max-tokens", "3", input="one\ntwo\nthree\n")
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1, 2]
    assert result.returncode == 0


def test_map_asks_for_no_more_at_once_than_it_is_told(cli: Cli) -> None:
    prepared = Prepared(Found(None, Path("x.gguf"), "x"), replace(plan(), sequences=4), 0, None, warm=FakeEngine())
    asking = Asking(record_template.parse("{text}"), None, Sampling(), 1)
    with Interrupts() as interrupts:
        found = [BatchEngines(prepared, LoadOptions(), asking, interrupts, wanted).at_once for wanted in (2, 4, None)]
    assert found == [2, 4, 4 + AHEAD]
    done = cli("map", "Say {text}", *MODEL, "--max-tokens", "1", "--parallel", "3", input="one\ntwo\nthree\n")
    assert (done.returncode, "the server answers 2 at once" in done.stderr) == (0, True)


def test_a_map_whose_model_is_let_go_writes_nothing_unfinished(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "home"))
    out = tmp_path / "out.jsonl"
    words = (*MODEL, "--max-tokens", "1000", "--repeat-penalty", "1.2", "--resume", str(out))
    with (
        serving(tmp_path / "home", "--socket-only", "--parallel", "2") as running,
        subprocess.Popen(
            [sys.executable, "-m", "localai", "map", "Write a very long story about {text}.", *words],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("a river\na lake\n")
        process.stdin.close()
        while not requests(running):
            pass
        assert cli("stop", MODEL[1]).returncode == 0
        told = process.stderr.read()
        assert process.wait(60) == 6, told
    assert out.read_text() == ""


def test_ctrl_c_frees_the_slot(server: Running) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "localai", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    begun = process.stdout.read(8)
    assert requests(server) == 1
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, len(begun), "Traceback" in told) == (130, 8, False)
    while requests(server):
        pass


def test_a_killed_command_frees_the_slot(server: Running) -> None:
    process = subprocess.Popen([sys.executable, "-m", "localai", *LONG], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(4)
    process.kill()
    process.communicate(timeout=60)
    while requests(server):
        pass


def test_ps_and_a_second_server(cli: Cli, server: Running) -> None:
    assert "smollm2-135m" in cli("ps").stdout
    told = json.loads(cli("ps", "--json").stdout)
    assert (told["running"], told["pid"], told["models"][0]["model"]) == (True, server.pid, "smollm2-135m")
    second = cli("serve", "--background")
    assert (second.returncode, f"running already (process {server.pid})" in second.stderr) == (0, True)
    assert cli("serve", "--socket-only").returncode == 1
    assert cli("stop", "nosuch").returncode == 3


def test_a_connection_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    left: list[OSError | socket.socket] = [OSError(24, "too many open files"), ours, OSError(9, "closed")]

    class Listener:
        def accept(self) -> tuple[socket.socket, str]:
            found = left.pop(0)
            if not left:
                door._listener = None
            if isinstance(found, OSError):
                raise found
            return found, ""

    monkeypatch.setattr(socket_server, "ACCEPT_AGAIN_S", 0)
    holder = Holder()
    door = socket_server.SocketServer(holder, {}, holder.close)
    door._listener = listener = Listener()  # type: ignore[assignment]
    with theirs:
        door._accept(listener)  # type: ignore[arg-type]
        theirs.sendall(wire.line({"do": "ps"}))
        assert b'"models":[]' in theirs.recv(4096)
    holder.close()


def test_a_model_that_thinks_is_held_with_room_for_it(tmp_path: Path) -> None:
    holder = Holder()
    door = socket_server.SocketServer(holder, {}, holder.close)
    thinking = random_models.TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
    contexts = []
    for number, template in enumerate((random_models.TEMPLATE, thinking)):
        (folder := tmp_path / str(number)).mkdir()
        path = random_models.write(folder, random_models.TINY["plain"], template=template)
        asked = {"path": str(path), "load": True, "context": 512, "thoughts": 1024}
        contexts += [door._hold(asked)["context"] for _ in range(2)]
    assert contexts == [512, 512, 1536, 1536]
    holder.close()


def test_a_held_model_that_must_be_loaded_anew_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(warm, "ask", lambda content, limit_s, cancelled: limits.append(limit_s))
    assert warm.find(Path("x.gguf"), {}) is None
    assert limits == [warm.LOADING_LIMIT_S]


def test_only_this_user_can_open_the_socket() -> None:
    path = warm.socket_file()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_where_the_folders_let_them() -> None:
    path = warm.socket_file()
    script = (
        f"import os, socket, sys; os.setuid(65534)\n"
        f"s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        f'try: s.connect({str(path)!r}); s.sendall(b\'{{"do": "ps"}}\\n\'); got = s.recv(100)\n'
        f"except OSError: got = b''\n"
        f"sys.exit(1 if got else 0)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
    before = path.stat().st_mode
    parents = [each for each in path.parents if each != Path("/")]
    modes = [each.stat().st_mode for each in parents]
    try:
        for each in (*parents, path):
            each.chmod(0o777)
        assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
    finally:
        for each, mode in zip((*parents, path), (*modes, before), strict=True):
            each.chmod(mode & 0o7777)


def test_another_version_is_refused() -> None:
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.connect(str(warm.socket_file()))
        connection.sendall(wire.line({"version": "0.0.0-other", "do": "hold", "path": "x"}))
        assert b"another version" in connection.recv(4096)


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[]\n", b"{bad\n", b"\n", b'{"version": "%s", "do": "generate"}\n', b'{"do": "x"}']
)
def test_nonsense_harms_nobody(cli: Cli, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(warm.socket_file()))
        connection.sendall(line.replace(b"%s", __version__.encode()))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    assert warm.ask({"do": "ps"}) is not None


def test_a_server_that_dies_is_told_in_a_line_and_its_socket_is_no_hindrance(cli: Cli, tmp_path: Path) -> None:
    home = tmp_path / "x"
    with serving(home, "--socket-only", "--parallel", "1") as running:
        environ = {**os.environ, "LOCALAI_HOME": str(home)}
        process = subprocess.Popen(
            [sys.executable, "-m", "localai", *LONG],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        assert process.stdout is not None
        process.stdout.read(4)
        os.kill(running.pid, signal.SIGKILL)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 6
        assert "the server that held the model has gone" in told
        assert "Traceback" not in told
    assert cli(*ASK, QUESTION, env={"LOCALAI_HOME": str(home)}).returncode == 0
    with serving(home, "--socket-only", "--parallel", "1"):
        assert json.loads(cli("ps", "--json", env={"LOCALAI_HOME": str(home)}).stdout)["running"]
    assert cli("stop", env={"LOCALAI_HOME": str(home)}).returncode == 3


def test_keep_alive_starts_one_that_stop_ends(cli: Cli, tmp_path: Path) -> None:
    environ = {"LOCALAI_HOME": str(tmp_path / "y"), "LOCALAI_KEEP_ALIVE": "10m"}
    first = cli(*ASK, QUESTION, env=environ)
    assert first.returncode == 0, first.stderr
    told = json.loads(cli("ps", "--json", env=environ).stdout)
    try:
        assert told["running"]
        assert told["url"] is None
        assert told["models"][0]["model"] == "smollm2-135m"
        assert cli(*ASK, QUESTION, env=environ).stdout == first.stdout
    finally:
        stopped = cli("stop", env=environ)
    assert stopped.returncode == 0
    assert not json.loads(cli("ps", "--json", env=environ).stdout)["running"]


def test_a_server_that_goes_on_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(warm, "ask", lambda *_: {"pid": process.pid})
        monkeypatch.setattr(serve, "END_LIMIT_S", 0.01)
        with pytest.raises(LocalaiError, match="still ending"):
            serve.stop()
        process.kill()
        monkeypatch.setattr(serve, "END_LIMIT_S", 60)
        serve.stop()
    assert "the server has ended" in capsys.readouterr().err


def test_one_that_is_unused_leaves(cli: Cli, tmp_path: Path) -> None:
    environ = {"LOCALAI_HOME": str(tmp_path / "z"), "LOCALAI_KEEP_ALIVE": "0.2s"}
    assert cli(*ASK, QUESTION, env=environ).returncode == 0
    while json.loads(cli("ps", "--json", env=environ).stdout)["running"]:
        pass


def test_ctrl_c_ends_the_server_that_is_being_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "home"))
    with pytest.raises(KeyboardInterrupt):
        background.start(["serve", "--socket-only", *MODEL], lambda: True)
    assert warm.ask({"do": "ps"}) is None


def test_no_time_to_keep_it_starts_none(cli: Cli, tmp_path: Path) -> None:
    environ = {"LOCALAI_HOME": str(tmp_path / "none"), "LOCALAI_KEEP_ALIVE": "0"}
    assert cli(*ASK, QUESTION, env=environ).returncode == 0
    assert not (tmp_path / "none" / "cache" / "run").exists()
    assert not json.loads(cli("ps", "--json", env=environ).stdout)["running"]


def test_a_chat_goes_on_when_the_model_is_let_go_and_when_the_server_leaves(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from terminals import Terminal  # skips where there are no terminals

    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "home"))
    with serving(tmp_path / "home", "--socket-only", "--parallel", "1"):
        terminal = Terminal("chat", *MODEL, "--threads", "1", "--temperature", "0", "--max-tokens", "4")
        terminal.ready()
        for word in ([MODEL[1]], []):
            terminal.type(QUESTION)
            terminal.answering()
            terminal.ready()
            assert len(json.loads(cli("ps", "--json").stdout)["models"]) == 1
            assert cli("stop", *word).returncode == 0
        terminal.type(QUESTION)
        terminal.answering()
        terminal.ready()
        terminal.type("/exit")
        assert terminal.ended() == 0
    assert sessions.find("last").turns == 3, terminal.transcript()


def test_a_server_that_hangs_keeps_nobody_who_wants_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(warm, "STOPPING_LIMIT_S", 0.1)
    (path := warm.socket_file()).parent.mkdir(parents=True, mode=0o700)
    pressed: list[bool] = []
    engine = warm.WarmEngine(Path("x.gguf"), 1000, lambda: bool(pressed) or bool(pressed.append(True)))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        for content in ("short", "long " * 1_000_000):  # which its socket does not hold
            message = Message("user", content)
            pressed.clear()
            with pytest.raises(KeyboardInterrupt):
                engine.count_tokens((message,))
            pressed.clear()
            with pytest.raises(KeyboardInterrupt):
                list(engine.generate(GenerationRequest((message,)), engine._cancelled))
            assert pressed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_whose_server_hangs_ends_at_the_first_signal(server: Running, number: int) -> None:
    from terminals import Terminal

    terminal = Terminal("chat", *MODEL, "--threads", "1")
    terminal.ready()
    try:
        os.kill(server.pid, signal.SIGSTOP)
        terminal.type(QUESTION)
        terminal.answering()
        terminal.process.kill(number)
        terminal.ended()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert terminal.process.signalstatus == number
    assert terminal.left_behind() == []


def test_a_record_that_the_server_has_no_room_for_is_answered_here(cli: Cli, tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--socket-only", "--parallel", "2", "--context", "256"):
        result = cli(
            "map", "Say {text}", *MODEL, "--max-tokens", "2", input="one\n" + "word " * 400 + "\n",
            env={"LOCALAI_HOME": str(tmp_path / "home")},
        )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1]


def test_pictures_do_not_go_through() -> None:
    with pytest.raises(UsageError):
        wire.of_messages([Message("user", "what is it?", (Image("x.png", 1, 1, b"abc"),))])


def test_what_goes_through_comes_out_the_same() -> None:
    end = AnswerEnd("é\ud800", "t", Usage(1, 2, 3), Timings(1.0, 2.0, None, None, 3.0), "stop", (ToolCall("a", "{}"),))
    for event in (end, ContextOverflow("long", "shorten", 7), EngineError("x"), NotFound("y", "z")):
        back = wire.to_event(wire.parsed(wire.line(wire.of_event(event))))
        assert type(back) is type(event)
        assert back == event or vars(back) == vars(event)
    request = GenerationRequest(
        (Message("user", "ü"),), Sampling(0.5, logit_bias=((1, 2.0),)), 3, ("a",), False, "root ::= [a]"
    )
    assert wire.to_request(wire.parsed(wire.line(wire.of_request(request)))) == request
