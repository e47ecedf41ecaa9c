"""Completion in the shell, by the protocol that the shells speak."""

from __future__ import annotations

import pytest
from conftest import Cli


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("localai reco", "recommend"),
        ("localai chat smol", "smollm2-135m"),
        ("localai run -m smol", "smollm2-135m"),
        ("localai pull qwen3-0", "qwen3-0.6b"),
        ("localai show qwen3-0", "qwen3-0.6b"),
        ("localai config get thr", "threads"),
    ],
)
def test_what_is_offered(cli: Cli, typed: str, offered: str) -> None:
    environment = {
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
        "_LOCALAI_COMPLETE": "complete_bash",
    }
    done = cli(env=environment)
    assert done.stdout.split() == [offered]
    assert done.returncode == 0


def test_the_scripts_are_shown(cli: Cli) -> None:
    shown = cli("--show-completion", "bash")
    assert "_LOCALAI_COMPLETE" in shown.stdout
    assert shown.returncode == 0
