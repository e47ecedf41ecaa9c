"""The evaluated state of kept conversations on this disk: `chat --resume` goes on from it instead of reading all again.

A file a conversation, in a folder for this user only. It is a convenience that may be lost at any time: never waited
for long, never allowed to fill the disk, the oldest removed first. And it is input that llama.cpp would believe
blindly. So a file is used only if its bytes are those that this very installation wrote (an HMAC with a key of its
own), for the same model, engine and plan; all others are ignored with one line.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import hmac
import json
import mmap
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from localai import settings
from localai.domain.engine import KvState
from localai.domain.units import GIB, MIB
from localai.errors import LocalaiError

if TYPE_CHECKING:
    from localai.loading import Loaded, Prepared

LIMIT_MB = 4096  # of all files together, where the setting `kept_state_mb` says nothing else
SHARE = 4  # one conversation may take a quarter of that
DISK_RESERVE_BYTES = 2 * GIB  # left free on the disk
TIME_LIMIT_S = 5.0  # for writing one: a slower disk is not worth the wait
ABANDONED_S = 3600.0  # a temporary file as old as that has nobody who writes it

_MAGIC = b"localai-kv 2\n\0\0\0"
_DIGEST_BYTES = 32
_LENGTH = struct.Struct("<Q")
_CHUNK = 8 * MIB
_FACTS = len(_MAGIC) + 2 * _DIGEST_BYTES + _LENGTH.size  # after the digest of all, and that of themselves


def folder() -> Path:
    """Where the files are."""
    return settings.folders().cache / "conversations"


def path(session: int) -> Path:
    """The file of a kept conversation."""
    return folder() / f"{int(session)}.kv"


def limits_bytes() -> tuple[int, int]:
    """How much all files together may take, and how much one."""
    whole = settings.load()["kept_state_mb"].value
    total = (LIMIT_MB if whole is None else int(whole)) * MIB
    return total, total // SHARE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a model holds of a conversation, with all that must be the same where it is put back."""

    identity: str
    state: KvState


def snapshot(loaded: Loaded) -> Snapshot | None:
    """What the model holds now; None where that is nothing, too much to keep, or more than the free memory, and where
    the model's file is gone.
    """
    from localai.probes import memory
    from localai.probes.source import Source

    total, most = limits_bytes()
    _shrink(total)
    here = memory.memory(Source())

    def affordable(size: int) -> bool:
        return size <= most and (here is None or size + GIB // 4 <= here.available_bytes)

    with contextlib.suppress(OSError):
        if (state := loaded.engine.state(affordable)) is not None:
            return Snapshot(identity(loaded.prepared), state)
    return None


def identity(prepared: Prepared) -> str:
    """The model's bytes, the engine and those parts of the plan that the state depends on, in one line."""
    from importlib.metadata import version

    plan = prepared.plan
    facts = {
        "model": _model(prepared),
        "engine": version("llama-cpp-python"),
        "context": plan.context,
        "kv_type": plan.kv_type,
        "flash_attention": plan.flash_attention,
    }
    return json.dumps(facts, sort_keys=True)


def _model(prepared: Prepared) -> list[str]:
    """The hashes of an installed model's files; of a bare file what changes when it is replaced, and its header's."""
    found = prepared.found
    if found.model is not None:
        return [file.sha256 for file in found.model.files]
    status = found.path.stat()
    with found.path.open("rb") as stream:
        head = hashlib.sha256(stream.read(MIB)).hexdigest()
    return [str(found.path.resolve()), str(status.st_size), str(status.st_mtime_ns), head]


def leave(loaded: Loaded, session: int | None, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Close the model's engine, and keep what it held as the state of the kept conversation; None keeps nothing.

    The copy is written once the engine's memory is free again.
    """
    kept = None
    try:
        kept = snapshot(loaded) if session is not None else None
    finally:
        loaded.engine.close()
    if kept is not None and session is not None:
        write(session, kept, cancelled)


def save(loaded: Loaded, session: int, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Keep what the model holds as the state of the kept conversation; the model stays as it is."""
    if (kept := snapshot(loaded)) is not None:
        write(session, kept, cancelled)


# -------------------------------------------------------------------------------------------------------- writing


def write(session: int, kept: Snapshot, cancelled: Callable[[], bool] = lambda: False) -> bool:
    """Keep a snapshot as the state of a kept conversation; False where that is given up, for lack of room or time.

    Never raises for what may go wrong with a disk. Not synchronized to the disk: a file that a power cut leaves
    in part is found out by its HMAC, and waiting would be the user's.
    """
    target = path(session)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    head, size = _head(session, kept), len(kept.state.data)
    try:
        settings.private_folder(target.parent)
        if not _make_room(len(head) + size, target):
            return False
        try:
            done = _write(temporary, head, kept.state.data, cancelled)
            if done:
                os.replace(temporary, target)
            return done
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return False


def _head(session: int, kept: Snapshot) -> bytes:
    state = kept.state
    text = state.text.encode("utf-8", "surrogatepass")
    tokens = array.array("i", state.tokens).tobytes()
    facts = {
        "session": int(session),
        "identity": kept.identity,
        "borders": state.borders,
        "held": state.held,
        "tokens": len(state.tokens),
        "text_bytes": len(text),
        "data_bytes": len(state.data),
    }
    packed = json.dumps(facts).encode()
    return hmac.digest(_key(), packed, "sha256") + _LENGTH.pack(len(packed)) + packed + tokens + text


def _write(target: Path, head: bytes, data: memoryview, cancelled: Callable[[], bool]) -> bool:
    digest = hmac.new(_key(), head, "sha256")
    until = monotonic() + TIME_LIMIT_S
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        stream.write(_MAGIC + b"\0" * _DIGEST_BYTES + head)
        for start in range(0, len(data), _CHUNK):
            if cancelled() or monotonic() > until:
                return False
            part = data[start : start + _CHUNK]
            digest.update(part)
            while part:
                part = part[stream.write(part) or 0 :]
        stream.seek(len(_MAGIC))
        stream.write(digest.digest())
    return True


def _key() -> bytes:
    """What this installation signs its states with, made at first; it stands with the data, not with the cache."""
    place = settings.private_folder(settings.folders().data / "sessions") / "state.key"
    with contextlib.suppress(FileNotFoundError):
        if len(key := place.read_bytes()) == _DIGEST_BYTES:
            return key
    settings.write_atomically(place, secrets.token_bytes(_DIGEST_BYTES))
    return place.read_bytes()


def _make_room(size: int, own: Path) -> bool:
    """Remove the oldest states, and what was left half-written, until `size` bytes more may be kept."""
    total, most = limits_bytes()
    if size > most:
        return False
    for left in own.parent.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()
    others = _by_age(own)
    taken = sum(taken for _, taken, _ in others)
    for _, bytes_, oldest in others:
        if taken + size <= total and shutil.disk_usage(own.parent).free - size >= DISK_RESERVE_BYTES:
            return True
        oldest.unlink(missing_ok=True)
        taken -= bytes_
    return taken + size <= total and shutil.disk_usage(own.parent).free - size >= DISK_RESERVE_BYTES


def _by_age(but: Path | None = None) -> list[tuple[float, int, Path]]:
    """When each state was written, its bytes and its file, the oldest first."""
    return sorted((each.stat().st_mtime, each.stat().st_size, each) for each in folder().glob("*.kv") if each != but)


def _shrink(total: int) -> None:
    """Remove the oldest states where the limit is less than what was kept before."""
    with contextlib.suppress(OSError):
        states = _by_age()
        taken = sum(size for _, size, _ in states)
        for _, size, oldest in states:
            if taken <= total:
                return
            oldest.unlink(missing_ok=True)
            taken -= size


# -------------------------------------------------------------------------------------------------------- reading


class Unusable(Exception):
    """A state file that cannot be used; the text says why. Caught in this module."""


def restore(session: int, loaded: Loaded) -> str | None:
    """Put the kept state of a conversation into the model; what to tell the user where there is one that is of no use.

    Never fails: without a state, the conversation is read again.
    """
    try:
        with _opened(path(session)) as content:
            state = _checked(session, identity(loaded.prepared), content)
            try:
                if not loaded.engine.resume(state):
                    raise Unusable("the engine does not take it")
            finally:
                state.data.release()
    except FileNotFoundError:
        return None
    except (Unusable, OSError, ValueError) as error:
        because = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"the saved state of the conversation is not used ({because}): it is read again"
    return None


def context(session: int) -> int | None:
    """The tokens of context that the state of a conversation was made with; None where there is no state of ours.

    Only what says so is verified, not the state.
    """
    try:
        with _opened(path(session)) as content:
            facts, _ = _facts(session, content)
            found = json.loads(facts["identity"])["context"]
    except (Unusable, OSError, ValueError):
        return None
    return int(found)


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[memoryview]:
    """The file's bytes, mapped; what is written to them stays in this process. They must be let go of at the end."""
    with open(os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:  # a pipe is not waited for
        if os.fstat(stream.fileno()).st_size < _FACTS:
            raise Unusable("it is damaged")
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    with contextlib.closing(mapped), memoryview(mapped) as view:
        yield view


def _checked(session: int, expected: str, content: memoryview) -> KvState:
    """The state in a file, once its HMAC and all that must be the same have been checked. Raises Unusable."""
    facts, tokens_at = _facts(session, content)
    start = len(_MAGIC) + _DIGEST_BYTES
    digest = hmac.new(_key(), None, "sha256")
    for at in range(start, len(content), _CHUNK):
        digest.update(content[at : at + _CHUNK])
    if not hmac.compare_digest(digest.digest(), content[len(_MAGIC) : start]):
        raise Unusable("it is damaged, or was not written here")
    if facts["identity"] != expected:
        raise Unusable(_difference(facts["identity"], expected))
    text_at = tokens_at + 4 * facts["tokens"]
    data_at = text_at + facts["text_bytes"]
    return KvState(
        text=str(content[text_at:data_at], "utf-8", "surrogatepass"),
        tokens=tuple(content[tokens_at:text_at].cast("i")),
        borders=tuple((characters, tokens) for characters, tokens in facts["borders"]),
        held=facts["held"],
        data=content[data_at : data_at + facts["data_bytes"]],
    )


def _facts(session: int, content: memoryview) -> tuple[dict[str, Any], int]:
    """What a file says of itself, and where that ends. Raises Unusable."""
    if content[: len(_MAGIC)] != _MAGIC:
        raise Unusable("it is no state of a conversation")
    (length,) = _LENGTH.unpack(content[_FACTS - _LENGTH.size : _FACTS])
    packed = bytes(content[_FACTS : _FACTS + min(length, MIB)])
    own = bytes(content[len(_MAGIC) + _DIGEST_BYTES : _FACTS - _LENGTH.size])
    if not hmac.compare_digest(hmac.digest(_key(), packed, "sha256"), own):
        raise Unusable("it is damaged, or was not written here")
    facts: dict[str, Any] = json.loads(packed)
    if facts["session"] != session:
        raise Unusable("it is that of another conversation")
    return facts, _FACTS + length


def _difference(found: str, expected: str) -> str:
    theirs, ours = json.loads(found), json.loads(expected)
    for key, what in (("model", "the model"), ("engine", "the engine's version"), ("context", "the context")):
        if theirs.get(key) != ours[key]:
            return f"{what} is another now"
    return "the settings are others now"


def remove(session: int) -> None:
    """Remove the state of a conversation, where there is one, and what was left of writing it. Raises LocalaiError."""
    own = path(session)
    try:
        for each in (own, *own.parent.glob(f".{own.name}.*.tmp")):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise LocalaiError(f"cannot remove {own}: {error.strerror}", "check the folder's permissions") from error
