"""`localai run`: one answer to a prompt, what is piped in, files and images."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from localai import library, loading, render
from localai.commands import model_loading, options
from localai.commands import question as questions
from localai.commands.answer import OUTPUTS, stats_line, warning, write_answer
from localai.commands.options import (
    ON_OVERFLOW,
    ContextOption,
    DraftOption,
    FileOption,
    GpuLayersOption,
    ImageOption,
    KvTypeOption,
    LanguageOption,
    MaxTokensOption,
    MinPOption,
    ModelOption,
    OutputOption,
    OverflowOption,
    PresetOption,
    RepeatPenaltyOption,
    RpcOption,
    SchemaOption,
    SeedOption,
    SpeculateOption,
    StatsFlag,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThinkOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VariableOption,
)
from localai.commands.question import Question
from localai.domain.generation import GenerationRequest
from localai.domain.rates import Job
from localai.errors import DoesNotFit, ExitCode, LocalaiError
from localai.interrupt import Interrupts
from localai.loading import Loaded, LoadOptions

TYPICAL_ANSWER = 256  # tokens that an answer takes whose length nobody limited
ROOM_TO_ANSWER = 2048  # tokens planned for an answer whose length nobody limited
ROOM_TO_THINK = 6144  # tokens planned besides for a model that thinks, where nobody forbade or limited that
STDIN = Path("-")


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
    stop: StopOption = None,
    think: ThinkOption = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    rpc: RpcOption = None,
    speculate: SpeculateOption = None,
    draft: DraftOption = None,
    on_overflow: OverflowOption = "error",
    output: OutputOption = "text",
    stats: StatsFlag = False,
) -> None:
    """Answer one prompt, for pipelines. It is the arguments, stdin, or both; the answer is alone on stdout."""
    options.check_choice("--output", output, OUTPUTS)
    options.check_choice("--on-overflow", on_overflow, ON_OVERFLOW)
    taken = json_schema == "-" or STDIN in (*(file or ()), *(image or ()))
    asked, piped = questions.read_prompt(prompt or [], needed=not (preset and (file or image)), reads=not taken)
    hint_at_model(prompt or [], model)
    if preset is None:
        system = options.setting("system", system)
    question = questions.compose(
        asked, piped, system, preset, variable or (), language, json_schema, file or (), image or ()
    )
    limit = options.setting("max_tokens", max_tokens)
    if question.schema is not None and think is None:
        think = False  # thoughts before JSON only where they are asked for
    from localai import recording

    load_options = model_loading.load_options(context, gpu_layers, threads, kv_type, rpc, speculate, draft)
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    with Interrupts() as interrupts:
        loaded = load_for(question, limit, model, load_options, think, interrupts)
        try:
            loaded = with_room_for(loaded, question, limit, load_options, think, interrupts)
            if on_overflow == "truncate":
                question = question.cut(loaded.engine, limit, think)
            sampling = options.sampling(loaded.name, {**question.sampling, **flags})
            grammar = question.schema.grammar if question.schema else None
            request = GenerationRequest(question.messages(), sampling, limit, tuple(stop or ()), think, grammar)
            end = write_answer(loaded, request, output, interrupts, question.schema)
            recording.keep(loaded.prepared, end, "run")
        finally:
            loaded.engine.close()
    if told := warning(end, loaded):
        render.note(told)
    if stats:
        render.note(stats_line(end))
    if end.finish_reason == "interrupted":
        raise typer.Exit(ExitCode.INTERRUPTED)


def room_for_answer(limit: int | None) -> int:
    """Tokens planned beside the question for an answer of at most `limit`."""
    return (limit or ROOM_TO_ANSWER) + 64


def room_for_thoughts(limit: int | None, think: bool | None) -> int:
    """Tokens planned for the thoughts of a model that has some."""
    return 0 if limit or think is False else ROOM_TO_THINK


def load_for(
    question: Question,
    limit: int | None,
    model: str | None,
    load_options: LoadOptions,
    think: bool | None,
    interrupts: Interrupts,
) -> Loaded:
    """The model with a context that probably holds the question; one that sees, where pictures are asked about."""
    tokens, sees = question.likely_tokens(), bool(question.images)
    prepared = model_loading.prepare(
        model,
        load_options,
        tokens + room_for_answer(limit),
        work=Job(tokens, limit or TYPICAL_ANSWER),
        alone=sees,
        thoughts=room_for_thoughts(limit, think),
        cancelled=interrupts.requested,
    )
    if sees:
        loading.refuse_blind(prepared)
    return model_loading.load_prepared(prepared, interrupts)


def with_room_for(
    loaded: Loaded,
    question: Question,
    limit: int | None,
    load_options: LoadOptions,
    think: bool | None,
    interrupts: Interrupts,
) -> Loaded:
    """The model with a context that holds question and answer, loaded anew where that takes more than was reckoned."""
    made_for = loaded.prepared.context_length or 0
    context, room = loaded.plan.context, room_for_answer(limit)
    if load_options.context is not None or context >= made_for or question.likely_tokens() > 4 * made_for:
        return loaded
    needed = loaded.engine.count_tokens(question.messages(), think)
    # a second copy of what a server holds is worth it only where the question itself has no room there
    least = 1 if loaded.prepared.warm is not None else limit or ROOM_TO_ANSWER // 2
    if needed + least <= context:
        return loaded
    if loaded.prepared.warm is None:
        loaded.engine.close()  # two may not fit, nor be planned beside each other
    prepared = loaded.prepared
    with contextlib.suppress(DoesNotFit):  # how long the question is, and what there is room for, is then told
        larger = loading.prepare(
            prepared.found,
            load_options,
            needed + room,
            work=Job(needed, room),
            thoughts=room_for_thoughts(limit, think),
        )
        if larger.plan.context > context:
            prepared = larger
    return model_loading.load_prepared(prepared, interrupts)


def hint_at_model(words: list[str], model: str | None) -> None:
    """Ollama's users write `run MODEL PROMPT`: tell them about -m, and go on."""
    first = " ".join(words[:1]).split()[:1]
    if model is not None or not first:
        return
    name = first[0]
    with contextlib.suppress(LocalaiError):  # it need not be a name
        if library.named(name, library.installed()):
            how = f"localai run -m {name} ..."
        elif not name.isalpha() and library.meaning(name).known:  # "mistral" is a word, "llama3.2:3b" is none
            how = f"localai pull {name}, then localai run -m {name} ..."
        else:
            return
        render.note(f"hint: {name!r} is taken as part of the prompt; to use that model: {how}")
