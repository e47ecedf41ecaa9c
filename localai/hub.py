"""Every use of huggingface_hub: what a repository holds, who may read it, and the pointers in its cache.

Only `repository()` and `link()` open connections, and only to the configured endpoint; the bytes are `transfer`'s.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from localai import naming, settings, source
from localai.domain.files import RemoteFile
from localai.errors import AccessDenied, HashMismatch, LocalaiError, NetworkError, NotFound, UsageError
from localai.hub_cache import blob_path, pointer_path, remember_revision
from localai.partial import disk_error, sync_folder

T = TypeVar("T")

LISTING_SECONDS = 12.0  # everything included: name lookup, every address of the host, a Hub that drips
_CONNECT_SECONDS = 10.0
_GLANCE_SECONDS = 5.0  # `doctor` only looks
_LINK_SECONDS = 120.0
_SLOW_SECONDS = 3.0  # after these a user is told what is being waited for
_LONGEST_RETRY_AFTER = 5.0
_MOST_FILES = 100_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SWITCHED_OFF = (
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_UPDATE_CHECK",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_SYMLINKS_WARNING",
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A model repository of the Hub at one commit. Every name in `files` is safe to write."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool


def _client() -> ModuleType:
    """huggingface_hub, imported with everything switched off that no user asked for, and silent."""
    for name in _SWITCHED_OFF:
        os.environ[name] = "1"
    import huggingface_hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it would print to the terminal, the server's own words included
    _guard_redirects()
    return huggingface_hub


@cache
def _guard_redirects() -> None:
    """Let the client follow redirects by the rule of our own downloads; by its own, 20 of them lead to any address."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    def check(response: Any) -> None:
        url, location = str(response.request.url), response.headers.get("Location")
        if response.has_redirect_location and source.safe_target(url, url, location) is None:
            raise source.unsafe_redirect(endpoint())

    def client() -> Any:
        made = default_client_factory()
        made.max_redirects = source.MAX_REDIRECTS
        made.event_hooks = {**made.event_hooks, "response": [check]}
        return made

    huggingface_hub.set_client_factory(client)


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """The address of the Hub, `HF_ENDPOINT` or the public one. Raises UsageError if it is none."""
    text = (environ.get("HF_ENDPOINT") or naming.DEFAULT_ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(text)
        if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
            return text
    except ValueError:
        pass
    raise UsageError(f"HF_ENDPOINT is not an address: {text!r}", "unset HF_ENDPOINT, or set it to https://…")


def file_url(repo: str, commit: str, name: str) -> str:
    """Where one file of a repository is downloaded from."""
    return f"{endpoint()}/{repo}/resolve/{quote(commit, safe='')}/{quote(name)}"


def token() -> str | None:
    """The token of `HF_TOKEN` or `hf auth login`; None without one, or where `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set."""
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None
    try:
        found = _client().get_token()
    except OSError:  # a token file that cannot be read is no token
        return None
    return found if isinstance(found, str) else None


def auth_headers() -> dict[str, str]:
    """The header that carries the token, {} without one. For the endpoint's own origin only."""
    found = token()
    return {"Authorization": f"Bearer {found}"} if found else {}


def require_online(doing: str) -> None:
    """Raises NetworkError, naming what forbids it, where connections are forbidden; `doing` is a noun phrase."""
    if not settings.offline():
        return
    setting = settings.load()["offline"]
    if not setting.value:
        hint = "unset HF_HUB_OFFLINE to allow it"
    elif setting.source == "environment":
        hint = f"leave out --offline, or unset {setting.key.variable}"
    else:
        hint = "localai config set offline false"
    raise NetworkError(f"{doing} needs the network, which offline mode forbids", hint)


def repository(
    repo: str, revision: str | None = None, on_retry: Callable[[str], None] = lambda line: None
) -> Repository:
    """What a repository holds at a revision (None: its main branch). Answers or fails within 15 seconds.

    `on_retry` is told why the Hub is asked again, one line each.
    Raises NetworkError (also in offline mode, before any connection), NotFound, AccessDenied.
    """
    naming.check_repo(repo)
    require_online(f"looking up {repo}")
    hub, base, secret = _client(), endpoint(), token()

    def ask() -> Any:
        api = hub.HfApi(endpoint=base, token=secret or False)
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=_CONNECT_SECONDS)

    deadline = time.monotonic() + LISTING_SECONDS
    for tried in itertools.count():
        try:
            return _checked(repo, within(deadline - time.monotonic(), ask))
        except Exception as error:
            wait_s, translated = _retry_after_s(error, tried), _translated(error, repo, revision)
            if wait_s is None or time.monotonic() + wait_s > deadline - 1:
                raise translated from error
            on_retry(f"{translated}; asking again in {wait_s:.1f} s")
            time.sleep(wait_s)
    raise AssertionError("it ends by an answer or an error")


@dataclass(frozen=True, slots=True)
class Hit:
    """A repository that a search found. `gated` and the counts are None where the Hub does not say."""

    repo: str
    gated: bool | None
    downloads: int | None
    likes: int | None


def search(query: str, limit: int) -> tuple[Hit, ...]:
    """Repositories with GGUF files that the Hub finds for `query`, the most downloaded first.

    What is no name of a repository is left out. Raises NetworkError (also in offline mode, before any connection).
    """
    require_online("searching the Hub")
    hub, base, secret = _client(), endpoint(), token()

    def ask() -> list[Any]:
        api = hub.HfApi(endpoint=base, token=secret or False)
        return list(
            api.list_models(
                search=query, filter="gguf", sort="downloads", limit=limit, expand=["gated", "downloads", "likes"]
            )
        )

    try:
        found = within(LISTING_SECONDS, ask)
    except Exception as error:
        raise _translated(error, "the Hub's search", None) from error
    hits = {}
    for each in found[:limit]:
        try:
            repo = naming.check_repo(str(each.id))
        except UsageError:
            continue
        gated = None if each.gated is None else bool(each.gated)
        hits[repo] = Hit(repo, gated, _count(each.downloads), _count(each.likes))
    return tuple(hits.values())


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def reachable() -> None:
    """Return if the Hub answers at all, within five seconds. Raises NetworkError, also in offline mode."""
    require_online("asking the Hub")
    hub, base = _client(), endpoint()

    def ask() -> Any:
        return hub.get_session().head(base, timeout=_GLANCE_SECONDS, follow_redirects=False)

    try:
        status = within(_GLANCE_SECONDS, ask).status_code
    except Exception as error:
        raise _translated(error, "the Hub", None) from error
    if status >= 500:
        raise _unreachable(f"it answers {status}")


def token_owner() -> str | None:
    """Whose the token is, None without one. Raises AccessDenied for one that the Hub refuses, NetworkError."""
    require_online("asking the Hub")
    hub, base, secret = _client(), endpoint(), token()
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
        raise _translated(error, "the Hub", None) from error
    name = answer.get("name") if isinstance(answer, dict) else None
    return name[:100] if isinstance(name, str) else "somebody"


def within(seconds: float, call: Callable[[], T], on_slow: Callable[[], None] = lambda: None) -> T:
    """`call()`, given up after `seconds` with a TimeoutError.

    No time-out of the client covers name lookup and every address of a host.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failure.append(error)

    thread = threading.Thread(target=work, name="localai-hub", daemon=True)
    thread.start()
    deadline = time.monotonic() + seconds
    thread.join(max(0.0, min(seconds, _SLOW_SECONDS)))
    if thread.is_alive():
        on_slow()
        thread.join(max(0.0, deadline - time.monotonic()))
    if failure:
        raise failure[0]
    if not outcome:
        raise TimeoutError("no answer in time")
    return outcome[0]


def _checked(repo: str, info: Any) -> Repository:
    """The Hub's answer as `Repository`; whatever is not as it must be is a NetworkError."""
    commit = getattr(info, "sha", None)
    siblings = getattr(info, "siblings", None)
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise _nonsense(repo)
    if len(siblings) > _MOST_FILES:
        raise NetworkError(f"{repo} lists {len(siblings)} files, too many", "give another repository")
    files = []
    for sibling in siblings:
        name, size = sibling.rfilename, sibling.size
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        if not isinstance(name, str):
            raise _nonsense(repo)
        try:
            naming.check_filename(name)
        except UsageError as error:
            if not name.lower().endswith(".gguf"):
                continue  # never touched, so its name does no harm
            raise NetworkError(
                f"{repo} holds a file whose name is not safe: {name[:80]!r}", "nothing was written"
            ) from error
        if not isinstance(size, int) or size < 0 or not (sha256 is None or _SHA256.fullmatch(sha256)):
            if name.lower().endswith(".gguf"):
                raise _nonsense(repo)
            continue
        files.append(RemoteFile(name, size, sha256))
    return Repository(repo, commit, tuple(files), bool(info.gated))


def _nonsense(repo: str) -> NetworkError:
    return NetworkError(f"{endpoint()} gives no sensible answer about {repo}", "check HF_ENDPOINT, or try again later")


def _retry_after_s(error: BaseException, tried: int) -> float | None:
    """Seconds after which to ask again: what the Hub says, else about twice the last; None where it would not help."""
    import httpx2

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    wait_s = float(min(0.5 * 2**tried, _LONGEST_RETRY_AFTER) * random.uniform(0.5, 1.5))
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError):  # it was there, and cut
        return wait_s
    if response is None or not (status == 429 or (isinstance(status, int) and status >= 500)):
        return None
    text = str(response.headers.get("Retry-After", "")).strip()
    return min(float(text), _LONGEST_RETRY_AFTER) if text.isdecimal() and len(text) < 10 else wait_s


def _translated(error: Exception, repo: str, revision: str | None) -> Exception:
    """The client's exception as one of ours; a bug stays what it is."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, LocalaiError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _translated(error.__cause__, repo, revision)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo} has no revision {revision!r}", f"see {endpoint()}/{repo}/tree/main")
    if isinstance(error, errors.HfHubHTTPError):
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return refusal(repo, error.response.status_code, headers)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError("offline mode forbids connections", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return _unreachable("no answer in time")
    if isinstance(error, httpx2.HTTPError):
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _unreachable(re.sub(r"^\[Errno -?\d+\] ", "", reason))
    if isinstance(error, errors.EntryNotFoundError | ConnectionError):
        return _unreachable("the connection failed")
    if isinstance(error, httpx2.InvalidURL):
        return UsageError(f"HF_ENDPOINT is not an address: {endpoint()!r}", "unset HF_ENDPOINT")
    if isinstance(error, errors.FileMetadataError | ValueError | TypeError | KeyError | AttributeError):
        return _nonsense(repo)  # answers of another shape than a Hub's, among them what is not JSON
    if isinstance(error, OSError):
        return disk_error(error, settings.hub_cache())
    return error


def _unreachable(reason: str) -> NetworkError:
    return NetworkError(
        f"cannot reach {endpoint()}: {reason}",
        "check the network, its proxy and HF_ENDPOINT; installed models work without: localai list",
    )


def refusal(repo: str, status: int, headers: Mapping[str, str]) -> LocalaiError:
    """What a status of the Hub means for a repository; `headers` have lower-case names."""
    code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "").lower()
    if code == "GatedRepo":
        return gated(repo)
    if status == 401 and (not code or ("invalid" in said and "credential" in said)):
        if token() is None:
            return AccessDenied(
                f"the Hub asks for a token before it tells of {repo}", "run: hf auth login (or set HF_TOKEN)"
            )
        return AccessDenied("the Hub does not accept your token", "run: hf auth login (or set HF_TOKEN anew)")
    if code == "EntryNotFound":
        return NotFound(f"{repo} no longer has this file", "pull again to see what it has now")
    if status in {401, 404, 410}:  # without a token the Hub says 401 for what does not exist, too
        return NotFound(
            f"{repo} does not exist, or is private", "check the spelling; for a private repository run: hf auth login"
        )
    if status == 403:
        return AccessDenied(f"the Hub refuses access to {repo}", f"see {endpoint()}/{repo}, then run: hf auth login")
    if status == 429:
        return NetworkError("the Hub says: too many requests", "wait a few minutes, or run: hf auth login")
    return NetworkError(f"the Hub answers {status} for {repo}", "try again later")


def gated(repo: str) -> AccessDenied:
    """The error for a repository whose owner gives access one by one."""
    return AccessDenied(
        f"{repo} is gated: its owner must give you access first", f"ask at {endpoint()}/{repo}, then run: hf auth login"
    )


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
    hub, base, secret = _client(), endpoint(), token()
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
        raise _translated(error, repo, commit) from error
    return path


def _links_work() -> bool:
    """Whether the client makes symbolic links in its cache; it tries once, and keeps the answer."""
    from huggingface_hub import file_download

    return file_download.are_symlinks_supported(settings.hub_cache())
