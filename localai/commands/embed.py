"""`localai embed`: the vectors of texts, a JSON line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localai import render, terminal
from localai.commands import model_loading, options, stdin
from localai.commands.options import ON_OVERFLOW, ContextOption, GpuLayersOption, ModelOption, ThreadsOption
from localai.errors import UsageError
from localai.interrupt import Interrupts
from localai.loading import LoadOptions

if TYPE_CHECKING:
    from localai.engine.embedding import Embedder

INPUTS = ("lines", "jsonl", "text")
TOGETHER_TEXTS = 64
TOGETHER_CHARACTERS = 8_192  # about one batch of the engine: so long a piece of the input is answered at a time

Text = tuple[int, str, dict[str, Any]]  # its number, itself, what else its record tells


def embed(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="The texts; without any and without --file: stdin.")
    ] = None,
    model: ModelOption = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="The text of this file (PDF, DOCX, HTML, text); repeatable."),
    ] = None,
    input_form: Annotated[
        str, typer.Option("--input", metavar="FORM", help="What stdin is: lines, jsonl (a record a line) or one text.")
    ] = "lines",
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Where a JSON record has its text.")] = "text",
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help='Put before each text ("search_query: " for Nomic\'s).')
    ] = "",
    normalize: Annotated[
        bool, typer.Option("--normalize/--no-normalize", help="Give vectors of length 1, or as the model has them.")
    ] = True,
    context: ContextOption = None,
    gpu_layers: GpuLayersOption = None,
    threads: ThreadsOption = None,
    on_overflow: Annotated[
        str, typer.Option("--on-overflow", metavar="WHAT", help="A text too long: error (exit 7) or truncate.")
    ] = "error",
) -> None:
    """Turn texts into vectors, with an embedding model. A JSON line each, in the order of the input."""
    options.check_choice("--input", input_form, INPUTS)
    options.check_choice("--on-overflow", on_overflow, ON_OVERFLOW)
    from localai import embeddings

    texts = wanted(text or [], file or [], input_form, field)
    found = embeddings.find(model)
    if found.why:
        render.note(found.why)
    # the setting of a chat's context is not meant for this: only the flag counts
    prepared = embeddings.prepare(found, LoadOptions(context, gpu_layers, threads))
    if prepared.warning:
        render.note(f"warning: {prepared.warning}")
    with Interrupts() as interrupts:
        status = render.Status()
        with model_loading.loading_shown(found.name) as progress:
            embedder = embeddings.load(prepared, progress, interrupts.requested)
        try:
            done = 0
            groups = together(texts)
            while group := awaited(groups, interrupts):
                write(embedder, found.name, group, prefix, normalize, on_overflow == "truncate", interrupts)
                done += len(group)
                status.show(render.count(done, "text"))
        finally:
            status.clear()
            embedder.close()
    if not done:
        raise UsageError("there is no text to embed", 'localai embed "a text", or pipe lines into it')


def awaited(groups: Iterator[list[Text]], interrupts: Interrupts) -> list[Text]:
    """The next group, [] after the last. Raises KeyboardInterrupt, also while stdin is waited for."""
    with terminal.interruptible():
        if interrupts.requested():
            raise KeyboardInterrupt
        return next(groups, [])


def write(
    embedder: Embedder,
    name: str,
    group: list[Text],
    prefix: str,
    normalize: bool,
    truncate: bool,
    interrupts: Interrupts,
) -> None:
    """Embed some texts and write their lines."""
    contents = [prefix + content for _, content, _ in group]
    if truncate:
        for position, content in enumerate(contents):
            kept = embedder.cut(content)
            if kept != content:
                contents[position] = kept
                render.note(
                    f"warning: text {group[position][0]} is cut to fit the context of {embedder.context:,} tokens:"
                    f" the first {len(kept):,} of {len(content):,} characters are read"
                )
    numbers = [number for number, _, _ in group]
    rows = embedder.embed(contents, normalize=normalize, numbers=numbers, cancelled=interrupts.requested)
    for (number, _, more), row in zip(group, rows, strict=True):
        vector = [float(f"{value:.9g}") for value in row.vector]  # all that 32-bit numbers hold
        line = {"index": number, **more, "model": name, "tokens": row.tokens, "dimensions": len(vector)}
        render.line({**line, "embedding": vector})
    render.flush()


def wanted(words: list[str], files: list[Path], form: str, field: str) -> Iterator[Text]:
    """The texts that are asked for; files that cannot be read are told before any model is loaded."""
    if words or files:
        from localai import documents

        read = [documents.read(path) for path in files]
        known: list[tuple[str, dict[str, Any]]] = [(word, {}) for word in words]
        known += [(each.text, {"file": each.name}) for each in read]
        return ((index, content, more) for index, (content, more) in enumerate(known))
    if sys.stdin is None or render.is_terminal(sys.stdin):
        raise UsageError("there is no text to embed", 'localai embed "a text", or pipe lines into it')
    if form == "text":
        return iter([(0, stdin.read_text().strip("\r\n"), {})])
    lines = stdin.lines()
    return records(lines, field) if form == "jsonl" else ((index, line, {}) for index, line in enumerate(lines))


def records(lines: Iterable[str], field: str) -> Iterator[Text]:
    """The texts of JSON lines: strings, or objects with their text in `field` and perhaps an `id`, which is kept.

    Raises UsageError naming the line that is neither.
    """
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {index + 1} is no JSON", "--input lines takes plain lines") from error
        more = {}
        if isinstance(record, dict):
            more = {"id": record["id"]} if "id" in record else {}
            record = record.get(field)
        if not isinstance(record, str):
            raise UsageError(f"line {index + 1} has no text in {field!r}", "--field NAME says where the text is")
        yield index, record, more


def together(texts: Iterator[Text]) -> Iterator[list[Text]]:
    """The texts in groups that are worth a batch; empty ones are left out, and keep their number."""
    group: list[Text] = []
    size = 0
    for each in texts:
        if not each[1].strip():
            continue
        group.append(each)
        size += len(each[1])
        if len(group) == TOGETHER_TEXTS or size >= TOGETHER_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
