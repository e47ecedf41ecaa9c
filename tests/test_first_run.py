"""The guided first run: `localai` alone, at a pseudo-terminal, from nothing to the first answer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import vector_models
from conftest import Cli
from hub_on_loopback import HubOnLoopback, running
from real_model import model_file
from terminals import Terminal

from localai import catalog, hardware, library, measurement, render, settings
from localai.commands import welcome
from localai.domain.machine import Bandwidth


@pytest.fixture(autouse=True)
def measured(isolated: Path) -> None:
    """Speeds as of a quiet machine: what is offered must not hang on what else runs, nor the tests wait for it."""
    figures = {"gbps": 35.0, "gflops": 100.0, "attempts": 3, "measured_at": int(time.time())}
    path = settings.private_folder(settings.folders().data.parent) / "data" / "measurements.json"
    settings.private_folder(path.parent)
    path.write_text(json.dumps({measurement.identity(hardware.detect()): figures}))


@pytest.fixture
def hub() -> Iterator[HubOnLoopback]:
    with running() as made:
        yield made


def serve(hub: HubOnLoopback, offered: str) -> None:
    """Put a small model where the offered one is to be."""
    name, quantization = re.fullmatch(r"(\S+) \((\S+)\)", offered).groups()
    model = catalog.resolve_name(name)
    files = next(each.names for each in model.files if each.quantization == quantization)
    hub.add(model.repo, {files[0]: model_file().read_bytes()})


def offers(terminal: Terminal) -> list[str]:
    seen = terminal.see(r"Which one\?")
    return re.findall(r"^\d  (\S+ \(\S+\))", seen, re.MULTILINE)


def test_from_nothing_to_the_first_answer_with_one_key(isolated: Path, hub: HubOnLoopback) -> None:
    terminal = Terminal(HF_ENDPOINT=hub.url, LOCALAI_TEMPERATURE="0")
    rows = offers(terminal)
    assert "smollm2-135m" in rows[-1]
    serve(hub, rows[0])
    terminal.type("")
    terminal.see("SHA-256 verified")
    terminal.ready()
    terminal.say("Name the capital of France.", "Paris")
    terminal.leave()
    assert {each.model for each in library.installed()} == {rows[0].split()[0], "smollm2-135m"}
    again = Terminal(HF_ENDPOINT=hub.url)
    assert any("here" in line for line in again.see(r"Which one\?").splitlines())
    again.see(r"Enter takes [23]")  # what was chosen before, not another download
    again.process.sendeof()
    assert again.ended() == 0


def test_without_a_network_it_goes_on_with_what_is_here(isolated: Path) -> None:
    terminal = Terminal()  # the Hub of the tests is a closed port
    offers(terminal)
    terminal.type("1")
    terminal.see("cannot reach")
    terminal.see("Going on with smollm2-135m:Q4_1, which is here already")
    terminal.ready()
    terminal.leave()


def test_offline_offers_what_is_here_and_writes(isolated: Path, cli: Cli) -> None:
    vector_models.bert(isolated / "bert.gguf")
    imported = cli("import", str(isolated / "bert.gguf"), "--name", "nomic-embed-text-v1.5")
    assert imported.returncode == 0, imported.stderr
    terminal = Terminal("--offline")
    terminal.see("nothing can be downloaded")
    assert [row.split()[0] for row in offers(terminal)] == ["smollm2-135m"]
    terminal.type("")
    terminal.ready()
    terminal.leave()


@pytest.mark.parametrize("typed", ["n\r", "99\rnon\r", "\x04"])
def test_the_question_can_be_declined(isolated: Path, typed: str) -> None:
    terminal = Terminal()
    offers(terminal)
    terminal.process.send(typed)
    assert terminal.ended() == 0
    assert terminal.left_behind() == []


def test_ctrl_c_leaves_at_the_question_and_at_the_download(isolated: Path, hub: HubOnLoopback) -> None:
    terminal = Terminal(HF_ENDPOINT=hub.url)
    rows = offers(terminal)
    terminal.interrupt_until_it_ends()
    assert terminal.ended() == 130
    assert terminal.left_behind() == []
    serve(hub, rows[0])
    hub.fault(hang_at=1_000_000, times=100)
    terminal = Terminal(HF_ENDPOINT=hub.url)
    offers(terminal)
    terminal.type("1")
    assert hub.wait_until_sent(900_000)
    terminal.interrupt_until_it_ends()
    assert terminal.ended() == 130
    assert terminal.left_behind() == []
    assert "Traceback" not in terminal.raw


def test_the_machine_is_measured_before_it_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Bandwidth(99.0, "measured")
    monkeypatch.setattr(render, "is_terminal", lambda stream: True)
    monkeypatch.setattr(measurement, "measured", lambda machine, announce: replace(machine, bandwidth=found))
    monkeypatch.setattr(welcome, "choose", lambda machine, installed: None)
    welcome.first_run(None)
    assert "99 GB/s, measured\n" in capsys.readouterr().out
