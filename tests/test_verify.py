"""Installed models hashed again: what is wrong is named, listed no more, and mended by what is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cli
from hub_on_loopback import HubOnLoopback, running
from installed_models import machine
from small_models import model_bytes, sha256

from localai import discovering, embedded, hub_cache, importing, library, pulling, records, verifying
from localai.domain.files import InstalledModel
from localai.errors import NotFound

REPO, NAME = "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf"
CONTENT = model_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add(REPO, {NAME: CONTENT})
        yield server


def pull() -> InstalledModel:
    return pulling.pull(pulling.plan_pull("qwen3-0.6b", machine()))


def verified(name: str | None = None) -> list[verifying.ModelCheck]:
    return list(verifying.verify(verifying.to_check(name)))


def flip(path: Path, at: int = 700) -> None:
    """One bit, size and name unchanged."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.resolve().write_bytes(content)


def imported(folder: Path, name: str = "mine-Q4_0.gguf") -> InstalledModel:
    (folder / name).write_bytes(model_bytes(name))
    (model,) = importing.take(discovering.discover_path(folder / name))
    assert isinstance(model, InstalledModel)
    return model


@pytest.mark.usefixtures("no_embedded")
def test_a_flipped_bit_is_found_and_what_is_said_mends_it(hub: HubOnLoopback) -> None:
    model = pull()
    assert [check.sound for check in verified()] == [True]
    flip(model.path)
    assert [each.path for each in library.installed()] == [model.path]  # size and name are as they were
    (check,) = verified("qwen3-0.6b")
    assert [each.problem is None for each in check.files] == [False]
    assert "SHA-256" in (check.files[0].problem or "")
    told: list[str] = []
    assert library.installed(told.append) == ()
    assert len(told) == 1
    with pytest.raises(NotFound):
        library.find("qwen3-0.6b")
    assert check.remedy is not None
    command = check.remedy.removeprefix("localai pull ")
    mended = pulling.pull(pulling.plan_pull(command, machine()))
    assert mended.path.read_bytes() == CONTENT
    assert library.installed() == (mended,)
    assert [check.sound for check in verified()] == [True]


@pytest.mark.usefixtures("no_embedded")
def test_the_date_of_a_verification_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(tmp_path)
    monkeypatch.setattr(records, "now", lambda: "2031-01-01T00:00:00Z")
    verified()
    assert [each.verified_at for each in library.installed()] == ["2031-01-01T00:00:00Z"]


@pytest.mark.usefixtures("no_embedded")
def test_a_file_that_is_restored_is_listed_again(tmp_path: Path) -> None:
    model = imported(tmp_path)
    flip(model.path)
    assert not verified()[0].sound
    assert library.installed() == ()
    flip(model.path)
    assert verified("mine")[0].sound
    assert len(library.installed()) == 1


@pytest.mark.usefixtures("no_embedded")
def test_a_change_that_was_meant_is_imported_anew(tmp_path: Path) -> None:
    model = imported(tmp_path)
    flip(model.path)
    (check,) = verified()
    assert f"localai import {model.path}" in (check.remedy or "")
    (again,) = importing.take(discovering.discover_path(model.path))
    assert library.installed() == (again,)


@pytest.mark.usefixtures("no_embedded")
@pytest.mark.parametrize("harm", ["gone", "shorter", "longer", "a folder"])
def test_other_harm(tmp_path: Path, harm: str) -> None:
    model = imported(tmp_path)
    content = model.path.read_bytes()
    model.path.unlink()
    if harm == "a folder":
        model.path.mkdir()
    elif harm != "gone":
        model.path.write_bytes(content[:-1] if harm == "shorter" else content + b"x")
    (check,) = verified()
    assert not check.sound
    assert check.remedy
    assert library.installed() == ()


@pytest.mark.usefixtures("no_embedded")
def test_a_projector_counts_and_a_shared_file_is_read_once(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"m-Q4_0.gguf": model_bytes("a"), "m-Q8_0.gguf": model_bytes("b"), "mmproj-F16.gguf": b"eyes"})
    small, _ = (pulling.pull(pulling.plan_pull(f"o/m:{quant}", machine())) for quant in ("q4_0", "q8_0"))
    models = verifying.to_check(None)
    assert verifying.total_bytes(models) == len(model_bytes("a")) * 2 + 4
    told: list[int] = []
    assert all(check.sound for check in verifying.verify(models, told.append))
    assert told[-1] == verifying.total_bytes(models)
    assert small.projector is not None
    small.projector.path.resolve().write_bytes(b"lies")
    assert [check.sound for check in verified()] == [False, False]


@pytest.mark.usefixtures("no_embedded")
def test_a_file_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = imported(tmp_path)
    content = model.path.read_bytes()
    read = verifying.sha256_of
    calls = []

    def replaced(path: Path, progress: object = None) -> str:
        calls.append(path)
        if len(calls) == 1:
            (tmp_path / "new").write_bytes(content)
            (tmp_path / "new").replace(path)
            return "0" * 64
        return read(path)

    monkeypatch.setattr(verifying, "sha256_of", replaced)
    assert verified()[0].sound
    assert len(calls) == 2


@pytest.mark.usefixtures("no_embedded")
def test_without_a_place_for_notes_it_still_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = imported(tmp_path)
    flip(model.path)

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(records.settings, "write_atomically", read_only)
    assert not verified()[0].sound


def test_a_damaged_embedded_model_is_believed_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "fake_embedded"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "m.gguf").write_bytes(CONTENT)
    known = embedded.Embedded("smollm2-135m", "fake_embedded", "m.gguf", "Q4_1", len(CONTENT), sha256(CONTENT))
    monkeypatch.setattr(embedded, "described", lambda: known)
    monkeypatch.syspath_prepend(package.parent)
    assert verified()[0].sound
    stat = (package / "m.gguf").stat()
    flip(package / "m.gguf")
    os.utime(package / "m.gguf", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(library.installed()) == 1  # nothing that a look at the file tells has changed
    assert not verified()[0].sound
    assert library.installed() == ()


def test_the_command(in_process: Cli, hub: HubOnLoopback) -> None:
    model = pull()
    assert in_process("verify").returncode == 0
    flip(hub_cache.blob_path(REPO, sha256(CONTENT)))
    done = in_process("verify")
    assert done.returncode == 1
    assert "DAMAGED  qwen3-0.6b" in done.stdout
    assert f"hint: localai pull {REPO}:{NAME}" in done.stderr
    as_json = in_process("verify", "qwen3-0.6b", "--json")
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert report["ok"] is False
    assert [(each["model"], each["ok"]) for each in report["models"]] == [("qwen3-0.6b", False)]
    listed = in_process("list")
    assert "qwen3" not in listed.stdout
    assert "left out" in listed.stderr
    pulled = in_process("pull", f"{REPO}:{NAME}")
    assert pulled.returncode == 0, pulled.stderr
    assert in_process("verify", "qwen3-0.6b").returncode == 0
    assert model.path.read_bytes() == CONTENT


def test_what_cannot_be_verified(in_process: Cli, tmp_path: Path) -> None:
    assert in_process("verify", "nosuch").returncode == 3
    (tmp_path / "x.gguf").write_bytes(b"x")
    done = in_process("verify", "x.gguf")
    assert done.returncode == 3
    assert "localai import x.gguf" in done.stderr


def test_a_record_that_cannot_be_read_is_told(in_process: Cli, tmp_path: Path) -> None:
    imported(tmp_path)
    (record,) = records.folder().glob("*.json")
    record.write_bytes(b"{")
    done = in_process("verify")
    assert done.returncode == 1
    assert record.name in done.stdout
    as_json = in_process("verify", "--json")
    report = json.loads(as_json.stdout)
    assert (as_json.returncode, report["ok"], len(report["unreadable"])) == (1, False, 1)
