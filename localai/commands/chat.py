"""`localai chat`: a conversation at a terminal; without one, an answer to stdin."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render
from localai.commands import model_loading, options, welcome
from localai.commands import question as questions
from localai.commands.options import (
    ContextOption,
    DraftOption,
    FileOption,
    GpuLayersOption,
    ImageOption,
    KvTypeOption,
    LanguageOption,
    MaxTokensOption,
    MinPOption,
    ModelArgument,
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
from localai.commands.run import run
from localai.errors import NotFound, UsageError

if TYPE_CHECKING:
    from localai.room import Given
    from localai.sessions import Session


def chat(
    model: ModelArgument = None,
    model_option: ModelOption = None,
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
    private: Annotated[bool, typer.Option("--private", help="Keep nothing of what is said.")] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="[ID]", help="Go on with a kept conversation, the last without its number."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Whole lines, no colour, nothing written over: for screen readers.")
    ] = False,
) -> None:
    """Talk with a model. /help lists what can be typed; without a terminal it answers stdin once, like run."""
    if model and model_option and model != model_option:
        raise UsageError(f"two models are named: {model} and {model_option}", "name one")
    name = model or model_option
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    kept = None if resume is None else resumed(resume)
    name = name or (kept.model if kept else None)
    if not render.is_terminal(sys.stdin):
        if kept:
            raise UsageError("a conversation goes on at a terminal only", f"localai sessions show {kept.id}")
        welcome.need_a_model(name)
        run(None, name, system, file, image, preset, variable, language, json_schema, **flags,
            max_tokens=max_tokens, stop=stop, think=think, context=context, gpu_layers=gpu_layers, threads=threads,
            kv_type=kv_type, rpc=rpc, speculate=speculate, draft=draft, on_overflow=on_overflow, output=output,
            stats=stats)  # fmt: skip
        return
    if (output, on_overflow) != ("text", "error"):
        raise UsageError(
            "--output and --on-overflow are for an answer to stdin: here is a terminal", "localai run has them"
        )
    from localai import repl

    given = replace(
        given_beforehand(file, image, preset, variable, language, json_schema, think),
        system=system, flags=flags, max_tokens=options.setting("max_tokens", max_tokens), stop=tuple(stop or ()),
        stats=stats,
    )  # fmt: skip
    if plain or options.setting("plain", None):
        render.be_plain()
    load_options = model_loading.load_options(context, gpu_layers, threads, kv_type, rpc, speculate, draft)
    if kept and name == kept.model:
        check_there(kept)
    repl.talk(name or welcome.offered_model(), given, load_options, private, kept)


def resumed(number: str) -> Session:
    """The conversation to go on with. Raises NotFound."""
    from localai import sessions

    return sessions.find(number)


def check_there(kept: Session) -> None:
    """Raise NotFound, with a way to go on, where the model of a kept conversation is gone."""
    from localai import library

    try:
        library.find(kept.model)
    except NotFound as error:
        another = f"localai chat MODEL --resume {kept.id} goes on with another model"
        raise NotFound(error.message, f"{error.hint}; {another}") from error


def given_beforehand(
    file: list[Path] | None,
    image: list[Path] | None,
    preset: str | None,
    variable: list[str] | None,
    language: str | None,
    json_schema: str | None,
    think: bool | None,
) -> Given:
    """What goes with the first question, and the form of the answers. Raises UsageError, NotFound."""
    from localai import documents, images, presets
    from localai.room import Given
    from localai.slash import files

    questions.check_for_preset(preset, variable or (), language)
    schema = questions.schema_wanted(json_schema, None)
    return Given(
        think=False if schema is not None and think is None else think,  # the grammar leaves no room for thoughts
        documents=tuple(documents.read(path) for path in file or ()),
        images=tuple(images.read(path) for path in image or ()),
        preset=None if preset is None else files.activated(preset, presets.given_variables(variable or ()), language),
        schema=schema,
    )
