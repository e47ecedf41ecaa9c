"""`localai chat`, `localai run`, and the first run: everything that answers."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from localai import render, schema
from localai.commands import options
from localai.commands.options import (
    ContextOption,
    GpuLayersOption,
    KvTypeOption,
    MaxTokensOption,
    MinPOption,
    ModelArgument,
    ModelOption,
    RepeatPenaltyOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    ThinkOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from localai.domain import (
    AnswerEnd,
    AnswerText,
    GenerationRequest,
    Message,
    PromptProgress,
    ThinkingText,
)
from localai.errors import EngineError, ExitCode, LocalaiError, NotFound, UsageError
from localai.interrupt import Interrupts
from localai.loading import Loaded, Wishes

OUTPUTS = ("text", "json", "ndjson")
ROOM_TO_ANSWER = 2048  # tokens planned for an answer whose length nobody limited
BYTES_PER_TOKEN = 2.5  # few tokenizers do worse on ordinary text; a plan only has to be large enough


def run(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What to answer; text on stdin follows it.")
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text; repeatable.")
    ] = None,
    think: ThinkOption = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FORMAT", help="text, json (one object) or ndjson (events).")
    ] = "text",
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens and speeds on stderr.")] = False,
) -> None:
    """Answer once: the prompt from the arguments, from stdin, or both; the answer alone on stdout."""
    if output not in OUTPUTS:
        raise UsageError(f"--output is {output!r}", f"it takes one of: {', '.join(OUTPUTS)}")
    text = read_prompt(prompt or [])
    hint_at_model(prompt or [], model)
    system = options.setting("system", system)
    limit = options.setting("max_tokens", max_tokens)
    words = (system or "") + text
    want_context = int(len(words.encode("utf-8", "replace")) / BYTES_PER_TOKEN) + (limit or ROOM_TO_ANSWER) + 64
    with Interrupts() as interrupts:
        loaded = load(model, wishes(context, gpu_layers, threads, kv_type), want_context, interrupts)
        flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
        messages = (*([Message("system", system)] if system else []), Message("user", text))
        request = GenerationRequest(messages, options.sampling(loaded.name, flags), limit, tuple(stop or ()), think)
        try:
            end = write_answer(loaded, request, output, interrupts)
        finally:
            loaded.engine.close()
    if stats:
        render.note(stats_line(end))
    if end.finish_reason == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def read_prompt(words: list[str]) -> str:
    """The arguments, then what stdin holds (where it is no terminal), separated by a blank line. Raises UsageError."""
    asked = " ".join(words)
    piped = "" if sys.stdin is None or render.is_terminal(sys.stdin) else read_stdin()
    parts = [part for part in (asked.strip(), piped.strip("\r\n")) if part.strip()]
    if not parts:
        raise UsageError("there is no prompt", 'localai run "Name the capital of France.", or pipe text into it')
    return "\n\n".join(parts)


def read_stdin() -> str:
    """All of stdin as UTF-8, whatever the locale; bytes that are not UTF-8 become replacement characters."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error


def hint_at_model(words: list[str], model: str | None) -> None:
    """Ollama's users write `run MODEL PROMPT`: tell them about -m, and go on."""
    from localai import library

    if model is None and words and any(each.model == words[0] for each in library.installed()):
        render.note(
            f"hint: {words[0]!r} is taken as part of the prompt; to use that model: localai run -m {words[0]} ..."
        )


def wishes(context: int | None, gpu_layers: int | None, threads: int | None, kv_type: str | None) -> Wishes:
    from localai.estimate import KV_TYPES

    if kv_type is not None and kv_type not in KV_TYPES:
        raise UsageError(f"--kv-type is {kv_type!r}", f"it takes one of: {', '.join(KV_TYPES)}")
    return Wishes(
        options.setting("context", context),
        options.setting("gpu_layers", gpu_layers),
        options.setting("threads", threads),
        kv_type,
    )


def load(name: str | None, wished: Wishes, want_context: int | None, interrupts: Interrupts) -> Loaded:
    """Find, plan and load, with what goes on shown on stderr."""
    from localai import library, loading
    from localai.engine import library as llama

    llama.on_fatal(engine_gave_up)
    found = library.find(name)
    if found.why:
        render.note(found.why)
    prepared = loading.prepare(found, wished, want_context)
    for warning in prepared.plan.warnings:
        render.note(f"warning: {warning}")
    status = render.Status()

    def progress(share: float) -> None:
        status.show(f"loading {found.name}: {share:.0%}")

    try:
        return loading.load(prepared, progress, interrupts.requested, render.note)
    finally:
        status.clear()


def engine_gave_up(reason: str) -> None:
    """llama.cpp is about to abort the process, as it does over some hostile files: end it in our own way first."""
    from localai import boundary

    error = EngineError(
        f"llama.cpp gave up: {reason}", "if the model's file is at fault, pull it again or take another"
    )
    os._exit(boundary.report(error, sys.argv[1:], debug=False))


def write_answer(loaded: Loaded, request: GenerationRequest, output: str, interrupts: Interrupts) -> AnswerEnd:
    """Generate, and write each event where it belongs: the answer on stdout, all else on stderr."""
    stream, status, thinking = render.AnswerStream(), render.Status(), render.ThinkingStream()
    events = output == "ndjson"
    if events:
        render.event("start", {"model": loaded.name})
    end: AnswerEnd | None = None
    for event in loaded.engine.generate(request, interrupts.requested):
        match event:
            case PromptProgress(done, total):
                status.show(f"reading the prompt: {done} of {total} tokens")
            case ThinkingText(text):
                status.clear()
                if events:
                    render.event("thinking", {"text": text})
                elif output == "text":
                    thinking.write(text)
            case AnswerText(text):
                status.clear()
                if events:
                    render.event("text", {"text": text})
                elif output == "text":
                    thinking.end()
                    stream.write(text)
            case AnswerEnd():
                end = event
    status.clear()
    assert end is not None, "an engine ends with AnswerEnd"
    whole: dict[str, Any] = schema.answer(loaded.name, end)
    if events:
        render.event("end", whole)
    elif output == "json":
        render.json_object(whole)
    else:
        thinking.end()
        stream.end()
    return end


def stats_line(end: AnswerEnd) -> str:
    """Tokens and speeds of one answer, in one line."""
    usage, timings = end.usage, end.timings
    parts = [
        f"{usage.prompt_tokens} prompt tokens"
        + (f" ({usage.cached_tokens} cached)" if usage.cached_tokens else "")
        + (f" at {timings.prompt_tps:.1f}/s" if timings.prompt_tps else ""),
        f"{usage.completion_tokens} answer tokens" + (f" at {timings.decode_tps:.1f}/s" if timings.decode_tps else ""),
        f"first token after {timings.first_token_ms:.0f} ms" if timings.first_token_ms is not None else "no token",
        f"loaded in {timings.load_ms:.0f} ms",
    ]
    return "; ".join(parts)


def chat(
    model: ModelArgument = None,
    model_option: ModelOption = None,
    system: SystemOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = None,
    max_tokens: MaxTokensOption = None,
    think: ThinkOption = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
) -> None:
    """Talk with a model: /help lists what can be typed; without a terminal it answers stdin once, like run."""
    if model and model_option and model != model_option:
        raise UsageError(f"two models are named: {model} and {model_option}", "name one")
    name = model or model_option
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    if not render.is_terminal(sys.stdin):
        need_a_model(name)
        run(None, name, system, **flags, max_tokens=max_tokens, think=think, context=context,
            gpu_layers=gpu_layers, threads=threads, kv_type=kv_type)  # fmt: skip
        return
    from localai import repl

    repl.talk(
        name or offered_model(),
        options.setting("system", system),
        flags,
        wishes(context, gpu_layers, threads, kv_type),
        options.setting("max_tokens", max_tokens),
        think,
    )


def need_a_model(name: str | None) -> None:
    """Without a terminal nothing can be offered: the command fails and says what to pull."""
    from localai import catalog, hardware, library, recommend

    if name is None and not library.installed():
        best = recommend.best(hardware.detect(), catalog.load())
        raise NotFound("no model is installed", f"localai pull {best.model if best else 'MODEL'}")


def offered_model() -> str | None:
    """Where no model is installed, offer to download the recommended one; None leaves the choice to the library."""
    from localai import catalog, hardware, library, recommend
    from localai.commands.pull import pull_one

    if library.installed():
        return None
    best = recommend.best(hardware.detect(), catalog.load())
    if best is None:
        raise NotFound("no model is installed", "localai recommend --ram shows what larger machines run")
    render.note(f"No model is installed. The best one for this machine: {best.name} ({best.quantization}).")
    if not render.confirmed(f"Download it ({render.size(best.download_bytes)})?"):
        raise NotFound("no model is installed", f"localai pull {best.model}")
    return pull_one(f"{best.model}:{best.quantization}", yes=True).model


def first_run(context: typer.Context) -> None:
    """`localai` alone: on a terminal what this machine is, the best model for it, and a chat; elsewhere the help."""
    if not (render.is_terminal(sys.stdin) and render.is_terminal(sys.stdout)):
        render.out(context.get_help())
        return
    from localai import catalog, hardware, library, recommend, repl
    from localai.commands.machine import machine_facts
    from localai.commands.pull import pull_one

    machine = hardware.detect()
    render.out(render.facts(machine_facts(machine, hardware.tier(machine))))
    render.out()
    installed = library.installed()
    rows = recommend.rank(machine, catalog.load(), limit=20)
    offers = list(dict.fromkeys(row for row in rows if row.rank == 1 or row.starter))
    for number, row in enumerate(offers, 1):
        kind = "the best for this machine" if row.rank == 1 else "a light one to start with"
        render.out(f"  {number}  download {row.name} ({render.size(row.download_bytes)}): {kind}")
    for number, model in enumerate(installed, len(offers) + 1):
        render.out(f"  {number}  chat with {model.model} ({model.quantization}), installed")
    answer = render.ask(f"Which one? [1-{len(offers) + len(installed)}, Enter leaves]")
    if not answer:
        return
    if not answer.isdecimal() or not 1 <= int(answer) <= len(offers) + len(installed):
        raise UsageError(f"{answer!r} is none of these numbers", "localai asks again")
    index = int(answer) - 1
    if index < len(offers):
        chosen = pull_one(f"{offers[index].model}:{offers[index].quantization}", yes=True)
    else:
        chosen = installed[index - len(offers)]
    repl.talk(f"{chosen.model}:{chosen.quantization}", options.setting("system", None), {}, Wishes(), None, None)
