"""The clipboard, through whichever program this platform has for it."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from localai.errors import LocalaiError, NotFound

TIME_LIMIT_S = 5.0
LONGEST_OSC52_BYTES = 74_000  # encoded; terminals cut or drop what is longer


def programs(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> list[list[str]]:
    """The commands that may take text from stdin into a clipboard here, the likeliest first."""
    if platform == "darwin":
        return [["pbcopy"]]
    if platform == "win32":
        return [["clip.exe"]]
    found = []
    if environ.get("WAYLAND_DISPLAY"):
        found.append(["wl-copy"])
    if environ.get("DISPLAY"):
        found += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if environ.get("WSL_DISTRO_NAME"):
        found.append(["clip.exe"])
    if environ.get("TERMUX_VERSION"):
        found.append(["termux-clipboard-set"])
    if environ.get("TMUX"):
        found.append(["tmux", "load-buffer", "-"])
    return found


def copy(text: str) -> str:
    """Put `text` into the clipboard; returns the name of the program that took it.

    Raises NotFound where there is none, LocalaiError where it fails.
    """
    there = [command for command in programs() if shutil.which(command[0])]
    if not there:
        raise NotFound("there is no program for the clipboard here", "install wl-clipboard, xclip or xsel")
    reason = ""
    for command in there:
        encoding = "utf-16-le" if command[0] == "clip.exe" else "utf-8"
        try:
            done = subprocess.run(
                command,
                input=text.encode(encoding, "replace"),
                stdout=subprocess.DEVNULL,  # xclip stays, to serve what it holds: it must hold no pipe of ours
                stderr=subprocess.DEVNULL,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"{command[0]} does not answer"
        except OSError as error:
            reason = f"{command[0]}: {error.strerror}"
        else:
            if not done.returncode:
                return command[0]
            reason = f"{command[0]} ended with exit code {done.returncode}"
    raise LocalaiError(f"cannot copy: {reason}", "check that the display it belongs to is there")


def osc52(text: str) -> str:
    """The sequence by which a terminal is asked to copy `text`. Raises LocalaiError for one that is too long."""
    encoded = base64.b64encode(text.encode("utf-8", "replace")).decode()
    if len(encoded) > LONGEST_OSC52_BYTES:
        raise LocalaiError("the answer is too long for the terminal's clipboard", "/save FILE writes it to a file")
    return f"\x1b]52;c;{encoded}\x1b\\"
