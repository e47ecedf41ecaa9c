"""Take the README's pictures: run the real program at a pseudo-terminal and export what its screen shows, by rich.

`make pictures` writes docs/pictures/*.svg. Nothing of the machine that takes them is on them but its processor.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
WIDTH, HEIGHT = 88, 60
HOME = "/home/you"  # what the folders of the pictures are called
NO_FONTS = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)  # they would be fetched from elsewhere


class Shot:
    """A terminal of its own folders, in which the program is run."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.Stream(self.screen)

    def run(self, *arguments: str, act: Callable[[Any], None] | None = None) -> None:
        """Show the command line and run it; `act` types into it."""
        self._stream.feed("\x1b[1m$\x1b[0m localai " + " ".join(arguments) + "\r\n")
        environment = {
            "PATH": os.environ["PATH"],
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "HOME": str(self._home),
            "LOCALAI_HOME": str(self._home / "localai"),
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        process = pexpect.spawn(
            sys.executable,
            ["-m", "localai", *arguments],
            env=environment,
            encoding="utf-8",
            timeout=120,
            dimensions=(HEIGHT, WIDTH),
        )
        process.logfile_read = self
        if act is not None:
            act(process)
        process.expect(pexpect.EOF)
        process.close()
        if process.exitstatus:
            raise SystemExit(f"localai {' '.join(arguments)} ended with {process.exitstatus}")

    def write(self, text: str) -> None:
        self._stream.feed(text.replace(str(self._home), HOME))

    def flush(self) -> None:
        """pexpect wants a file."""

    def export(self, name: str) -> None:
        lines = [self._line(row) for row in range(HEIGHT)]
        while lines and not lines[-1].plain.strip():
            lines.pop()
        with open(os.devnull, "w") as nowhere:
            console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
            for line in lines:
                console.print(line, no_wrap=True, crop=True)
        form = inspect.signature(console.export_svg).parameters["code_format"].default
        svg = console.export_svg(title=f"localai {name}", code_format=NO_FONTS.sub("", form), unique_id=name)
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / f"{name}.svg").write_text(svg, "utf-8")

    def _line(self, row: int) -> Text:
        text = Text()
        for column in range(WIDTH):
            cell = self.screen.buffer[row][column]
            colour = None if cell.fg == "default" else COLOURS.get(cell.fg, f"#{cell.fg}")
            text.append(cell.data, Style(color=colour, bold=cell.bold, italic=cell.italics, underline=cell.underscore))
        text.rstrip()
        return text


COLOURS = {"brown": "yellow", "brightblack": "bright_black"} | {
    name: name for name in ("black", "red", "green", "blue", "magenta", "cyan", "white")
}


QUESTION = "Write a short Python function that adds two numbers, and explain it."


def converse(process: Any) -> None:
    """A short chat with the embedded model; the picture is taken at its next prompt."""
    for line in (QUESTION, ""):
        process.expect_exact("\x1b[?2004h")
        process.expect_exact(">>>")
        process.expect_exact("\x1b[?25h")
        if line:
            process.send(line + "\r")
    process.logfile_read = None
    process.sendeof()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        warm = Shot(home)
        warm.run("hardware", "--measure")
        for name, arguments in {
            "hardware": ("hardware",),
            "recommend": ("recommend", "--machine", "laptop-16gb", "--limit", "6"),
        }.items():
            shot = Shot(home)
            shot.run(*arguments)
            shot.export(name)
        shot = Shot(home)
        shot.run("chat", "smollm2-135m", "--temperature", "0", "--max-tokens", "220", act=converse)
        shot.export("chat")


if __name__ == "__main__":
    main()
