"""The model of a command, as its options want it: found, planned and loaded, or asked of this user's server."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from localai import interrupt, library, loading, render, settings, warm
from localai.commands import options
from localai.domain.rates import Job
from localai.errors import EngineError, LocalaiError, UsageError
from localai.estimate import TYPICAL_WORK
from localai.interrupt import Interrupts
from localai.loading import Loaded, LoadOptions, Prepared
from localai.tensor_types import KV_TYPES


def load_options(
    context: int | None,
    gpu_layers: int | None,
    threads: int | None,
    kv_type: str | None,
    rpc: str | None = None,
    speculate: bool | None = None,
    draft: str | None = None,
) -> LoadOptions:
    """What the options ask for, and the settings where they are silent. Raises UsageError for what cannot be meant."""
    if kv_type is not None:
        options.check_choice("--kv-type", kv_type, KV_TYPES)
    if draft is not None and rpc:
        raise UsageError("--draft guesses on this machine alone", "leave out --draft or --rpc")
    if draft is not None and speculate is False:
        raise UsageError("--draft guesses, and --no-speculate forbids it", "leave one of them out")
    return LoadOptions(
        options.setting("context", context),
        options.setting("gpu_layers", gpu_layers),
        options.setting("threads", threads),
        kv_type,
        workers_named(rpc),
        options.setting("speculate", speculate) is not False or draft is not None,
        draft,
    )


def workers_named(rpc: str | None) -> tuple[str, ...]:
    """The workers of `--rpc`. Raises UsageError."""
    if rpc is None:
        return ()
    from localai import workers

    return workers.parse(rpc)


def prepare(
    name: str | None,
    load_options: LoadOptions,
    want_context: int | None,
    sequences: int | None = 1,
    most_sequences: int | None = None,
    work: Job = TYPICAL_WORK,
    alone: bool = False,
    thoughts: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Find and plan, as `loading.prepare` does, and say on stderr what the user should know of it.

    Unless it must be `alone` a model that this user's server holds is taken from there. Raises KeyboardInterrupt when
    `cancelled` says so.
    """
    found = library.find(name)
    if found.why:
        render.note(found.why)
    if not alone and (here := held_by_server(found, load_options, want_context, thoughts, cancelled)) is not None:
        return here
    prepared = loading.prepare(found, load_options, want_context, sequences, most_sequences, work, thoughts)
    for warning in prepared.plan.warnings:
        render.note(f"warning: {warning}")
    return prepared


def load_prepared(prepared: Prepared, interrupts: Interrupts) -> Loaded:
    """Load, with progress on stderr; Ctrl-C stops it."""
    if prepared.warm is not None:
        return Loaded(prepared, prepared.note, prepared.warm)
    with loading_shown(prepared.found.name) as progress:
        return loading.load(prepared, progress, interrupts.requested, render.note)


def held_by_server(
    found: library.Found,
    load_options: LoadOptions,
    want_context: int | None,
    thoughts: int,
    cancelled: Callable[[], bool],
) -> Prepared | None:
    """The model in the memory of this user's server, where it is there as `load_options` say.

    With the setting `keep_alive` a server is started that holds it, and ends when nobody has asked for so long.
    """
    keep_alive = options.setting("keep_alive", None)
    if keep_alive is not None and settings.seconds(str(keep_alive)) == 0:
        keep_alive = None  # a model that goes at once is of no use to the next command
    if (
        load_options.workers
        or load_options.draft
        or not warm.available()
        or not (keep_alive or warm.socket_file().exists())
    ):
        return None
    wanted = {
        "context": load_options.context or want_context,
        "thoughts": 0 if load_options.context else thoughts,
        "exact_context": load_options.context,
        "gpu_layers": load_options.gpu_layers,
        "threads": load_options.threads,
        "kv_type": load_options.kv_type,
    }
    if keep_alive and warm.ask({"do": "ps"}) is None:
        from localai import background

        words = ["serve", "--socket-only", "--leave-when-idle", "--keep-alive", str(keep_alive), "-m", str(found.path)]
        for flag in ("context", "gpu_layers", "threads", "kv_type"):
            if (value := getattr(load_options, flag)) is not None:
                words += [f"--{flag.replace('_', '-')}", str(value)]
        with contextlib.suppress(LocalaiError):  # it is then loaded here, and what is wrong is said
            background.start(words, cancelled)
    if (told := warm.find(found.path, wanted, load=bool(keep_alive), cancelled=cancelled)) is None:
        return None
    facts, plan = told
    engine = warm.WarmEngine(found.path, int(facts["context"]), interrupt.requested)
    return Prepared(found, plan, int(facts["params"]), facts["context_length"], warm=engine, note=facts["note"])


@contextlib.contextmanager
def loading_shown(name: str) -> Iterator[Callable[[float], None]]:
    """What a load is to tell the share that is read; an abort of llama.cpp's ends the process in our own way."""
    from localai.engine import library as llama

    llama.on_fatal(engine_gave_up)
    status = render.Status()
    try:
        yield lambda share: status.show(f"loading {name}: {share:.0%}")
    finally:
        status.clear()


def engine_gave_up(reason: str) -> None:
    """llama.cpp is about to abort the process, as it does over some hostile files: end it in our own way first."""
    from localai import boundary, terminal

    terminal.restore()
    error = EngineError(
        f"llama.cpp gave up: {reason}", "if the model's file is at fault, pull it again or take another"
    )
    os._exit(boundary.report(error, sys.argv[1:], debug=False))
