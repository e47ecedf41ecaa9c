"""A model whose vocabulary holds escape sequences cannot drive the terminal, whatever it says or is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import random_models
from terminals import Terminal

SEQUENCES = (
    "\x1b]0;owned\x07",  # title
    "\x1b]2;owned\x1b\\",
    "\x1b]52;c;b3duZWQ=\x07",  # clipboard
    "\x1b]8;;http://evil.example\x1b\\",  # link
    "\x1b]4;1;#ff0000\x07",  # palette
    "\x1b[41;5;7m",  # colours
    "\x1b[9;9H",  # cursor
    "\x1b[13A",
    "\x1b[3J",
    "\x1b[?1049h",  # other screen
    "\x1b[?1003h",  # mouse
    "\x1b[21t",  # report the title
    "\x1bc",  # reset
    "\x1bP$q\x1b\\",
    "\x9b31m",  # the same as C1 controls
    "\x9d0;owned\x9c",
    "\x90q\x9c",
    "\r\x08\x0b\x0c\x0e\x7f\x05",
    "\u202egnp.exe\u2066",  # reading direction
    "**\x1b[44m**",
    "`\x1b]0;code\x07`",
    "\n| \x1b[45m |\n|---|\n| \x1b[46m |\n",
    "\n```\x1b[43m\n\x1b[42m\n```\n",
    "\n# \x1b]0;heading\x07\n",
    "[\x1b[35m](\x1b[34m)",
)
LIVE = {
    *(chr(number) for number in (*range(7), 7, *range(11, 13), *range(14, 27), *range(28, 32), 0x7F)),
    *map(chr, range(0x80, 0xA0)),
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}
THINKS = random_models.TEMPLATE.replace("assistant\n{%", "assistant\n<think>\n{%")
FLAGS = ("--temperature", "10", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--max-tokens", "400", "--private")


@pytest.fixture
def hostile(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder and file names are hostile, too."""

    def words(size: int) -> list[str]:
        names = [f"{SEQUENCES[number % len(SEQUENCES)]}{number}" for number in range(size)]
        return ["\u2581", "\n", *names][: size - random_models.FIRST_WORD]

    monkeypatch.setattr(random_models, "words", words)
    folder = isolated / "\x1b]0;folder\x07"
    folder.mkdir()
    return folder


def check(terminal: Terminal) -> None:
    """No sequence of the model's, and no control character of its making, was sent live."""
    raw = terminal.raw
    assert not [sequence for sequence in SEQUENCES if sequence in raw]
    assert not {character for character in raw if character in LIVE}
    screen = terminal.screen()
    assert (screen.title, screen.icon_name) == ("", "")
    assert terminal.left_behind() == []


def ask(terminal: Terminal, *lines: str) -> None:
    for line in lines:
        terminal.say(line)
    terminal.leave()


@pytest.mark.parametrize("plain", [False, True])
def test_what_it_says_is_shown_and_not_obeyed(hostile: Path, plain: bool) -> None:
    path = random_models.write(hostile, random_models.TINY["plain"])
    path = path.rename(hostile / "\x1b[31mmodel\x07.gguf")
    (hostile / "\x1b]0;document\x07.txt").write_text("".join(SEQUENCES))
    terminal = Terminal("chat", str(path), *FLAGS, *(["--plain"] if plain else []))
    if plain:
        for line in ("Hello", "/retry", "/retry", "/exit"):
            terminal.see(">>>")
            terminal.process.sendline(line)
        assert terminal.ended() == 0
        assert "\x1b" not in terminal.raw
    else:
        terminal.ready()
        document = f"/file {hostile}/\x16\x1b]0;document\x16\x07.txt"  # Ctrl-V, then the character
        ask(terminal, "Hello", "/retry", "/retry", document, "/show", "/stats")
    assert "\\x1b" in terminal.raw, "it was said"
    check(terminal)


def test_what_it_thinks_is_not_obeyed_either(hostile: Path) -> None:
    path = random_models.write(hostile, random_models.TINY["plain"], template=THINKS)
    terminal = Terminal("chat", str(path), *FLAGS)
    terminal.ready()
    ask(terminal, "Hello", "/think show", "Hello again", "/retry", "/retry")
    assert "thought for about" in terminal.transcript()
    assert "\\x1b" in terminal.raw, "it was thought"
    check(terminal)
