"""`localai chat`: a conversation at a terminal; without one, an answer to stdin."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from localai import render
from localai.commands import model_loading, options, welcome
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
from localai.commands.run import run
from localai.errors import UsageError


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
        model_loading.wishes(context, gpu_layers, threads, kv_type, rpc, speculate, draft),
        options.setting("max_tokens", max_tokens),
        think,
        private,
        kept,
    )
