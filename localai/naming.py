"""What the word MODEL on a command line can mean, by its form alone, and which names of the Hub are safe to write."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote, urlsplit

from localai import quantization
from localai.domain.files import RemoteFile, Variant
from localai.errors import UsageError

DEFAULT_ENDPOINT = "https://huggingface.co"
_HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_LONGEST_TEXT = 4096
_LONGEST_NAME = 1000
_LONGEST_SEGMENT = 200  # of 255 bytes that file systems allow; the rest is for suffixes
_LONGEST_REPO_PART = 96  # the Hub's own limit

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{5})-of-(?P<total>[0-9]{5})\.gguf", re.IGNORECASE | re.DOTALL)

_QUANTIZED = re.compile(r"ud|i?q[0-9]+|tq[0-9]|mxfp4|nvfp4|bf16|fp?16|fp?32")

UNKNOWN_QUANTIZATION = "unknown"
COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class Kind(StrEnum):
    PATH = "path"
    NAME = "name"
    REPO = "repo"


@dataclass(frozen=True, slots=True)
class Reference:
    """A MODEL argument taken apart.

    `target` is the path, the name, or `owner/repo`; `selector` a quantization or a file name; `text` all that was
    typed, since `llama3.2:3b` is one name although it looks like a name with a selector.
    """

    text: str
    kind: Kind
    target: str
    selector: str | None = None
    revision: str | None = None


def parse(text: str, environ: Mapping[str, str] = os.environ) -> Reference:
    """Take a MODEL argument apart. Touches no disk. Raises UsageError for what cannot be a name."""
    if not text.strip():
        raise UsageError("the name of the model is empty", "localai list shows what is installed")
    if len(text) > _LONGEST_TEXT or _has_control(text):
        raise UsageError("that is not the name of a model", "a name, a Hub repository (owner/repo) or a .gguf file")
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return _parse_url(text, environ)
    if text.startswith(("/", "\\", "~", "./", ".\\", "../", "..\\")) or text in {".", ".."} or _DRIVE.match(text):
        return Reference(text, Kind.PATH, text)
    head, selector, revision = _split(text)
    first, _, rest = head.partition("/")
    if first.lower() in _HUB_HOSTS and rest:
        head = rest
    elif head.lower().endswith(".gguf") and selector is None and revision is None:
        return Reference(text, Kind.PATH, text)
    if "/" in head:
        return Reference(text, Kind.REPO, check_repo(head.rstrip("/")), selector, revision)
    if "\\" in head:
        return Reference(text, Kind.PATH, text)
    return Reference(text, Kind.NAME, head, selector, revision)


def _split(text: str) -> tuple[str, str | None, str | None]:
    """`HEAD[:SELECTOR][@REV]`, the two in either order; a file name after `:` may hold an `@`."""
    head = re.match(r"[^:@]*", text)
    assert head is not None
    rest, selector, revision = text[head.end() :], None, None
    if rest.startswith("@"):
        revision, colon, after = rest[1:].partition(":")
        selector = after if colon else None
    elif rest.startswith(":"):
        selector, at, after = rest[1:].rpartition("@")
        if not at or after.lower().endswith(".gguf"):
            selector = rest[1:]
        else:
            revision = after
    if not head.group() or selector == "" or revision == "":
        raise UsageError(f"{text!r} is not the name of a model", "the form is NAME[:QUANT][@REVISION]")
    if selector is not None and selector.lower().endswith(".gguf"):
        check_filename(selector)
    return head.group(), selector, check_revision(revision) if revision is not None else None


def _parse_url(text: str, environ: Mapping[str, str]) -> Reference:
    """A URL of a repository, of one of its revisions or of one file, on the configured Hub or the public one."""
    own = urlsplit(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT)
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
        is_own = (parts.scheme, host, port) == (own.scheme, (own.hostname or "").lower(), own.port)
    except ValueError:
        raise UsageError(f"{text!r} is not an address", "give owner/repo") from None
    if not is_own and not (parts.scheme == "https" and host in _HUB_HOSTS and port in {None, 443}):
        raise UsageError(
            f"{text!r} is not an address of the Hub", "give owner/repo, or set HF_ENDPOINT for another Hub"
        )
    path = parts.path
    prefix = own.path.rstrip("/")
    if is_own and prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    # Split before unquoting: a revision may hold an escaped slash.
    owner, _, path = path.strip("/").partition("/")
    name, *rest = path.split("/")
    if (
        not name
        or owner in {"api", "datasets", "spaces"}
        or any(_has_control(unquote(each)) for each in (owner, name, *rest))
    ):
        raise UsageError(f"{text!r} is not the address of a model", "give owner/repo")
    name, selector, revision = _split(unquote(name))
    repo = check_repo(f"{unquote(owner)}/{name}")
    if len(rest) >= 2 and rest[0] in {"resolve", "blob", "tree", "raw"}:
        taken = 3 if rest[1] == "refs" and len(rest) >= 4 else 1  # refs/pr/1, refs/convert/gguf
        revision = check_revision(unquote("/".join(rest[1 : 1 + taken])))
        if (file := unquote("/".join(rest[1 + taken :]))) and rest[0] != "tree":
            selector = check_filename(file)
    return Reference(text, Kind.REPO, repo, selector, revision)


def check_repo(text: str) -> str:
    """`text` if it is a repository id, `owner/repo`. Raises UsageError."""
    owner, slash, name = text.partition("/")
    for part in (owner, name):
        if not _REPO_PART.fullmatch(part) or len(part) > _LONGEST_REPO_PART or ".." in part or "--" in part:
            slash = ""
    if not slash or text.endswith(".git"):
        raise UsageError(
            f"{text[:200]!r} is not a repository of the Hub", "the form is owner/repo, as in Qwen/Qwen3-0.6B-GGUF"
        )
    return text


def check_revision(text: str) -> str:
    """`text` if it can be a branch, tag or commit. Raises UsageError."""
    if (
        not _REVISION.fullmatch(text)
        or len(text) > _LONGEST_SEGMENT
        or ".." in text
        or "//" in text
        or text.endswith("/")
    ):
        raise UsageError(f"{text[:200]!r} is not a revision", "a revision is a branch, a tag or a commit, as in @main")
    return text


def check_filename(text: str) -> str:
    """`text` if it is a relative path that is safe to write on every system. Raises UsageError."""
    segments = text.split("/")
    if (
        not text
        or len(text.encode("utf-8", "replace")) > _LONGEST_NAME
        or _has_control(text)
        or any(sign in text for sign in "\\:")  # Windows' separators, drives and streams
        or any(not _safe_segment(segment) for segment in segments)
    ):
        raise UsageError(f"{text[:200]!r} is not a safe file name", "give the name of a .gguf file of the repository")
    return text


def _safe_segment(segment: str) -> bool:
    return (
        segment not in {"", ".", ".."}
        and len(segment.encode("utf-8", "replace")) <= _LONGEST_SEGMENT
        and segment[-1] not in " ."  # Windows drops them, so two names would be one
        and not _RESERVED.fullmatch(segment)
    )


def _has_control(text: str) -> bool:
    """Control characters, line and paragraph separators, and halves of surrogate pairs."""
    return any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in text)


def variants(files: Iterable[RemoteFile]) -> tuple[Variant, ...]:
    """The quantizations among a repository's files, in the order of their names.

    All shards of a model are one variant, and only if every one of them is there; projectors and importance matrices
    are none. A file whose name tells no quantization is "unknown".
    """
    whole: list[Variant] = []
    shards: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for file in sorted(files, key=lambda each: each.name):
        lower = file.name.lower()
        if not lower.endswith(".gguf") or is_projector(file.name) or "imatrix" in lower.rsplit("/", 1)[-1]:
            continue
        if shard := _SHARD.fullmatch(file.name):
            shards.setdefault((shard["stem"], int(shard["total"])), {})[int(shard["index"])] = file
        else:
            whole.append(Variant(_quantization(file.name), (file,)))
    for (stem, total), parts in shards.items():
        if len(parts) == total and all(index in parts for index in range(1, total + 1)):
            whole.append(Variant(_quantization(f"{stem}.gguf"), tuple(parts[index] for index in range(1, total + 1))))
    return tuple(sorted(whole, key=lambda variant: variant.files[0].name))


def shards(name: str) -> tuple[str, ...]:
    """The names of all the shards that a file of that name is one of, in order; its own where it is none."""
    if (shard := _SHARD.fullmatch(name)) is None:
        return (name,)
    total, suffix = shard["total"], name[-5:]
    return tuple(f"{shard['stem']}-{index:05}-of-{total}{suffix}" for index in range(1, int(total) + 1)) or (name,)


def _quantization(name: str) -> str:
    """From the file's own name, else from its folder's."""
    folder, _, base = name.rpartition("/")
    return (
        quantization.of_filename(base) or (quantization.of_filename(folder) if folder else None) or UNKNOWN_QUANTIZATION
    )


def is_projector(name: str) -> bool:
    """Whether this is a vision (or audio) projector, which llama.cpp loads beside the model."""
    return "mmproj" in name.lower().rsplit("/", 1)[-1] and name.lower().endswith(".gguf")


def projectors(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The projectors among a repository's files, the one to take first: F16, then Q8_0, BF16, F32."""
    order = {"F16": 0, "Q8_0": 1, "BF16": 2, "F32": 3}
    found = [file for file in files if is_projector(file.name)]
    return tuple(sorted(found, key=lambda file: (order.get(_quantization(file.name), 4), file.size_bytes, file.name)))


def own_projectors(model: str, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The projectors among the files that lie beside `model` and may be its own, the one to take first: none whose name
    is nearer to that of another model there.
    """
    there = tuple(files)
    models = [each.name for each in there if not is_projector(each.name)]
    near = {each: _alike(each.name, model) for each in projectors(there)}
    own = [each for each in near if near[each] >= max((_alike(each.name, other) for other in models), default=0)]
    return tuple(sorted(own, key=lambda each: -near[each]))


def _alike(one: str, other: str) -> int:
    """How many words the names of two files begin with in common."""
    pairs = zip(_words(one), _words(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _words(name: str) -> list[str]:
    """The words of a file's name, up to its quantization, without those that any projector has."""
    words = re.split(r"[-_. ]", name.lower().rsplit("/", 1)[-1].removesuffix(".gguf"))
    told = itertools.takewhile(lambda word: not _QUANTIZED.fullmatch(word), words)
    return [word for word in told if word not in ("mmproj", "model")]
