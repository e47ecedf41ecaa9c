"""`chat` keeps what is said, goes on with it later, and keeps nothing with --private: at a pseudo-terminal."""

from __future__ import annotations

import signal
from pathlib import Path

from real_model import model_file
from terminals import Terminal

from localai import kept_states, library, sessions, settings

CHAT = ("chat", "smollm2-135m", "--temperature", "0", "--max-tokens", "12")


def once(*arguments: str, question: str, greeting: str = "/help lists") -> None:
    """See the greeting, ask one question, and leave."""
    terminal = Terminal(*arguments)
    terminal.process.expect_exact(greeting)
    terminal.ready()
    terminal.say(question)
    terminal.type("/exit")
    assert terminal.ended() == 0


def test_a_conversation_is_kept_resumed_or_private(isolated: Path) -> None:
    once(*CHAT, "--private", question="Name a river.")
    assert not sessions.database().exists()
    assert not kept_states.folder().exists()
    once(*CHAT, question="Name the capital of France.")
    kept = sessions.find("last")
    assert (kept.title, kept.turns) == ("Name the capital of France.", 1)
    assert library.find(kept.model).model == library.find("smollm2-135m").model
    assert kept.model.startswith("smollm2-135m:")
    state = kept_states.path(kept.id)
    damaged = state.read_bytes()[:-1] + b"?"
    state.write_bytes(damaged)
    greeting = "is not used (it is damaged"
    once("chat", "--resume", *CHAT[2:], question="And of Italy?", greeting=greeting)
    resumed = sessions.find(str(kept.id))
    assert resumed.turns == 2
    assert len(sessions.every()) == 1
    assert [each.content for each in sessions.messages(resumed) if each.role == "user"][1] == "And of Italy?"
    assert state.read_bytes() != damaged, "a sound one has taken its place"


def test_a_resumed_conversation_is_not_read_again(isolated: Path) -> None:
    once(*CHAT, "--context", "1024", question="Name the capital of France.")
    terminal = Terminal("chat", "--resume", "last", *CHAT[2:])
    terminal.process.expect_exact("1,024 tokens of context")  # those that the state was made with
    terminal.process.expect_exact("(going on")
    terminal.ready()
    terminal.type("And of Italy?")
    terminal.answering()
    terminal.ready()
    terminal.type("/stats")
    terminal.process.expect(r"(\d+) prompt tokens \((\d+) cached\)")
    prompt, cached = (int(number) for number in terminal.process.match.groups())
    assert 30 < cached < prompt < cached + 30
    terminal.ready()
    terminal.type("/exit")
    assert terminal.ended() == 0


def test_a_question_survives_kill_9_while_it_is_answered(isolated: Path) -> None:
    terminal = Terminal(*CHAT[:-2])
    terminal.ready()
    terminal.say("Name the capital of France.")
    terminal.type("Write a very long story about a river.")
    terminal.answering()
    terminal.see(r"[a-z]+ [a-z]+ [a-z]+ ")
    terminal.process.kill(signal.SIGKILL)
    terminal.ended()
    asked = [each.content for each in sessions.messages(sessions.find("last"))]
    assert (len(asked), asked[2]) == (3, "Write a very long story about a river.")
    again = Terminal("chat", "--resume", "last", *CHAT[2:])
    again.process.expect_exact("1 turn")
    again.process.expect_exact("before this was answered")
    again.ready()
    again.say("Name a river.")
    again.say("/undo", "taken back: Name a river")
    again.type("/exit")
    assert again.ended() == 0
    assert [each.content for each in sessions.messages(sessions.find("last"))] == asked[:2]


def test_a_conversation_with_a_file_goes_on_with_its_own_system_text(isolated: Path) -> None:
    file = isolated / "my model.gguf"
    file.symlink_to(model_file())
    settings.store("system", "Of the settings.")
    once("chat", str(file), "--system", "Of its own.", *CHAT[2:], question="Name a river.")
    assert sessions.find("last").model == str(file)
    once("chat", "--resume", *CHAT[2:], question="And a sea?", greeting="(going on")
    assert sessions.find("last").system == "Of its own."
    once("chat", "--resume", "--system", "Of the flag.", *CHAT[2:], question="And a lake?", greeting="(going on")
    assert (sessions.find("last").system, sessions.find("last").turns) == ("Of the flag.", 3)
