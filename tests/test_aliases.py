"""A user's own names: they resolve before the catalog's, never before a path, and no two processes lose one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from installed_models import install

from localai import aliases, library, settings
from localai.commands.options import complete_alias, complete_model
from localai.errors import LocalaiError, NotFound, UsageError

pytestmark = pytest.mark.usefixtures("no_embedded")


def test_an_alias_is_its_model_everywhere() -> None:
    q4, q8 = install("qwen3-4b", "Q4_0"), install("qwen3-4b", "Q8_0")
    library.keep_alias("Fast", "qwen3-4b:q4_0")
    assert library.find("fast").model == q4
    assert library.find("FAST:q8_0").model == q8
    assert library.meaning("fast").model == "qwen3-4b"
    assert library.meaning("fast:q8_0").selector == "q8_0"
    settings.store("model", "fast")
    assert library.find().model == q4
    assert complete_model("Fa") == ["Fast"]
    assert complete_alias("Fa") == ["Fast"]
    aliases.remove("fast")
    with pytest.raises(NotFound):
        library.find("fast")


def test_names_of_ollamas_keep_their_size() -> None:
    library.keep_alias("l", "llama3.2:3b")
    assert library.meaning("l:q8_0").selector == "q8_0"
    assert library.meaning("l:q8_0").model == library.meaning("llama3.2:3b").model


def test_an_alias_goes_before_the_catalog_and_after_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = install("my-model")
    library.keep_alias("qwen3-4b", "my-model")
    assert library.find("qwen3-4b").model == mine
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    for name in ("taken", "x.gguf"):
        with pytest.raises(UsageError):
            library.keep_alias(name, "my-model")


def test_a_file_can_have_an_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.gguf").write_bytes(b"GGUF")
    library.keep_alias("file", "a b.gguf")
    monkeypatch.chdir("/")
    assert library.find("file").path == tmp_path / "a b.gguf"


def test_an_alias_of_an_alias_is_resolved_once_for_all() -> None:
    install("my-model")
    library.keep_alias("a", "my-model")
    library.keep_alias("b", "a")
    library.keep_alias("a", "b")
    assert {alias.target for alias in aliases.load()} == {"my-model"}


@pytest.mark.parametrize("target", ["nosuch", "./none.gguf", ""])
def test_what_means_nothing_gets_no_alias(target: str) -> None:
    with pytest.raises(LocalaiError) as caught:
        library.keep_alias("a", target)
    assert caught.value.hint
    assert aliases.load() == ()


def test_what_can_be_pulled_can_have_one() -> None:
    library.keep_alias("a", "owner/repo:q4_0")
    with pytest.raises(NotFound) as caught:
        library.find("a")
    assert "localai pull" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a:b", "a@b", "C:\\x", "a\0b", "-x", ".x", "con", "x" * 300, "\x1b[2J", "a."]
)
def test_names_that_cannot_be_one(name: str) -> None:
    with pytest.raises(UsageError):
        aliases.check_name(name)


@given(st.text())
def test_any_name_is_refused_or_stays_in_the_folder(name: str) -> None:
    assert aliases.expand(name) == name
    try:
        aliases.check_name(name)
    except UsageError:
        return
    assert aliases._file(name).parent == aliases.folder()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"[" * 10_000, b'{"name": "a"}', b'{"name": "other", "target": "x"}', b"\xff"]
)
def test_a_damaged_alias_is_none(content: bytes) -> None:
    aliases.folder().mkdir(parents=True)
    (aliases.folder() / "a.json").write_bytes(content)
    assert aliases.load() == ()
    assert aliases.expand("a") == "a"


def test_case_and_form_of_letters_do_not_matter() -> None:
    install("my-model")
    library.keep_alias("Köln", "my-model")
    assert library.find("ko\u0308ln").name == "my-model"
    library.keep_alias("KÖLN", "my-model")
    assert len(aliases.load()) == 1


def test_two_processes_at_once_lose_none() -> None:
    script = "import sys; from localai import aliases\nfor n in range(30): aliases.save(f'{sys.argv[1]}{n}', 'x')"
    both = [subprocess.Popen([sys.executable, "-c", script, name]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(aliases.load()) == 60


def test_the_command(in_process: Cli) -> None:
    install("my-model")
    assert in_process("alias", "me", "my-model").returncode == 0
    assert "my-model" in in_process("alias").stdout
    assert json.loads(in_process("alias", "--json").stdout)["aliases"] == [{"name": "me", "target": "my-model"}]
    assert in_process("alias", "me").returncode == 2
    assert json.loads(in_process("alias", "you", "me", "--json").stdout)["kept"] == {
        "name": "you",
        "target": "my-model",
    }
    assert json.loads(in_process("alias", "--rm", "you", "--json").stdout)["removed"] == {"name": "you"}
    assert json.loads(in_process("export-manifest", "--json").stdout)["models"] == []
    assert in_process("alias", "--rm", "me").returncode == 0
    assert in_process("alias", "--rm", "me").returncode == 3
