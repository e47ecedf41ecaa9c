"""`chat` keeps what is said, goes on with it later, and keeps nothing with --private: at a pseudo-terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from localai import sessions

pytest.importorskip("pexpect")

from test_chat_terminal import Terminal

CHAT = ("chat", "smollm2-135m", "--temperature", "0", "--max-tokens", "12")


def once(*arguments: str, question: str, greeting: str = "/help lists") -> None:
    """See the greeting, ask one question, and leave."""
    terminal = Terminal(*arguments)
    terminal.process.expect_exact(greeting)
    terminal.ready()
    terminal.type(question)
    terminal.answering()
    terminal.ready()
    terminal.type("/exit")
    assert terminal.ended() == 0


def test_a_conversation_is_kept_resumed_or_private(isolated: Path) -> None:
    once(*CHAT, "--private", question="Name a river.")
    assert not sessions.database().exists()
    once(*CHAT, question="Name the capital of France.")
    kept = sessions.find("last")
    assert (kept.title, kept.turns, kept.model) == ("Name the capital of France.", 1, "smollm2-135m")
    greeting = "(going on with conversation 1, 1 turns: Name the capital of France.)"
    once("chat", "--resume", "last", *CHAT[2:], question="And of Italy?", greeting=greeting)
    resumed = sessions.find(str(kept.id))
    assert resumed.turns == 2
    assert len(sessions.every()) == 1
    assert [each.content for each in sessions.messages(resumed) if each.role == "user"][1] == "And of Italy?"
