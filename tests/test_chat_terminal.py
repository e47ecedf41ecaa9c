"""`localai chat` as a person has it: at a pseudo-terminal, with the real small model."""

from __future__ import annotations

import signal
from pathlib import Path

from real_model import model_file
from terminals import CHAT, Terminal, chat_at_a_terminal  # noqa: F401  (the fixture `terminal`)


def test_a_conversation(terminal: Terminal) -> None:
    terminal.say("Name the capital of France.", "Paris")
    terminal.type("/stats")
    terminal.see("answer tokens")
    terminal.type("And of Italy?")
    terminal.ready()
    terminal.type("/stats")
    terminal.see("cached")
    terminal.ready()
    terminal.type(f"/save {'f' * 300}.md")
    terminal.see("cannot write")
    terminal.ready()
    terminal.type("/exit")
    assert terminal.ended() == 0


def test_the_slash_commands(terminal: Terminal, isolated: Path) -> None:
    (isolated / "my notes.txt").write_text("The river is called Loire.")
    for typed, seen in [
        ("/help", "/clear"),
        ("/help set", "temperature, seed"),
        ("/system", "no system text"),
        ("/system Answer in French.", "set"),
        ("/system", "Answer in French"),
        ("/clear", "empty"),
        ("/stats", "nothing is answered"),
        ("/undo", "nothing to take back"),
        ("/retry", "nothing has been asked"),
        ("/copy", "nothing has been answered"),
        ("/save", "nothing has been said"),
        ("/set temperature 0.5", r"temperature: 0\.5"),
        ("/set temperature hot", "expected a number"),
        ("/set top_k -1", "expected 0 to"),
        ("/set nosuch 1", "/set takes temperature, top_k"),
        ("/set temperature default", r"temperature: 0\.2"),
        ("/set seed 7", "seed: 7"),
        ("/set max_tokens 12", "max_tokens: 12"),
        ("/set", "repeat_penalty"),
        ("/think off", "thinking: off"),
        ("/think maybe", "/think auto"),
        ("/think show", "written out"),
        (f"/file {isolated}/my notes.txt", "goes with the next question"),
        ("/file", "my notes.txt"),
        ("/file -", "no file goes"),
        ("/file nosuch.txt", "no file nosuch.txt"),
        (f"/file {'f' * 300}", "cannot read"),
        ("/image nosuch.png", "cannot look at images"),
        ("/preset", "summarize"),
        ("/preset nosuch", "/preset lists them"),
        ("/preset translate", "language="),
        ("/preset off", "asked as they are"),
        (f"/load {'f' * 300}.json", "cannot read"),
        ("/load", "no conversations are kept"),
        ("/load 99", "/load lists them"),
        ("/show", "Runs on"),
        ("/model", r"\* smollm2-135m"),
        ("/model nosuch", "/model lists the installed ones"),
        ("/model smollm2-135m", "now smollm2-135m"),
        ("/set context 1024", "1,024 tokens of context"),
        ("/modle", "did you mean /model"),
    ]:
        terminal.type(typed)
        terminal.see(seen)
        terminal.ready()
    terminal.leave()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.type("Write a very long story about a river and its people.")
    terminal.answering()
    terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    terminal.process.sendintr()
    terminal.see("stopped")
    terminal.ready()
    terminal.process.sendintr()
    terminal.see("leaves")
    terminal.ready()
    terminal.type("/stats")
    terminal.see("answer tokens")
    terminal.ready()
    terminal.leave()


def test_a_dumb_terminal_is_enough(isolated: Path) -> None:
    session = Terminal(*CHAT, term="dumb")
    session.see(">>>")
    session.process.sendline("Name the capital of France.")
    shown = session.see("Paris")
    assert "\x1b" not in shown
    session.see(">>>")
    session.process.kill(signal.SIGTSTP)  # as Ctrl-Z; no shell is there to stop it for, so it goes on at once
    session.process.sendline("/stax\x7fts")
    session.see("answer tokens")
    session.see(">>>")
    session.process.sendline("/exit")
    assert session.ended() == 0


def test_it_says_what_the_embedded_model_is(isolated: Path) -> None:
    session = Terminal("chat", "smollm2-135m")
    session.see("very small model")
    session.see(">>>")
    session.leave()


def test_a_model_that_does_not_load_leaves_the_present_one(isolated: Path) -> None:
    path = isolated / "my model.gguf"
    path.symlink_to(model_file())
    (isolated / "broken.gguf").write_bytes(model_file().read_bytes()[:1_000_000])
    session = Terminal("chat", str(path), "--temperature", "0", VISUAL='nano "')
    session.ready()
    session.type("/edit")
    session.see("VISUAL cannot be understood")
    session.ready()
    session.type(f"/model {isolated / 'broken.gguf'}")
    session.see("error:")
    session.ready()
    session.say("Name the capital of France.", "Paris")
    session.leave()
