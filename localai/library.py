"""The models on this disk: which there are, and which one a name means."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localai import aliases, catalog, embedded, naming, records, settings
from localai.domain.files import InstalledModel
from localai.errors import NotFound, UsageError
from localai.references import Meaning, matching, meaning, selected, selects

__all__ = [
    "Found",
    "Meaning",
    "find",
    "installed",
    "keep_alias",
    "matching",
    "meaning",
    "missing",
    "named",
    "recorded",
    "selected",
    "selects",
    "to_remove",
    "touch",
    "unknown",
    "writing",
]

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

    @property
    def paths(self) -> tuple[Path, ...]:
        """Its files in order: of a model in shards all that are here, also where one was given by its path."""
        if self.model is not None:
            return tuple(file.path for file in self.model.files)
        try:
            here = set(os.listdir(self.path.parent))
        except OSError:
            here = set()
        return tuple(self.path.with_name(name) for name in naming.shards(self.path.name) if name in here) or (
            self.path,
        )

    @property
    def lasting_name(self) -> str:
        """The MODEL argument that leads here again: the quantization is part of it, a file's is its path."""
        return str(self.path) if self.model is None else f"{self.model.model}:{self.model.quantization}"


def installed(
    on_damaged: Callable[[str], None] = lambda line: None, wanted: Meaning | None = None
) -> tuple[InstalledModel, ...]:
    """The models of which every file is there and verified, the embedded default among them, by name.

    `on_damaged` is told, one line each, which records or files are no longer sound. A model whose files were all
    removed behind our back is no longer installed, and that is all. Where only what `wanted` names is looked for, the
    embedded model, which is hashed when it is first met, need not be another one.
    """
    models = _once([model for model in records.load(on_damaged) if _is_whole(model, on_damaged)])
    may_be_own = wanted is None or wanted.model.casefold() == embedded.described().model.casefold()
    if may_be_own and (own := embedded.find()) is not None:
        models.append(own)
    return tuple(sorted(models, key=lambda model: (model.model, model.quantization, str(model.path))))


def _once(models: list[InstalledModel]) -> list[InstalledModel]:
    """Without those imported from the Hub's cache that were pulled as well: they are the same files."""
    pulled = {model.path for model in models if model.source == "hub"}
    return [model for model in models if model.source != "hf" or model.path not in pulled]


def _is_whole(model: InstalledModel, on_damaged: Callable[[str], None]) -> bool:
    whole = model.all_files
    gone = 0
    for file in whole:
        try:
            if os.stat(file.path).st_size == file.size_bytes:
                continue
        except (OSError, ValueError):
            gone += 1
            continue
        on_damaged(f"{records.described(model)} is left out: {file.path} has changed; localai verify says what to do")
        return False
    if 0 < gone < len(whole):
        on_damaged(
            f"{records.described(model)} is left out: some of its files are gone; localai verify says what to do"
        )
    return gone == 0


def recorded(on_damaged: Callable[[str], None] = lambda line: None) -> tuple[InstalledModel, ...]:
    """Every model that the index knows, sound or not, the embedded default among them: what `verify` and `rm` see.

    `on_damaged` is told which records cannot be read, one line each.
    """
    own = embedded.find()
    return (*_once([record.model for record in records.read_all(on_damaged)]), *([own] if own else []))


# --------------------------------------------------------------------------------------------------------- finding


def find(text: str | None = None) -> Found:
    """The installed model, or the file, that a MODEL argument means; None leaves the choice to the settings.

    Opens no connection. Raises NotFound with the command that mends it or the nearest names, UsageError for what
    cannot be a name.
    """
    if text is None:
        return _default()
    path = _path_of(text)
    models = installed(wanted=None if path else _meant(text))
    if path is not None:
        same = named(str(path), models)
        if same:
            return Found(same[0], same[0].path, same[0].model)
        first = path.with_name(naming.shards(path.name)[0])  # the shard that llama.cpp is given
        path = first if first.is_file() else path
        return Found(None, path, path.stem)
    if chosen := named(text, models):
        return _best_of(chosen)
    raise missing(text, models)


def _meant(text: str) -> Meaning | None:
    """What a MODEL argument names; None for a path that leads nowhere. Raises UsageError for what is no name."""
    return None if naming.parse(aliases.expand(text)).kind is naming.Kind.PATH else meaning(text)


def named(text: str, models: Iterable[InstalledModel]) -> list[InstalledModel]:
    """Those of `models` that a MODEL argument means: by path, by exact name, else by meaning. Raises UsageError."""
    models = tuple(models)
    if (path := _path_of(text)) is not None:
        return [model for model in models if path in {file.path for file in model.files}]
    text = aliases.expand(text)
    if exact := [model for model in models if model.model.casefold() == text.casefold()]:
        return exact
    if naming.parse(text).kind is naming.Kind.PATH:
        return []
    wanted = meaning(text)
    if (chosen := selected(matching(wanted, models), wanted)) or wanted.revision is not None:
        return chosen
    head, _, selector = text.rpartition(":")  # a name that only the index knows, such as my-model:q4_0
    own = [model for model in models if model.model.casefold() == head.casefold()]
    return [model for model in own if selects(selector, model.quantization, [file.name for file in model.files])]


def missing(text: str, models: Sequence[InstalledModel]) -> NotFound:
    """The error for a MODEL argument that none of `models` is: the command that mends it, or the nearest names."""
    text = aliases.expand(text)
    if naming.parse(text).kind is naming.Kind.PATH:
        return NotFound(f"there is no file {text}", "check the path; localai list shows the installed models")
    wanted = meaning(text)
    return _not_installed(text, wanted, matching(wanted, models), models)


def _path_of(text: str) -> Path | None:
    """The existing file that a MODEL argument is the path of, or an alias for it."""
    return _file(text) or _file(aliases.expand(text))


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
    models = writing()
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


def writing() -> tuple[InstalledModel, ...]:
    """The installed models that can be asked: those that only make embeddings are never chosen for it."""
    return tuple(model for model in installed() if not _embeds_only(model))


def _embeds_only(model: InstalledModel) -> bool:
    known = catalog.resolve_name(model.model)
    return known is not None and known.embedding_only


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
    here |= {alias.name.casefold(): alias.name for alias in aliases.load()}
    near = [here[name] for name in difflib.get_close_matches(text[:200].casefold(), here, n=2)]
    near += [name for name in catalog.nearest(text) if name not in near]
    hint = f"did you mean {', '.join(near[:3])}?" if near else "localai recommend and localai list show names;"
    return NotFound(f"there is no model called {text!r}", f"{hint} a Hub repository is given as owner/repo")


# --------------------------------------------------------------------------------------------- changing what is here


def keep_alias(name: str, text: str) -> aliases.Alias:
    """Let `name` stand for a MODEL argument from now on.

    Raises UsageError for a name that cannot be an alias or is a file's, NotFound where `text` means nothing.
    """
    name = aliases.check_name(name)
    if os.path.exists(name):
        raise UsageError(f"{name} is a file or folder here, which an alias may not hide", "take another name")
    target = aliases.expand(text)
    if (path := _file(target)) is not None:
        return aliases.save(name, str(path))
    models = recorded()
    if not named(target, models):
        error = missing(target, models)
        if meaning(target).repo is None:  # neither installed nor to be had
            raise error
    return aliases.save(name, target)


def to_remove(text: str) -> InstalledModel:
    """The one model of the index, sound or not, that a MODEL argument means.

    Raises NotFound, and UsageError where several are meant, or a file that is not in the index.
    """
    models = recorded()
    found = named(text, models)
    if not found and _path_of(text) is not None:
        raise UsageError(f"{text} is a file of yours, not an installed model", "remove it with your system's own tools")
    if not found:
        raise missing(text, models)
    if len(found) > 1:
        each = sorted({f"{model.model}:{model.quantization}" for model in found})
        each = each if len(each) == len(found) else sorted(str(model.path) for model in found)
        raise UsageError(f"{text} is here {len(found)} times", f"say which: localai rm {', or '.join(each)}")
    return found[0]


def touch(model: InstalledModel) -> None:
    """Note that the model is used now. Never fails."""
    records.touch(model)
