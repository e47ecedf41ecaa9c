"""Only what is ours and used by nothing goes; what other programs, other processes and other snapshots need stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest
from conftest import Cli
from hub_on_loopback import COMMIT, HubOnLoopback, running
from small_models import hub_snapshot, model_bytes, sha256
from test_library import machine

from localai import copies, discovering, embedded, hub_cache, importing, library, pruning, pulling, records, settings
from localai.copies import How
from localai.domain.files import InstalledModel
from localai.pruning import Kind

REPO, NAME = "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"
NEWER = "1" * 40


@pytest.fixture(autouse=True)
def no_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find", lambda: None)


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
    plan = pulling.plan_update(old, machine())
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
    assert pruning.find(0) == ()


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
    pruning.remove(pruning.find(0))
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


def test_the_command(cli: Cli) -> None:
    assert cli("prune").returncode == 0
    part = partial_download()
    dry = cli("prune", "--dry-run", "--json")
    assert dry.returncode == 0
    assert json.loads(dry.stdout)["freed_bytes"] == 1003
    assert part.exists()
    unasked = cli("prune")
    assert unasked.returncode == 2
    assert "localai prune --yes" in unasked.stderr
    done = cli("prune", "--yes", "--json")
    report = json.loads(done.stdout)
    assert report["freed_bytes"] == 1003
    assert {each["kind"] for each in report["removed"]} == {"partial"}
    assert not part.exists()
