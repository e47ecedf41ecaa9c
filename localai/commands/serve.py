"""`localai serve`, `ps` and `stop`: the local API, the models that it holds in memory, and its end."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Annotated

import typer

from localai import render, settings, warm
from localai.commands import options
from localai.commands.options import (
    ContextOption,
    GpuLayersOption,
    JsonFlag,
    KvTypeOption,
    ModelArgument,
    ModelOption,
    RpcOption,
    ThreadsOption,
)
from localai.errors import ExitCode, LocalaiError, NotFound, UsageError

END_LIMIT_S, END_POLL_S = 20.0, 0.05
DEFAULT_PORT = 11435  # one more than Ollama's, so that both can run


def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="PORT", min=0, max=65535, help=f"Default: {DEFAULT_PORT}; 0 takes a free one."),
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive", metavar="TIME", help="How long an unused model stays in memory; -1 for ever. [5m]"
        ),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", metavar="N", min=1, max=64, help="Answers at once, instead of the plan's."),
    ] = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    rpc: RpcOption = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", metavar="ORIGIN", help="Let pages of this origin ask; repeatable."),
    ] = None,
    require_key: Annotated[
        bool, typer.Option("--require-key", help="Ask for the API key on loopback, too; elsewhere it always is.")
    ] = False,
    background: Annotated[bool, typer.Option("--background", help="Go on in the background.")] = False,
    socket_only: Annotated[
        bool, typer.Option("--socket-only", help="Serve run, chat and map of this user only: no port.")
    ] = False,
    leave_when_idle: Annotated[bool, typer.Option("--leave-when-idle", hidden=True)] = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer over HTTP, as OpenAI and Ollama do. On this machine; it keeps models warm for the shell, too."""
    if background:
        start_in_background(as_json)
        return
    check_can_serve(socket_only)
    from localai.commands import model_loading
    from localai.server.service import Service, Wanted

    wanted = Wanted(
        model=model,
        load_options=model_loading.load_options(context, gpu_layers, threads, kv_type, rpc),
        keep_alive_s=duration(options.setting("keep_alive", keep_alive)),
        parallel=parallel,
        host=host,
        origins=frozenset(map(checked_origin, allow_origin or ())),
        port=None if socket_only else chosen_port(port),
        require_key=require_key,
        leave_when_idle=leave_when_idle,
        as_json=as_json,
    )
    if Service(wanted).run():
        raise typer.Exit(ExitCode.INTERRUPTED)


def check_can_serve(socket_only: bool) -> None:
    """Raises UsageError where this installation, or this system, has not what the server stands on."""
    from localai.server import http

    if not socket_only:
        http.need_extra()
    elif not warm.available():
        raise UsageError("this system has no such sockets", "leave --socket-only out")


def duration(text: object) -> float:
    """Seconds of `--keep-alive`. Raises UsageError."""
    try:
        return settings.seconds("5m" if text is None else str(text))
    except ValueError as error:
        raise UsageError(f"--keep-alive: {error}", "localai serve --keep-alive 10m") from error


def chosen_port(port: int | None) -> int:
    found = options.setting("port", port)
    return DEFAULT_PORT if found is None else int(found)


def checked_origin(text: str) -> str:
    scheme, colon, rest = text.casefold().rstrip("/").partition("://")
    if scheme not in ("http", "https") or not colon or not rest or "/" in rest or "*" in rest:
        raise UsageError(f"--allow-origin {text} is no origin", "such as http://localhost:3000; there is no wildcard")
    return f"{scheme}://{rest}"


# ------------------------------------------------------------------------------------------------ in the background


def start_in_background(as_json: bool) -> None:
    """Start this same command detached, wait until it answers, and say where; or say that one runs already."""
    from localai import background

    if not warm.available():
        raise UsageError("this system cannot serve in the background", "localai serve, in a terminal of its own")
    if (told := warm.ask({"do": "ps"})) is not None:
        if as_json:
            render.json_object({"url": told["url"], "pid": told["pid"], "already_running": True})
        else:
            render.note(background.already(told))
        return
    words = [word for word in sys.argv[1:] if word not in ("--background", "--json")]
    started = background.start(words)
    for note in started.notes:
        render.note(note)
    if as_json:
        render.json_object({"url": started.url, "pid": started.pid, "already_running": False})
    elif started.url:
        render.note(f"answering on {started.url} in the background (process {started.pid}); localai stop ends it")
    else:
        render.note(f"answering run, chat and map in the background (process {started.pid}); localai stop ends it")


# ----------------------------------------------------------------------------------------------------- ps and stop


def ps(as_json: JsonFlag = False) -> None:
    """Show the models that the running server holds in memory."""
    told = warm.ask({"do": "ps"})
    if as_json:
        found = told or {"pid": None, "url": None, "started_at": None, "models": []}
        keys = ("pid", "url", "started_at", "models")
        render.json_object({"running": told is not None, **{key: found[key] for key in keys}})
        return
    if told is None:
        render.note("no server is running; localai serve --background starts one")
        return
    render.note(f"process {told['pid']}{', on ' + told['url'] if told['url'] else ''}")
    rows = [
        (
            each["model"],
            each["kind"],
            f"{each['context']:,} x {each['sequences']}",
            render.memory(each["memory_bytes"]),
            each["placement"],
            str(each["requests"]),
            "-" if each["expires_in_s"] is None else render.duration(each["expires_in_s"]),
        )
        for each in told["models"]
    ]
    if not rows:
        render.note("no model is in memory")
        return
    headers = ("MODEL", "FOR", "CONTEXT", "MEMORY", "ON", "REQUESTS", "LEFT")
    render.out(render.columns(headers, rows, right=(2, 3, 5)))


def stop(model: ModelArgument = None, as_json: JsonFlag = False) -> None:
    """End the running server, or let go of one model."""
    told = warm.ask({"do": "stop", "model": model}, 60.0)
    if told is None:
        raise NotFound("no server is running", "localai serve --background starts one")
    if model is None and not has_ended(pid := int(told["pid"])):
        raise LocalaiError(
            f"the server is still ending (process {pid})", f"look again: localai ps; kill -9 {pid} ends it at once"
        )
    if as_json:
        render.json_object({"stopped": model is None, "models": told.get("models", [])})
    elif model is None:
        render.note(f"the server has ended (process {told['pid']})")
    else:
        render.note(f"no longer in memory: {', '.join(told['models'])}")


def has_ended(pid: int) -> bool:
    """Whether the process ends within a while: it gives answers under way a moment."""
    import psutil

    ends_at = time.monotonic() + END_LIMIT_S
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > ends_at:
                return False
            time.sleep(END_POLL_S)
    return True
