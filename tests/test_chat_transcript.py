"""Whole conversations at a pseudo-terminal, as a person has them, and what the screen shows of them."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import vision_models
from PIL import Image
from terminals import CHAT, Terminal

from localai import history, sessions

SHORT_CHAT = (*CHAT, "--max-tokens", "12")


def questions(session: str = "last") -> list[str]:
    return [each.content for each in sessions.messages(sessions.find(session)) if each.role == "user"]


def test_a_whole_conversation(isolated: Path) -> None:
    (isolated / "notes.txt").write_text("The meeting is on Monday.")
    editor = isolated / "my editor"  # as it stands, without quotes
    editor.write_text('#!/bin/sh\nprintf "Name the capital of Spain." > "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    talk = Terminal(*SHORT_CHAT, cwd=isolated, VISUAL=str(editor))
    talk.ready()
    talk.say("Name the capital of France.", "Paris")
    talk.say("/retry", "same answer is to be expected")
    assert questions() == ["Name the capital of France."]
    talk.say("And what is the capital of Italy?")
    talk.say("/undo", "taken back: And what is")
    assert questions() == ["Name the capital of France."]
    talk.say("/edit", "Spain")
    assert questions() == ["Name the capital of Spain."]
    talk.process.send("a draft\x18\x05")  # Ctrl-X Ctrl-E
    talk.see("Name the capital of Spain")
    talk.process.send("\x03")
    talk.see("leaves")
    talk.ready()
    talk.say("/file notes.txt", "goes with the next question")
    talk.say("When is the meeting?")
    assert questions()[1] == "--- notes.txt ---\nThe meeting is on Monday.\n\nWhen is the meeting?"
    talk.say("/preset translate language=French", "translate: ")
    talk.say("Good morning.")
    assert "French" in questions()[2]
    assert "Good morning." in questions()[2]
    talk.say("/preset off")
    talk.say("/save my talk", "is called 'my talk'")
    talk.say("/save talk.md", "written to talk.md")
    talk.say("/save talk.json", "written to talk.json")
    talk.type("/save talk.md")
    talk.see("Write over it")
    talk.type("n")
    talk.ready()
    talk.say("/copy", "no program for the clipboard")
    talk.say("/copy osc52", "\x1b]52;c;[A-Za-z0-9+/=]+\x1b")
    talk.say("/clear", "a new one begins")
    talk.say("/load my talk", "going on with conversation")
    talk.say("/stats")
    talk.say("/load talk.json", "3 turns from talk.json")
    assert (questions("2"), questions("1")) == (questions("1"), questions("my talk"))
    talk.leave()


def test_lines_between_quotes_and_pasted_lines_are_one_message(isolated: Path) -> None:
    talk = Terminal(*SHORT_CHAT)
    talk.ready()
    talk.process.send('"""first\rsecond"""\r')
    talk.answering()
    talk.ready()
    talk.process.send("\x1b[200~pasted\nlines\x1b[201~\r")
    talk.answering()
    talk.ready()
    talk.process.send("above\x1b\rbelow\r")  # Alt-Enter
    talk.answering()
    talk.ready()
    assert questions() == ["first\nsecond", "pasted\nlines", "above\nbelow"]
    talk.leave()
    assert stat.S_IMODE(history.path().stat().st_mode) == 0o600
    again = Terminal(*SHORT_CHAT)
    again.ready()
    again.process.send("\x1b[A\x1b[A\x1b[A\x1b[A")  # the last message has two lines: up twice for the one before
    again.see("pasted")
    again.process.send("\x03")
    again.ready()
    again.leave()


def test_tab_completes_commands_models_files_and_values(isolated: Path) -> None:
    (isolated / "a document.txt").write_text("text")
    talk = Terminal(*SHORT_CHAT, "--private", cwd=isolated)
    talk.ready()
    for typed, completed, rest, seen in [
        ("/sta", "ts", "", "nothing is answered yet"),
        ("/file a d", "ocument.txt", "", "a document.txt, about"),
        ("/model smol", "lm2-135m", "", "now smollm2"),
        ("/set repeat", "_penalty", " 1.5", "repeat_penalty: 1.5"),
        ("/think sh", "ow", "", "written out"),
    ]:
        talk.process.send(typed + "\t")
        talk.process.expect_exact(completed)
        talk.type(rest)
        talk.answering()
        talk.see(seen)
        talk.ready()
    talk.leave()
    assert not history.path().exists()
    assert not sessions.database().exists()


def test_what_run_takes_goes_with_the_questions_too(isolated: Path) -> None:
    (isolated / "notes.txt").write_text("The meeting is on Monday.")
    (isolated / "s.json").write_text('{"enum": ["Monday", "Friday"]}')
    words = ("--file", "notes.txt", "--preset", "document-analyst", "--json-schema", "s.json", "--stats")
    talk = Terminal(*CHAT, *words, cwd=isolated)
    talk.see("document-analyst: ")
    talk.ready()
    talk.say("When?", "Monday|Friday")
    talk.say("When?", "answer tokens")
    talk.leave()
    first, second = questions()
    assert "The meeting is on Monday." in first
    assert "The meeting" not in second
    refused = Terminal(*CHAT, "--output", "json")
    refused.see("localai run has them")
    assert refused.ended() == 2


def test_a_plain_terminal_is_written_to_in_lines(isolated: Path) -> None:
    talk = Terminal(*SHORT_CHAT, "--plain")
    talk.see(">>>")
    talk.process.sendline("/set max_tokens 40")
    talk.see("max_tokens: 40")
    talk.see(">>>")
    talk.process.sendline("Write a long story about a river.")
    talk.see("limit of tokens")
    talk.see(">>>")
    talk.leave()
    assert not re.search(r"[\x1b\x08]|\r[^\r\n]", talk.raw)


def test_words_are_wrapped_at_the_edge_also_after_a_resize(isolated: Path) -> None:
    talk = Terminal(*SHORT_CHAT, "--max-tokens", "50")
    talk.process.setwinsize(24, 40)
    talk.ready()
    talk.type("Write a long story about a river.")
    talk.answering()
    shown = talk.see("limit of tokens")
    lines = shown.splitlines()[1:-1]
    assert max(map(len, lines)) <= 40
    assert len(lines) > 3
    talk.ready()
    talk.leave()


def test_the_shell_is_given_hints_of_the_chat(isolated: Path) -> None:
    talk = Terminal(*SHORT_CHAT, "--context", "256")
    talk.ready()
    talk.type("word " * 300)
    talk.answering()
    talk.see("hint")
    talk.see(r"shorten it, or make room: /set context \d+")
    talk.ready()
    talk.say("/set context 2048", "2,048 tokens of context")
    talk.leave()
    assert "--context" not in talk.raw


def test_a_picture_is_shown_to_a_model_that_sees(isolated: Path) -> None:
    model, _ = vision_models.pair(isolated / "m", "llava")
    Image.new("RGB", (40, 30), "red").save(isolated / "a photo.png")
    talk = Terminal("chat", str(model), "--max-tokens", "3", "--temperature", "0", cwd=isolated)
    talk.ready()
    talk.say("/image a photo.png", "40 x 30, goes with the next question")
    talk.say("What is it?")
    talk.say("/image", "none; /image PATH")
    talk.say("/model smollm2-135m", "goes on without its 1 image")
    talk.say("What was it?")
    assert questions()[0] == "[image: a photo.png]\nWhat is it?"
    talk.say("/undo", "What was it")
    talk.say("/undo", "What is it")
    talk.leave()
    assert sessions.every() == ()
