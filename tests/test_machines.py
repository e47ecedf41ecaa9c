"""Machines that are not this one: the list, files from elsewhere, machines made up, and what is recommended on them."""

from __future__ import annotations

import json
import math
import re
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hypothesis import given, settings
from hypothesis import strategies as st

from localai import catalog, estimate, hardware, machine_file, machines, recommend, schema, sizes, speed, tiers
from localai.domain.machine import Bandwidth, EngineInfo, Gpu, Machine, Npu
from localai.domain.plan import Placement
from localai.domain.units import GIB
from localai.errors import NotFound, UsageError

LISTED = {each.id: each for each in machines.listed()}
RAW = tomllib.loads(resources.files("localai.data").joinpath("machines.toml").read_text("utf-8"))
PHONES = [each.id for each in machines.listed() if each.kind == "phone"]


def decode(machine: Machine, model: str, quantization: str = "Q4_K_M") -> float:
    known = next(each for each in catalog.load() if each.id == model)
    assert known.shape is not None
    plan = estimate.plan(known.shape, sizes.weights_from_catalog(known, quantization), machine)
    assert plan.fits
    assert plan.decode_tps is not None
    return plan.decode_tps.mid


# ------------------------------------------------------------------------------------------------------- the list


def test_the_list_has_the_machines_that_people_plan_for() -> None:
    assert len(LISTED) >= 25
    assert {"raspberry-pi-5-8gb", "iphone-15-pro", "rtx-4090-desktop-64gb"} <= set(LISTED)
    assert len(LISTED) == len(machines.listed())
    assert {each.kind for each in LISTED.values()} == {
        "phone",
        "single-board computer",
        "laptop",
        "desktop",
        "workstation",
        "server",
    }


def test_every_figure_has_a_source_and_every_part_is_used() -> None:
    for part in (*RAW["chips"].values(), *RAW["cards"].values(), *RAW["machines"]):
        assert len(part["source"]) > 20
    assert {raw["chip"] for raw in RAW["machines"]} == set(RAW["chips"])
    assert {card for raw in RAW["machines"] for card in raw.get("cards", ())} == set(RAW["cards"])


def test_the_list_agrees_with_what_the_probes_know_of_the_same_parts() -> None:
    def data(name: str) -> Any:
        return tomllib.loads(resources.files("localai.data").joinpath(name).read_text("utf-8"))

    known = {(card["name"], card["vram_gib"]): card["gbps"] for cards in data("gpus.toml").values() for card in cards}
    shared = [card for card in RAW["cards"].values() if (card["name"], card["vram_gib"]) in known]
    assert shared
    assert all(known[card["name"], card["vram_gib"]] == card["gbps"] for card in shared)
    apple = data("apple_chips.toml")
    for chip in RAW["chips"].values():
        if chip["cpu"] in apple and "gbps" in apple[chip["cpu"]]:
            assert chip["ram_gbps"] == pytest.approx(apple[chip["cpu"]]["gbps"], abs=0.1)
            assert chip["npu"].get("tops") == apple[chip["cpu"]].get("tops")


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_machine_is_possible(name: str) -> None:
    listed = LISTED[name]
    machine = listed.machine
    assert listed.sources
    assert 0 < machine.memory.available_bytes < machine.memory.total_bytes
    assert machine.bandwidth.gbps is None or 3 < machine.bandwidth.gbps < 2000
    assert machine.cpu.physical_cores is not None
    assert machine.cpu.physical_cores <= machine.cpu.logical_cores
    assert any("taken as free" in note for note in machine.notes)
    for gpu in machine.gpus:
        if gpu.shared_memory:
            assert gpu.vram_free_bytes is None or gpu.vram_free_bytes <= machine.memory.available_bytes
        else:
            assert gpu.vram_total_bytes is not None
            assert gpu.vram_free_bytes is not None
            assert gpu.vram_free_bytes < gpu.vram_total_bytes
    assert not any(npu.usable_by_engine for npu in machine.npus)
    rows = recommend.rank(machine, catalog.load())
    assert rows
    for row in rows:
        assert row.fits
        assert row.memory.total_bytes < machine.memory.available_bytes + sum(
            gpu.vram_free_bytes or 0 for gpu in machine.gpus if not gpu.shared_memory
        )


@pytest.mark.parametrize("name", PHONES)
def test_a_phone_has_one_memory_and_its_npu_is_no_capacity(name: str) -> None:
    machine = LISTED[name].machine
    assert all(gpu.shared_memory for gpu in machine.gpus)
    assert len(machine.npus) == 1
    plan = recommend.rank(machine, catalog.load())[0]
    assert plan.memory.total_bytes + plan.memory.overhead_bytes <= machine.memory.available_bytes


@pytest.mark.parametrize("name", PHONES)
def test_3b_models_on_phones_are_as_fast_as_published(name: str) -> None:
    """Hardware-tiers: 15 to 30 tokens per second; ExecuTorch publishes 19.7 for a Snapdragon 8 Gen 3."""
    assert 15 <= decode(LISTED[name].machine, "llama-3.2-3b") <= 30


@pytest.mark.parametrize("name", PHONES)
def test_a_phone_runs_a_model_of_7_billion_at_4_bits(name: str) -> None:
    machine = LISTED[name].machine
    assert decode(machine, "mistral-7b-v0.3") > 5
    assert tiers.tier(machine).id == "3b-7b"


@pytest.mark.parametrize(
    ("name", "model", "low", "high"),
    [
        # published speeds of llama.cpp, from the pages named
        ("raspberry-pi-4-8gb", "llama-3.2-3b", 2, 3.4),  # specpicks.com, Raspberry Pi 4 8GB, 2026
        ("strix-halo-128gb", "devstral-small-2-24b", 12, 16),  # fromthematrix.dev, strix-halo: 14
    ],
)
def test_other_machines_are_as_fast_as_published(name: str, model: str, low: float, high: float) -> None:
    assert low <= decode(LISTED[name].machine, model) <= high


@pytest.mark.parametrize(
    ("name", "model", "quantization", "published"),
    [
        ("rtx-4090-desktop-64gb", "qwen3-30b-a3b-2507", "Q4_K_M", 196),  # runaihome.com, 2026
        ("rx-7900-xtx-desktop-32gb", "llama-3.1-8b", "Q4_K_M", 105),  # llama.cpp PR 26284
        ("rx-7900-xtx-desktop-32gb", "qwen3.8-27b", "Q4_K_M", 41),  # sudoingX/qwen38-mtp PR 53
        ("dgx-spark-128gb", "qwen3-30b-a3b-2507", "Q8_0", 59),  # llama.cpp, benches/dgx-spark.md
        ("dgx-spark-128gb", "gpt-oss-120b", "MXFP4", 56),  # the same
        ("dgx-spark-128gb", "qwen3.6-35b-a3b", "UD-Q4_K_M", 65.3),  # subterratechnologies.com, 2026
        ("mac-studio-m3-ultra-256gb", "qwen3-30b-a3b-2507", "Q8_0", 76),  # llama.cpp PR 15616, M2 Ultra
        ("dual-rtx-3090-workstation-128gb", "qwen3.6-35b-a3b", "UD-Q4_K_M", 137),  # r/LocalLLaMA, 2026
    ],
)
def test_gpus_write_about_as_fast_as_published(name: str, model: str, quantization: str, published: float) -> None:
    known = next(each for each in catalog.load() if each.id == model)
    machine, weights = LISTED[name].machine, sizes.weights_from_catalog(known, quantization)
    found = speed.decode_speed(sizes.shape_from_catalog(known), weights, machine, 99)
    assert found.low < published < found.high


@pytest.mark.parametrize(
    ("name", "model", "quantization", "published"),
    [
        # prompt speeds of llama.cpp with 512 tokens at a time, of that model or its like, from the pages named
        ("rx-7900-xtx-desktop-32gb", "llama-3.1-8b", "Q4_K_M", 3227),  # llama.cpp PR 26284
        ("rx-7900-xtx-desktop-32gb", "gemma-4-26b-a4b", "Q4_0", 3198),  # PR 24546, Q6_K
        ("dual-rtx-3090-workstation-128gb", "gemma-4-26b-a4b", "Q4_0", 3734),  # PR 22298, Q4_K_M
        ("mac-studio-m3-ultra-256gb", "qwen3-30b-a3b-2507", "Q8_0", 2045),  # PR 15616, M2 Ultra
        ("dgx-spark-128gb", "qwen2.5-coder-7b", "Q4_K_M", 2380),  # benches/dgx-spark.md, Q8_0
        ("raspberry-pi-4-8gb", "llama-3.2-1b", "Q8_0", 10),  # justine.lol, TinyLlama 1.1B
        ("raspberry-pi-5-8gb", "llama-3.2-1b", "Q8_0", 40),  # the same: 35 to 45
    ],
)
def test_prompts_are_read_about_as_fast_as_published(
    name: str, model: str, quantization: str, published: float
) -> None:
    known = next(each for each in catalog.load() if each.id == model)
    machine, weights = LISTED[name].machine, sizes.weights_from_catalog(known, quantization)
    plan = estimate.plan(sizes.shape_from_catalog(known), weights, machine)
    assert plan.prompt_tps is not None
    assert 0.5 < plan.prompt_tps.mid / published < 2
    assert plan.prompt_tps.low < published < plan.prompt_tps.high


@pytest.mark.parametrize(
    ("model", "quantization", "on_cpu", "vram", "gpu_gbps", "ram_gbps", "published"),
    [
        ("qwen3.6-35b-a3b", "UD-Q4_K_M", 40, 16, 960, 76.8, 51.0),  # r/LocalLLaMA, 2026-02-25: RTX 5080, Qwen3.5 35B
        ("qwen3.6-35b-a3b", "UD-Q4_K_M", 24, 16, 960, 76.8, 69.6),  # the same
        ("qwen3-30b-a3b-2507", "Q4_K_M", 36, 8, 448, 102, 36.7),  # llmfit PR 755: RTX 2080
    ],
)
def test_experts_in_ram_beside_a_gpu_write_as_fast_as_published(
    model: str, quantization: str, on_cpu: int, vram: float, gpu_gbps: float, ram_gbps: float, published: float
) -> None:
    known = next(each for each in catalog.load() if each.id == model)
    machine = machines.hypothetical(64, vram, ram_gbps)
    machine = replace(machine, gpus=(replace(machine.gpus[0], bandwidth_gbps=gpu_gbps),))
    weights = sizes.weights_from_catalog(known, quantization)
    found = speed.decode_speed(sizes.shape_from_catalog(known), weights, machine, 99, cpu_expert_layers=on_cpu)
    assert found.mid == pytest.approx(published, rel=0.25)


def test_a_wide_bus_makes_an_integrated_gpu_worth_using_and_a_narrow_one_does_not() -> None:
    wide = LISTED["strix-halo-128gb"].machine
    assert recommend.rank(wide, catalog.load())[0].placement is Placement.GPU
    narrow = replace(wide, gpus=(replace(wide.gpus[0], bandwidth_gbps=128.0),))
    assert recommend.rank(narrow, catalog.load())[0].placement is Placement.CPU
    assert not tiers.unified(replace(wide.gpus[0], usable_by_engine=False))
    assert not tiers.unified(Gpu("AMD", "card", GIB, GIB, usable_by_engine=True, bandwidth_gbps=900))


# ----------------------------------------------------------------------------------------------------- by its name


def test_a_name_is_found_however_it_is_written() -> None:
    assert machines.named(" iPhone-15-Pro") == LISTED["iphone-15-pro"].machine
    assert machines.named("iPhone 15 Pro") == LISTED["iphone-15-pro"].machine


@pytest.mark.parametrize("name", ["iphone-15", "iphne-15-pro", "rtx-4090", "", "\0", "a/b", "~", "x" * 10_000])
def test_an_unknown_name_is_told_with_the_nearest(name: str, isolated: Path) -> None:
    with pytest.raises((NotFound, UsageError)) as caught:
        machines.named(name)
    assert caught.value.hint
    assert len(caught.value.message) < 12_000
    if "-15" in name:
        assert "iphone-15-pro" in caught.value.hint
    if name == "rtx-4090":
        assert "rtx-4090-desktop-64gb" in caught.value.hint


# --------------------------------------------------------------------------------------------------- from a file


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_a_machine_survives_being_written_and_read(tmp_path: Path) -> None:
    for machine in (hardware.detect(engine=False), *(each.machine for each in LISTED.values())):
        file = written(tmp_path / "m.json", {"schema_version": 1, **schema.machine(machine, tiers.tier(machine))})
        read = machines.named(str(file))
        assert replace(read, notes=()) == replace(machine, notes=(), engine=replace(machine.engine, devices=()))
        assert any("when the file was written" in note for note in read.notes)


def test_the_machine_of_a_recommendation_is_read_too(tmp_path: Path) -> None:
    machine = LISTED["laptop-16gb"].machine
    whole = {"schema_version": 1, "machine": schema.machine(machine, tiers.tier(machine)), "recommendations": []}
    assert machine_file.read(written(tmp_path / "r.json", whole)).memory == machine.memory


def test_what_a_file_leaves_out_is_unknown_or_assumed_aloud(tmp_path: Path) -> None:
    found = machine_file.read(written(tmp_path / "m.json", {"memory": {"total_bytes": 8 * GIB}}))
    assert found.bandwidth.gbps is None
    assert found.gpus == ()
    assert 0 < found.memory.available_bytes < 8 * GIB
    assert any("4 cores" in note for note in found.notes)
    assert any("taken as kept" in note for note in found.notes)
    card = {"name": "RX 7600", "vram_total_bytes": 8 * GIB, "vram_free_bytes": None, "usable_by_engine": True}
    content = {"memory": {"total_bytes": 8 * GIB}, "cpu": {"logical_cores": 16, "usable_cores": 2}, "gpus": [card]}
    with_card = machine_file.read(written(tmp_path / "m.json", content))
    assert with_card.gpus[0].vram_free_bytes == round(7.5 * GIB)
    assert any("RX 7600" in note for note in with_card.notes)
    assert speed.cores(with_card) == with_card.cpu.usable_cores == 2
    assert recommend.rank(with_card, catalog.load())[0].placement is Placement.GPU
    assert recommend.rank(found, catalog.load())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        '{"memory": null}',
        '{"memory": []}',
        '{"memory": {"total_bytes": 0}}',
        '{"memory": {"total_bytes": -1}}',
        '{"memory": {"total_bytes": 1e9}}',
        '{"memory": {"total_bytes": true}}',
        '{"memory": {"total_bytes": 99999999999999999999999}}',
        '{"memory": {"total_bytes": "8"}}',
        '{"memory": {"total_bytes": 9999999999}, "gpus": {}}',
        '{"memory": {"total_bytes": 9999999999}, "gpus": [1]}',
        '{"memory": {"total_bytes": 9999999999}, "gpus": [{"usable_by_engine": "yes"}]}',
        '{"memory": {"total_bytes": 9999999999}, "cpu": {"physical_cores": 0}}',
        '{"memory": {"total_bytes": 9999999999}, "cpu": {"name": 7}}',
        '{"memory": {"total_bytes": 9999999999}, "bandwidth": {"gbps": NaN}}',
        '{"memory": {"total_bytes": 9999999999}, "bandwidth": {"gbps": Infinity}}',
        '{"memory": {"total_bytes": 9999999999}, "bandwidth": {"gbps": -1}}',
        '{"memory": {"total_bytes": 9999999999}, "schema_version": 2}',
        '{"schema_version": 1, "error": {"code": "usage"}}',
        "[" * 100_000,
        '{"memory": {"total_bytes": ' + "9" * 10_000 + "}}",
        '{"x": "' + "a" * 1_100_000 + '"}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_what_describes_no_machine_is_refused(content: str, tmp_path: Path) -> None:
    file = written(tmp_path / "m.json", content)
    with pytest.raises(UsageError) as caught:
        machines.named(str(file))
    assert str(file) in caught.value.message
    assert "hardware --json" in caught.value.hint


def test_files_that_are_none_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        machines.named(str(tmp_path / "absent.json"))
    with pytest.raises(UsageError):
        machines.named(str(tmp_path))
    (tmp_path / "m.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        machines.named(str(tmp_path / "m.json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(schema.machine(LISTED["iphone-15-pro"].machine, tiers.tiers()[0]))


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.integers(1, 2**50), JSON)
@settings(max_examples=60)
def test_any_json_is_a_machine_or_a_usage_error(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], total: int, gpu: Any
) -> None:
    file = written(
        tmp_path_factory.mktemp("any") / "m.json",
        {**content, "memory": {"total_bytes": total}, "gpus": [gpu]} if gpu else content,
    )
    try:
        found = machine_file.read(file)
    except UsageError:
        return
    assert 0 <= found.memory.available_bytes <= found.memory.total_bytes
    recommend.rank(found, catalog.load()[:5])


# -------------------------------------------------------------------------------------------- through the program


def test_the_list_in_json_and_in_words(in_process: Cli) -> None:
    whole = json.loads(in_process("hardware", "--machines", "--json").stdout)
    assert whole["schema_version"] == 1
    assert [each["id"] for each in whole["machines"]] == list(LISTED)
    assert all(each["name"] and each["sources"] and each["memory"]["total_bytes"] for each in whole["machines"])
    text = in_process("hardware", "--machines")
    assert text.returncode == 0
    assert "raspberry-pi-5-8gb" in text.stdout


@pytest.mark.parametrize("name", ["raspberry-pi-5-8gb", "iphone-15-pro", "rtx-4090-desktop-64gb"])
def test_recommending_for_a_listed_machine(name: str, in_process: Cli) -> None:
    done = in_process("recommend", "--machine", name, "--json")
    assert done.returncode == 0
    whole = json.loads(done.stdout)
    assert whole["machine"]["memory"]["total_bytes"] == LISTED[name].machine.memory.total_bytes
    assert whole["recommendations"][0]["fits"]
    assert not any(row["installed"] for row in whole["recommendations"])
    assert "on that machine: localai pull" in in_process("recommend", "--machine", name).stdout


def test_recommending_for_a_file_that_the_program_wrote(in_process: Cli, isolated: Path) -> None:
    (isolated / "here.json").write_text(in_process("hardware", "--json").stdout, "utf-8")
    done = in_process("recommend", "--machine", "here.json", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["machine"]["cpu"] == json.loads((isolated / "here.json").read_text("utf-8"))["cpu"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--machine", "iphone-15"], 3),
        (["--machine", "absent.json"], 3),
        (["--machine", "broken.json"], 2),
        (["--machine", "iphone-15-pro", "--ram", "8"], 2),
        (["--machine", "iphone-15-pro", "--bandwidth", "8"], 2),
        (["--vram", "8"], 2),
    ],
)
def test_what_goes_wrong_has_its_exit_code(arguments: list[str], code: int, in_process: Cli, isolated: Path) -> None:
    (isolated / "broken.json").write_text('{"memory": 7}', "utf-8")
    done = in_process("recommend", *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_told_of_another_machine(in_process: Cli) -> None:
    slow = ("recommend", "--ram", "16", "--bandwidth", "8", "--task", "code")
    told = json.loads(in_process(*slow, "--json").stdout)
    assert told["machine"]["memory"]["swap_total_bytes"] is None
    (first, *_) = [line for line in in_process(*slow).stdout.splitlines() if "slow here" in line]
    assert re.match(r"! \d+(, \d+)*: slow here", first)


# ------------------------------------------------------------------------------------------------ machines made up


@pytest.mark.parametrize(
    ("ram", "vram", "size"),
    [
        (2, 0, "< 3B"),
        (8, 0, "< 3B"),
        (16, 0, "3B – 7B"),
        (32, 8, "7B – 13B"),
        (64, 24, "13B – 30B"),
        (128, 48, "30B – 70B+"),
    ],
)
def test_a_machine_made_up(ram: float, vram: float, size: str) -> None:
    found = machines.hypothetical(ram, vram)
    tier = tiers.tier(found)
    assert tier.size == size
    assert found.memory.total_bytes == ram * GIB
    assert found.bandwidth == Bandwidth(tier.typical_ram_gbps, f"typical of the tier {size}")
    assert any("taken as free" in note for note in found.notes)
    if vram:
        (gpu,) = found.gpus
        assert gpu.usable_by_engine
        assert gpu.vram_total_bytes == vram * GIB
        assert gpu.bandwidth_gbps == tier.typical_vram_gbps
    else:
        assert found.gpus == ()


def test_two_gib_leave_room_for_a_small_model() -> None:
    assert machines.hypothetical(2).memory.available_bytes >= 1.1 * GIB


def test_a_given_bandwidth_is_taken() -> None:
    assert machines.hypothetical(16, bandwidth_gbps=120).bandwidth == Bandwidth(120, "given")


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, -math.inf, 1e9])
def test_sizes_that_no_machine_has_are_refused(bad: float) -> None:
    for arguments in ((bad,), (8, bad if bad else -0.5), (8, 0, bad)):
        with pytest.raises(UsageError) as caught:
            machines.hypothetical(*arguments)
        assert caught.value.hint


@given(st.floats(0.01, 65_536), st.floats(0, 16_384))
def test_some_memory_is_always_kept_and_some_is_free(ram: float, vram: float) -> None:
    found = machines.hypothetical(ram, vram)
    assert 0 < found.memory.available_bytes < found.memory.total_bytes
    for gpu in found.gpus:
        assert gpu.vram_free_bytes is not None
        assert gpu.vram_total_bytes is not None
        assert 0 <= gpu.vram_free_bytes <= gpu.vram_total_bytes


def test_this_machine_never_shows_through() -> None:
    found = machines.hypothetical(8)
    assert found.disk.free_bytes is None
    assert found.engine == replace(EngineInfo(None), gpu_offload=False)


# ------------------------------------------------------------------------------------------------------------ tiers


def machine_with(
    ram: float, *, os: str = "Linux", npu: bool = False, gbps: float | None = None, source: str = "spec sheet"
) -> Machine:
    return replace(
        machines.hypothetical(ram),
        os=os,
        npus=(Npu("maker", "NPU", None),) if npu else (),
        bandwidth=Bandwidth(gbps, source),
    )


@pytest.mark.parametrize(
    ("machine", "size"),
    [
        (machine_with(7.6, os="iOS", npu=True), "3B – 7B"),
        (machine_with(7.0, os="Android 15", npu=True), "3B – 7B"),
        (machine_with(6.7, os="Android 15", npu=True), "< 3B"),
        (machine_with(8, os="Android 15"), "< 3B"),
        (machine_with(8, npu=True), "< 3B"),
        (machine_with(64, os="Android 15", npu=True), "7B – 13B"),
        (machine_with(16, gbps=24.0), "3B – 7B"),
        (machine_with(16, gbps=23.9), "< 3B"),
        (machine_with(16, gbps=23.9, source="measured"), "3B – 7B"),
        (machine_with(16), "3B – 7B"),
    ],
)
def test_phones_and_slow_memory(machine: Machine, size: str) -> None:
    assert tiers.tier(machine).size == size


@pytest.mark.parametrize(
    ("vendor", "gbps", "ram", "size"),
    [
        ("Apple", 100, 13.61, "3B – 7B"),
        ("Apple", 100, 20.3, "3B – 7B"),
        ("Apple", 100, 20.4, "7B – 13B"),
        ("Apple", 100, 40.7, "7B – 13B"),
        ("Apple", 100, 40.81, "13B – 30B"),
        ("Apple", 100, 81.5, "13B – 30B"),
        ("Apple", 100, 81.61, "30B – 70B+"),
        ("AMD", 256, 128, "30B – 70B+"),
        ("AMD", 160, 128, "30B – 70B+"),
        ("AMD", 159, 128, "13B – 30B"),
        ("AMD", None, 128, "13B – 30B"),
    ],
)
def test_unified_memory_at_its_borders(vendor: str, gbps: float | None, ram: float, size: str) -> None:
    gpu = Gpu(vendor, "GPU", None, None, shared_memory=True, usable_by_engine=True, bandwidth_gbps=gbps)
    assert tiers.tier(replace(machine_with(ram), gpus=(gpu,))).size == size


def test_the_page_of_machines_is_what_the_list_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    import machine_page

    assert machine_page.PAGE.read_text("utf-8") == machine_page.page()


def test_the_numbers_of_the_tiers_page_are_the_programs() -> None:
    page = (Path(__file__).parent.parent / "docs" / "tiers.md").read_text("utf-8")
    data = tomllib.loads(resources.files("localai.data").joinpath("tiers.toml").read_text("utf-8"))
    for row in data["tiers"][1:]:
        cells = [row["size"], *(f"{row[name]} GB" for name in ("vram_gib", "ram_gib", "unified_gib"))]
        assert f"| {' | '.join(cells)} |" in page
    for number in (
        f"{tiers.REPORTED_SHARE:.0%}".replace("%", " %"),
        f"{tiers.SLOW_GBPS:g} GB/s",
        f"{tiers.WIDE_GBPS:g} GB/s",
    ):
        assert number in page
