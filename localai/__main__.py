"""The entry point of `localai` and `python -m localai`; answers --version before anything else is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-V"]):
        from localai import __version__

        sys.stdout.write(f"localai {__version__}\n")
        return 0
    try:
        from localai.boundary import run

        return run(arguments)
    except KeyboardInterrupt:  # while importing; everything later is handled at the boundary
        return 130


if __name__ == "__main__":
    sys.exit(main())
