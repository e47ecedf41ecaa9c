"""The entry point of `localai` and `python -m localai`; answers --version before anything else is imported."""

from __future__ import annotations

import sys

# Start-up makes half a million objects that stay: by default the collector walks them again and again, a fifth of the
# processor time of a short command. What a command leaves in cycles after it is still collected.
_COLLECT_AFTER = (50_000, 20, 100)


def main() -> int:
    """Run the command line of this process and return its exit code."""
    arguments = sys.argv[1:]
    try:
        if arguments in (["--version"], ["-V"]):
            return version()
        import gc

        gc.set_threshold(*_COLLECT_AFTER)
        from localai.boundary import run

        code = run(arguments)
    except KeyboardInterrupt:  # while importing; everything later is handled at the boundary
        code = 130
    import gc
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: another Ctrl-C has nothing left to interrupt
    gc.freeze()  # the process ends: what is left need not be walked once more
    return code


def version() -> int:
    from localai import __version__

    try:
        sys.stdout.write(f"localai {__version__}\n")
        sys.stdout.flush()
    except OSError:
        from localai.boundary import run

        return run(["--version"])  # what is wrong is met again there, and told
    return 0


if __name__ == "__main__":
    sys.exit(main())
