"""`localai chat` and `localai run`: everything that answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localai import render, schema, settings, warm
from localai.commands import options, welcome
from localai.commands import question as questions
from localai.commands.options import (
    ContextOption,
    DraftOption,
    GpuLayersOption,
    KvTypeOption,
    MaxTokensOption,
    MinPOption,
    ModelArgument,
    ModelOption,
    RepeatPenaltyOption,
    RpcOption,
    SeedOption,
    SpeculateOption,
    SystemOption,
    TemperatureOption,
    ThinkOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from localai.commands.presets import LanguageOption
from localai.commands.question import (
    FileOption,
    ImageOption,
    OverflowOption,
    PresetOption,
    SchemaOption,
    VariableOption,
)
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, PromptProgress, ThinkingText
from localai.domain.rates import Job
from localai.errors import EngineError, ExitCode, LocalaiError, UsageError
from localai.estimate import TYPICAL_WORK
from localai.interrupt import Interrupts
from localai.library import Found
from localai.loading import Loaded, Prepared, Wishes

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema
    from localai.commands.question import Question

OUTPUTS = ("text", "json", "ndjson")
TYPICAL_ANSWER = 256  # tokens that an answer takes whose length nobody limited
ROOM_TO_ANSWER = 2048  # tokens planned for an answer whose length nobody limited
LETTERS_PER_TOKEN = 2.5  # few tokenizers do worse on ordinary words; a plan only has to be large enough
TOKENS_PER_IMAGE = 1200  # more than most models take for one; it is counted before the answer
STDIN = Path("-")
LETTERS = b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def run(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to answer; text on stdin follows it.")
    ] = None,
    model: ModelOption = None,
    system: SystemOption = None,
    file: FileOption = None,
    image: ImageOption = None,
    preset: PresetOption = None,
    variable: VariableOption = None,
    language: LanguageOption = None,
    json_schema: SchemaOption = None,
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
    rpc: RpcOption = None,
    speculate: SpeculateOption = None,
    draft: DraftOption = None,
    on_overflow: OverflowOption = "error",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FORMAT", help="text, json (one object) or ndjson (events).")
    ] = "text",
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens and speeds on stderr.")] = False,
) -> None:
    """Answer once: the prompt from the arguments, from stdin, or both; the answer alone on stdout."""
    if output not in OUTPUTS:
        raise UsageError(f"--output is {output!r}", f"it takes one of: {', '.join(OUTPUTS)}")
    if on_overflow not in questions.ON_OVERFLOW:
        raise UsageError(f"--on-overflow is {on_overflow!r}", f"it takes one of: {', '.join(questions.ON_OVERFLOW)}")
    taken = STDIN in (*(file or ()), *(image or ()))
    asked, piped = read_prompt(prompt or [], needed=not (preset and (file or image)), reads=not taken)
    hint_at_model(prompt or [], model)
    if preset is None:
        system = options.setting("system", system)
    question = questions.compose(
        asked, piped, system, preset, variable or (), language, json_schema, file or (), image or ()
    )
    limit = options.setting("max_tokens", max_tokens)
    if question.schema is not None and think is None:
        think = False  # thoughts before JSON only where they are asked for
    from localai import loading, recording

    wished = wishes(context, gpu_layers, threads, kv_type, rpc, speculate, draft)
    room = (limit or ROOM_TO_ANSWER) + 64
    with Interrupts() as interrupts:
        work = Job(likely_tokens(question), limit or TYPICAL_ANSWER)
        alone = bool(question.images)
        prepared = prepare(
            model, wished, likely_tokens(question) + room, work=work, alone=alone, cancelled=interrupts.requested
        )
        if question.images:
            loading.refuse_blind(prepared)
        loaded = load_prepared(prepared, interrupts)
        try:
            loaded = with_room_for(loaded, question, room, wished, think, interrupts)
            if on_overflow == "truncate":
                question = question.cut(loaded.engine, limit, think)
            flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
            sampling = options.sampling(loaded.name, {**question.sampling, **flags})
            grammar = question.schema.grammar if question.schema else None
            request = GenerationRequest(question.messages(), sampling, limit, tuple(stop or ()), think, grammar)
            end = write_answer(loaded, request, output, interrupts, question.schema)
            recording.keep(loaded.prepared, end, "run")
        finally:
            loaded.engine.close()
    if stats:
        render.note(stats_line(end))
    if end.finish_reason == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def likely_tokens(question: Question) -> int:
    """About how many tokens a question takes, rather too many: digits, signs and other scripts may take one a byte."""
    text = "".join(message.content for message in question.messages()).encode("utf-8", "replace")
    others = len(text.translate(None, delete=LETTERS))
    return int((len(text) - others) / LETTERS_PER_TOKEN) + others + TOKENS_PER_IMAGE * len(question.images)


def with_room_for(
    loaded: Loaded, question: Question, room: int, wished: Wishes, think: bool | None, interrupts: Interrupts
) -> Loaded:
    """The model with a context that holds the question, loaded anew where fewer tokens were reckoned than it takes."""
    from localai import loading

    made_for = loaded.prepared.context_length or 0
    context = loaded.plan.context
    if wished.context is not None or context >= made_for or likely_tokens(question) > 4 * made_for:
        return loaded
    needed = loaded.engine.count_tokens(question.messages(), think)
    if needed < context:
        return loaded
    prepared = loading.prepare(loaded.prepared.found, wished, needed + room, work=Job(needed, room))
    if prepared.plan.context <= context:
        return loaded
    loaded.engine.close()
    return load_prepared(prepared, interrupts)


def read_prompt(words: list[str], needed: bool = True, reads: bool = True) -> tuple[str, str]:
    """The arguments, and what stdin holds where it is no terminal and is not a file (`reads` False).

    Raises UsageError where one of both is `needed`.
    """
    asked = " ".join(words).strip()
    reads = reads and sys.stdin is not None and not render.is_terminal(sys.stdin)
    piped = read_stdin().strip("\r\n") if reads else ""
    if not piped.strip():
        piped = ""
    if needed and not asked and not piped:
        raise UsageError("there is no prompt", 'localai run "Name the capital of France.", or pipe text into it')
    return asked, piped


def read_stdin() -> str:
    """All of stdin as UTF-8, whatever the locale; bytes that are not UTF-8 become replacement characters."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error


def stdin_lines() -> Iterator[str]:
    """The lines of stdin as they come, without their ends, as UTF-8 whatever the locale."""
    try:
        for number, line in enumerate(sys.stdin.buffer):
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "replace").rstrip("\r\n")
    except OSError as error:
        raise LocalaiError(f"cannot read stdin: {error.strerror}", "check what is piped in") from error


def hint_at_model(words: list[str], model: str | None) -> None:
    """Ollama's users write `run MODEL PROMPT`: tell them about -m, and go on."""
    from localai import library

    first = " ".join(words[:1]).split()[:1]
    if model is not None or not first:
        return
    with contextlib.suppress(LocalaiError):  # it need not be a name
        if library.named(first[0], library.installed()):
            render.note(
                f"hint: {first[0]!r} is taken as part of the prompt; to use that model: localai run -m {first[0]} ..."
            )


def wishes(
    context: int | None,
    gpu_layers: int | None,
    threads: int | None,
    kv_type: str | None,
    rpc: str | None = None,
    speculate: bool | None = None,
    draft: str | None = None,
) -> Wishes:
    from localai.estimate import KV_TYPES

    if kv_type is not None and kv_type not in KV_TYPES:
        raise UsageError(f"--kv-type is {kv_type!r}", f"it takes one of: {', '.join(KV_TYPES)}")
    if draft is not None and rpc:
        raise UsageError("--draft guesses on this machine alone", "leave out --draft or --rpc")
    if draft is not None and speculate is False:
        raise UsageError("--draft guesses, and --no-speculate forbids it", "leave one of them out")
    return Wishes(
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


def load(
    name: str | None, wished: Wishes, want_context: int | None, interrupts: Interrupts, alone: bool = False
) -> Loaded:
    """Find, plan and load, with what goes on shown on stderr; `alone` is that of `prepare`."""
    prepared = prepare(name, wished, want_context, alone=alone, cancelled=interrupts.requested)
    return load_prepared(prepared, interrupts)


def prepare(
    name: str | None,
    wished: Wishes,
    want_context: int | None,
    sequences: int | None = 1,
    most_sequences: int | None = None,
    work: Job = TYPICAL_WORK,
    alone: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
) -> Prepared:
    """Find and plan, as `loading.prepare` does, and say on stderr what the user should know of it.

    Unless it must be `alone` a model that this user's server holds is taken from there. Raises KeyboardInterrupt when
    `cancelled` says so.
    """
    from localai import library, loading

    found = library.find(name)
    if found.why:
        render.note(found.why)
    if not alone and (here := held_by_server(found, wished, want_context, cancelled)) is not None:
        return here
    prepared = loading.prepare(found, wished, want_context, sequences, most_sequences, work)
    for warning in prepared.plan.warnings:
        render.note(f"warning: {warning}")
    return prepared


def load_prepared(prepared: Prepared, interrupts: Interrupts) -> Loaded:
    """Load, with progress on stderr; Ctrl-C stops it."""
    from localai import loading

    if prepared.warm is not None:
        return Loaded(prepared.warm, prepared, prepared.note)
    with loading_shown(prepared.found.name) as progress:
        return loading.load(prepared, progress, interrupts.requested, render.note)


def held_by_server(
    found: Found, wished: Wishes, want_context: int | None, cancelled: Callable[[], bool]
) -> Prepared | None:
    """The model in the memory of this user's server, where it is there as wished.

    With the setting `keep_alive` a server is started that holds it, and ends when nobody has asked for so long.
    """
    keep_alive = options.setting("keep_alive", None)
    if keep_alive is not None and settings.seconds(str(keep_alive)) == 0:
        keep_alive = None  # a model that goes at once is of no use to the next command
    if wished.workers or wished.draft or not warm.available() or not (keep_alive or warm.socket_file().exists()):
        return None
    wanted = {
        "context": wished.context or want_context,
        "exact_context": wished.context,
        "gpu_layers": wished.gpu_layers,
        "threads": wished.threads,
        "kv_type": wished.kv_type,
    }
    if keep_alive and warm.ask({"do": "ps"}) is None:
        from localai import background

        words = ["serve", "--socket-only", "--leave-when-idle", "--keep-alive", str(keep_alive), "-m", str(found.path)]
        for flag in ("context", "gpu_layers", "threads", "kv_type"):
            if (value := getattr(wished, flag)) is not None:
                words += [f"--{flag.replace('_', '-')}", str(value)]
        with contextlib.suppress(LocalaiError):  # it is then loaded here, and what is wrong is said
            background.start(words, cancelled)
    if (told := warm.find(found.path, wanted, load=bool(keep_alive), cancelled=cancelled)) is None:
        return None
    facts, plan = told
    engine = warm.WarmEngine(found.path, int(facts["context"]))
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


def write_answer(
    loaded: Loaded, request: GenerationRequest, output: str, interrupts: Interrupts, held: AnswerSchema | None = None
) -> AnswerEnd:
    """Generate, and write each event where it belongs: the answer on stdout, all else on stderr.

    An answer that is held to a schema is written once it is complete and checked. Raises SchemaIncomplete.
    """
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
                elif output == "text" and held is None:
                    thinking.end()
                    stream.write(text)
            case AnswerEnd():
                end = event
    status.clear()
    assert end is not None, "an engine ends with AnswerEnd"
    if held is not None and end.finish_reason != "interrupted":
        held.check(end.text, cut=end.finish_reason == "length")
        if output == "text":
            thinking.end()
            stream.write(end.text)
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
        f"{usage.completion_tokens} answer tokens"
        + (f" ({usage.guessed_tokens} guessed ahead)" if usage.guessed_tokens else "")
        + (f" at {timings.decode_tps:.1f}/s" if timings.decode_tps else ""),
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
    rpc: RpcOption = None,
    speculate: SpeculateOption = None,
    draft: DraftOption = None,
    private: Annotated[bool, typer.Option("--private", help="Keep nothing of what is said.")] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="[ID]", help="Go on with a kept conversation, the last without its number."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Whole lines, no colour, nothing written over: for screen readers.")
    ] = False,
) -> None:
    """Talk with a model: /help lists what can be typed; without a terminal it answers stdin once, like run."""
    if model and model_option and model != model_option:
        raise UsageError(f"two models are named: {model} and {model_option}", "name one")
    name = model or model_option
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    kept = None
    if resume is not None:
        from localai import sessions

        kept = sessions.find(resume)
        name = name or kept.model
    if not render.is_terminal(sys.stdin):
        if kept:
            raise UsageError("a conversation goes on at a terminal only", f"localai sessions show {kept.id}")
        welcome.need_a_model(name)
        run(None, name, system, **flags, max_tokens=max_tokens, think=think, context=context,
            gpu_layers=gpu_layers, threads=threads, kv_type=kv_type, rpc=rpc, speculate=speculate,
            draft=draft)  # fmt: skip
        return
    from localai import repl

    if plain or options.setting("plain", None):
        render.be_plain()
    repl.talk(
        name or welcome.offered_model(),
        system,
        flags,
        wishes(context, gpu_layers, threads, kv_type, rpc, speculate, draft),
        options.setting("max_tokens", max_tokens),
        think,
        private,
        kept,
    )
