"""What every test stands on: folders of its own, no network, no settings of the person who runs it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None)  # no test asserts a time: the machine may be busy
hypothesis.settings.load_profile("suite")

CLOSED_PORT = "http://127.0.0.1:9"

PERSONAL = ("LOCALAI_", "HF_", "HUGGINGFACE_", "HUGGING_FACE_", "XDG_CACHE_HOME", "NO_COLOR", "FORCE_COLOR", "COLUMNS")


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every folder at `tmp_path` and the Hub at a closed port; returns the home folder."""
    for name in list(os.environ):
        if name.startswith(PERSONAL):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "localai"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED_PORT)
    monkeypatch.setenv("LOCALAI_THREADS", "1")  # llama.cpp's threads wait actively: two tests at once would starve
    return tmp_path


@pytest.fixture
def no_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the embedded model is not installed: lists hold only what the test puts there."""
    monkeypatch.setattr("localai.embedded.find", lambda: None)


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(isolated: Path) -> Cli:
    """Run the real entry point in a process of its own: `cli("run", "hi", input="…", env={…})`, `under` another."""

    def run(
        *args: str,
        input: str | None = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 90,
        under: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*under, sys.executable, "-m", "localai", *args],
            input=input,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            env={**os.environ, **(env or {})},
            cwd=isolated,
        )

    return run


@pytest.fixture
def in_process(isolated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """As `cli`, but in this process, in a tenth of the time: for what loads no model."""
    from localai import boundary

    monkeypatch.chdir(isolated)

    def run(*args: str, input: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(input.encode())))
        capsys.readouterr()
        with mock.patch.dict(os.environ, {"COLUMNS": "80", **(env or {})}):
            code = boundary.run(args)
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return run


@pytest.fixture
def bound_by_permissions() -> list[str]:
    """What to run a command under so that permissions bind it also where the tests are root's."""
    if os.name == "nt":
        pytest.skip("POSIX permissions")
    if os.geteuid() != 0:
        return []
    under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*under, "true"], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and cannot be kept from it here")
    return under
