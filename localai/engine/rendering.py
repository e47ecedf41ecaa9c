"""The process that renders chat templates (`renderer.py`): started, asked, and killed when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

START_LIMIT_S = 20.0  # for a process to start on a machine that is busy loading a model
TIME_LIMIT_S = 5.0  # for one rendering; real templates take milliseconds


class TemplateFailed(Exception):
    """The template cannot be rendered; the text says why. Caught in this package."""


class TemplateEndless(TemplateFailed):
    """The template takes longer than any should."""


class Renderer:
    """The process that renders (`renderer.py`), started at once, asked later, killed when it takes too long.

    The next request then starts another one. Not for two threads at once.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._closed = False
        self._process: subprocess.Popen[str] | None = None
        self._start()

    def _start(self) -> None:
        self._ready = False
        self._number = 0
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        # -P: a file called jinja2.py in the current folder must not be imported
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("renderer.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",  # json.dumps escapes everything else
                errors="surrogateescape",
                process_group=0 if os.name == "posix" else None,  # the terminal's Ctrl-C is not for it
            )
            threading.Thread(target=_listen, args=(self._process.stdout, self._answers), daemon=True).start()

    def render(self, template: str, variables: dict[str, Any], limit: int) -> str:
        """The rendered text, of at most `limit` characters. Raises TemplateFailed."""
        if not self._closed and (self._process is None or self._process.poll() is not None):
            self._end()
            self._start()
        if self._process is None or self._process.stdin is None:
            raise TemplateFailed("no process to render it in")
        try:
            if not self._ready:
                self._answer(START_LIMIT_S)
                self._ready = True
            self._number += 1
            request = {"number": self._number, "template": template, "variables": variables, "limit": limit}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answer(self._time_limit_s)
        except (OSError, ValueError) as error:
            self._end()
            raise TemplateFailed("it ended the process that renders it") from error
        if "text" not in answer:
            raise TemplateFailed(str(answer.get("error")))
        return str(answer["text"])

    def _answer(self, limit_s: float) -> dict[str, Any]:
        """The answer to the last request; those to earlier ones, which Ctrl-C left unread, are dropped."""
        while True:
            try:
                line = self._answers.get(timeout=limit_s)
            except queue.Empty:
                self._end()
                late = TemplateEndless if self._ready else TemplateFailed  # before, the machine is to blame
                raise late(f"it takes more than {limit_s:g} s") from None
            answer = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError(line)
            if answer.get("number") == self._number:
                return answer

    def close(self) -> None:
        """End the process, and start none again. Idempotent."""
        self._closed = True
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()


def _listen(stream: Any, answers: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in stream:
            answers.put(line)
    answers.put("")
