"""The index of installed models: nothing is lost, nothing damaged is believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from installed_models import machine
from small_models import sha256 as hash_of

from localai import embedded, pulling, record_format, records
from localai.domain.files import InstalledFile, InstalledModel
from localai.errors import LocalaiError


def model(name: str = "qwen3-4b", number: int = 0) -> InstalledModel:
    file = InstalledFile(f"m-{number}.gguf", Path(f"/models/m-{number}.gguf").absolute(), 7 + number, "a" * 64)
    return InstalledModel(name, "Qwen/x", "c" * 40, "Q4_K_M", (file,), None, "2026-11-21T00:00:00Z", "hub")


def test_what_is_saved_is_there() -> None:
    plain = model()
    seeing = replace(model("b", 1), projector=InstalledFile("mmproj.gguf", Path("/p.gguf").absolute(), 9, "b" * 64))
    records.save(plain)
    records.save(seeing)
    assert records.load() == (seeing, plain)
    records.forget(plain)
    records.forget(plain)
    assert records.load() == (seeing,)


def test_a_newer_pull_of_the_same_file_replaces_the_older() -> None:
    records.save(model())
    newer = replace(model(), commit="d" * 40)
    records.save(newer)
    assert records.load() == (newer,)


def test_last_used_is_remembered() -> None:
    records.save(model())
    assert records.load()[0].last_used_at is None
    records.touch(model())
    assert records.load()[0].last_used_at == records.last_used_at(model())
    assert (records.last_used_at(model()) or "").endswith("Z")


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_user_can_read_them() -> None:
    before = os.umask(0)
    try:
        records.save(model())
        records.touch(model())
    finally:
        os.umask(before)
    assert records.folder().stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in records.folder().iterdir()} == {0o600}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"schema_version": 2}',
        b"[" * 100_000,
        b'{"schema_version": 1, "files": []}',
        b'{"schema_version": 1, "model": "x", "quantization": "Q", "source": "hub", "files": [7]}',
        b'{"schema_version": 1, "model": "x", "quantization": "Q", "source": "hub",'
        b' "files": [{"name": "a", "path": "../a", "size_bytes": 1, "sha256": "x"}]}',
        b'{"schema_version": 1, "model": "x", "quantization": "Q", "source": "hub",'
        b' "files": [{"name": "a", "path": "/a", "size_bytes": true, "sha256": "x"}]}',
    ],
)
def test_a_damaged_record_is_left_out_and_told(content: bytes) -> None:
    records.save(model())
    (records.folder() / "bad.json").write_bytes(content)
    told: list[str] = []
    assert records.load(told.append) == (model(),)
    assert len(told) == 1
    assert "bad.json" in told[0]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["model", "files", "name", "path", "size_bytes", "sha256", "source", "repo"]), inner
            )
        ),
    )
)
def test_any_json_is_read_or_left_out(value: object) -> None:
    records.folder().mkdir(parents=True, exist_ok=True)
    if isinstance(value, dict):
        value = {"schema_version": 1, **value}
    (records.folder() / "any.json").write_text(json.dumps(value))
    records.load()


@pytest.mark.parametrize("name", ["../../evil", "a/b", "C:\\x", "x" * 500, "é 模型", ".", "\ud800"])
def test_any_name_of_a_model_is_a_safe_file_name(name: str) -> None:
    records.save(model(name))
    assert records.load()[0].model == name
    assert {path.parent for path in records.folder().parent.rglob("*.json")} == {records.folder()}


def test_two_processes_at_once_lose_nothing() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); from test_records import model, records\n"
        "for number in range(40): records.save(model(number=int(sys.argv[1]) + number))"
    )
    here = str(Path(__file__).parent)
    both = [subprocess.Popen([sys.executable, "-c", script, str(first), here]) for first in (0, 100)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(records.load()) == 80


def test_a_save_that_was_cut_off_is_not_seen() -> None:
    records.save(model())
    (records.folder() / ".half.json.1.tmp").write_bytes(b'{"schema')
    told: list[str] = []
    assert records.load(told.append) == (model(),)
    assert told == []


def test_a_read_only_folder_can_be_listed(cli: Cli, tmp_path: Path, bound_by_permissions: list[str]) -> None:
    file = InstalledFile("m.gguf", tmp_path / "m.gguf", 7, "a" * 64)
    file.path.write_bytes(bytes(7))
    records.save(replace(model(), files=(file,)))
    before = sorted(records.folder().iterdir())
    records.folder().chmod(0o500)
    listed = cli("list", "--json", under=bound_by_permissions)
    removed = cli("rm", "qwen3-4b", "--yes", under=bound_by_permissions)
    records.folder().chmod(0o700)
    assert listed.returncode == 0
    assert "qwen3-4b" in [each["model"] for each in json.loads(listed.stdout)["models"]]
    assert (removed.returncode, sorted(records.folder().iterdir())) == (1, before)
    assert "may not write" in removed.stderr


# ------------------------------------------------------------------------------------- what verification found, facts


def test_a_fault_takes_a_model_off_the_list_until_it_is_saved_anew() -> None:
    records.save(model())
    assert records.note_check(model(), "the last verification found it damaged")
    told: list[str] = []
    assert records.load(told.append) == ()
    assert len(told) == 1
    assert [record.model for record in records.read_all()] == [model()]
    records.save(model())
    assert records.load() == (model(),)


def test_a_note_about_other_bytes_says_nothing() -> None:
    records.save(model())
    records.note_check(model(), "damaged")
    other = replace(model(), files=(replace(model().files[0], sha256="b" * 64),))
    check = next(records.folder().glob("*.check"))
    content = check.read_bytes()
    records.save(other)
    check.write_bytes(content)  # as a verification of the older bytes would that ends only now
    assert records.load() == (other,)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"sha256": 1, "fault": "x"}', b"\xff"])
def test_a_damaged_note_is_not_heeded(content: bytes) -> None:
    records.save(model())
    slug = next(records.folder().glob("*.json")).with_suffix("")
    for suffix in records.NOTES:
        (slug.parent / f"{slug.name}{suffix}").write_bytes(content)
    assert records.load() == (model(),)
    assert records.facts(model()) is None


def test_nothing_is_noted_about_a_model_that_is_not_recorded() -> None:
    assert not records.note_check(model(), "x")
    assert not records.keep_facts(model(), {})


def test_forgetting_leaves_nothing_behind() -> None:
    records.save(model())
    records.touch(model())
    records.note_check(model(), None)
    records.keep_facts(model(), {"a": 1})
    records.forget(model())
    assert list(records.folder().iterdir()) == []


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_records import model, records
number = 0
while True:
    records.save(model(f"m-{number % 50}", number % 50))
    records.keep_facts(model(f"m-{number % 50}", number % 50), {"a": number})
    print(number, flush=True)
    if number % 7 == 6:
        records.note_check(model(f"m-{number % 50}", number % 50), None)
    number += 1
"""


@pytest.mark.parametrize("acknowledged", [1, 13, 60, 101])
def test_killed_at_any_moment_nothing_acknowledged_is_lost(acknowledged: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(acknowledged):
            last = int(process.stdout.readline())
        process.kill()
    told: list[str] = []
    names = {each.model for each in records.load(told.append)}
    assert told == []
    assert {f"m-{number % 50}" for number in range(last + 1)} <= names


def test_ten_thousand_models() -> None:
    records.save(model())
    (path,) = records.folder().glob("*.json")
    template = path.read_text()
    for number in range(10_000):
        (path.parent / f"m-{number:016x}.json").write_text(template.replace("m-0.gguf", f"m-{number}.gguf"))
    assert len(records.load()) == 10_001


def test_a_record_removed_while_the_list_is_read_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    records.save(model())
    records.save(model("b", 1))
    read = record_format.read

    def vanishing(path: str) -> InstalledModel:
        if Path(path).name.startswith("b-"):
            Path(path).unlink()
        return read(path)

    monkeypatch.setattr(record_format, "read", vanishing)
    told: list[str] = []
    assert records.load(told.append) == (model(),)
    assert told == []


def test_a_disk_that_cannot_sync_folders_keeps_records(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(folder: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(records, "sync_folder", cannot)
    records.save(model())
    assert records.load() == (model(),)


def test_a_read_only_disk_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    records.save(model())

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(records.settings, "write_atomically", read_only)
    with pytest.raises(LocalaiError) as caught:
        records.save(model("b", 1))
    assert caught.value.hint
    records.touch(model())
    assert not records.note_check(model(), "x")
    assert [each.model for each in records.load()] == ["qwen3-4b"]


# ---------------------------------------------------------------------------------------- names, dates, earlier records


def at(path: str) -> InstalledModel:
    file = InstalledFile(Path(path).name, Path(path).absolute(), 7, "a" * 64)
    return InstalledModel("m", None, None, "Q4_0", (file,), None, "2026-11-21T00:00:00Z", "file")


def test_paths_that_differ_in_case_alone_are_two_models() -> None:
    both = (at("/Shelf/model.gguf"), at("/shelf/model.gguf"))
    for each in both:
        records.save(each)
    assert records.load() == both
    records.forget(both[0])
    assert records.load() == both[1:]


def test_a_record_under_the_name_that_an_earlier_version_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = at("/Shelf/model.gguf"), at("/shelf/model.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(records, "_slug", records._folded_slug)
        records.save(old)
        records.touch(old)
        records.keep_facts(old, {"a": 1})
    assert records.facts(old) == {"sha256": ["a" * 64], "a": 1}
    used = records.last_used_at(old)
    assert records.note_check(old, "damaged")
    assert records.load() == ()
    records.save(other)  # whose name was the same
    records.save(old)
    assert {(each.path, each.last_used_at) for each in records.load()} == {(old.path, used), (other.path, None)}
    assert len(list(records.folder().glob("*.json"))) == 2
    records.forget(old)
    assert records.load() == (other,)


@pytest.mark.parametrize("date", ["yesterday", "", "2026-11-21T00:00:00", "2026-13-01T00:00:00Z", 7, {}, "9" * 400])
@pytest.mark.parametrize("where", ["record", "check"])
def test_a_damaged_date_is_not_known(tmp_path: Path, date: object, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find", lambda: None)
    saved = replace(model(), files=(InstalledFile("m.gguf", tmp_path / "m.gguf", 7, hash_of(bytes(7))),))
    saved.path.write_bytes(bytes(7))
    records.save(saved)
    records.note_check(saved, None)
    key, suffix = ("verified_at", "json") if where == "record" else ("checked_at", "check")
    (path,) = records.folder().glob(f"*.{suffix}")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: date}))
    assert pulling.plan_pull("Qwen/x", machine()).already_installed is not None  # hashed again where it is not known
