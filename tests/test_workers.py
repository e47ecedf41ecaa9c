"""Models spread over several machines: two workers on loopback, the real small model, workers that die or hang."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import Cli
from real_model import model_file, plan
from running_server import serving

from localai import hardware, workers
from localai.checks import engine as checks
from localai.checks.building import Installation, Way
from localai.domain.engine import Delivery
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, Message, Sampling
from localai.domain.machine import EngineInfo
from localai.engine import child
from localai.errors import EngineError, LocalaiError, NetworkError, UsageError

QUESTION = "Name the capital of France."

Start = Callable[..., "subprocess.Popen[str]"]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def endpoint(worker: subprocess.Popen[str]) -> str:
    """Where a worker says that it listens."""
    assert worker.stderr is not None
    found = re.search(r"at (127\.0\.0\.1:\d+);", worker.stderr.readline())
    assert found is not None
    return found[1]


@pytest.fixture
def start(isolated: Path) -> Iterator[Start]:
    """Starts `localai worker`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "localai", "worker", "--port", str(free_port()), "--threads", "1", *more]
        worker = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=isolated)
        started.append(worker)
        return worker

    yield run
    for worker in started:
        worker.kill()
        worker.wait()
        assert worker.stderr is not None
        worker.stderr.close()


def server_of(worker: subprocess.Popen[str]) -> psutil.Process:
    """The process in which llama.cpp serves."""
    (found,) = psutil.Process(worker.pid).children()
    return found


def test_a_model_over_two_machines_answers_as_on_one(start: Start, cli: Cli) -> None:
    first, second = start(), start("--memory", "4")
    rpc = f"{endpoint(first)},{endpoint(second)}"
    asked = ("run", "-m", "smollm2-135m", "--temperature", "0", "--max-tokens", "8", QUESTION)
    alone, spread = cli(*asked), cli(*asked, "--rpc", rpc, "--output", "json")
    assert (spread.returncode, spread.stderr) == (0, "")
    assert json.loads(spread.stdout)["text"] == alone.stdout.rstrip("\n")
    piped = cli("chat", "smollm2-135m", "--temperature", "0", "--max-tokens", "8", "--rpc", rpc, input=QUESTION)
    assert piped.stdout == alone.stdout
    mapped = cli("map", "{text}", *asked[1:-1], "--rpc", rpc, "--output", "text", "--parallel", "2", input=QUESTION)
    assert (mapped.returncode, mapped.stdout) == (0, alone.stdout)


def test_a_worker_says_what_it_lends_and_to_whom(start: Start) -> None:
    worker = start("--memory", "2")
    where = endpoint(worker)
    (lent,) = workers.gpus((where,), gbps=50.0)
    assert lent.vram_total_bytes == 2 * 1024**3
    assert 0 < (lent.vram_free_bytes or 0) <= 2 * 1024**3
    assert (lent.name, lent.usable_by_engine, lent.bandwidth_gbps) == (f"worker {where}", True, 50.0)
    assert worker.stderr is not None
    assert "the protocol has no authentication" in worker.stderr.readline()
    assert worker.stderr.readline() == "Ctrl-C ends it.\n"
    assert worker.stderr.readline() == "a program has connected\n"


def test_without_a_limit_a_worker_lends_what_is_free_and_not_all_the_ram(start: Start) -> None:
    (lent,) = workers.gpus((endpoint(start()),))
    memory = psutil.virtual_memory()
    assert (lent.vram_free_bytes or 0) < memory.available
    assert (lent.vram_total_bytes or 0) <= memory.total


def long_story(rpc: str, cwd: Path) -> subprocess.Popen[str]:
    """A run that takes a while, over the worker `rpc`."""
    asked = ("-m", "smollm2-135m", "--temperature", "0", "--rpc", rpc, "Tell me a very long story.")
    command = [sys.executable, "-m", "localai", "run", *asked]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def test_a_worker_that_dies_is_one_line_and_exit_6(start: Start, isolated: Path) -> None:
    worker = start()
    with long_story(endpoint(worker), isolated) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(1)
        server_of(worker).kill()
        said = running.stderr.read().splitlines()
        assert running.wait(60) == 6
    assert [line.partition(":")[0] for line in said] == ["error", "hint"], said
    assert "Remote RPC server crashed" in said[0]
    assert worker.wait(60) == 6  # it, too, says that its server has ended


def test_ctrl_c_ends_a_run_whose_worker_hangs(start: Start, isolated: Path) -> None:
    worker = start()
    with long_story(endpoint(worker), isolated) as running:
        assert running.stdout is not None
        assert running.stdout.read(1)
        server_of(worker).suspend()
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    server_of(worker).resume()


def test_a_cancelled_answer_of_a_worker_that_hangs_frees_its_slot(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_STUCK_S", 0.5)
    worker = start()
    spread = child.load(model_file(), replace(plan(512), workers=(endpoint(worker),), gpu_layers=31))
    heard: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
    story = (Message("user", "Tell me a very long story."),)
    try:
        ticket = spread.submit(GenerationRequest(story, Sampling(temperature=0)), heard.put)
        while not isinstance(heard.get(timeout=60), AnswerText):
            pass
        server_of(worker).suspend()
        with contextlib.suppress(queue.Empty):  # until it waits for the worker in the midst of a token
            while True:
                heard.get(timeout=1)
        ticket.cancel()
        while not isinstance(end := heard.get(timeout=60), AnswerEnd | LocalaiError):
            pass
        assert isinstance(end, EngineError)
        assert "lost" in end.message
    finally:
        server_of(worker).resume()
        spread.close()


def test_the_engine_comes_back_with_its_worker(start: Start) -> None:
    worker = start()
    where = endpoint(worker)
    request = GenerationRequest((Message("user", QUESTION),), Sampling(temperature=0), max_tokens=4)
    spread = child.load(model_file(), replace(plan(512), workers=(where,), gpu_layers=31))
    try:
        first = list(spread.generate(request, lambda: False))[-1]
        assert isinstance(first, AnswerEnd)
        assert spread.count_tokens(request.messages) == first.usage.prompt_tokens
        worker.kill()
        worker.wait()
        with pytest.raises(EngineError, match="lost"):
            list(spread.generate(request, lambda: False))
        again = start("--port", where.rpartition(":")[2])
        assert endpoint(again) == where
        assert list(spread.generate(request, lambda: False))[-1].text == first.text  # type: ignore[union-attr]
    finally:
        spread.close()
    with pytest.raises(EngineError, match="closed"):
        spread.count_tokens(request.messages)


def test_a_server_outlives_its_worker(start: Start, isolated: Path) -> None:
    worker = start()
    where = endpoint(worker)
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 4, "temperature": 0}

    def ask(url: str) -> tuple[int, str]:
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]["message"]

    with serving(isolated / "home", "--port", "0", "--context", "512", "--rpc", where, offline=False) as running:
        first = ask(running.url)
        assert first[0] == 200, first
        worker.kill()
        worker.wait()
        code, message = ask(running.url)
        assert code == 503
        assert "lost" in message
        assert endpoint(start("--port", where.rpartition(":")[2])) == where
        assert ask(running.url) == first


def test_a_worker_leaves_with_its_parent(start: Start) -> None:
    worker = start()
    endpoint(worker)
    server = server_of(worker)
    worker.kill()
    server.wait(30)


def test_ctrl_c_ends_a_worker(start: Start) -> None:
    worker = start()
    endpoint(worker)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(30) == 130


def test_a_port_that_is_taken_is_said(cli: Cli) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("worker", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: cannot listen at 127.0.0.1:")
    assert done.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.parametrize("host", ["nosuch.invalid", "::1", "203.0.113.9"])
def test_a_worker_listens_at_an_address_of_its_own(host: str, cli: Cli) -> None:
    done = cli("worker", "--host", host, "--port", str(free_port()))
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 2


def test_a_worker_that_is_not_there_is_exit_5(cli: Cli) -> None:
    done = cli("run", "-m", "smollm2-135m", "--rpc", f"127.0.0.1:{free_port()}", "hi")
    assert done.returncode == 5
    assert "cannot be reached" in done.stderr
    offline = cli("run", "-m", "smollm2-135m", "--rpc", "127.0.0.1:1", "hi", "--offline")
    assert (offline.returncode, "offline" in offline.stderr) == (5, True)


def test_something_else_at_the_port_is_no_worker() -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def hang_up() -> None:
            for _ in range(2):  # the look whether anybody is there, and the question
                accepted, _ = other.accept()
                accepted.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(NetworkError, match="no worker of this engine"):
            workers.gpus((f"127.0.0.1:{other.getsockname()[1]}",))
        thread.join()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("host", ("host:50052",)),
        ("a.example:1, b-c.example:65535", ("a.example:1", "b-c.example:65535")),
        ("192.168.1.7:50052,192.168.1.7:50052", ("192.168.1.7:50052",)),
    ],
)
def test_workers_are_named_by_host_and_port(text: str, found: tuple[str, ...]) -> None:
    assert workers.parse(text) == found


@pytest.mark.parametrize(
    "text", ["", ",", "host:", "host:0", "host:70000", "host:x", ":5", "[::1]:5", "::1", "a b:5", "h\x1b:5", "-x:5"]
)
def test_what_names_no_worker_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        workers.parse(text)


def test_more_workers_than_llama_cpp_takes_are_refused(cli: Cli) -> None:
    done = cli("run", "--rpc", ",".join(f"h{number}:1" for number in range(17)), "hi")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: --rpc names 17 workers")


def test_doctor_tells_how_to_build_an_engine_with_rpc() -> None:
    here = Installation(Way.PIP, Path("/env"), "/env/bin/python", "0.3.36")
    here_now = hardware.detect(engine=False)
    without = checks.check_rpc(here_now, here)
    assert without.command is not None
    assert "-DGGML_RPC=on" in without.command
    built = replace(here_now, engine=EngineInfo("0.3.36", ("RPC", "CPU")))
    assert checks.check_rpc(built, here).command is None
