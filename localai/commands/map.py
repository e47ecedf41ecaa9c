"""`localai map`: one answer for each line, JSON record or file, with one model load."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands import answer, options
from localai.commands.options import (
    ContextOption,
    GpuLayersOption,
    KvTypeOption,
    MinPOption,
    ModelOption,
    RepeatPenaltyOption,
    RpcOption,
    SystemOption,
    TemperatureOption,
    ThinkOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)
from localai.commands.presets import LanguageOption
from localai.commands.question import PresetOption, VariableOption
from localai.errors import DoesNotFit, ExitCode, LocalaiError, UsageError
from localai.interrupt import Interrupts

if TYPE_CHECKING:
    from localai.batch import Asking, Batch
    from localai.domain.engine import BatchEngine
    from localai.loading import LoadedBatch, Prepared, Wishes
    from localai.record_input import Record, Size
    from localai.record_output import ResumedOutput

OUTPUTS = ("jsonl", "text")
LONGEST_ANSWER = 1024  # tokens, where nobody has limited it: room for each of many answers must be planned
LEAST_PROMPT = 1024  # tokens planned for a prompt where not all records are known
BYTES_PER_TOKEN = 2.5
PATIENCE_S = 2.0  # nobody reads along, so that all in all counts
AHEAD = 8  # records with the engine beside those being answered


def map_records(
    template: Annotated[
        str | None,
        typer.Argument(metavar="TEMPLATE", help="What to ask of each record: {text}, or {field} of a JSON record."),
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT", help="Files that hold the records (with --input files: that are the records); else stdin."
        ),
    ] = None,
    model: ModelOption = None,
    form: Annotated[
        str, typer.Option("--input", "-i", metavar="FORM", help="Records are lines, jsonl, or files (a path a line).")
    ] = "lines",
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="Read the records from this file; repeatable."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FORMAT", help="jsonl, or text: an answer a line.")
    ] = "jsonl",
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="OUT", help="Write into this file, going on where an earlier run stopped."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", "-j", min=1, max=256, metavar="N", help="Answer so many at once; default: planned."),
    ] = None,
    system: SystemOption = None,
    preset: PresetOption = None,
    variable: VariableOption = None,
    language: LanguageOption = None,
    json_schema: Annotated[
        Path | None,
        typer.Option("--json-schema", metavar="FILE", help="Each answer is JSON of this schema, or its record fails."),
    ] = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repeat_penalty: RepeatPenaltyOption = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 2, help="With --parallel 1 the same seed gives the same output.")
    ] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help=f"The longest answer, in tokens; default: {LONGEST_ANSWER}."),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End an answer before this text; repeatable.")
    ] = None,
    think: ThinkOption = None,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    kv_type: KvTypeOption = None,
    rpc: RpcOption = None,
) -> None:
    """Answer for each line, JSON record or file, many at once: a JSON line each, in the order of the input."""
    from localai import record_input, record_output

    check(form, output, resume, record_input.FORMS)
    if preset is None:
        system = options.setting("system", system)
    limit = options.setting("max_tokens", max_tokens) or LONGEST_ANSWER
    flags = options.sampling_flags(temperature, top_k, top_p, min_p, repeat_penalty, seed)
    asking = compose(template, form, system, preset, variable or (), language, json_schema, limit, stop or (), think)
    # the setting of a chat's context is not meant for many: only the flag counts
    wished = replace(answer.wishes(None, gpu_layers, threads, kv_type, rpc), context=context)
    named = [os.fsencode(path) for path in source or ()] if form == "files" else []
    holding = [*(file or ()), *(() if named else source or ())]
    if not holding and not named and render.is_terminal(sys.stdin):
        raise UsageError("there are no records", "name a file that holds them, or pipe them in")
    lines = record_input.Source(holding, reads_stdin=not named)
    out = None
    try:
        out = record_output.ResumedOutput(resume) if resume is not None else None
        size = lines.size(len(named))
        at_once = parallel and min(parallel, size.records or parallel)
        context_wanted = likely_context(asking, size, form)
        # what is to be the same to the byte each time must not depend on what a server was asked before
        prepared = answer.prepare(model, wished, context_wanted, at_once, size.records, alone=at_once == 1)
        preset_sampling = asking.preset.sampling if asking.preset else {}
        asking = replace(asking, sampling=options.sampling(prepared.found.name, {**preset_sampling, **flags}))
        records = record_input.records(itertools.chain(named, lines.lines()), form)
        go_through(prepared, wished, asking, records, size, output, out)
    finally:
        lines.close()
        if out is not None:
            out.close()


def check(form: str, output: str, resume: Path | None, forms: Sequence[str]) -> None:
    """Refuse what cannot be meant, before anything is opened."""
    if form not in forms:
        raise UsageError(f"--input is {form!r}", f"it takes one of: {', '.join(forms)}")
    if output not in OUTPUTS:
        raise UsageError(f"--output is {output!r}", f"it takes one of: {', '.join(OUTPUTS)}")
    if output == "text" and resume is not None:
        raise UsageError("--resume writes JSON lines, by which it knows what is done", "leave --output text out")


def compose(
    template: str | None,
    form: str,
    system: str | None,
    preset: str | None,
    variables: Sequence[str],
    language: str | None,
    schema_file: Path | None,
    limit: int,
    stop: Sequence[str],
    think: bool | None,
) -> Asking:
    """What each record is asked. Raises UsageError for what no record could ever be asked."""
    from localai import answer_schema, presets, record_template
    from localai.batch import Asking
    from localai.domain.generation import Sampling

    if template is None and preset is None:
        raise UsageError("there is no template", "localai map 'Summarize: {text}' < lines.txt")
    parsed = record_template.parse("{text}" if template is None else template)
    if not parsed.fields:
        raise UsageError("the template has no field: all records would be asked the same", "put {text} into it")
    there = {"lines": ("text",), "files": ("text", "name", "path")}.get(form, parsed.fields)
    if missing := [name for name in parsed.fields if name not in there]:
        raise UsageError(
            f"with --input {form} there is no field {missing[0][:100]!r}",
            f"there is {', '.join(f'{{{name}}}' for name in there)}; --input jsonl has the fields of its records",
        )
    if preset is None and (variables or language is not None):
        raise UsageError("--var and --language are for a preset", "add --preset NAME; localai presets list shows them")
    chosen = presets.find(preset) if preset is not None else None
    held = None
    if schema_file is not None:
        held = answer_schema.from_file(schema_file)
    elif chosen is not None and chosen.schema:
        held = answer_schema.from_text(chosen.schema, f"the schema of the preset {chosen.name}")
    asking = Asking(
        parsed,
        system,
        Sampling(),
        limit,
        tuple(stop),
        False if held is not None and think is None else think,  # the grammar leaves no room for thoughts
        held,
        chosen,
        chosen.text(language) if chosen else None,
        presets.given_variables(variables),
    )
    asking.probes()  # a missing variable is told before a model is loaded
    return asking


def likely_context(asking: Asking, size: Size, form: str) -> int:
    """Tokens that the longest record probably takes with its answer; a longer one makes the context grow."""
    fixed = sum(len(message.content.encode("utf-8", "replace")) for message in asking.probes()[0])
    known = int((fixed + size.longest_bytes) / BYTES_PER_TOKEN) + 64
    if size.records is None or form == "files":
        known = max(known, LEAST_PROMPT)
    return known + asking.max_tokens


def go_through(
    prepared: Prepared,
    wished: Wishes,
    asking: Asking,
    records: Iterator[Record],
    size: Size,
    output: str,
    out: ResumedOutput | None,
) -> None:
    """Answer all records that are not answered yet, and write. Raises LocalaiError where some failed."""
    from localai import batch, record_output

    found = prepared.found
    which = found.model.quantization if found.model else found.path.stat().st_size
    job = record_output.job_of(
        [asdict(replace(asking, preset=None)), asking.preset and asking.preset.name, found.name, which]
    )
    done, failed = out.skip_done(records, job) if out is not None else (0, 0)
    if done:
        render.note(f"{done:,} records are answered already")
    following = next(records, None)
    if following is not None:
        with Interrupts() as interrupts:
            engines = Engines(prepared, wished, asking, interrupts)
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
        raise LocalaiError(f"{failed:,} of {done:,} records failed", "each of them has an error that says why")


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
    from localai import record_output

    progress = render.BatchProgress(size.records, done)
    cut = 0
    try:
        for result in asked.results(interrupts.requested):
            if result is not None:
                progress.clear()
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
                done += 1
                failed += result.error is not None
                cut += result.end is not None and result.end.finish_reason == "length"
            progress.update(done)
    finally:
        progress.end()
    if cut:
        were = "answer was" if cut == 1 else "answers were"
        render.note(f"{cut:,} {were} cut at the limit of tokens: allow more with --max-tokens")
    return done, failed


class Engines:
    """The model of a batch, loaded anew with a larger context where a record takes more than was planned."""

    def __init__(self, prepared: Prepared, wished: Wishes, asking: Asking, interrupts: Interrupts) -> None:
        self._prepared, self._wished, self._asking, self._interrupts = prepared, wished, asking, interrupts
        self._loaded: LoadedBatch | None = None
        # as many as the first engine has: a larger context leaves room for fewer, and these may wait
        self.at_once = prepared.plan.sequences + AHEAD

    def load(self) -> BatchEngine:
        from localai import loading, warm

        if self._prepared.warm is not None:
            plan = self._prepared.plan
            return warm.WarmBatchEngine(self._prepared.found.path, plan.context, plan.sequences)
        with answer.loading_shown(self._prepared.found.name) as progress:
            self._loaded = loading.load_batch(
                self._prepared,
                progress,
                self._interrupts.requested,
                render.note,
                queue=self.at_once,
                repeatable=self._prepared.plan.sequences == 1,
                patience_s=PATIENCE_S,
                converses=False,
            )
        engine = self._loaded.engine
        one, other = self._asking.probes()
        engine.share(one, other, self._asking.think)
        return engine

    def grow(self, needed: int) -> BatchEngine | None:
        """The model with room for a prompt of so many tokens and its answer; None where there is no more."""
        from localai import loading

        planned, made_for = self._prepared.plan, self._prepared.context_length or 0
        if self._wished.context is not None or planned.context >= made_for:
            return None
        want = min(needed + needed // 4 + self._asking.max_tokens, made_for)
        try:
            larger = loading.prepare(self._prepared.found, self._wished, want, None, planned.sequences)
        except DoesNotFit:
            return None
        if larger.plan.context <= planned.context:
            return None
        self.close()
        self._prepared = larger
        return self.load()

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.engine.close()
