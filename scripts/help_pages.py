"""Write the help of every command into `docs/cli.md`; `--check` only tells whether the page is up to date."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

INTRODUCTION = """# The command line

Generated from the program's own help by `make docs`; `make lint` checks that it is up to date.
"""


def commands() -> Iterator[tuple[str, str]]:
    """Every command and its help at 80 columns, in the order of the program's own list."""
    import typer

    from localai.cli import application

    def walk(command: Any, path: str, parent: Any) -> Iterator[tuple[str, str]]:
        context = command.context_class(
            command, info_name=path.split()[-1], parent=parent, terminal_width=80, **command.context_settings
        )
        yield path, command.get_help(context)
        for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
            yield from walk(command.get_command(context, name), f"{path} {name}", context)

    yield from walk(typer.main.get_command(application()), "localai", None)


def page() -> str:
    parts = [INTRODUCTION]
    for path, text in commands():
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"## `{path}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def main() -> int:
    wanted = page()
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text("utf-8") == wanted:
            return 0
        print("error: docs/cli.md is not what the program's help says\nhint: make docs", file=sys.stderr)
        subprocess.run(["git", "diff", "--no-index", str(PAGE), "-"], input=wanted, text=True, check=False)
        return 1
    PAGE.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
