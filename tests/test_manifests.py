"""Manifests and carried folders: the same bytes everywhere, and nothing hostile believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hub_on_loopback import COMMIT, QUICK, HubOnLoopback, running
from hypothesis import given
from hypothesis import strategies as st
from installed_models import machine
from small_models import model_bytes, projector_bytes, sha256, shard_bytes
from waiting import wait_for

from localai import (
    boundary,
    copies,
    discovering,
    importing,
    library,
    manifests,
    packing,
    portable,
    pulling,
    removing,
    settings,
    updating,
)
from localai.domain.files import InstalledModel
from localai.errors import DoesNotFit, HashMismatch, LocalaiError, NotFound, UsageError
from localai.importing import Duplicate

pytestmark = pytest.mark.usefixtures("no_embedded")

REPO, NAME = "o/m-GGUF", "sub/m-Q4_0.gguf"
CONTENT = model_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add(REPO, {NAME: CONTENT, "mmproj-F16.gguf": projector_bytes()})
        yield server


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """From the call on, a machine with empty folders and no network."""

    def leave() -> None:
        monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "other" / "localai"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "other" / "hf"))

    return leave


def pull(text: str = REPO) -> InstalledModel:
    return pulling.pull(pulling.plan_pull(text, machine()), retry=QUICK)


def manifest(**changes: Any) -> dict[str, Any]:
    file = {"file": NAME, "size_bytes": len(CONTENT), "sha256": sha256(CONTENT)}
    model = {"model": REPO, "repo": REPO, "commit": COMMIT, "quantization": "Q4_0", "files": [file], "projector": None}
    return {"schema_version": 1, "kind": "localai-manifest", "models": [{**model, **changes}]}


def test_what_is_exported_is_pulled_byte_for_byte(hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    model = pull()
    pinned, without = manifests.pins([])
    assert without == ()
    path = tmp_path / "team.json"
    path.write_text(json.dumps(manifests.as_json(pinned)))
    assert manifests.read(path) == pinned
    assert manifests.plan_pull(pinned[0], machine()).already_installed == model
    other_machine()
    hub.add(REPO, {NAME: CONTENT, "mmproj-F16.gguf": projector_bytes(), "new-Q8_0.gguf": b"new"})
    plan = manifests.plan_pull(pinned[0], machine())
    again = pulling.pull(plan, retry=QUICK)
    assert [file.sha256 for file in again.all_files] == [file.sha256 for file in model.all_files]
    assert (again.commit, again.revision) == (COMMIT, COMMIT)
    assert not updating.is_updatable(again)


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"file": NAME, "size_bytes": len(CONTENT), "sha256": "0" * 64}]},
        {"files": [{"file": NAME, "size_bytes": 7, "sha256": sha256(CONTENT)}]},
        {"files": [{"file": "none-Q4_0.gguf", "size_bytes": 7, "sha256": sha256(CONTENT)}]},
    ],
)
def test_other_bytes_than_the_manifests_are_refused(hub: HubOnLoopback, change: dict[str, Any]) -> None:
    (pinned,) = manifests.parse(manifest(**change))
    with pytest.raises(HashMismatch):
        manifests.plan_pull(pinned, machine())
    assert hub.downloads() == []


def test_a_commit_that_the_hub_no_longer_has(hub: HubOnLoopback) -> None:
    (pinned,) = manifests.parse(manifest(commit="9" * 40))
    with pytest.raises(NotFound):
        manifests.plan_pull(pinned, machine())


HOSTILE: list[Any] = [
    None,
    [],
    {},
    {**manifest(), "kind": "x"},
    {**manifest(), "schema_version": 2},
    {**manifest(), "models": {}},
    manifest(files=[]),
    manifest(files=None),
    manifest(files=[7]),
    manifest(files=[{"file": "../../x.gguf", "size_bytes": 1, "sha256": "0" * 64}]),
    manifest(files=[{"file": "C:\\x.gguf", "size_bytes": 1, "sha256": "0" * 64}]),
    manifest(files=[{"file": "a\0b.gguf", "size_bytes": 1, "sha256": "0" * 64}]),
    manifest(files=[{"file": "x" * 300, "size_bytes": 1, "sha256": "0" * 64}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": -1, "sha256": "0" * 64}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": True, "sha256": "0" * 64}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": 2**60, "sha256": "0" * 64}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": 1, "sha256": "../x"}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": 1, "sha256": "0" * 64, "path": "/etc/passwd"}]),
    manifest(files=[{"file": "x.gguf", "size_bytes": 1, "sha256": "0" * 64}] * 2),
    manifest(repo="../.."),
    manifest(repo=None),
    manifest(commit="main"),
    manifest(model="../x"),
    manifest(model="\x1b[2J"),
    manifest(model=None),
    manifest(quantization="\x1b"),
    manifest(projector=7),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_manifest_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "evil.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError) as caught:
        manifests.read(path)
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000])
def test_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    for path in (tmp_path / "x.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError):
            manifests.read(path)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(manifest()["models"][0])), inner),
    )
)
def test_any_json_is_a_manifest_or_refused(value: Any) -> None:
    for content in (value, {**manifest(), "models": [value]}, manifest(files=value)):
        try:
            assert isinstance(manifests.parse(content), tuple)
        except (ValueError, UsageError):
            continue


def test_the_commands(in_process: Cli, hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    pull()
    done = in_process("export-manifest", REPO)
    assert done.returncode == 0, done.stderr
    (tmp_path / "team.json").write_text(done.stdout)
    (tmp_path / "evil.json").write_text(json.dumps(manifest(repo="../..")))
    other_machine()
    assert in_process("pull", "--manifest", "evil.json").returncode == 2
    pulled = in_process("pull", "--manifest", "team.json", "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert [model["sha256"] for model in json.loads(pulled.stdout)["models"]] == [sha256(CONTENT)]
    assert in_process("export-manifest", "nosuch").returncode == 3


# --------------------------------------------------------------------------------------------- folders to carry


def pack(text: str, folder: Path) -> manifests.Pinned:
    pinned = packing.pack(pulling.plan_pull(text, machine(), disk=folder), folder, retry=QUICK)
    packing.describe(folder, [pinned])
    return pinned


def take(folder: Path, how: copies.How = copies.How.COPY) -> list[Any]:
    pinned = portable.read(folder)
    assert pinned is not None
    return list(portable.take(folder, pinned, how))


def test_a_stick_from_the_hub_to_a_machine_without_network(
    hub: HubOnLoopback, tmp_path: Path, other_machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "stick"
    pack(REPO, stick)
    assert library.installed() == ()
    assert list(settings.hub_cache().rglob("*.gguf")) == []
    other_machine()
    monkeypatch.setenv("LOCALAI_OFFLINE", "1")
    (model,) = take(stick)
    shutil.rmtree(stick)  # pulled out
    assert library.installed() == (model,)
    assert (model.model, model.repo, model.commit, model.source) == (REPO, REPO, COMMIT, "file")
    assert model.path.read_bytes() == CONTENT
    assert model.projector.path.parent == model.path.parent
    assert library.find(f"{REPO}:q4_0").model == model
    assert pulling.plan_pull(REPO, machine()).already_installed == model
    assert manifests.pins([REPO])[0][0].commit == COMMIT
    assert removing.remove(model) == model.size_bytes


def test_what_is_installed_is_copied_and_not_fetched(hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    shards = {f"big-Q4_0-0000{number}-of-00002.gguf": shard_bytes(number - 1) for number in (1, 2)}
    hub.add("o/big", shards)
    pull("o/big")
    pull()
    before = len(hub.requests())
    pack("o/big", tmp_path / "stick")
    pack(REPO, tmp_path / "stick")
    pack(REPO, tmp_path / "stick")
    assert len(hub.requests()) == before
    other_machine()
    assert [len(model.files) for model in take(tmp_path / "stick")] == [2, 1]
    assert all(isinstance(each, Duplicate) for each in take(tmp_path / "stick"))


def test_a_damaged_copy_in_the_cache_is_fetched_anew(hub: HubOnLoopback, tmp_path: Path) -> None:
    model = pull()
    model.path.resolve().write_bytes(CONTENT[:-1] + b"x")
    pinned = pack(REPO, tmp_path / "stick")
    assert (tmp_path / "stick" / str(pinned.files[0].path)).read_bytes() == CONTENT


def test_one_that_was_cut_off_goes_on(hub: HubOnLoopback, tmp_path: Path) -> None:
    hub.fault(drop_at=700, times=10)
    with pytest.raises(LocalaiError):
        pack(REPO, tmp_path / "stick")
    hub.faults.clear()
    assert portable.read(tmp_path / "stick") is None  # not complete, so it is no carried folder yet
    pack(REPO, tmp_path / "stick")
    assert [seen.range for seen in hub.downloads()][-2] == "bytes=700-"


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "link"])
def test_a_stick_that_is_damaged_gives_nothing_but_the_sound_models(
    hub: HubOnLoopback, tmp_path: Path, other_machine: Any, harm: str
) -> None:
    stick = tmp_path / "stick"
    hub.add("o/good", {"good-Q4_0.gguf": model_bytes("good")})
    bad = pack(REPO, stick)
    pack("o/good", stick)
    file = stick / str(bad.files[0].path)
    file.unlink()
    if harm == "flip":
        file.write_bytes(CONTENT[:-1] + b"x")
    elif harm == "cut":
        file.write_bytes(CONTENT[:-1])
    elif harm == "link":
        (tmp_path / "outside").write_bytes(CONTENT)
        file.symlink_to(tmp_path / "outside")
    other_machine()
    with pytest.raises(LocalaiError) as caught:
        take(stick)
    assert caught.value.hint
    assert [model.model for model in library.installed()] == ["o/good"]
    assert [path.name for path in copies.everything()] == ["good-Q4_0.gguf"]


def test_bytes_with_the_right_hash_that_are_no_model_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF no")
    file = {"file": "x.gguf", "path": "x.gguf", "size_bytes": 7, "sha256": sha256(b"GGUF no")}
    (tmp_path / portable.MANIFEST).write_text(json.dumps(manifest(files=[file])))
    with pytest.raises(LocalaiError):
        take(tmp_path)
    assert library.installed() == ()
    assert list(copies.everything()) == []


def test_a_stick_that_is_too_small(hub: HubOnLoopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pulling.plan_pull(REPO, machine())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DoesNotFit):
        packing.pack(plan, tmp_path / "stick")
    assert hub.downloads() == []


def test_a_link_instead_of_a_copy(hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    pack(REPO, tmp_path / "disk")
    other_machine()
    (model,) = take(tmp_path / "disk", copies.How.LINK)
    assert os.path.samefile(model.path, tmp_path / "disk" / "models" / REPO / NAME)


def test_the_commands_for_a_stick(in_process: Cli, hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    done = in_process("pull", "--to", "stick", REPO, "--json")
    assert done.returncode == 0, done.stderr
    assert [model["model"] for model in json.loads(done.stdout)["models"]] == [REPO]
    other_machine()
    dry = in_process("import", "stick", "--dry-run", "--json")
    assert [each["model"] for each in json.loads(dry.stdout)["candidates"]] == [REPO]
    taken = in_process("import", "stick", "--json", "--offline")
    assert taken.returncode == 0, taken.stderr
    assert [model["sha256"] for model in json.loads(taken.stdout)["imported"]] == [sha256(CONTENT)]
    (tmp_path / "stick" / "models" / REPO / NAME).write_bytes(b"x")
    assert in_process("rm", REPO, "--yes").returncode == 0
    damaged = in_process("import", "stick")
    assert damaged.returncode == 5
    assert "left out" in damaged.stdout


def test_models_of_one_repository_share_their_projector_on_a_stick(
    hub: HubOnLoopback, tmp_path: Path, other_machine: Any
) -> None:
    stick = tmp_path / "stick"
    hub.add("o/eyes", {f"e-{quant}.gguf": model_bytes(quant) for quant in ("Q4_0", "Q8_0")} | {"mmproj-F16.gguf": b"1"})
    for quant in ("Q4_0", "Q8_0", "Q4_0"):
        pack(f"o/eyes:{quant}", stick)
    assert [each.quantization for each in portable.read(stick) or ()] == ["Q8_0", "Q4_0"]
    hub.repos["o/eyes"].replace({"e-Q4_0.gguf": model_bytes("new"), "mmproj-F16.gguf": b"2"}, "b" * 40)
    pack("o/eyes:Q4_0", stick)  # the projector has other bytes now, so the other model is no longer whole
    assert [each.commit for each in portable.read(stick) or ()] == ["b" * 40]
    other_machine()
    assert [model.model for model in take(stick)] == ["o/eyes"]


def test_two_processes_that_write_into_one_folder(hub: HubOnLoopback, tmp_path: Path) -> None:
    gate = threading.Event()
    hub.add("o/other", {"other-Q4_0.gguf": model_bytes("other")})
    hub.fault(gate=gate)
    command = [sys.executable, "-m", "localai", "pull", "--to", str(tmp_path / "stick")]
    with subprocess.Popen([*command, REPO], stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert any("m-Q4_0" in line for line in iter(first.stderr.readline, ""))
        wait_for((tmp_path / "stick" / ".localai.lock").exists)
        with subprocess.Popen([*command, "o/other"], stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert any("waiting for it" in line for line in iter(second.stderr.readline, ""))
            gate.set()
            second.communicate()
        first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert [each.model for each in portable.read(tmp_path / "stick") or ()] == [REPO, "o/other"]
    assert sorted(path.name for path in (tmp_path / "stick").iterdir()) == ["localai-manifest.json", "models"]


@pytest.mark.parametrize("name", ["x.", "con.x", "模型" * 40, "../x", " "])
def test_local_models_of_one_name_lie_apart_on_a_stick(tmp_path: Path, other_machine: Any, name: str) -> None:
    models = []
    for quant in ("q4", "q8"):
        (tmp_path / quant).mkdir()
        (tmp_path / quant / "model.gguf").write_bytes(model_bytes(quant))
        (model,) = importing.take(discovering.discover_path(tmp_path / quant))
        assert isinstance(model, InstalledModel)
        models.append(replace(model, model=name))
    for model in models:
        pinned = packing.pack(pulling.nothing_to_do(model), tmp_path / "stick")
        packing.describe(tmp_path / "stick", [replace(pinned, model="m")])
    other_machine()
    assert {each.files[0].sha256 for each in take(tmp_path / "stick")} == {each.files[0].sha256 for each in models}


def test_what_a_folder_holds_already_needs_no_room(
    hub: HubOnLoopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "stick"
    pinned = pack(REPO, stick)
    file = stick / str(pinned.files[0].path)
    stale = file.with_name(f".{file.name}.123.part")
    stale.write_bytes(b"half")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    command = ["pull", "--to", str(stick), REPO]
    assert boundary.run(command) == 0
    assert not stale.exists()
    file.unlink()
    assert boundary.run(command) == 4


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_everybody_may_read_a_sticks_manifest(hub: HubOnLoopback, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        pack(REPO, tmp_path / "stick")
    finally:
        os.umask(before)
    assert (tmp_path / "stick" / portable.MANIFEST).stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_link_in_a_folder_to_carry_is_not_written_through(
    hub: HubOnLoopback, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, stick = tmp_path / "outside", tmp_path / "stick"
    outside.mkdir()
    stick.mkdir()
    (stick / "models").symlink_to(outside)
    assert boundary.run(["pull", "--to", str(stick), REPO]) == 2
    assert "leads out of" in capsys.readouterr().err
    assert list(outside.iterdir()) == []
    (stick / "models").unlink()
    target = stick / "models" / REPO / NAME
    target.parent.mkdir(parents=True)
    (outside / "same").write_bytes(CONTENT)
    target.symlink_to(outside / "same")
    assert boundary.run(["pull", "--to", str(stick), REPO]) == 0
    assert not target.is_symlink()
    assert target.read_bytes() == CONTENT


def test_a_manifest_does_not_believe_a_file_that_was_changed(hub: HubOnLoopback, tmp_path: Path) -> None:
    model = pull()
    (tmp_path / "team.json").write_text(json.dumps(manifests.as_json([manifests.pin(model)])))
    model.path.resolve().write_bytes(CONTENT[:-1] + b"x")
    os.utime(model.path.resolve(), (4_000_000_000, 4_000_000_000))
    assert boundary.run(["pull", "--manifest", str(tmp_path / "team.json")]) == 0
    assert model.path.read_bytes() == CONTENT


def test_a_name_for_what_a_stick_brings(hub: HubOnLoopback, tmp_path: Path, other_machine: Any) -> None:
    stick = str(tmp_path / "stick")
    pack(REPO, tmp_path / "stick")
    other_machine()
    assert boundary.run(["import", stick, "--name", "mine"]) == 0
    assert library.find("mine").path.read_bytes() == CONTENT
    assert boundary.run(["import", stick, "--name", "yours"]) == 2
    assert boundary.run(["import", stick, "--name", "mine"]) == 0
    hub.add("o/other", {"other-Q4_0.gguf": model_bytes("other")})
    pack("o/other", tmp_path / "stick")
    assert boundary.run(["import", stick, "--name", "mine"]) == 2


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["import", LONG], 3),
        (["import", "~nobody9/x"], 3),
        (["pull", "--to", LONG, REPO], 2),
        (["pull", "--to", "~nobody9/x", REPO], 0),
        (["pull", "--manifest", LONG], 2),
        (["pull", "--manifest", "~nobody9/x"], 2),
    ],
)
def test_paths_that_cannot_be(
    hub: HubOnLoopback,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert boundary.run(arguments) == code
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "unexpected" not in told


def test_a_file_in_a_folder_that_is_closed(cli: Cli, tmp_path: Path, bound_by_permissions: list[str]) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "x.gguf").write_bytes(CONTENT)
    (tmp_path / "closed").chmod(0)
    done = cli("import", "closed/x.gguf", under=bound_by_permissions)
    (tmp_path / "closed").chmod(0o700)
    assert (done.returncode, "error: may not read" in done.stderr) == (1, True)
