"""What `make chat` and `make test` stand on, as far as it can be tried without a compiler's minutes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "setup_venv.py"


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_venv", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checkout(folder: Path) -> Path:
    """As much of a clean checkout as the set-up reads."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_a_missing_compiler_is_one_line_and_the_command_that_installs_it(isolated: Path) -> None:
    folder = checkout(isolated / "clone")
    tools = isolated / "bin"
    tools.mkdir()
    (tools / "apt-get").symlink_to("/bin/true")
    result = subprocess.run(
        [sys.executable, str(folder / "scripts" / "setup_venv.py")],
        env={"PATH": str(tools), "HOME": str(isolated), "XDG_CACHE_HOME": str(isolated / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if sys.platform == "darwin":
        pytest.skip("the command differs")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "error: cannot compile the engine: a C++ compiler and make missing",
        "hint: sudo apt-get install build-essential make, then run the same command again",
    ]
    assert not (folder / ".venv").exists()


def test_missing_headers_are_seen(setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert setup.missing_tools()["headers"] == "the Python headers"


def test_an_old_python_is_told(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (99, 0))
    assert setup.main() == 1
    assert "too old" in capsys.readouterr().err


def test_another_build_is_kept_apart(setup: ModuleType) -> None:
    assert setup.engine_key("") == setup.engine_key("")
    assert setup.engine_key("") != setup.engine_key("-DGGML_CUDA=on")


def test_the_engine_it_compiles_is_one_the_project_accepts(setup: ModuleType) -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = next(each for each in map(Requirement, project["dependencies"]) if each.name == setup.ENGINE)
    assert wanted.specifier.contains(setup.ENGINE_VERSION)


def test_the_compilers_lines_become_progress(
    setup: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = [f"  [{step}/200] building\n" for step in range(1, 201)]
    with (tmp_path / "log").open("w") as log:
        setup.follow(iter(lines), log, 0.0)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 11
    assert "100 %" in shown[-1]
    assert (tmp_path / "log").read_text() == "".join(lines)


@pytest.mark.skipif(os.name != "posix", reason="make is posix")
def test_a_finished_setup_has_nothing_left_to_do(isolated: Path) -> None:
    if not (ROOT / ".venv" / ".localai-setup.json").exists():
        pytest.skip("this checkout was not set up by make")
    result = subprocess.run(["make", "--silent", "setup"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
