"""Ctrl-C at every stage of a chat, and its end by a signal: the terminal is sane afterwards, the chat usable."""

from __future__ import annotations

import signal
import stat
from pathlib import Path

import pytest
from real_model import model_file
from terminals import CHAT, Terminal, chat_at_a_terminal, pexpect  # noqa: F401  (the fixture `terminal`)

from localai import interrupt, kept_states, sessions
from localai.interrupt import Interrupts

STORY = "Write a very long story about a river and its people."


def answers(terminal: Terminal) -> None:
    """It is still of use, and leaves the terminal as it was."""
    terminal.type("/clear")
    terminal.see("a new one begins")
    terminal.ready()
    terminal.say("Name the capital of France.", "Paris")
    terminal.leave()
    assert "Traceback" not in terminal.raw


def test_while_the_model_is_loaded(isolated: Path) -> None:
    terminal = Terminal(*CHAT)
    maps = Path(f"/proc/{terminal.process.pid}/maps")
    while model_file().name not in maps.read_text("utf-8", "replace"):
        assert terminal.process.isalive()
    terminal.process.sendintr()
    if terminal.process.expect([pexpect.EOF, "Ctrl-D or /exit leaves", ">>>"]):  # it was quicker than we
        terminal.process.sendeof()
    assert terminal.ended() in (0, 130)
    assert terminal.left_behind() == []
    assert "Traceback" not in terminal.raw


def test_while_the_question_is_read(terminal: Terminal, isolated: Path) -> None:
    long = isolated / "long.txt"
    long.write_text("The river rose, and the people of the valley went up the hill. " * 400)
    terminal.type(f"/file {long}")
    terminal.see("goes with the next question")
    terminal.ready()
    terminal.type("What did the people do?")
    terminal.answering()
    terminal.see("reading: ")
    terminal.process.sendintr()
    terminal.see("stopped")
    terminal.ready()
    terminal.type("/file")
    terminal.see(r"with the next question: long\.txt")  # it was not answered: the file still waits
    terminal.ready()
    terminal.type("/file -")
    terminal.ready()
    answers(terminal)


def test_while_it_answers_again_and_again(terminal: Terminal) -> None:
    for _ in range(2):
        terminal.type(STORY)
        terminal.answering()
        terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
        for _ in range(3):
            terminal.process.sendintr()
        terminal.see("stopped")
        terminal.ready()
    answers(terminal)


def test_at_the_prompt_and_in_the_middle_of_a_line(terminal: Terminal) -> None:
    terminal.process.send("half a quest")
    terminal.process.sendintr()
    terminal.see("leaves")
    terminal.ready()
    terminal.process.send('"""\nfirst line\n')
    terminal.process.sendintr()
    terminal.see("leaves")
    terminal.ready()
    answers(terminal)


def test_in_a_slash_command(isolated: Path) -> None:
    editor = isolated / "an editor"
    editor.write_text("#!/bin/sh\necho editing\nsleep 60\n")
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    terminal = Terminal(*CHAT, VISUAL=f"'{editor}'")
    terminal.ready()
    terminal.type("/edit")
    terminal.see("editing")
    terminal.process.sendintr()
    terminal.ready()
    for presses in (1, 2, 3, 3):
        terminal.type("/model smollm2-135m")
        terminal.answering()
        for _ in range(presses):
            terminal.process.sendintr()
        terminal.ready()
    answers(terminal)


def in_an_answer() -> Terminal:
    """A chat in the middle of its first answer."""
    terminal = Terminal(*CHAT, "--max-tokens", "30")
    terminal.ready()
    terminal.type(STORY)
    terminal.answering()
    terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    return terminal


def test_keys_typed_into_an_answer_wait_for_the_next_line(isolated: Path) -> None:
    terminal = in_an_answer()
    terminal.process.send("xyzzy")
    streamed = terminal.see("limit of tokens")
    assert "xyzzy" not in streamed
    terminal.ready()
    terminal.see("xyzzy")
    terminal.process.sendintr()
    terminal.see("leaves")
    answers(terminal)


def test_what_is_pasted_into_an_answer_is_one_question(isolated: Path) -> None:
    terminal = in_an_answer()
    long = "=" * 5000  # a terminal that collects a line takes 4,095 bytes of it
    terminal.process.send(f"First:\x1b[200~one\rtwo\r{long}\x1b[201~\r")
    terminal.see("limit of tokens")
    terminal.ready()
    terminal.answering()
    terminal.ready()
    assert [each.content for each in sessions.messages(sessions.find("last"))][2::2] == [f"First:one\ntwo\n{long}"]
    terminal.process.send(f"{STORY}\rNot this one.\rNor that.\r")
    terminal.answering()
    terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    terminal.process.sendintr()  # drops the lines that wait, too
    terminal.see("stopped")
    terminal.ready()
    terminal.type(STORY)
    terminal.answering()
    terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    terminal.process.send("\x04")  # Ctrl-D waits for the next line as well
    assert terminal.ended() == 0
    assert terminal.left_behind() == []
    assert len(sessions.messages(sessions.find("last"))) == 8


def test_a_signal_is_no_exception_in_the_middle_of_c() -> None:
    with Interrupts() as outer, Interrupts() as inner:
        assert interrupt.request()
        assert (outer.requested(), inner.requested()) == (True, True)
    assert not interrupt.request()


@pytest.mark.parametrize(
    ("number", "answering"),
    [(signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGHUP, False), (signal.SIGQUIT, True)],
)
def test_a_signal_ends_it_and_the_terminal_is_as_before(terminal: Terminal, number: int, answering: bool) -> None:
    if answering:
        terminal.type(STORY)
        terminal.answering()
        terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    terminal.process.kill(number)
    terminal.ended()
    assert terminal.process.signalstatus == number
    assert terminal.left_behind() == []
    if answering:
        kept = sessions.find("last")
        assert sessions.messages(kept)[1].content
        assert kept_states.path(kept.id).exists()
