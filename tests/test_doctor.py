"""`localai doctor`: each check on machines that have the fault and that have not, and the whole through the program."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from localai import catalog, doctor, hub, machines, record_format, records
from localai.checks import building, engine, network, storage
from localai.checks.building import Installation, Way
from localai.checks.finding import Finding, Status
from localai.commands import doctor as commands
from localai.domain.files import InstalledFile, InstalledModel
from localai.domain.machine import Disk, EngineInfo, Gpu, Machine, Npu
from localai.domain.units import GIB
from localai.engine import library
from localai.errors import AccessDenied, NetworkError

BARE = dataclasses.replace(machines.hypothetical(16), engine=EngineInfo("0.3.36", ("CPU",)))
HERE = Installation(Way.PIP, Path("/v"), "/v/bin/python", "0.3.36", has=lambda name: name in ("nvcc", "glslc"))
NVIDIA = Gpu("NVIDIA", "NVIDIA GeForce RTX 4090", 24 * GIB, 23 * GIB, driver="550.54.14")
INTEL = Gpu("Intel", "Intel Arc Graphics", None, None, shared_memory=True)


def having(*parts: Gpu | Npu, backends: tuple[str, ...] = ("CPU",)) -> Machine:
    return dataclasses.replace(
        BARE,
        gpus=tuple(part for part in parts if isinstance(part, Gpu)),
        npus=tuple(part for part in parts if isinstance(part, Npu)),
        engine=EngineInfo("0.3.36", backends),
    )


def used(gpu: Gpu) -> Gpu:
    return dataclasses.replace(gpu, usable_by_engine=True)


def by(status: Status, findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    return [found for found in findings if found.status is status]


# ------------------------------------------------------------------------------------------------- cards and NPUs


def test_a_card_that_the_engine_is_not_built_for_is_a_fault_with_the_build_that_mends_it() -> None:
    (found,) = engine.check_gpus(having(NVIDIA), HERE)
    assert found.status is Status.FAULT
    assert "RTX 4090" in found.message
    assert found.command == (
        "CMAKE_ARGS=-DGGML_CUDA=on /v/bin/python -m pip install --force-reinstall --no-deps --no-cache-dir "
        "--no-binary llama-cpp-python llama-cpp-python==0.3.36"
    )


def test_a_card_in_use_is_well() -> None:
    assert [found.status for found in engine.check_gpus(having(used(NVIDIA)), HERE)] == [Status.OK]
    assert [found.status for found in engine.check_gpus(having(), HERE)] == [Status.OK]


def test_an_integrated_gpu_out_of_use_is_only_a_warning() -> None:
    (found,) = engine.check_gpus(having(INTEL), HERE)
    assert found.status is Status.WARNING
    assert "GGML_VULKAN" in (found.command or "")


def test_one_command_builds_for_every_card_and_keeps_what_the_engine_has() -> None:
    radeon = Gpu("AMD", "AMD Radeon RX 7900 XTX", 24 * GIB, 24 * GIB)
    found = list(engine.check_gpus(having(used(NVIDIA), radeon, INTEL, backends=("CUDA", "CPU")), HERE))
    assert [each.status for each in found] == [Status.OK, Status.FAULT, Status.WARNING]
    assert found[1].command == found[2].command
    assert "'-DGGML_VULKAN=on -DGGML_CUDA=on'" in (found[1].command or "")


@pytest.mark.parametrize(
    ("vendor", "option"),
    [("Apple", "GGML_METAL"), ("Intel", "GGML_VULKAN"), ("AMD", "GGML_VULKAN"), ("Qualcomm", "OPENCL")],
)
def test_each_makers_card_has_its_backend(vendor: str, option: str) -> None:
    (found,) = engine.check_gpus(having(Gpu(vendor, "card", 8 * GIB, 8 * GIB)), HERE)
    assert option in (found.command or "")


def test_rocm_is_taken_where_its_compiler_is_there() -> None:
    here = dataclasses.replace(HERE, has=lambda name: name == "hipcc")
    (found,) = engine.check_gpus(having(Gpu("AMD", "AMD Instinct MI210", 64 * GIB, 64 * GIB)), here)
    assert "-DGGML_HIP=on" in (found.command or "")


def test_a_card_that_llama_cpp_knows_nothing_of_is_no_fault() -> None:
    (found,) = engine.check_gpus(having(Gpu("unknown", "Matrox G200", None, None)), HERE)
    assert (found.status, found.command) == (Status.OK, None)


@pytest.mark.parametrize(
    ("vendor", "status", "option"),
    [
        ("Intel", Status.WARNING, "GGML_OPENVINO"),
        ("Qualcomm", Status.WARNING, "GGML_HEXAGON"),
        ("Huawei", Status.WARNING, "GGML_CANN"),
        ("AMD", Status.OK, None),
        ("Apple", Status.OK, None),
        ("Hailo", Status.OK, None),
        ("Google", Status.OK, None),
        ("Rockchip", Status.OK, None),
    ],
)
def test_an_npu_is_never_a_fault(vendor: str, status: Status, option: str | None) -> None:
    (found,) = engine.check_npus(having(Npu(vendor, "NPU", 10)), HERE)
    assert found.status is status
    assert (option is None) == (found.command is None)
    assert option is None or option in (found.command or "")
    (well,) = engine.check_npus(having(Npu(vendor, "NPU", 10, usable_by_engine=True)), HERE)
    assert well.status is Status.OK


@pytest.mark.parametrize(
    ("driver", "status"),
    [
        ("470.256.02", Status.FAULT),
        ("524.99", Status.FAULT),
        ("525.60.13", Status.OK),
        ("580.65.06", Status.OK),
        (None, Status.FAULT),
    ],
)
def test_an_old_driver_or_none_is_a_fault(driver: str | None, status: Status) -> None:
    (found,) = engine.check_driver(having(dataclasses.replace(NVIDIA, driver=driver)), HERE)
    assert found.status is status
    assert (found.command is not None) == (status is Status.FAULT)


def test_a_driver_is_asked_of_nvidia_cards_in_need_only() -> None:
    assert list(engine.check_driver(having(INTEL), HERE)) == []
    assert list(engine.check_driver(having(used(dataclasses.replace(NVIDIA, driver=None))), HERE)) == []
    assert list(engine.check_driver(having(dataclasses.replace(NVIDIA, driver="nonsense")), HERE)) == []


# --------------------------------------------------------------------------------------- how the engine is built anew


def test_the_way_of_installation_is_told_by_what_the_tools_leave(tmp_path: Path) -> None:
    prefix = tmp_path / "checkout" / ".venv"
    prefix.mkdir(parents=True)
    assert building.way_of(prefix, has_pip=True) is Way.PIP
    assert building.way_of(prefix, has_pip=False) is Way.UV
    (prefix / "uv-receipt.toml").touch()
    assert building.way_of(prefix, has_pip=False) is Way.UV_TOOL
    (prefix / "pipx_metadata.json").touch()
    assert building.way_of(prefix, has_pip=True) is Way.PIPX
    (prefix / ".localai-setup.json").touch()
    (tmp_path / "checkout" / "scripts").mkdir()
    (tmp_path / "checkout" / "scripts" / "setup_venv.py").touch()
    assert building.way_of(prefix, has_pip=True) is Way.CHECKOUT


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("has", ["", "nvcc", "apt-get", "pacman", "dnf"])
def test_every_command_is_whole_and_names_no_address(way: Way, windows: bool, has: str) -> None:
    here = Installation(way, Path("/a b/.venv"), "/a b/.venv/bin/python", "0.3.36", windows, lambda name: name == has)
    command = building.rebuild(here, ["GGML_CUDA"])
    assert "GGML_CUDA=on" in command
    assert "://" not in command
    assert ".org" not in command
    if windows:
        assert command.startswith("$env:CMAKE_ARGS=")
    else:
        words = shlex.split(command)
        assert "CMAKE_ARGS=-DGGML_CUDA=on" in words
        assert ("make" in words) == (way is Way.CHECKOUT)
        assert any("/a b" in word or word == ".venv" for word in words)
    if has in ("apt-get", "pacman", "dnf") and not windows:
        assert command.startswith(f"sudo {has}")


def test_a_cuda_compiler_off_the_path_is_named() -> None:
    here = dataclasses.replace(HERE, has=lambda name: False, cuda_compiler="/opt/cuda/nvcc")
    assert building.missing_tools(here, ["GGML_CUDA"]) == []
    assert "CUDACXX=/opt/cuda/nvcc" in shlex.split(building.rebuild(here, ["GGML_CUDA"]))


def test_the_running_installation_is_known() -> None:
    here = building.installation("1.2.3")
    assert here.python == sys.executable
    wanted = "make setup" if here.way is Way.CHECKOUT else "llama-cpp-python==1.2.3"
    assert wanted in building.rebuild(here, ["GGML_NATIVE"])


# -------------------------------------------------------------------------------------------------------- processor

X86 = "flags\t\t: fpu pni ssse3 fma avx f16c avx2 bmi2 avx512f avx512_vnni\n"
ARM = "Features\t: fp asimd asimdhp asimddp i8mm\n"
FULL = (
    "CPU : SSE3 = 1 | SSSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | BMI2 = 1 | AVX512 = 1 | AVX512_VNNI = 1 | "
)


@pytest.mark.parametrize(
    ("built", "cpuinfo", "status", "word"),
    [
        (FULL, X86, Status.OK, "uses"),
        (FULL.replace("AVX512 = 1 | AVX512_VNNI = 1 | ", ""), X86, Status.WARNING, "without AVX512, AVX512_VNNI"),
        (FULL.replace("AVX2 = 1", "AVX2 = 0"), X86, Status.WARNING, "without AVX2"),
        (FULL, X86.replace(" avx512f avx512_vnni", ""), Status.FAULT, "lacks"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | FP16_VA = 1 | DOTPROD = 1 | MATMUL_INT8 = 1 | ", ARM, Status.OK, "uses"),
        ("CPU : NEON = 1 | ARM_FMA = 1 | ", ARM, Status.WARNING, "DOTPROD, MATMUL_INT8"),
        (FULL, None, Status.OK, "not compared"),
        (FULL, "processor : 0\n", Status.OK, "not compared"),
        (None, X86, Status.WARNING, "does not say"),
    ],
)
def test_the_engines_instructions_are_compared_with_the_processors(
    built: str | None, cpuinfo: str | None, status: Status, word: str
) -> None:
    found = engine.check_instructions(built, cpuinfo, HERE)
    assert found.status is status
    assert word in found.message
    if status is Status.FAULT:
        assert "GGML_NATIVE=on" in (found.command or "")


@given(st.text(), st.text())
def test_no_text_makes_the_comparison_fail(built: str, cpuinfo: str) -> None:
    engine.check_instructions(built, cpuinfo, HERE)
    engine.check_instructions(built, f"flags : {cpuinfo}", HERE)


def test_the_installed_engine_says_what_it_was_built_for() -> None:
    assert re.search(r"\w+ = 1", library.system_info() or "")


def test_an_engine_that_does_not_load_is_a_fault() -> None:
    found = engine.check_engine(dataclasses.replace(BARE, engine=EngineInfo(None)), HERE)
    assert found.status is Status.FAULT
    assert "pip install" in (found.command or "")


# ------------------------------------------------------------------------------------------- folders, disk, memory


def test_folders_that_can_be_made_are_well(tmp_path: Path) -> None:
    findings = list(storage.check_folders({"models": tmp_path / "not" / "yet", "records": tmp_path}))
    assert [found.status for found in findings] == [Status.OK]
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "it's").touch()
    (found,) = storage.check_folders({"models": tmp_path / "it's" / "hub"})
    assert found.status is Status.FAULT
    words = shlex.split(found.command or "")
    assert words[:2] == ["mv", str(tmp_path / "it's")]


def test_a_folder_without_permission_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (found,) = storage.check_folders({"models": tmp_path / "hub"})
    assert found.status is Status.FAULT
    assert "Permission denied" in found.message
    assert f"chmod -R u+rwX {tmp_path}" in (found.command or "")


def test_a_full_disk_is_a_fault_and_a_tight_one_a_warning() -> None:
    def findings(free: float) -> list[Finding]:
        machine = dataclasses.replace(BARE, disk=Disk("/models", round(free * 1e9)))
        return [found for found in storage.check_room(machine, catalog.load(), ()) if found.check == "disk"]

    assert [found.status for found in findings(100)] == [Status.OK]
    (tight,) = findings(1)
    assert tight.status is Status.WARNING
    (full,) = findings(0.01)
    assert full.status is Status.FAULT
    assert full.command


def test_too_little_memory_for_any_model_is_a_fault() -> None:
    findings = list(storage.check_room(machines.hypothetical(0.2), catalog.load(), ()))
    assert [found.check for found in by(Status.FAULT, findings)] == ["memory"]


# ------------------------------------------------------------------------------------------------------ model files


def installed(folder: Path, verified_at: str | None = None, content: bytes = b"GGUF whatever") -> InstalledModel:
    path = folder / "m-Q4_K_M.gguf"
    path.write_bytes(content)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    file = InstalledFile(path.name, path, len(content), hashlib.sha256(content).hexdigest())
    model = InstalledModel(
        "owner/m", "owner/m", "c" * 40, "Q4_K_M", (file,), None, verified_at or "2026-01-01T00:00:00Z", "file"
    )
    records.save(model)
    return model


def models(verify: bool = False) -> list[Finding]:
    return list(storage.check_models(verify))


def test_sound_models_are_well_looked_at_and_hashed(tmp_path: Path) -> None:
    installed(tmp_path)
    assert [found.status for found in models()] == [Status.OK]
    assert [found.status for found in models(verify=True)] == [Status.OK]


def test_a_changed_size_is_a_fault_without_hashing(tmp_path: Path) -> None:
    model = installed(tmp_path)
    model.path.write_bytes(b"short")
    (found,) = by(Status.FAULT, models())
    assert "owner/m" in found.message
    assert found.command


def test_one_flipped_bit_is_found_by_hashing(tmp_path: Path) -> None:
    model = installed(tmp_path)
    model.path.write_bytes(b"GGUF whatevex")
    os.utime(model.path, (1_700_000_000, 1_700_000_000))
    assert by(Status.FAULT, models()) == []
    (found,) = by(Status.FAULT, models(verify=True))
    assert "changed" in found.message


def test_a_file_written_after_it_was_verified_is_a_warning(tmp_path: Path) -> None:
    model = installed(tmp_path, "2023-01-01T00:00:00Z")
    (found,) = by(Status.WARNING, models())
    assert found.command == f"localai verify {model.model}"


def test_a_record_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    installed(tmp_path)
    next(records.folder().glob("*.json")).write_text("{", "utf-8")
    (found,) = by(Status.FAULT, models())
    assert (found.command or "").startswith("rm ")


def test_a_record_that_is_not_damaged_is_never_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path)
    (record,) = records.folder().glob("*.json")
    record.write_text(record.read_text("utf-8").replace('"schema_version": 1', '"schema_version": 2'), "utf-8")
    (found,) = by(Status.FAULT, models())
    assert "a newer version wrote it" in found.message
    assert found.command == "pip install --upgrade localai"

    def refuse(path: str) -> InstalledModel:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(record_format, "read", refuse)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (found,) = by(Status.FAULT, models())
    assert "Permission denied" in found.message
    assert (found.command or "").startswith("sudo chown ")


# -------------------------------------------------------------------------------------------------- Hub and token


@contextmanager
def hub_that_answers(
    monkeypatch: pytest.MonkeyPatch,
    head: int = 200,
    whoami: int = 200,
    location: str | None = None,
    kind: str = "application/json; charset=utf-8",
) -> Iterator[list[str]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self, status: int, body: bytes = b"") -> None:
            asked.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", kind)
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.reply(head)

        def do_GET(self) -> None:
            self.reply(whoami, json.dumps({"name": "ada", "type": "user", "auth": {}}).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def statuses() -> dict[str, Status]:
    return {found.check: found.status for found in network.check_hub()}


def test_a_hub_that_answers_is_well_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that_answers(monkeypatch) as asked:
        assert statuses() == {"hub": Status.OK, "token": Status.OK}
        assert len(asked) == 1


def test_a_token_is_accepted_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_that_answers(monkeypatch) as asked:
        assert hub.token_owner() == "ada"
        assert statuses() == {"hub": Status.OK, "token": Status.OK}
        assert any("whoami" in each for each in asked)
    with hub_that_answers(monkeypatch, whoami=401):
        with pytest.raises(AccessDenied):
            hub.token_owner()
        (found,) = by(Status.FAULT, list(network.check_hub()))
        assert (found.check, found.command) == ("token", "unset HF_TOKEN")
        assert "hf_secret" not in found.message
    with hub_that_answers(monkeypatch, whoami=503):
        assert statuses()["token"] is Status.WARNING


def test_a_hub_that_sends_elsewhere_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_that_answers(monkeypatch) as elsewhere:
        target = os.environ["HF_ENDPOINT"]
        with hub_that_answers(monkeypatch, head=302, location=target) as asked:
            assert statuses()["hub"] is Status.OK
        assert len(asked) == 1
        assert elsewhere == []


def test_a_hub_that_is_down_or_away_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError):
        hub.reachable()
    assert statuses() == {"hub": Status.FAULT}
    with hub_that_answers(monkeypatch, head=503):
        assert statuses() == {"hub": Status.FAULT}
    with hub_that_answers(monkeypatch, kind="text/html"):  # as in a hotel
        (found,) = network.check_hub()
        assert found.status is Status.FAULT
        assert "login page" in found.message


@pytest.mark.parametrize("variable", ["LOCALAI_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_told_as_chosen_and_nothing_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("a connection was made"))
    (found,) = network.check_hub()
    assert found.status is Status.OK
    assert "as chosen" in found.message
    assert found.command == f"unset {variable}"


# -------------------------------------------------------------------------------------------- through the program


def test_a_sound_installation_exits_0_and_says_each_check_in_words(cli: Cli) -> None:
    done = cli("--offline", "doctor")
    faults = [line for line in done.stdout.splitlines() if "fault" in line]
    assert (done.returncode, faults) in ((0, []), (1, faults))
    for line in done.stdout.splitlines():
        if line[:1].strip() and not line[0].isdigit():
            assert re.match(r"[✓!✗] (ok|warning|fault) +\w+ ", line), line
    assert done.stderr == ""


def test_a_fault_exits_1_with_the_same_in_json(cli: Cli) -> None:
    done = cli("doctor", "--json")  # the tests' Hub is a closed port
    assert done.returncode == 1
    whole = json.loads(done.stdout)
    assert whole["schema_version"] == 1
    assert whole["ok"] is False
    found = {each["check"]: each for each in whole["checks"]}
    assert found["hub"]["status"] == "fault"
    assert found["hub"]["command"] == "unset HF_ENDPOINT"
    assert set(found["hub"]) == {"check", "status", "message", "command"}


def test_it_reads_without_utf_8(cli: Cli) -> None:
    done = cli("--offline", "doctor", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.stdout.isascii()
    assert re.search(r"^\+ ok ", done.stdout, re.M)


def test_a_broken_config_file_is_a_fault_and_no_connection_is_made(cli: Cli, isolated: Path) -> None:
    config = isolated / "localai" / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("temperature = [", "utf-8")
    done = cli("doctor", "--json")
    assert done.returncode == 1
    found = {each["check"]: each["status"] for each in json.loads(done.stdout)["checks"]}
    assert found["settings"] == "fault"
    assert "hub" not in found


def test_hashing_goes_through_the_program_too(cli: Cli, tmp_path: Path) -> None:
    model = installed(tmp_path)
    model.path.write_bytes(b"GGUF whatevex")
    done = cli("--offline", "doctor", "--verify")
    assert done.returncode == 1
    assert "✗ fault    models" in done.stdout


def test_examining_raises_nothing_where_everything_is_wrong(monkeypatch: pytest.MonkeyPatch, isolated: Path) -> None:
    (isolated / "file").touch()
    monkeypatch.setenv("LOCALAI_HOME", str(isolated / "file" / "home"))
    monkeypatch.setenv("HF_HOME", str(isolated / "file" / "hf"))
    monkeypatch.setattr(library, "info", lambda: EngineInfo(None))
    findings = list(doctor.examine())
    assert not doctor.healthy(findings)
    assert {"engine", "folders", "settings"} <= {found.check for found in by(Status.FAULT, findings)}


@pytest.mark.parametrize(("columns", "indent"), [("40", 4), ("80", 22)])
def test_a_command_stands_under_its_message(
    columns: str, indent: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    commands.show(
        Finding("hub", Status.FAULT, "it cannot be reached, and that is all there is to say", "unset HF_HOME")
    )
    *_, message, command = capsys.readouterr().out.splitlines()
    assert command == " " * indent + "$ unset HF_HOME"
    assert message[:indent].isspace() or message.index("it cannot") == indent
