"""Questions to whoever sits at the terminal."""

from __future__ import annotations

import sys

from localai.render.lines import note
from localai.render.streams import is_terminal, write
from localai.render.text import safe


def ask(question: str) -> str | None:
    """Ask on stderr and return the answer; None where stdin is no terminal, and at its end."""
    line = read_line(question)
    return None if line is None else line.strip()


def read_line(question: str) -> str | None:
    """The same, with the line as it was typed; None also where the terminal is gone."""
    if not is_terminal(sys.stdin):
        return None
    write(sys.stderr, safe(question) + " ")
    sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except OSError:
        return None
    return line.rstrip("\r\n") if line else None


def confirmed(question: str, default: bool = True) -> bool | None:
    """Ask a yes-or-no question; None where nobody can be asked."""
    if not is_terminal(sys.stdin):
        return None
    answer = ask(f"{question} [{'Y/n' if default else 'y/N'}]")
    if answer is None:  # Ctrl-D at a question is no consent
        note("")
        return False
    return default if not answer else answer.lower() in ("y", "yes", "o", "oui")
