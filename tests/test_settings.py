from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from localai import settings
from localai.errors import NotFound, UsageError


@pytest.fixture(autouse=True)
def nothing_is_set(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALAI_THREADS")


def test_flag_beats_environment_beats_file_beats_default(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load()["threads"] == settings.Setting(settings.KEYS["threads"], None, "default")
    settings.store("threads", "3")
    assert (settings.load()["threads"].value, settings.load()["threads"].source) == (3, "file")
    monkeypatch.setenv("LOCALAI_THREADS", "5")
    assert (settings.load()["threads"].value, settings.load()["threads"].source) == (5, "environment")


def test_storing_keeps_comments_and_is_private(isolated: Path) -> None:
    path = settings.store("model", "qwen3-4b")
    path.write_text("# mine\n" + path.read_text())
    settings.store("temperature", "0.2")
    assert path.read_text().startswith("# mine\n")
    assert tomllib.loads(path.read_text()) == {"model": "qwen3-4b", "temperature": 0.2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    settings.store("model", None)
    assert tomllib.loads(path.read_text()) == {"temperature": 0.2}


def test_folders_are_closed_to_others_with_all_that_is_made_above_them(
    isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0)
    try:
        made = settings.private_folder(isolated / "share" / "localai" / "sessions")
        open_to_all = isolated / "open"
        open_to_all.mkdir()
        settings.private_folder(open_to_all)
    finally:
        os.umask(before)
    for folder in (made, made.parent, made.parent.parent, open_to_all):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700, folder
    monkeypatch.setattr(os, "geteuid", lambda: isolated.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="another user"):
        settings.private_folder(made)


@pytest.mark.parametrize(
    ("name", "text"),
    [("threads", "many"), ("threads", "0"), ("top_p", "2"), ("offline", "perhaps"), ("context", "1e3")],
)
def test_bad_values_are_refused_and_nothing_is_written(isolated: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError):
        settings.store(name, text)
    assert not settings.folders().config_file.exists()


def test_unknown_names(isolated: Path) -> None:
    with pytest.raises(NotFound, match="colour"):
        settings.store("colour", "red")


@given(st.binary())
def test_any_config_file_is_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(content)
        try:
            assert set(settings.read_file(path)) <= set(settings.KEYS)
        except UsageError as error:
            assert error.message.count(str(path))


def test_offline_by_any_of_its_names() -> None:
    assert not settings.offline({})
    assert settings.offline({"LOCALAI_OFFLINE": "1"})
    assert settings.offline({"HF_HUB_OFFLINE": "true"})
    assert not settings.offline({"LOCALAI_OFFLINE": "0", "HF_HUB_OFFLINE": "0"})


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/a"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_the_hub_cache_is_where_the_client_says(environ: dict[str, str], folder: str) -> None:
    assert settings.hub_cache(environ) == Path(folder)


def test_config_commands(in_process: Cli) -> None:
    assert in_process("config", "get", "threads").returncode == 3
    assert in_process("config", "set", "threads", "2").returncode == 0
    assert in_process("config", "get", "threads").stdout == "2\n"
    got = json.loads(in_process("config", "get", "threads", "--json").stdout)
    assert (got["name"], got["value"]) == ("threads", 2)
    where = json.loads(in_process("config", "path", "--json").stdout)["path"]
    assert where == in_process("config", "path").stdout.strip()
    assert in_process("config", "set", "threads", "lots").returncode == 2
    listed = json.loads(in_process("config", "list", "--json").stdout)
    assert {"name": "threads", "value": 2, "source": "file", "variable": "LOCALAI_THREADS"} in listed["settings"]
    assert Path(in_process("config", "path").stdout.strip()).read_text() == "threads = 2\n"
    assert in_process("config", "unset", "threads").returncode == 0
    assert in_process("config", "get", "threads").returncode == 3


def test_a_value_may_look_like_an_option(in_process: Cli) -> None:
    assert in_process("config", "set", "keep_alive", "-1").returncode == 0
    assert in_process("config", "get", "keep_alive").stdout == "-1\n"
    assert in_process("config", "set", "temperature", "-1").returncode == 2


def test_what_is_told_of_bad_values_mends_them(in_process: Cli) -> None:
    path = Path(in_process("config", "path").stdout.strip())
    path.parent.mkdir(parents=True)
    path.write_text('threads = "many"\ntop_p = 7\n')
    for name in ("threads", "top_p"):
        result = in_process("config", "list")
        assert result.returncode == 2
        assert f"hint: localai config unset {name}" in result.stderr
        assert in_process("config", "unset", name).returncode == 0
    assert in_process("config", "list").returncode == 0


def test_a_broken_config_file_is_named_and_can_be_found(in_process: Cli) -> None:
    path = Path(in_process("config", "path").stdout.strip())
    path.parent.mkdir(parents=True)
    path.write_text("threads = [")
    result = in_process("config", "list")
    assert result.returncode == 2
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr
    assert in_process("config", "path").returncode == 0


@pytest.mark.parametrize(
    "words", [("config", "set", "threads", "2"), ("presets", "new", "mine"), ("alias", "x", "smollm2-135m")]
)
def test_what_cannot_be_kept_is_told_with_what_to_do(
    cli: Cli, isolated: Path, words: tuple[str, ...], bound_by_permissions: list[str]
) -> None:
    (isolated / "localai").mkdir(mode=0o500)
    done = cli(*words, under=bound_by_permissions)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: cannot write ")
    assert hint.endswith("or set LOCALAI_HOME to a folder elsewhere")
    assert "free some space" in settings.not_kept(isolated, OSError(errno.ENOSPC, "No space left on device")).hint


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where HOME is not set and the user has no entry
    with pytest.raises(UsageError, match="home folder"):
        settings.folders({})
    assert settings.folders({"LOCALAI_HOME": "/x"}).config == Path("/x/config")


@pytest.mark.parametrize("home", ["../x", "a/../x", "~nobody9/../x"])
def test_a_home_has_one_name(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = settings.folders({"LOCALAI_HOME": home}).data
    assert data.is_absolute()
    assert ".." not in data.parts
    assert settings.hub_cache({"HF_HOME": "~nobody9"}) == Path("~nobody9/hub")


@pytest.mark.parametrize(
    ("text", "found"),
    [("90", 90), ("1.5h", 5400), (" 500ms ", 0.5), ("1h30m", 5400), ("1h 2m 3s", 3723), ("-1", -1), ("-1m", -60)],
)
def test_durations(text: str, found: float) -> None:
    assert settings.seconds(text) == found


@pytest.mark.parametrize("text", ["", "soon", "h", "1h30", "1x", "1h-2m", "1e9", "1_000", "1m" * 9])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        settings.seconds(text)
