"""`localai bench`: what it measures, keeps, shows and refuses, on models of a few kilobytes and the real small one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf as reference
import pytest
import random_models
from conftest import Cli
from fake_engine import FakeTicket
from real_model import model_file

from localai import (
    benching,
    boundary,
    calibrating,
    experience,
    gguf,
    hardware,
    library,
    loading,
    past_runs,
    recording,
    shapes,
    speed,
    tuning,
)
from localai.calibrating import calibrate
from localai.domain.engine import BatchEngine, Delivery, Ticket
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, Sampling, Timings, Usage
from localai.domain.plan import Placement
from localai.domain.rates import Setting, Tuned, Tuning
from localai.domain.units import MIB
from localai.engine import synthetic
from localai.engine.synthetic import Synthetic
from localai.errors import DoesNotFit, EngineError, UsageError
from localai.loading import LoadOptions
from localai.tuning import Tried


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.write(tmp_path_factory.mktemp("tiny"), random_models.TINY["plain"])


def test_a_model_is_measured_and_kept(cli: Cli, tiny: Path) -> None:
    done = cli("bench", str(tiny), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema_version"] == 1
    assert [(each["work"], each["depth"] > 0) for each in found["results"]] == [
        ("prompt", False),
        ("prompt", True),
        ("decode", False),
        ("decode", True),
    ]
    for each in found["results"]:
        assert 0 < each["low_tps"] <= each["median_tps"] <= each["high_tps"]
        assert each["predicted_tps"]["low"] <= each["predicted_tps"]["mid"] <= each["predicted_tps"]["high"]
    kept = json.loads(cli("bench", "--history", "--json").stdout)["runs"]
    assert [each["command"] for each in kept] == ["bench"]
    assert kept[0]["measured_decode_tps"] == pytest.approx(found["results"][2]["median_tps"], abs=0.02)
    for name, count in ((str(tiny), 1), (tiny.stem, 1), ("smollm2-135m", 0)):
        assert len(json.loads(cli("bench", "--history", name, "--json").stdout)["runs"]) == count, name
    assert cli("bench", "--history", "no-such-model").returncode == 3
    table = cli("bench", "--history").stdout
    assert "bench" in table
    assert all(len(line) <= 100 for line in table.splitlines())


def test_a_run_is_kept_without_its_text(cli: Cli) -> None:
    asked = "Tell me about pelicans. " * 12
    done = cli("run", "-m", str(model_file()), "--max-tokens", "24", "--temperature", "0", asked)
    assert done.returncode == 0, done.stderr
    runs = json.loads(cli("bench", "--history", "--json").stdout)["runs"]
    assert len(runs) == 1
    assert runs[0]["command"] == "run"
    assert runs[0]["measured_prompt_tps"] > 0
    assert runs[0]["predicted_decode_tps"] > 0
    assert runs[0]["predicted_bytes"] > 50 * MIB
    assert runs[0]["peak_bytes"] > 50 * MIB
    assert b"elican" not in past_runs.file().read_bytes()


def test_the_shortest_run_is_kept_but_teaches_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALAI_THREADS")  # else that is a setting somebody asked for
    done = cli("run", "-m", str(model_file()), "--max-tokens", "3", "--temperature", "0", "--system", "", "Hi")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(cli("bench", "--history", "--json").stdout)["runs"]
    assert run["prompt_tokens"] < past_runs.LEAST_READ
    assert run["answer_tokens"] == 3
    for what in ("prompt", "decode"):
        assert run[f"measured_{what}_tps"] > 0
        assert run[f"predicted_{what}_tps"] > 0
    shown = cli("bench", "--history").stdout
    assert "short" in shown or "busy" in shown
    assert "corrects nothing" in shown
    assert past_runs.corrections(hardware.detect(), 0) == ()


def test_one_answer_of_a_map_is_kept(cli: Cli) -> None:
    asked = "Tell me about pelicans. " * 12 + "{text}"
    how = ("--max-tokens", "24", "--temperature", "0", "--parallel", "1")
    done = cli("map", asked, "-m", str(model_file()), *how, input="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    (kept,) = json.loads(cli("bench", "--history", "--json").stdout)["runs"]
    assert kept["command"] == "map"
    assert kept["measured_decode_tps"] > 0


class Held(BatchEngine):
    """An engine whose answers end when the test says so."""

    context, load_ms = 512, 0.0

    def __init__(self) -> None:
        self.delivers: list[Callable[[Delivery], None]] = []

    def submit(self, request: GenerationRequest, deliver: Callable[[Delivery], None]) -> Ticket:
        self.delivers.append(deliver)
        return FakeTicket(iter(()), deliver, threading.Event())


@pytest.mark.parametrize(
    ("sequences", "order", "kept"),
    [
        (8, "s e s e", [False]),  # the second comes too soon after
        (8, "s s e e", [True]),  # they shared the model
        (1, "s s e e", [False]),  # the second waited
        (8, "s s e e s e", [True, False]),
        (8, "s s x e s e", [True, False]),
        (8, "s x s e", [False]),
    ],
)
def test_answers_that_had_the_model_to_themselves_are_kept_apart(
    sequences: int, order: str, kept: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    monkeypatch.setattr(recording, "keep", lambda prepared, end, command, together: heard.append(together))
    prepared = loading.prepare(library.find(str(model_file())), LoadOptions(), 512, sequences)
    engine = Held()
    recorded = recording.Recorded(engine, prepared, "serve")
    end = AnswerEnd("", "", Usage(64, 16, 80), Timings(0, 0, 0, 100.0, 100.0), "stop")
    for step in order.split():
        if step == "s":
            recorded.submit(GenerationRequest((Message("user", "hi"),), Sampling()), lambda event: None)
        else:
            engine.delivers.pop(0)(end if step == "e" else EngineError("broken", "mend it"))
    assert heard == kept


def test_nothing_is_kept_yet(cli: Cli) -> None:
    done = cli("bench", "--history")
    assert done.returncode == 0
    assert "No runs are kept yet" in done.stdout
    assert json.loads(cli("bench", "--history", "--json").stdout)["runs"] == []


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--calibrate", "--tune"), 2, "three things"),
        (("--calibrate", "some-model"), 2, "leave the model out"),
        (("--calibrate", "--threads", "1"), 2, "leave them out"),
        (("--tune", "--kv-type", "q8_0"), 2, "chooses"),
        (("no-such-model",), 3, "no-such-model"),
        (("--tune", "no-such-model"), 3, "no-such-model"),
        (("--limit", "0", "--history"), 2, "limit"),
    ],
)
def test_what_is_wrong_is_told(cli: Cli, words: tuple[str, ...], code: int, says: str) -> None:
    done = cli("bench", *words)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "not a model.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    assert cli("bench", str(path)).returncode == 6


# ------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("kind", [*calibrating.KINDS, *calibrating.FURTHER_KINDS])
def test_a_made_up_model_is_a_sound_file(kind: str, tmp_path: Path) -> None:
    model = Synthetic(kind, 2, 256, 512, heads=4, kv_heads=2)
    path = tmp_path / "model.gguf"
    synthetic.write(path, model)
    assert {each.name: each.tensor_type.name for each in reference.GGUFReader(path).tensors}[
        "blk.1.ffn_up.weight"
    ] == kind
    header = gguf.read_header(path)
    assert sum(each.size_bytes for each in header.tensors) == model.size_bytes
    assert shapes.weights(header).layer_kinds == ((kind, 2 * (3 * 256 * 512 + 2 * 256 * 256 + 2 * 256 * 128)),)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "SMALLEST_BYTES", 4 * MIB)
    monkeypatch.setattr(calibrating, "LARGEST_BYTES", 4 * MIB)
    monkeypatch.setattr(calibrating, "KINDS", ("Q8_0", "Q4_0"))
    for name in ("NARROW_KINDS", "LARGE_KINDS"):
        monkeypatch.setattr(calibrating, name, ("Q8_0",))
    monkeypatch.setattr(calibrating, "EXPERTS_KIND", "Q8_0")
    monkeypatch.setattr(calibrating, "_BEFORE_EXPERTS", 1)
    monkeypatch.setattr(calibrating, "FURTHER_KINDS", ("Q5_0",))
    monkeypatch.setattr(calibrating, "_NARROW", {"Q8_0": (256, 256, 1, 1, 256)})
    monkeypatch.setattr(calibrating, "_SHAPES", ((512, 1024, 8, 2, 64), (256, 512, 4, 2, 64)))
    monkeypatch.setattr(calibrating, "_TOKENS", 32)
    monkeypatch.setattr(calibrating, "_WRITTEN", 2)


@pytest.mark.usefixtures("small")
def test_calibration_predicts_from_then_on() -> None:
    machine, said = hardware.detect(), []
    found = calibrate(machine, said.append)
    assert [kind for kind, _ in found.cpu.decode] == ["Q4_0", "Q5_0", "Q8_0"]
    assert all(rate > 0 for _, rate in found.cpu.decode)
    assert [numbers for numbers, _ in found.cpu.attention_decode] == [128, 512]
    assert found.cpu.expert_layer_s is not None
    assert any("Q8_0" in line for line in said)
    assert experience.keep_calibration(machine, found)
    header = gguf.read_header(model_file())
    shape, weights = shapes.shape(header), shapes.weights(header)
    predicted = speed.decode_speed(shape, weights, hardware.detect())
    assert predicted.basis == "calibrated"
    assert predicted.mid > 0
    assert speed.prompt_speed(shape, weights, hardware.detect()).basis == "calibrated"


def test_every_type_of_the_model_that_comes_with_us_is_measured() -> None:
    kinds = {kind for kind, _ in shapes.weights(gguf.read_header(model_file())).layer_kinds}
    assert kinds - {"F32"} <= set(calibrating.KINDS)


@pytest.mark.usefixtures("small")
def test_calibration_stops_when_asked_to() -> None:
    asked = threading.Event()

    def tell(text: str) -> None:
        if "Q4_0" in text:
            asked.set()

    with pytest.raises(KeyboardInterrupt):
        calibrate(hardware.detect(), tell, asked.is_set)


def test_calibration_needs_some_memory() -> None:
    machine = hardware.detect()
    short = replace(machine, memory=replace(machine.memory, available_bytes=100 * MIB))
    with pytest.raises(DoesNotFit, match="too little free memory"):
        calibrate(short, lambda text: None)


# ------------------------------------------------------------------------------------------------------ tuning


def test_tuning_tries_each_setting_on_the_model_and_keeps_what_it_found(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "TOKENS", (32,))
    prepared = benching.prepare(library.find(str(tiny)), LoadOptions())
    found, tried = benching.tune(prepared, lambda text: None)
    assert found.architecture == "llama"
    assert found.settings[0].setting.flash
    changed = [each.setting for each in tried]
    assert any(not each.repack for each in changed)
    assert any(not each.flash for each in changed)
    assert {each.setting for each in found.settings[1:]} == {each.setting for each in tried if each.adopted}
    assert benching.keep(prepared, found)
    assert found in hardware.detect().experience.tunings


def test_settings_that_do_not_fit_are_not_tried(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "TOKENS", (32,))
    prepared = benching.prepare(library.find(str(tiny)), LoadOptions(speculate=False))
    need = prepared.plan.memory
    tight = replace(prepared, plan=replace(prepared.plan, available_bytes=need.total_bytes + need.overhead_bytes))
    monkeypatch.setattr(tuning, "candidates", lambda default, *_, **__: [replace(default, flash=False)])
    found, tried = benching.tune(tight, lambda text: None)
    assert (tried, len(found.settings)) == ((), 1)
    tighter = replace(tight, plan=replace(tight.plan, available_bytes=need.total_bytes))
    with pytest.raises(DoesNotFit):
        benching.tune(tighter, lambda text: None)


def test_a_model_in_two_places_is_not_tuned(tiny: Path) -> None:
    prepared = benching.prepare(library.find(str(tiny)), LoadOptions())
    with pytest.raises(UsageError, match="does not fit the GPU whole"):
        benching.tune(replace(prepared, plan=replace(prepared.plan, placement=Placement.SPLIT)), lambda text: None)


def test_what_cannot_be_kept_is_said(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    default = Setting(True, True, 1, 512, "f16")
    ratios = tuple((name, 2.0) for name in tuning.JOBS)
    base = Tuned(default, 1.0, 0.0, 1.0, 0.0)
    quicker = Tried(replace(default, repack=False), (2.0, 2.0, 2.0, 2.0), ratios, 5, True)
    found = Tuning("llama", "F16", 1, False, (base, tuning.scaled(base, quicker.setting, quicker.gains)))
    monkeypatch.setattr(benching, "tune", lambda *_: (found, (quicker,)))
    monkeypatch.setattr(experience, "keep_tuning", lambda *_: False)
    assert boundary.run(["bench", "--tune", str(tiny)]) == 0
    shown = capsys.readouterr()
    assert "cannot be kept" in shown.err
    assert "From now on" not in shown.out


@pytest.mark.parametrize(("load", "warned"), [([False, False], False), ([True, False], True), ([False, True], True)])
def test_tuning_beside_other_programs_is_warned_of(
    load: list[bool], warned: bool, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Tuned(Setting(True, True, 1, 512, "f16"), 1.0, 0.0, 1.0, 0.0)
    monkeypatch.setattr(benching, "tune", lambda *_: (Tuning("llama", "F16", 1, False, (base,)), ()))
    monkeypatch.setattr(past_runs, "busy", lambda _: load.pop(0))
    assert boundary.run(["bench", "--tune", str(tiny)]) == 0
    assert ("other programs have the processor" in capsys.readouterr().err) == warned
