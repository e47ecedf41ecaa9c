"""Only what is ours and used by nothing goes; what other programs, other processes and other snapshots need stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest
from conftest import Cli
from hub_on_loopback import COMMIT, HubOnLoopback, running
from installed_models import machine
from small_models import hub_snapshot, model_bytes, sha256, shard_bytes

from localai import (
    boundary,
    claims,
    copies,
    discovering,
    hub_cache,
    importing,
    library,
    pruning,
    pulling,
    records,
    removing,
    settings,
    updating,
)
from localai.copies import How
from localai.domain.files import InstalledModel
from localai.pruning import Kind

pytestmark = pytest.mark.usefixtures("no_embedded")

REPO, NAME = "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"
NEWER = "1" * 40


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add(REPO, {NAME: model_bytes("old")})
        yield server


def pull() -> InstalledModel:
    return pulling.pull(pulling.plan_pull("qwen3-0.6b", machine()))


def kinds(idle_seconds: float = 0) -> list[Kind]:
    return [each.kind for each in pruning.find(idle_seconds)]


def partial_download(repo: str = REPO, size: int = 1000) -> Path:
    blob = hub_cache.blob_path(repo, sha256(b"never whole"))
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.localai.partial")
    part.write_bytes(bytes(size))
    blob.with_name(f"{blob.name}.localai.etag").write_text('"x"')
    return part


def test_nothing_of_a_fresh_library_goes(hub: HubOnLoopback) -> None:
    model = pull()
    library.touch(model)
    assert pruning.find(0) == ()


def test_our_unfinished_downloads_go_and_those_of_others_stay(hub: HubOnLoopback) -> None:
    part = partial_download()
    theirs = part.with_name(f"{'a' * 64}.12345678.incomplete")
    theirs.write_bytes(bytes(5000))
    lock = hub_cache.lock_path(REPO, sha256(b"never whole"))
    lock.parent.mkdir(parents=True)
    lock.touch()
    other_lock = lock.with_name("a" * 64 + ".lock")
    other_lock.touch()
    found = pruning.find()
    assert sum(each.size_bytes for each in found) == 1003
    assert {each.kind for each in found} == {Kind.PARTIAL}
    assert pruning.remove(found) == found
    assert not part.exists()
    assert not lock.exists()
    assert theirs.exists()
    assert other_lock.exists()


def test_a_download_in_progress_is_left_alone(hub: HubOnLoopback) -> None:
    part = partial_download()
    lock = hub_cache.lock_path(REPO, sha256(b"never whole"))
    lock.parent.mkdir(parents=True)
    with filelock.FileLock(lock):
        assert pruning.find() == ()
        assert pruning.remove([pruning.Leftover(Kind.PARTIAL, part, 1000)]) == ()
    assert part.exists()


def test_a_superseded_revision_goes_and_its_shared_blobs_stay(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"m-Q4_0.gguf": model_bytes("old"), "mmproj-F16.gguf": b"eyes"})
    old = pulling.pull(pulling.plan_pull("o/m", machine()))
    hub.add("o/m", {"m-Q4_0.gguf": model_bytes("newer"), "mmproj-F16.gguf": b"eyes"}, commit=NEWER)
    plan = updating.plan_update(old, machine())
    assert plan is not None
    new = pulling.pull(plan)
    assert new.commit == NEWER
    (found,) = pruning.find()
    assert (found.kind, found.path.name, found.size_bytes) == (Kind.REVISION, COMMIT, len(model_bytes("old")))
    assert sum(each.size_bytes for each in pruning.remove([found])) == len(model_bytes("old"))
    assert not found.path.exists()
    assert library.installed() == (new,)
    assert new.path.read_bytes() == model_bytes("newer")
    assert new.projector is not None
    assert new.projector.path.read_bytes() == b"eyes"
    assert pruning.find(0) == ()


def test_revisions_of_others_stay(hub: HubOnLoopback) -> None:
    cache = settings.hub_cache()
    hub_snapshot(cache, "other/repo", "2" * 40, {"x-Q4_0.gguf": model_bytes("x")}, ref=None)
    pull()
    hub_snapshot(cache, REPO, "3" * 40, {"config.json": b"{}", "x.gguf": model_bytes("y")}, ref=None)
    hub_snapshot(cache, REPO, "4" * 40, {"z-Q4_0.gguf": model_bytes("z")}, ref="v1")
    hub_snapshot(cache, REPO, "5" * 40, {"p-Q4_0.gguf": model_bytes("p")}, ref=None)  # hf download --revision COMMIT
    assert pruning.find(0) == ()


def test_revisions_that_no_branch_leads_to_any_more(hub: HubOnLoopback, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tags pulled one after the other, and an update whose model was then removed: all of it is ours."""
    repo = hub.repos[REPO]
    repo.replace({NAME: model_bytes("v2")}, NEWER)
    repo.replace({NAME: model_bytes("v3")}, "3" * 40)
    repo.tags = {"v1": COMMIT, "v2": NEWER}
    for revision in ("@v1", "@v2", "@main"):
        assert boundary.run(["pull", f"{REPO}{revision}", "--yes"]) == 0
    repo.replace({NAME: model_bytes("v4")}, "4" * 40)
    assert boundary.run(["pull", "--update", "--yes"]) == 0
    assert boundary.run(["rm", REPO, "--yes"]) == 0
    capsys.readouterr()
    assert boundary.run(["prune", "--yes", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in done["removed"]] == ["revision"] * 3
    assert done["freed_bytes"] == sum(len(model_bytes(name)) for name in ("old", "v2", "v3"))
    assert list(settings.hub_cache().glob("models--*/blobs/*")) == []
    assert list(claims.folder().iterdir()) == []


def test_what_an_earlier_version_pulled_is_ours_when_it_is_replaced(hub: HubOnLoopback) -> None:
    old = pull()
    shutil.rmtree(claims.folder())
    hub.repos[REPO].replace({NAME: model_bytes("newer")}, NEWER)
    plan = updating.plan_update(old, machine())
    assert plan is not None
    pulling.pull(plan)
    assert [each.path.name for each in pruning.find()] == [COMMIT]


def test_what_another_program_pinned_before_us_stays(hub: HubOnLoopback) -> None:
    snapshot = hub_snapshot(settings.hub_cache(), REPO, COMMIT, {NAME: model_bytes("old")}, ref=None)
    old = pull()
    hub.repos[REPO].replace({NAME: model_bytes("newer")}, NEWER)
    plan = updating.plan_update(old, machine())
    assert plan is not None
    removing.remove(pulling.pull(plan))
    assert pruning.find(0) == ()
    assert (snapshot / NAME).exists()


def cut_off(hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pull of two shards that ended when the first was whole; its blob."""
    hub.add("o/big", {f"big-Q4_0-0000{number}-of-00002.gguf": shard_bytes(number - 1) for number in (1, 2)})
    download = pulling.download

    def killed(plan: pulling.PullPlan, name: str, *rest: Any) -> None:
        if "00002-of" in name:
            raise KeyboardInterrupt
        download(plan, name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(pulling, "download", killed)
        with pytest.raises(KeyboardInterrupt):
            pulling.pull(pulling.plan_pull("o/big", machine()))
    return hub_cache.blob_path("o/big", sha256(shard_bytes(0)))


def test_a_whole_shard_of_a_pull_that_was_cut_off(hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = cut_off(hub, monkeypatch)
    theirs = blob.with_name(sha256(b"theirs"))
    theirs.write_bytes(b"theirs")
    with filelock.FileLock(hub_cache.lock_path("o/big", sha256(shard_bytes(1)))):  # a pull that is at the second one
        assert pruning.find() == ()
    (found,) = pruning.find()
    assert (found.kind, found.path, found.size_bytes) == (Kind.PARTIAL, blob, len(shard_bytes(0)))
    model = pulling.pull(pulling.plan_pull("o/big", machine()))
    assert pruning.remove([found]) == ()  # it was taken up while the user thought about it
    assert pruning.find(0) == ()
    removing.remove(model)
    cut_off(hub, monkeypatch)
    assert sum(each.size_bytes for each in pruning.remove(pruning.find())) == len(shard_bytes(0))
    assert [path.name for path in blob.parent.iterdir()] == [theirs.name]


def test_what_is_found_is_looked_at_again_before_it_goes(hub: HubOnLoopback) -> None:
    old = pull()
    hub.repos[REPO].replace({NAME: model_bytes("newer")}, NEWER)
    plan = updating.plan_update(old, machine())
    assert plan is not None
    pulling.pull(plan)
    (found,) = pruning.find()
    again = pulling.pull(pulling.plan_pull(f"{REPO}@{COMMIT}", machine()))
    assert pruning.remove([found]) == ()
    assert again.path.read_bytes() == model_bytes("old")


@pytest.mark.parametrize("text", [REPO, f"{REPO}@{COMMIT}"])
def test_a_model_that_is_being_listed_is_left_alone(
    hub: HubOnLoopback, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prune in the moment between the first pointer and the record, which has no branch where a commit is pulled."""
    save, found = records.save, []

    def pruned(model: InstalledModel) -> None:
        found.append(pruning.find(0))
        snapshot = pruning.Leftover(Kind.REVISION, model.path.parent, 0, claim=claims.of(model))
        assert pruning.remove([snapshot], 0) == ()
        save(model)

    monkeypatch.setattr(records, "save", pruned)
    model = pulling.pull(pulling.plan_pull(text, machine()))
    assert found == [()]
    assert model.path.read_bytes() == model_bytes("old")


def test_a_blob_that_is_taken_away_during_a_pull_is_fetched_again(
    hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = cut_off(hub, monkeypatch)
    download, taken = pulling.download, []

    def thief(plan: pulling.PullPlan, name: str, *rest: Any) -> None:
        download(plan, name, *rest)
        if "00002-of" in name and not taken:
            taken.append(blob.unlink())

    monkeypatch.setattr(pulling, "download", thief)
    model = pulling.pull(pulling.plan_pull("o/big", machine()))
    assert [file.path.read_bytes() for file in model.files] == [shard_bytes(0), shard_bytes(1)]
    assert len(hub.downloads()) == 3


def test_a_cache_that_is_closed_keeps_what_was_claimed(
    hub: HubOnLoopback, cli: Cli, bound_by_permissions: list[str]
) -> None:
    """A snapshot that may not be looked into may need any blob; so it does where claims lead into a closed folder."""
    old = pull()
    hub.repos[REPO].replace({NAME: model_bytes("newer")}, NEWER)
    plan = updating.plan_update(old, machine())
    assert plan is not None
    pulling.pull(plan)
    snapshots = hub_cache.pointer_path(REPO, NEWER, NAME).parent.parent
    for closed in (snapshots / NEWER, snapshots.parent):
        closed.chmod(0)
        done = cli("prune", "--yes", "--json", under=bound_by_permissions)
        closed.chmod(0o700)
        assert (done.returncode, json.loads(done.stdout)["removed"]) == (0, [])
    assert len(claims.read_all()) == 2
    assert [each.path.name for each in pruning.find()] == [COMMIT]


@pytest.mark.parametrize("harm", [b"{", b'{"schema_version": 2}', None])
def test_an_index_that_cannot_be_read_keeps_what_models_may_need(
    hub: HubOnLoopback,
    cli: Cli,
    tmp_path: Path,
    harm: bytes | None,
    bound_by_permissions: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "m-Q4_0.gguf").write_bytes(model_bytes())
    (copy,) = importing.take(discovering.discover_path(tmp_path / "m-Q4_0.gguf"), How.COPY)
    assert isinstance(copy, InstalledModel)
    for path in copies.everything():
        os.utime(path, (0, 0))
    (record,) = records.folder().glob("*.json")
    content = record.read_bytes()
    if harm is None:
        record.chmod(0)
    else:
        record.write_bytes(harm)
    pull()
    if harm is None:
        done = cli("prune", "--yes", under=bound_by_permissions)
        code, told = done.returncode, done.stderr
    else:
        code, told = boundary.run(["prune", "--yes"]), capsys.readouterr().err
        assert boundary.run(["rm", "qwen3-0.6b", "--yes"]) == 1
        assert record.name in capsys.readouterr().err
    assert (code, "copies and revisions stay" in told) == (0, True)
    record.chmod(0o600)
    record.write_bytes(content)
    assert copy.path.read_bytes() == model_bytes()
    assert boundary.run(["rm", "qwen3-0.6b", "--yes"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_home_by_another_name_has_the_same_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m-Q4_0.gguf").write_bytes(model_bytes())
    list(importing.take(discovering.discover_path(tmp_path / "m-Q4_0.gguf"), How.COPY))
    (tmp_path / "link").symlink_to(tmp_path / "localai")
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "link"))
    assert pruning.find(0) == ()


def test_an_import_in_progress_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long ago its first shard was written."""
    for number in (1, 2):
        (tmp_path / f"big-Q4_0-0000{number}-of-00002.gguf").write_bytes(shard_bytes(number - 1))
    save, found = records.save, []

    def pruned(model: InstalledModel) -> None:
        found.append(pruning.find(0))
        assert pruning.remove([pruning.Leftover(Kind.COPY, model.path, 1)], 0) == ()
        save(model)

    monkeypatch.setattr(records, "save", pruned)
    (model,) = importing.take(discovering.discover_path(tmp_path), How.COPY)
    assert isinstance(model, InstalledModel)
    assert found == [()]
    stale = pruning.Leftover(Kind.COPY, model.path, 1)
    assert pruning.remove([stale], 0) == ()  # recorded since it was found
    assert library.installed() == (model,)


def test_a_copy_that_was_cut_off_before_it_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m-Q4_0.gguf").write_bytes(model_bytes())

    def killed(model: InstalledModel) -> None:
        raise KeyboardInterrupt

    discovery = discovering.discover_path(tmp_path / "m-Q4_0.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(records, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            list(importing.take(discovery, How.COPY))
    (copy,) = copies.everything()
    copy.with_name(".m.1.part").write_bytes(b"half")
    assert pruning.find() == ()  # fresh: another process may be at it
    found = pruning.find(0)
    assert {each.kind for each in found} == {Kind.COPY}
    pruning.remove(found)
    assert list(copies.everything()) == []
    assert (tmp_path / "m-Q4_0.gguf").exists()


def test_what_a_killed_write_left(tmp_path: Path) -> None:
    records.folder().mkdir(parents=True)
    (records.folder() / ".x.json.1.tmp").write_bytes(b"{")
    (records.folder() / "x-0123.facts").write_bytes(b"{}")
    (records.folder() / "unreadable.json").write_bytes(b"{")
    assert kinds() == [Kind.TEMPORARY, Kind.TEMPORARY]
    pruning.remove(pruning.find(0), 0)
    assert [path.name for path in records.folder().iterdir()] == ["unreadable.json"]  # told by list, never removed


def test_records_of_models_that_are_gone_but_not_those_whose_disk_is(tmp_path: Path) -> None:
    for name in ("stick", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}-Q4_0.gguf").write_bytes(model_bytes(name))
        list(importing.take(discovering.discover_path(tmp_path / name)))
    (tmp_path / "here" / "here-Q4_0.gguf").unlink()
    (tmp_path / "stick").rename(tmp_path / "unplugged")
    (found,) = pruning.find(0)
    assert (found.kind, found.model and found.model.model) == (Kind.RECORD, "here")
    pruning.remove([found])
    (tmp_path / "unplugged").rename(tmp_path / "stick")
    assert [model.model for model in library.installed()] == ["stick"]


@pytest.mark.parametrize("why", ["another disk", "an earlier record", "another cache", "closed"])
def test_models_that_are_only_out_of_reach_are_not_forgotten(
    hub: HubOnLoopback,
    cli: Cli,
    tmp_path: Path,
    why: str,
    bound_by_permissions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shelf, away = tmp_path / "shelf", tmp_path / "away"
    shelf.mkdir()
    if why == "another cache":
        pull()
        monkeypatch.setenv("HF_HOME", str(tmp_path / "other"))
        (tmp_path / "hf").rename(away)
        settings.hub_cache().mkdir(parents=True)
    else:
        (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
        list(importing.take(discovering.discover_path(shelf)))
        (record,) = records.folder().glob("*.json")
        raw = json.loads(record.read_text())
        if why == "closed":
            shelf.chmod(0)
        else:  # the folder where the disk was is there, and empty
            (shelf / "m-Q4_0.gguf").rename(away)
            raw["device"] += 1
            if why == "an earlier record":
                del raw["device"]
        record.write_text(json.dumps(raw))
    if why == "closed":
        assert cli("prune", "--yes", under=bound_by_permissions).returncode == 0
        shelf.chmod(0o700)
    assert boundary.run(["prune", "--yes"]) == 0
    assert len(records.read_all()) == 1


def test_the_command(in_process: Cli) -> None:
    assert in_process("prune").returncode == 0
    part = partial_download()
    dry = in_process("prune", "--dry-run", "--json")
    assert dry.returncode == 0
    assert json.loads(dry.stdout)["freed_bytes"] == 1003
    assert part.exists()
    unasked = in_process("prune")
    assert unasked.returncode == 2
    assert "localai prune --yes" in unasked.stderr
    done = in_process("prune", "--yes", "--json")
    report = json.loads(done.stdout)
    assert report["freed_bytes"] == 1003
    assert {each["kind"] for each in report["removed"]} == {"partial"}
    assert not part.exists()
