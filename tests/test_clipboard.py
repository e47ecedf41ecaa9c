"""The clipboard is reached through the platform's program, and its absence or failure is told."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from localai import clipboard
from localai.errors import LocalaiError, NotFound


@pytest.fixture
def programs(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and a display of each kind."""
    for name in ("WSL_DISTRO_NAME", "TERMUX_VERSION", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr("sys.platform", "linux")
    folder = isolated / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_first_program_that_takes_it(programs: Path) -> None:
    program(programs, "wl-copy", "exit 1")
    program(programs, "xclip", f'/bin/cat > "{programs}/taken"; echo "$@" > "{programs}/how"')
    program(programs, "xsel", "exit 0")
    assert clipboard.copy("déjà\nvu") == "xclip"
    assert (programs / "taken").read_text("utf-8") == "déjà\nvu"
    assert (programs / "how").read_text() == "-selection clipboard\n"


def test_none_and_a_failing_one_are_told(programs: Path) -> None:
    with pytest.raises(NotFound, match="no program for the clipboard"):
        clipboard.copy("x")
    program(programs, "xsel", "exit 3")
    with pytest.raises(LocalaiError, match="xsel ended with exit code 3"):
        clipboard.copy("x")


def test_which_programs_a_platform_has() -> None:
    assert clipboard.programs({}, "linux") == []
    assert clipboard.programs({}, "darwin") == [["pbcopy"]]
    assert clipboard.programs({"TMUX": "x"}, "linux") == [["tmux", "load-buffer", "-"]]
    assert clipboard.programs({"WSL_DISTRO_NAME": "Debian"}, "linux") == [["clip.exe"]]


def test_the_terminal_is_asked_with_base64_alone() -> None:
    text = "\x1b]0;owned\x07 é"
    sequence = clipboard.osc52(text)
    assert sequence.startswith("\x1b]52;c;")
    assert sequence.endswith("\x1b\\")
    assert base64.b64decode(sequence[7:-2]).decode() == text
    with pytest.raises(LocalaiError, match="too long"):
        clipboard.osc52("x" * 100_000)
