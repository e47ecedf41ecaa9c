"""What a MODEL argument names, by the catalog and its form, and which installed models that are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from localai import aliases, catalog, naming, quantization
from localai.catalog import CatalogModel
from localai.domain.files import InstalledModel
from localai.errors import UsageError

_COMMIT = re.compile(r"[0-9a-f]{7,40}")  # or its beginning, as Git shortens it
_SIZE = re.compile(r"[0-9.]+[bm](?:[-:](?!.*\.gguf$)|$)", re.IGNORECASE)  # where a quantization could stand
_OF_CHATS = re.compile(r"instruct|it|chat|text|[0-9]{4}", re.IGNORECASE)  # words of Ollama's tags; all here are such


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


def meaning(text: str) -> Meaning:
    """What a MODEL argument names, by the catalog and its form. Raises UsageError for a path and what is no name."""
    text = aliases.expand(text)
    reference = naming.parse(text)
    if reference.kind is naming.Kind.PATH:
        raise UsageError(f"{text} is a path, not the name of a model", "give a name (localai recommend) or owner/repo")
    selector, revision = reference.selector, reference.revision
    if reference.kind is naming.Kind.REPO:
        return Meaning(text, catalog.by_repo(reference.target), reference.target, selector, revision, by_name=False)
    if found := _in_catalog(text if revision is None else text.replace(f"@{revision}", "", 1)):
        known, selector = found
        return Meaning(known.id, known, known.repo, selector, revision)
    return Meaning(reference.target, None, None, selector, revision)


def _in_catalog(text: str) -> tuple[CatalogModel, str | None] | None:
    """The model and the selector of `NAME[:SELECTOR]`; None where the catalog has no such name.

    The longest name that is known wins: `llama3.2:3b` is one name, `llama3.2:3b:q8_0` that name and a quantization,
    and so is `llama3.2:3b-instruct-q8_0`, as Ollama writes it. `llama3.2:7b` is no model, although `llama3.2` is one.
    """
    ends = [at for at, sign in enumerate(text) if sign == ":" or (sign == "-" and ":" in text[:at])]
    for end in (len(text), *reversed(ends)):
        if (known := catalog.resolve_name(text[:end])) is None:
            continue
        rest = text[end + 1 :]
        if text[end : end + 1] == "-":
            more = {"qat"} if any(file.trained_for for file in known.files) else set()
            rest = "-".join(word for word in rest.split("-") if not _OF_CHATS.fullmatch(word) and word not in more)
            if rest and not quantization.is_name(rest):
                continue  # -base, -thinking: another model
        elif _SIZE.match(rest):
            continue
        return known, rest or None
    return None


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
        and (wanted.revision is None or _is_at(model, wanted.revision))
    ]


def _is_at(model: InstalledModel, revision: str) -> bool:
    """Whether a model was pulled as that branch or tag (without one: main), or is of the commit that begins so."""
    is_commit = _COMMIT.fullmatch(revision) and (model.commit or "").startswith(revision)
    return bool(is_commit) or (model.source == "hub" and revision == (model.revision or "main"))


def selects(selector: str, quant: str, names: Sequence[str]) -> bool:
    """Whether `:SELECTOR` means the variant of that quantization with these files."""
    wanted = selector.casefold()
    if wanted.endswith(".gguf"):
        return any(wanted in {name.casefold(), name.casefold().rpartition("/")[2]} for name in names)
    return quant.casefold() in {wanted, (quantization.of_filename(selector) or wanted).casefold()}
