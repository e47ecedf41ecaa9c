"""A program at a pseudo-terminal, as a person has it: types lines, waits for what is seen, looks at the screen."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r")

MARKED_PASTES = 2004 << 5  # as pyte numbers the private modes

CHAT = ("chat", "smollm2-135m", "--temperature", "0")


class Terminal:
    """`localai ARGUMENTS` at a terminal of 80 columns and 24 lines."""

    def __init__(self, *arguments: str, term: str = "xterm", cwd: Path | None = None, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "localai", *arguments],
            env={**clean, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
            encoding="utf-8",
            timeout=60,
            dimensions=(24, 80),
            cwd=None if cwd is None else str(cwd),
        )
        self.process.logfile_read = io.StringIO()
        self.modes_before = self.modes()

    def type(self, line: str) -> None:
        self.process.send(line + "\r")

    def ready(self) -> None:
        """Wait for the line editor: it switches bracketed paste on when it begins to read."""
        self.process.expect_exact("\x1b[?2004h")
        self.process.expect_exact(">>>")

    def answering(self) -> None:
        """Wait until the line editor is done: from here on keys are signals again."""
        self.process.expect_exact("\x1b[?2004l")

    def say(self, line: str, seen: str = "") -> str:
        """A line, what is seen of its answer, and the next prompt."""
        self.type(line)
        self.answering()
        if seen:
            self.process.expect(seen)
        self.ready()
        return line

    def see(self, pattern: str) -> str:
        self.process.expect(pattern)
        return CONTROLS.sub("", self.process.before + self.process.after)

    def interrupt_until_it_ends(self) -> None:
        """Press Ctrl-C, again where one came just before Python began to wait for a key: it is not seen."""
        for _ in range(12):
            self.process.sendintr()
            if self.process.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=5) == 0:
                return

    def leave(self) -> None:
        """Press Ctrl-D at the prompt: it ends well, and leaves the terminal as it was."""
        self.process.sendeof()
        assert self.ended() == 0
        assert self.left_behind() == []

    def ended(self) -> int:
        self.process.expect(pexpect.EOF)
        self._read_the_rest()
        self.modes_after = self.modes()
        self.process.close()
        return self.process.exitstatus

    def _read_the_rest(self) -> None:
        """What pexpect has not seen: it takes a program that is gone, with nothing to read just then, for the end.

        The kernel may still be handing over the last bytes then; only a read that fails is their end.
        """
        with contextlib.suppress(OSError):
            while select.select([fd := self.process.child_fd], [], [], 5)[0] and (data := os.read(fd, 65_536)):
                self.process.logfile_read.write(data.decode("utf-8", "replace"))

    @property
    def raw(self) -> str:
        """Everything that has come so far."""
        return self.process.logfile_read.getvalue()

    def screen(self) -> pyte.Screen:
        """What the terminal shows of it, with its title, cursor and history."""
        screen = pyte.HistoryScreen(80, 24, history=10_000)
        pyte.Stream(screen).feed(self.raw)
        return screen

    def transcript(self) -> str:
        """All lines that the terminal has shown, those that went off its top as well."""
        screen = self.screen()
        gone = ["".join(line[column].data for column in range(80)).rstrip() for line in screen.history.top]
        return "\n".join([*gone, *(line.rstrip() for line in screen.display)]).rstrip()

    def modes(self) -> list[object]:
        """The terminal's modes: echo, signals, lines."""
        return termios.tcgetattr(self.process.child_fd)

    def left_behind(self) -> list[str]:
        """In what the program, which has ended, did not leave the terminal as it found it."""
        screen = self.screen()
        faults = {
            f"modes {self.modes_before} are {self.modes_after}": self.modes_after != self.modes_before,
            "the cursor is hidden": screen.cursor.hidden,
            "pastes are marked": MARKED_PASTES in screen.mode,
        }
        return [told for told, found in faults.items() if found]


@pytest.fixture(name="terminal")
def chat_at_a_terminal(isolated: Path) -> Iterator[Terminal]:
    """A chat with the small model, greedy, that waits for its first line."""
    session = Terminal(*CHAT)
    session.ready()
    yield session
    session.process.close(force=True)
