"""`localai worker`: lends this machine's memory to another one's models."""

from __future__ import annotations

from typing import Annotated

import typer

from localai import render
from localai.commands.options import ThreadsOption
from localai.domain.units import GIB
from localai.errors import UsageError


def worker(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen: an IPv4 address of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", metavar="PORT", min=1, max=65535, help="The port to listen at.")
    ] = 50052,
    memory: Annotated[
        float | None,
        typer.Option("--memory", metavar="GIB", min=0.1, help="Lend no more than this; default: all free."),
    ] = None,
    threads: ThreadsOption = None,
) -> None:
    """Lend this machine's memory to another one (--rpc). For its chat, run, map and serve, until Ctrl-C.

    The protocol is llama.cpp's own and has no authentication and no encryption: use it in a private network or through
    an SSH tunnel only.
    """
    from localai import hardware, speed, workers

    machine = hardware.detect(engine=False)
    if threads is not None and threads > machine.cpu.logical_cores:
        raise UsageError(
            f"{threads} threads are more than the {machine.cpu.logical_cores} of this machine",
            "leave --threads out: one a physical core is taken",
        )
    lent = workers.start(host, port, threads or speed.cores(machine), round((memory or 0) * GIB))
    try:
        render.note(f"lending this machine's memory at {lent.endpoint}; there: localai chat --rpc {lent.endpoint}")
        render.note(
            "warning: whoever reaches this port can use this machine and read what passes: the protocol has no "
            "authentication and no encryption. Use a private network or an SSH tunnel only."
        )
        render.note("Ctrl-C ends it.")
        for came in lent.clients():
            render.note("a program has connected" if came else "it has left; waiting for the next")
    finally:
        lent.stop()
