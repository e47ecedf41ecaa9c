"""The error boundary: runs the command line, and turns whatever it raises into two lines and an exit code.

A `LocalaiError` is something a user can cause: one line says what happened, one what to do next. Everything else is a
bug and keeps its traceback. Under `--json` (or `--output json`) the error is an object on stdout.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence

import typer

from localai import render, schema
from localai.errors import ExitCode, LocalaiError, PipeClosed, UsageError


def run(arguments: Sequence[str]) -> int:
    """Run `localai ARGUMENTS` and return the exit code; nothing that a user can cause leaves here as an exception."""
    arguments, switches = hoist(arguments)
    if "--offline" in switches:
        os.environ["LOCALAI_OFFLINE"] = "1"  # for this process and its children, like the variable itself
    debug = "--debug" in switches
    render.use_tolerant_streams()
    show_log(debug)
    try:
        code = invoke(arguments)
        render.flush()
    except PipeClosed:
        return quiet_end()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except LocalaiError as error:
        return report(error, arguments, debug)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return quiet_end()
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG):
            return report(render.cannot_write(error), arguments, debug)  # Typer writes help pages itself
        return report_bug(error, arguments)
    except Exception as error:  # noqa: BLE001  this is the place where a bug is told of
        return report_bug(error, arguments)
    return code


_NEAR = re.compile(r" (?:\(Possible options: |Did you mean )(.+)[)?]$")  # as Typer writes it


class NoteHandler(logging.Handler):
    """Writes what the services log to stderr, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        render.note(f"debug: {record.getMessage()}")


def show_log(shown: bool) -> None:
    """Show what our own modules log, the probes that failed or hung for one; or nothing, as without `--debug`."""
    log = logging.getLogger("localai")
    log.setLevel(logging.DEBUG if shown else logging.CRITICAL)
    log.propagate = False
    log.handlers = [NoteHandler()] if shown else []


def hoist(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """Take `--debug` and `--offline` out of the words before any `--`: they work before and after the command.

    `help COMMAND` and `version`, which other programs have, become `COMMAND --help` and `--version`.
    """
    words = list(arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    elif words == ["version"]:
        words = ["--version"]
    end = words.index("--") if "--" in words else len(words)
    switches = {word for word in words[:end] if word in ("--debug", "--offline")}
    return _filled([word for word in words[:end] if word not in switches]) + words[end:], switches


def _filled(words: list[str]) -> list[str]:
    """`chat --resume` alone means the last conversation: Typer's options have a value or none, never the choice."""
    if words[:1] != ["chat"]:
        return words
    follows = [*words[1:], "-"]
    return [
        "--resume=last" if word == "--resume" and after.startswith("-") else word
        for word, after in zip(words, follows, strict=False)
    ]


def invoke(arguments: Sequence[str]) -> int:
    """Run the Typer application; its own usage errors become ours."""
    from localai.cli import application

    try:
        result = application(arguments)(args=list(arguments), prog_name="localai", standalone_mode=False)
    except typer.exceptions.Abort:
        return ExitCode.INTERRUPTED
    except SystemExit as ended:  # Typer ends the process itself, after completion and where its reader is gone
        if isinstance(ended.__context__, OSError):
            raise ended.__context__ from None
        return ended.code if isinstance(ended.code, int) else ExitCode.DONE
    except typer.exceptions.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "localai"
        message = " ".join(error.format_message().split())
        hint = f"{command} --help shows the usage"
        if near := _NEAR.search(message):
            message, names = message[: near.start()], near[1].replace("'", "")
            hint = f"did you mean {names}? {hint}"
        message = message[:1].lower() + message[1:].rstrip(".").replace(": Input should", ": it should")
        raise UsageError(message, hint) from error
    return result if isinstance(result, int) else ExitCode.DONE


def report(error: LocalaiError, arguments: Sequence[str], debug: bool) -> int:
    """Tell of `error` where it can be told, and return its exit code all the same where nothing can be written."""
    if debug:
        traceback.print_exception(error)
    try:
        if wants_json(arguments, ("ndjson",)):
            render.event("error", {"error": schema.failure(error)})
        elif wants_json(arguments):
            render.json_object({"error": schema.failure(error)})
        else:
            render.error(error.message, error.hint)
        render.flush()
    except PipeClosed:
        quiet_end()
    except LocalaiError:  # stdout cannot be written: it may be what the error is about
        with contextlib.suppress(LocalaiError, PipeClosed):
            render.error(error.message, error.hint)
    return int(error.exit_code)


def report_bug(error: Exception, arguments: Sequence[str]) -> int:
    traceback.print_exception(error)
    bug = LocalaiError(f"unexpected: {type(error).__name__}: {error}", "this is a bug in localai; please report it")
    return report(bug, arguments, debug=False)


def wants_json(arguments: Sequence[str], outputs: Sequence[str] = ("json", "ndjson")) -> bool:
    """Whether the command was told to answer in JSON, in one of `outputs` or by `--json`; looked up in its words, since
    they may not parse.
    """
    words = list(arguments)
    words = words[: words.index("--")] if "--" in words else words
    values = {f"{flag}{value}" for flag in ("-o", "-o=", "--output=") for value in outputs}
    return any(
        (word == "--json" and "json" in outputs)
        or word in values
        or (word in ("--output", "-o") and following in outputs)
        for word, following in itertools.zip_longest(words, words[1:], fillvalue="")
    )


def quiet_end() -> int:
    """Our reader is gone: give the interpreter's own last flush somewhere to write to."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError, AttributeError):
            continue
    return ExitCode.PIPE_CLOSED
