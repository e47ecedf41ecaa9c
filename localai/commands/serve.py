"""`localai serve`, `ps` and `stop`: the local API, the models that it holds in memory, and its end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated, Any

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

DEFAULT_PORT = 11435  # one more than Ollama's, so that both can run


def serve(
    model: ModelOption = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help=f"Default: {DEFAULT_PORT}; 0 takes a free one.")
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive", metavar="TIME", help="How long an unused model stays in memory; -1 for ever. [5m]"
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, max=64, help="Answers at once, instead of the plan's.")
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
    """Answer over HTTP on this machine, in the forms of OpenAI and Ollama, and keep models warm for the shell."""
    if background:
        start_in_background(as_json)
        return
    from localai.commands import model_loading
    from localai.holding import Holder
    from localai.server import http, shell

    if not socket_only:
        http.need_extra()
    elif not warm.available():
        raise UsageError("this system has no such sockets", "leave --socket-only out")
    wished = model_loading.wishes(context, gpu_layers, threads, kv_type, rpc)
    keep_s = duration(options.setting("keep_alive", keep_alive))
    origins = frozenset(map(checked_origin, allow_origin or ()))
    listener = None if socket_only else http.listen(host, chosen_port(port))
    url = None if listener is None else f"http://{shown_host(host)}:{listener.getsockname()[1]}"
    rules_key = None if listener is None else needed_key(host, require_key, listener)
    holder = Holder(wished, parallel, keep_s, lambda text: None)
    ended, running = threading.Event(), http.Running()

    def stop() -> None:
        ended.set()
        running.stop()

    door = shell.Shell(holder, {"pid": os.getpid(), "url": url}, stop) if warm.available() else None
    try:
        has_socket = door is not None and door.open()
        if socket_only and not has_socket:
            raise LocalaiError(already(warm.ask({"do": "ps"}) or {}), "localai stop ends it")
        default = preloaded(model, holder) if model else None

        def ready() -> None:
            told = {"url": url, "pid": os.getpid(), "socket": str(door.path) if door and has_socket else None}
            if as_json:
                render.json_object(told)
                render.flush()
            elif url:
                render.note(f"answering on {url} (OpenAI: {url}/v1, Ollama: {url}); Ctrl-C ends it")
            else:
                render.note("answering this user's run, chat and map; Ctrl-C ends it")
            if door is not None and not has_socket:
                render.note("another server has the shell's socket: run, chat, map, ps and stop ask that one")

        if leave_when_idle:
            threading.Thread(target=holder.wait_until_empty, args=(stop,), daemon=True).start()
        if listener is None:
            interrupted = wait(ended, ready)
        else:
            from localai.server.app import application
            from localai.server.generating import Desk
            from localai.server.security import Rules

            desk = Desk(holder, default)
            try:
                interrupted = running.run(application(desk, Rules(host, rules_key, origins)), listener, ready)
            finally:
                desk.close()
    finally:
        if door is not None:
            door.close()
        holder.close()
        if listener is not None:
            listener.close()
    if interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)


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


def shown_host(host: str) -> str:
    return f"[{host.strip('[]')}]" if ":" in host else host


def needed_key(host: str, required: bool, listener: Any) -> str | None:
    """The key that requests must bring: none where only this machine can ask, and nobody wants one."""
    from localai.server import security

    if security.is_loopback(listener.getsockname()[0]) and not required:
        return None
    key, new = security.api_key()
    if new:
        render.note(f"the API key, shown this once (it is kept in {security.key_file()}): {key}")
    return key


def preloaded(model: str, holder: Any) -> Any:
    """The model of `-m`, in memory before anything is answered."""
    from localai import gguf, holding, library, shapes
    from localai.commands import model_loading

    found = library.find(model)
    if found.why:
        render.note(found.why)
    with model_loading.loading_shown(found.name):
        kind = holding.TEXT if shapes.makes_text(gguf.read_header(found.path)) else holding.VECTORS
        holder.release(holder.acquire(found, kind))
    return found


def wait(ended: threading.Event, ready: Any) -> bool:
    """Until the socket says to end, or a signal; True where it was Ctrl-C."""
    interrupted: list[int] = []

    def told(number: int, _: object) -> None:
        if number == signal.SIGINT:
            interrupted.append(number)
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, told)
    ready()
    ended.wait()
    return bool(interrupted)


# ------------------------------------------------------------------------------------------------ in the background


def already(told: dict[str, Any]) -> str:
    where = f" on {told['url']}" if told.get("url") else ""
    return f"a server is running already{where} (process {told.get('pid')})"


def start_in_background(as_json: bool) -> None:
    """Start this same command detached, wait until it answers, and say where; or say that one runs already."""
    from localai import background

    if not warm.available():
        raise UsageError("this system cannot serve in the background", "localai serve, in a terminal of its own")
    if (told := warm.ask({"do": "ps"})) is not None:
        if as_json:
            render.json_object({"url": told["url"], "pid": told["pid"], "already_running": True})
        else:
            render.note(already(told))
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
    """Let go of one model of the running server; without MODEL, end the server."""
    told = warm.ask({"do": "stop", "model": model}, 60.0)
    if told is None:
        raise NotFound("no server is running", "localai serve --background starts one")
    if model is None:
        wait_for_end(int(told["pid"]))
    if as_json:
        render.json_object({"stopped": model is None, "models": told.get("models", [])})
    elif model is None:
        render.note(f"the server has ended (process {told['pid']})")
    else:
        render.note(f"no longer in memory: {', '.join(told['models'])}")


def wait_for_end(pid: int) -> None:
    """Until the process has ended, 20 s at most: it gives answers under way a moment."""
    import contextlib

    import psutil

    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).wait(20)
