"""What a slash command is, and how an argument that is a path is read and completed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localai.room import Room

MOST_NAMES = 200  # offered for a path: a folder may have a million


def no_words(room: Room, typed: str) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """`run` carries it out with what was typed after its name; `words` are what the argument may be.

    `hint` is what to do next where an error's own hint speaks of the command line.
    """

    name: str
    argument: str
    help: str
    run: Callable[[Room, str], None]
    words: Callable[[Room, str], Iterable[str]] = no_words
    hint: str = "/help lists what can be done here"


def paths(room: Room, typed: str) -> list[str]:
    """The paths that begin as typed, folders with a slash at the end."""
    folder, base = os.path.split(typed)
    found: list[str] = []
    try:
        with os.scandir(os.path.expanduser(folder or ".")) as entries:
            for entry in entries:
                if entry.name.startswith(base) and (base or not entry.name.startswith(".")):
                    found.append(os.path.join(folder, entry.name) + (os.sep if entry.is_dir() else ""))
                if len(found) == MOST_NAMES:
                    break
    except (OSError, RuntimeError):  # RuntimeError: a home folder that cannot be told
        return []
    return sorted(found)


def given_paths(argument: str) -> list[Path]:
    """The paths that were typed: one as it stands, spaces and all, where there is such a file; else as in a shell."""
    whole = _path(argument)
    if os.path.exists(whole):  # Path.exists raises where a name is too long or a folder is closed to us
        return [whole]
    try:
        words = shlex.split(argument)
    except ValueError:  # a quote without an end
        return [whole]
    several = [_path(word) for word in words]
    return several if len(several) == 1 or all(map(os.path.exists, several)) else [whole]


def _path(text: str) -> Path:
    try:
        return Path(os.path.expanduser(text))
    except RuntimeError:
        return Path(text)
