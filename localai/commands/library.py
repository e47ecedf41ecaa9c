"""`localai verify`, `prune`, `import`, `alias` and `export-manifest`: keeping the models on this disk in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render, schema
from localai.commands.options import JsonFlag, YesFlag, complete_alias, complete_model, confirm_removal
from localai.domain.files import InstalledModel
from localai.errors import CheckFailed, ExitCode, UsageError

if TYPE_CHECKING:
    from localai.copies import How
    from localai.discovering import Candidate
    from localai.foreign.found import LeftOut
    from localai.importing import Duplicate, Outcome
    from localai.manifests import Pinned
    from localai.verifying import ModelCheck

DryRunFlag = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]


def verify(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="an installed model; default: all", autocompletion=complete_model),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Hash installed models again. Exit 1 if any byte is not the one that was downloaded."""
    from localai import verifying

    unreadable: list[str] = []
    models = verifying.to_check(model, unreadable.append)
    if not models and not unreadable and not as_json:
        render.note("no models are installed, so there is nothing to verify")
        return
    checks = []
    progress = render.TransferProgress("verifying", verifying.total_bytes(models))
    try:
        for check in verifying.verify(models, progress.update):
            checks.append(check)
            if not as_json:
                progress.end()
                show_check(check)
    finally:
        progress.end()
    wrong = [check for check in checks if not check.sound]
    if as_json:
        rows = [schema.model_check(check) for check in checks]
        render.json_object({"ok": not wrong and not unreadable, "models": rows, "unreadable": unreadable})
        raise typer.Exit(ExitCode.FAILURE if wrong or unreadable else ExitCode.DONE)
    for line in unreadable:
        render.out(f"DAMAGED  {line}")
    if unreadable:
        raise CheckFailed(
            f"{len(unreadable)} of the records of installed models cannot be read",
            "localai doctor says how to mend that",
        )
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {render.count(len(checks), 'model')} damaged", str(wrong[0].remedy))


def show_check(check: ModelCheck) -> None:
    name = f"{check.model.model} ({check.model.quantization}, {render.size(check.model.size_bytes)})"
    render.out(f"{'ok' if check.sound else 'DAMAGED'}  {name}")
    for each in check.files:
        if each.problem is not None:
            render.out(f"    {each.file.path}: {each.problem}")
    if check.remedy:
        render.out(f"    to mend it: {check.remedy}")


def prune(dry_run: DryRunFlag = False, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Remove unfinished downloads and other leftovers. Unused revisions, too, and only what is localai's own."""
    from localai import pruning

    faults: list[str] = []
    found = pruning.find(on_fault=faults.append)
    for line in faults:
        render.note(f"{line}; until that is mended, copies and revisions stay")
    total = sum(each.size_bytes for each in found)
    if not as_json:
        for each in found:
            render.out(f"{render.size(each.size_bytes):>8}  {each.kind}: {each.path}")
    if not found and not as_json:
        render.note("there is nothing to prune")
        return
    if not dry_run and found and not yes:
        confirm_removal(f"Remove these {len(found)}, {render.size(total)}?", "localai prune --yes")
    gone = found if dry_run else pruning.remove(found)
    freed = sum(each.size_bytes for each in gone)
    if as_json:
        rows = [schema.leftover(each) for each in gone]
        render.json_object({"dry_run": dry_run, "removed": rows, "freed_bytes": freed})
        return
    render.note(f"{render.size(freed)} {'would be' if dry_run else 'were'} freed")


# --------------------------------------------------------------------------------------------------------- import

FROM_HELP = "Take what another program holds: ollama, lmstudio, llama.cpp, hf or all. Repeatable."


def complete_tool(incomplete: str) -> list[str]:
    from localai import discovering

    return [name for name in (*discovering.TOOLS, "all") if name.startswith(incomplete)]


def import_models(
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="a .gguf file, a folder, or a folder of pull --to")
    ] = None,
    tools: Annotated[
        list[str] | None, typer.Option("--from", metavar="PROGRAM", help=FROM_HELP, autocompletion=complete_tool)
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Make a hard or symbolic link in localai's own folder.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy into localai's own folder.")] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="List the one model as NAME.")] = None,
    dry_run: DryRunFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Take in models that are on this disk already. Every byte is hashed; nothing is moved, nor copied unless asked."""
    from localai import discovering, portable
    from localai.copies import How

    if path is None and not tools:
        raise UsageError("there is nothing to import from", "localai import PATH, or localai import --from all")
    if (path is not None and tools) or (link and copy) or (name is not None and path is None):
        raise UsageError(
            "PATH and --from, --link and --copy, --name and --from exclude each other", "localai import --help"
        )
    how = How.LINK if link else How.COPY if copy else None
    report = Report(dry_run, as_json)
    path = Path(os.path.expanduser(path)) if path else None
    carried = portable.read(path) if path else None
    if carried is not None and name is not None:
        carried = portable.named(carried, discovering.check_model_name(name))
    if path is not None and carried is not None:
        total = sum(each.size_bytes for each in carried)
        with report.progress(total) as progress:
            if dry_run:
                report.add_all(portable.preview(path, carried))
            else:
                report.add_all(portable.take(path, carried, how or How.COPY, progress))
    else:
        discovered(report, path, tools or [], name, how or How.REFERENCE)
    report.end()


def discovered(report: Report, path: Path | None, tools: list[str], name: str | None, how: How) -> None:
    """Import what a file, a folder or other programs hold."""
    from localai import discovering, importing

    found = discovering.discover_path(path, name) if path else discovering.discover_tools(tools)
    if not found.folders:
        render.note("there is no folder here of " + ("any such program" if "all" in tools else ", ".join(tools)))
    report.add_all(found.left_out)
    with report.progress(found.size_bytes) as progress:
        taken = importing.preview(found, progress) if report.dry_run else importing.take(found, how, progress)
        report.add_all(taken)


class Report:
    """What `import` did, told line by line, or at the end as one JSON object."""

    def __init__(self, dry_run: bool, as_json: bool) -> None:
        self.dry_run, self._as_json = dry_run, as_json
        self._bar: render.TransferProgress | None = None
        self._imported: list[InstalledModel] = []
        self._candidates: list[Candidate | Pinned] = []
        self._duplicates: list[Duplicate] = []
        self._left_out: list[LeftOut] = []

    @contextmanager
    def progress(self, total_bytes: int) -> Iterator[Callable[[int], None]]:
        self._bar = render.TransferProgress("reading", total_bytes)
        try:
            yield self._bar.update
        finally:
            self._bar.end()

    def add_all(self, outcomes: Iterable[Outcome | Candidate | Pinned]) -> None:
        for outcome in outcomes:
            if self._bar is not None:
                self._bar.end()  # the line makes way
            self.add(outcome)

    def add(self, outcome: Outcome | Candidate | Pinned) -> None:
        from localai.foreign.found import LeftOut
        from localai.importing import Duplicate

        if isinstance(outcome, LeftOut):
            self._left_out.append(outcome)
            self._say(f"left out    {outcome.path}: {outcome.reason}")
        elif isinstance(outcome, Duplicate):
            self._duplicates.append(outcome)
            cost = f"{render.size(outcome.costs_bytes)} twice on the disk" if outcome.costs_bytes else "the same file"
            self._say(f"here        {outcome.model}: {outcome.path} is {outcome.same_as}, {cost}")
        else:
            verb = "would take" if self.dry_run else "imported"
            if isinstance(outcome, InstalledModel):
                self._imported.append(outcome)
            else:
                self._candidates.append(outcome)
            self._say(f"{verb:10}  {outcome.model} ({outcome.quantization}, {render.size(outcome.size_bytes)})")

    def _say(self, line: str) -> None:
        if not self._as_json:
            render.out(line)

    def end(self) -> None:
        twice = sum(each.costs_bytes for each in self._duplicates)
        if self._as_json:
            content = {
                "dry_run": self.dry_run,
                "imported": [schema.installed_model(each) for each in self._imported],
                "candidates": [schema.candidate(each) for each in self._candidates],
                "duplicates": [schema.duplicate(each) for each in self._duplicates],
                "duplicate_bytes": twice,
                "left_out": [{"path": str(each.path), "reason": each.reason} for each in self._left_out],
            }
            render.json_object(content)
            return
        if twice:
            render.note(f"{render.size(twice)} are on this disk twice; remove a copy with the program it belongs to")
        if not (self._imported or self._candidates or self._duplicates):
            render.note("nothing was found to import")


# ---------------------------------------------------------------------------------------------- aliases, manifests


def alias(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="the alias", autocompletion=complete_alias)] = None,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="what it stands for", autocompletion=complete_model)
    ] = None,
    remove: Annotated[bool, typer.Option("--rm", help="Forget the alias.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Give a model a name of your own. Without arguments, list those there are."""
    from localai import aliases, library

    if remove:
        if name is None or model is not None:
            raise UsageError("--rm takes the name of one alias", "localai alias lists them")
        aliases.remove(name)
        if as_json:
            render.json_object({"removed": {"name": name}})
        return
    if name is not None and model is None:
        raise UsageError(f"what should {name!r} stand for?", f"localai alias {name} MODEL")
    if name is not None and model is not None:
        kept = library.keep_alias(name, model)
        if as_json:
            render.json_object({"kept": {"name": kept.name, "target": kept.target}})
        else:
            render.note(f"{kept.name} stands for {kept.target}")
        return
    rows = aliases.load()
    if as_json:
        render.json_object({"aliases": [{"name": each.name, "target": each.target} for each in rows]})
    elif rows:
        render.out(render.columns(("ALIAS", "STANDS FOR"), [(each.name, each.target) for each in rows]))
    else:
        render.note("there are no aliases yet: localai alias NAME MODEL")


def export_manifest(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="installed models; default: all", autocompletion=complete_model),
    ] = None,
    _as_json: JsonFlag = False,  # it is JSON without the flag, too
) -> None:
    """Write a manifest that pins models by their hashes. On stdout, for `localai pull --manifest`."""
    from localai import manifests

    pinned, without = manifests.pins(models or [])
    for each in without:
        render.note(f"left out: {each.model} ({each.quantization}) is not from the Hub")
    render.json_object(manifests.as_json(pinned))
