"""Starts a server that goes on when its terminal is closed, and waits until it answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from localai import settings, wire
from localai.errors import LocalaiError

_POLL_S = 0.1  # how often Ctrl-C is asked for


@dataclass(frozen=True, slots=True)
class Started:
    """`notes` is what the server said on the way, such as its new API key."""

    pid: int
    url: str | None
    notes: tuple[str, ...] = ()


def log_file() -> Path:
    """Where a server in the background writes what it would say on a terminal."""
    return settings.folders().cache / "run" / "server.log"


def already(told: Mapping[str, Any]) -> str:
    """That a server runs, in words: `told` is its answer to `ps`, {} where it has just gone."""
    where = f" on {told['url']}" if told.get("url") else ""
    return f"a server is running already{where} (process {told.get('pid')})"


def start(words: Sequence[str], cancelled: Callable[[], bool] = lambda: False) -> Started:
    """Run `localai WORDS --json` detached. Raises what it fails by; KeyboardInterrupt when `cancelled` says so."""
    path = log_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(path.parent, 0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise LocalaiError(f"cannot write {path}: {error.strerror}", "check the folder's permissions") from error
    with os.fdopen(descriptor, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "localai", *words, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            close_fds=True,
        )
    assert process.stdout is not None, "it is a pipe"
    try:
        text = b""
        with process.stdout as stream:
            for more in _said(stream, cancelled):
                text += more
                with contextlib.suppress(ValueError):
                    told = json.loads(text)
                    if "error" in told:
                        found = told["error"]
                        raise wire.to_error({"error": found["code"], "message": found["message"],
                                             "hint": found["hint"] or "", "needed_tokens": None})  # fmt: skip
                    notes = path.read_text("utf-8", "replace").splitlines()
                    process.returncode = 0  # it goes on; nothing waits for it
                    return Started(int(told["pid"]), told["url"], tuple(notes))
    except KeyboardInterrupt:  # nobody waits for it any more
        process.terminate()
        process.wait()
        raise
    raise LocalaiError("the server ended before it answered", f"{path} has what it said")


def _said(stream: IO[bytes], cancelled: Callable[[], bool]) -> Iterator[bytes]:
    """What the server says, as it comes. Raises KeyboardInterrupt when `cancelled` says so."""
    import select

    while True:
        if cancelled():
            raise KeyboardInterrupt
        if select.select([stream], [], [], _POLL_S)[0]:
            if not (more := os.read(stream.fileno(), 65536)):
                return
            yield more
