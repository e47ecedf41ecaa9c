"""The client of the Hub, huggingface_hub: where it asks, with which token, and for how long it is waited for."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from localai import naming, settings, source
from localai.errors import AccessDenied, NetworkError, UsageError

T = TypeVar("T")

_SLOW_SECONDS = 3.0  # after these a user is told what is being waited for
_importing = threading.Lock()
_SWITCHED_OFF = (
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_UPDATE_CHECK",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_HUB_DISABLE_SYMLINKS_WARNING",
)


def client() -> ModuleType:
    """huggingface_hub, imported with everything switched off that no user asked for, and silent."""
    with _importing:  # several threads may be the first; half a module is what one of them could get
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

    def guarded() -> Any:
        made = default_client_factory()
        made.max_redirects = source.MAX_REDIRECTS
        made.event_hooks = {**made.event_hooks, "response": [check]}
        return made

    huggingface_hub.set_client_factory(guarded)


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
    """The token of `HF_TOKEN` or `hf auth login`; None without one, or where `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set.

    Raises AccessDenied for one that no request can carry.
    """
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return None
    if not _may_have_token():
        return None
    try:
        found = client().get_token()
    except (OSError, UnicodeDecodeError):  # a token file that cannot be read is no token
        return None
    if not isinstance(found, str):
        return None
    if not (found.isascii() and found.isprintable()):
        raise AccessDenied("your token holds characters that no token has", "run: hf auth login (or set HF_TOKEN anew)")
    return found


def _may_have_token() -> bool:
    """Whether the client could find one: to import it, only to hear that there is none, takes longer than an answer."""
    named = ("HF_TOKEN", "HF_OIDC", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_CO_STAGING")
    return any(name.startswith(named) for name in os.environ) or os.path.lexists(settings.hf_home() / "token")


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
