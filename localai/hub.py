"""What is asked of the Hub: what a repository holds, who may read it, and the pointers in its cache.

Connections go to the configured endpoint only; the bytes of models are `transfer`'s.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from localai import naming, settings
from localai.domain.files import RemoteFile
from localai.domain.units import MIB
from localai.errors import AccessDenied, HashMismatch, LocalaiError, NetworkError, NotFound, UsageError
from localai.hub_cache import blob_path, pointer_path, remember_revision
from localai.hub_client import auth_headers, client, endpoint, require_online, token, within
from localai.hub_errors import CUT, broken, nonsense, refusal, retry_after_s, translated, unreachable
from localai.partial import sync_folder
from localai.source import BROKEN, Connection, Retryable, Source

LISTING_SECONDS = 12.0  # everything included: name lookup, every address of the host, a Hub that drips
_CONNECT_SECONDS = 10.0
_GLANCE_SECONDS = 5.0  # `doctor` only looks
_LINK_SECONDS = 120.0
_MOST_FILES = 100_000
_ANSWER_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository of the Hub at one commit. Every name in `files` is safe to write."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool

    @property
    def projector(self) -> RemoteFile | None:
        """The projector that comes with every model of it; None where it has none."""
        return next(iter(naming.projectors(self.files)), None)

    @property
    def projector_bytes(self) -> int:
        """The size of that file, 0 without one."""
        return self.projector.size_bytes if self.projector else 0


def repository(
    repo: str, revision: str | None = None, on_retry: Callable[[str], None] = lambda line: None
) -> Repository:
    """What a repository holds at a revision (None: its main branch). Answers or fails within 15 seconds.

    `on_retry` is told why the Hub is asked again, one line each.
    Raises NetworkError (also in offline mode, before any connection), NotFound, AccessDenied.
    """
    naming.check_repo(repo)
    require_online(f"looking up {repo}")
    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    return _checked(repo, _answered(f"/{repo}{at}", {"blobs": "true"}, repo, revision, on_retry))


def _answered(
    path: str, params: Mapping[str, Any], what: str, revision: str | None, on_retry: Callable[[str], None]
) -> Any:
    """The JSON that the Hub's API of models has at `path`, within LISTING_SECONDS; asked again where that may help.

    What HfApi asks; but to import that takes longer than the answer, and it asks a Hub that is out of reach six times
    and says nothing. By the connections and the rules of our own downloads. Raises what the failure means.
    """
    url = f"{endpoint()}/api/models{path}?{urlencode(params, doseq=True)}"
    asked = Source(url, auth_headers(), _CONNECT_SECONDS, partial(_refused, what, revision))
    slow = f"{endpoint()} has not answered yet; it is waited for, {LISTING_SECONDS:.0f} s in all"
    deadline = time.monotonic() + LISTING_SECONDS
    for tried in itertools.count():
        try:
            return within(deadline - time.monotonic(), lambda: _json(asked, what), lambda: on_retry(slow))
        except Retryable as error:
            failure: Exception = error
            meant = refusal(what, error.status, {}) if error.status else unreachable(str(error))
        except BROKEN as error:
            if not isinstance(error, CUT):
                raise broken(error) from error
            failure, meant = error, broken(error)
        wait_s = retry_after_s(failure, tried)
        if time.monotonic() + wait_s > deadline - 1:
            raise meant from failure
        on_retry(f"{meant}; asking again in {wait_s:.1f} s")
        time.sleep(wait_s)
    raise AssertionError("it ends by an answer or an error")


def _json(asked: Source, what: str) -> Any:
    """The answer to one question. Raises Retryable, what is in BROKEN, or the error that the answer means."""
    with Connection(_CONNECT_SECONDS) as connection:
        response = asked.open(connection, 0)
        content = response.read(_ANSWER_BYTES)
        if response.length and len(content) < _ANSWER_BYTES:
            raise Retryable("the connection was cut")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise nonsense(what) from error


def _refused(what: str, revision: str | None, status: int, headers: Mapping[str, str]) -> LocalaiError:
    if headers.get("x-error-code") == "RevisionNotFound":
        return NotFound(f"{what} has no revision {revision!r}", f"see {endpoint()}/{what}/tree/main")
    return refusal(what, status, headers)


def _checked(repo: str, info: Any) -> Repository:
    """The Hub's answer as `Repository`; whatever is not as it must be is a NetworkError."""
    if not isinstance(info, dict):
        raise nonsense(repo)
    commit, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(commit, str) or not naming.COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise nonsense(repo)
    if len(siblings) > _MOST_FILES:
        raise NetworkError(f"{repo} lists {len(siblings)} files, too many", "give another repository")
    files = []
    for sibling in siblings:
        if not isinstance(sibling, dict) or not isinstance(name := sibling.get("rfilename"), str):
            raise nonsense(repo)
        size, lfs = sibling.get("size"), sibling.get("lfs")
        sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
        try:
            naming.check_filename(name)
        except UsageError as error:
            if not name.lower().endswith(".gguf"):
                continue  # never touched, so its name does no harm
            raise NetworkError(
                f"{repo} holds a file whose name is not safe: {name[:80]!r}", "nothing was written"
            ) from error
        if type(size) is not int or size < 0 or not (sha256 is None or _is_sha256(sha256)):
            if name.lower().endswith(".gguf"):
                raise nonsense(repo)
            continue
        files.append(RemoteFile(name, size, sha256))
    return Repository(repo, commit, tuple(files), bool(info.get("gated")))


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and naming.SHA256.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Hit:
    """A repository that a search found. `gated` and the counts are None where the Hub does not say."""

    repo: str
    gated: bool | None
    downloads: int | None
    likes: int | None


def search(query: str, limit: int, on_retry: Callable[[str], None] = lambda line: None) -> tuple[Hit, ...]:
    """Repositories with GGUF files that the Hub finds for `query`, the most downloaded first.

    What is no name of a repository is left out. Raises NetworkError (also in offline mode, before any connection).
    """
    require_online("searching the Hub")
    asked = {"search": query, "filter": "gguf", "sort": "downloads", "limit": limit}
    try:
        found = _answered("", {**asked, "expand": ["gated", "downloads", "likes"]}, "the search", None, on_retry)
    except NotFound as error:  # it is no Hub
        raise nonsense("the search") from error
    if not (isinstance(found, list) and all(isinstance(each, dict) and "id" in each for each in found)):
        raise nonsense("the search")
    hits = {}
    for each in found[:limit]:
        try:
            repo = naming.check_repo(str(each["id"]))
        except UsageError:
            continue
        gated = None if each.get("gated") is None else bool(each["gated"])
        hits[repo] = Hit(repo, gated, _count(each.get("downloads")), _count(each.get("likes")))
    return tuple(hits.values())


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def reachable() -> None:
    """Return if the Hub answers, and no web page in its place, within five seconds. Raises NetworkError."""
    require_online("asking the Hub")
    hub, base = client(), endpoint()

    def ask() -> Any:
        url = f"{base}/api/models?limit=1"
        return hub.get_session().head(url, timeout=_GLANCE_SECONDS, follow_redirects=False)

    try:
        answer = within(_GLANCE_SECONDS, ask)
    except Exception as error:
        raise translated(error, "the Hub", None) from error
    if answer.status_code >= 500:
        raise unreachable(f"it answers {answer.status_code}")
    if answer.status_code < 300 and "html" in answer.headers.get("Content-Type", ""):
        raise unreachable("a web page answers in its place, perhaps this network's login page")


def token_owner() -> str | None:
    """Whose the token is, None without one. Raises AccessDenied for one that the Hub refuses, NetworkError."""
    require_online("asking the Hub")
    hub, base, secret = client(), endpoint(), token()
    if secret is None:
        return None
    try:
        answer = within(_GLANCE_SECONDS, lambda: hub.HfApi(endpoint=base, token=secret).whoami())
    except Exception as error:
        from huggingface_hub.errors import HfHubHTTPError

        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            raise AccessDenied(
                "the Hub does not accept your token", "run: hf auth login (or set HF_TOKEN anew)"
            ) from error
        raise translated(error, "the Hub", None) from error
    name = answer.get("name") if isinstance(answer, dict) else None
    return name[:100] if isinstance(name, str) else "somebody"


def link(
    repo: str,
    commit: str,
    file: RemoteFile,
    revision: str | None = None,
    on_slow: Callable[[str], None] = lambda line: None,
) -> Path:
    """Add the cache's pointer to a blob that is in place and verified; returns the pointer.

    `revision` is the branch or tag that `commit` was found under (None: main); the cache remembers it, so that other
    tools find the file offline. Raises HashMismatch if the Hub now names other bytes, else as `repository` does.
    """
    assert file.sha256 is not None
    hub, base, secret = client(), endpoint(), token()
    blob = blob_path(repo, file.sha256)
    pointer = pointer_path(repo, commit, file.name)

    waiting = f"the bytes are here; the Hub does not answer about {file.name} yet, asking again for up to 2 minutes"

    def add_pointer() -> Any:
        return hub.hf_hub_download(
            repo, file.name, revision=commit, cache_dir=settings.hub_cache(), endpoint=base, token=secret or False
        )

    try:
        # The client trusts any pointer that is there: one that leads elsewhere, or is a file, must go first.
        if os.path.lexists(pointer) and not (pointer.is_symlink() and pointer.resolve() == blob.resolve()):
            pointer.unlink()
        if not _links_work():  # the client would copy; one verified file is enough, and it finds that one
            pointer.parent.mkdir(parents=True, exist_ok=True)
            os.replace(blob, pointer)
        path = Path(os.path.abspath(within(_LINK_SECONDS, add_pointer, lambda: on_slow(waiting))))
        if path.is_symlink() and path.resolve() != blob.resolve():
            raise HashMismatch(
                f"the Hub names other bytes for {file.name} than it did before",
                "pull again: it starts from the new answer",
            )
        sync_folder(path.parent)  # before anybody records that the file is there
        remember_revision(repo, commit, revision or "main")
    except Exception as error:
        raise translated(error, repo, commit) from error
    return path


@cache
def prepare_link() -> None:
    """Have the client ready for `link`, in a thread: importing it takes a while, and the disk is being waited for."""
    threading.Thread(target=lambda: client().hf_hub_download, name="localai-client").start()


def _links_work() -> bool:
    """Whether the client makes symbolic links in its cache; it tries once, and keeps the answer."""
    from huggingface_hub import file_download

    return file_download.are_symlinks_supported(settings.hub_cache())
