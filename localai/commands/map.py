"""`localai map`: one answer for each line, JSON record or file, with one model load."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands import model_loading, options
from localai.commands import question as questions
from localai.commands.options import (
    ContextOption,
    GpuLayersOption,
    KvTypeOption,
    LanguageOption,
    MinPOption,
    ModelOption,
    PresetOption,
    RepeatPenaltyOption,
    RpcOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThinkOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    VariableOption,
)
from localai.errors import ExitCode, LocalaiError, UsageError
from localai.interrupt import Interrupts

if TYPE_CHECKING:
    from localai.batch import Asking, Batch, Result
    from localai.loading import LoadOptions, Prepared
    from localai.record_input import Record, Size, Source
    from localai.record_output import ResumedOutput

OUTPUTS = ("jsonl", "text")
LONGEST_ANSWER = 1024  # tokens, where nobody has limited it: room for each of many answers must be planned
LEAST_PROMPT = 1024  # tokens planned for a prompt where not all records are known
BYTES_PER_TOKEN = 2.5

TemplateArgument = Annotated[
    str | None,
    typer.Argument(metavar="TEMPLATE", help="What to ask of each record: {text}, or {field} of a JSON record."),
]
InputArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT", help="Files that hold the records (with --input files: that are the records); else stdin."
    ),
]
FormOption = Annotated[
    str, typer.Option("--input", "-i", metavar="FORM", help="Records are lines, jsonl, or files (a path a line).")
]
RecordsOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="PATH", help="Read the records from this file; repeatable."),
]
OutputOption = Annotated[
    str, typer.Option("--output", "-o", metavar="FORMAT", help="jsonl, or text: an answer a line.")
]
ResumeOption = Annotated[
    Path | None,
    typer.Option("--resume", metavar="OUT", help="Write into this file, going on where an earlier run stopped."),
]
ParallelOption = Annotated[
    int | None,
    typer.Option("--parallel", "-j", min=1, max=256, metavar="N", help="Answer so many at once; default: planned."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE",
        help="Each answer is JSON of this schema, or its record fails: a file, or the schema itself.",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(
        "--seed", metavar="N", min=0, max=2**32 - 2, help="With --parallel 1 the same seed gives the same output."
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", metavar="N", min=1, help=f"The longest answer, in tokens; default: {LONGEST_ANSWER}."),
]


def map_records(
    template: TemplateArgument = None,
    source: InputArgument = None,
    model: ModelOption = None,
    form: FormOption = "lines",
    file: RecordsOption = None,
    output: OutputOption = "jsonl",
    resume: ResumeOption = None,
    parallel: ParallelOption = None,
    system: SystemOption = None,
    preset: PresetOption = None,
    variable: VariableOption = None,
    language: LanguageOption = None,
    json_schema: SchemaOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: SeedOption = 0,
    max_tokens: MaxTokensOption = None,
    stop: StopOption = None,
    think: ThinkOption = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    rpc: RpcOption = None,
) -> None:
    """Answer for each line, record or file, many at once. A JSON line each, in the order of the input."""
    from localai import record_input, record_output

    options.check_choice("--input", form, record_input.FORMS)
    options.check_choice("--output", output, OUTPUTS)
    if output == "text" and resume is not None:
        raise UsageError("--resume writes JSON lines, by which it knows what is done", "leave --output text out")
    if json_schema == "-" and not (file or source):
        raise UsageError("stdin holds the records", "--json-schema takes a file, or the schema itself")
    if preset is None:
        system = options.setting("system", system)
    limit = options.setting("max_tokens", max_tokens) or LONGEST_ANSWER
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    asking = questions.compose_for_records(
        template, form, system, preset, variable or (), language, json_schema, limit, stop or (), think
    )
    # the setting of a chat's context is not meant for many: only the flag counts
    load_options = replace(model_loading.load_options(None, gpu_layers, threads, kv_type, rpc), context=context)
    named = [os.fsencode(path) for path in source or ()] if form == "files" else []
    holding = [*(file or ()), *(() if named else source or ())]
    if not holding and not named and render.is_terminal(sys.stdin):
        raise UsageError("there are no records", "name a file that holds them, or pipe them in")
    with contextlib.ExitStack() as opened:
        lines = opened.enter_context(contextlib.closing(record_input.Source(holding, reads_stdin=not named)))
        if resume is None and writes_its_input(lines):
            raise UsageError("the records would be written into the file they are read from", "name another one")
        out = None if resume is None else opened.enter_context(contextlib.closing(record_output.ResumedOutput(resume)))
        size = lines.size(len(named))
        at_once = parallel and min(parallel, size.records or parallel)
        context_wanted = likely_context(asking, size, form)
        # what is to be the same to the byte each time must not depend on what a server was asked before
        prepared = model_loading.prepare(model, load_options, context_wanted, at_once, size.records, alone=at_once == 1)
        preset_sampling = asking.preset.sampling if asking.preset else {}
        asking = replace(asking, sampling=options.sampling(prepared.found.name, {**preset_sampling, **flags}))
        records = record_input.records(itertools.chain(named, lines.lines()), form)
        go_through(prepared, load_options, at_once, asking, records, size, output, out)


def writes_its_input(lines: Source) -> bool:
    with contextlib.suppress(OSError, ValueError):  # stdout need not be open
        return lines.reads(sys.stdout.fileno())
    return False


def likely_context(asking: Asking, size: Size, form: str) -> int:
    """Tokens that the longest record probably takes with its answer; a longer one makes the context grow."""
    fixed = sum(len(message.content.encode("utf-8", "replace")) for message in asking.probes()[0])
    known = int((fixed + size.longest_bytes) / BYTES_PER_TOKEN) + 64
    if size.records is None or form == "files":
        known = max(known, LEAST_PROMPT)
    return known + asking.max_tokens


def go_through(
    prepared: Prepared,
    load_options: LoadOptions,
    parallel: int | None,
    asking: Asking,
    records: Iterator[Record],
    size: Size,
    output: str,
    out: ResumedOutput | None,
) -> None:
    """Answer all records that are not answered yet, and write. Raises LocalaiError where some failed."""
    from localai import batch, record_output
    from localai.commands.batch_engines import BatchEngines

    found = prepared.found
    which = found.model.quantization if found.model else found.path.stat().st_size
    job = record_output.job_of(
        [asdict(replace(asking, preset=None)), asking.preset and asking.preset.name, found.name, which]
    )
    done, failed = out.skip_done(records, job) if out is not None else (0, 0)
    if done:
        render.note(f"answered already: {render.count(done, 'record')}")
    following = next(records, None)
    if following is not None:
        with Interrupts() as interrupts:
            engines = BatchEngines(prepared, load_options, asking, interrupts, parallel)
            try:
                asked = batch.Batch(
                    engines.load(),
                    asking,
                    itertools.chain([following], records),
                    first=done,
                    at_once=engines.at_once,
                    window=4 * engines.at_once,
                    grow=engines.grow,
                )
                done, failed = write(asked, done, failed, size, job, output, out, interrupts)
            finally:
                engines.close()
        if interrupts.requested():
            raise typer.Exit(ExitCode.INTERRUPTED)
    if not done:
        raise UsageError("there are no records", "the input is empty")
    if failed:
        raise LocalaiError(
            f"{failed:,} of {render.count(done, 'record')} failed", "each of them has an error that says why"
        )


def write(
    asked: Batch,
    done: int,
    failed: int,
    size: Size,
    job: str,
    output: str,
    out: ResumedOutput | None,
    interrupts: Interrupts,
) -> tuple[int, int]:
    """Write the results as they come; returns how many records are done and how many failed, earlier ones too."""
    progress = render.BatchProgress(size.records, done)
    cut = 0
    try:
        for result in asked.results(interrupts.requested):
            if result is not None:
                progress.clear()
                write_one(result, job, output, out)
                done += 1
                failed += result.error is not None
                cut += result.end is not None and result.end.finish_reason == "length"
            progress.update(done)
    finally:
        progress.end()
    if cut:
        render.note(f"{render.count(cut, 'answer')} cut at the limit of tokens: allow more with --max-tokens")
    return done, failed


def write_one(result: Result, job: str, output: str, out: ResumedOutput | None) -> None:
    """Write what came of a record into OUT, or on stdout: a JSON line, or its text with the error on stderr."""
    from localai import record_output

    content = schema.record(result, record_output.fingerprint(job, result.record))
    if out is not None:
        out.write(render.json_line(content, encoding="utf-8"))
    elif output == "text":
        render.plain_line(content["output"] or "")
        if result.error is not None:
            render.note(f"record {result.record.index}: {result.error.message}")
    else:
        render.line(content)
        render.flush()
