"""What the Hub's refusals, and its client's exceptions, mean for a user."""

from __future__ import annotations

import http.client
import random
import re
import ssl
from collections.abc import Mapping

from localai import settings
from localai.errors import AccessDenied, LocalaiError, NetworkError, NotFound, UsageError
from localai.hub_client import endpoint, token
from localai.partial import disk_error
from localai.source import reason_of

_LONGEST_RETRY_AFTER = 5.0


def translated(error: Exception, repo: str, revision: str | None) -> Exception:
    """The client's exception as one of ours; a bug stays what it is."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, LocalaiError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return translated(error.__cause__, repo, revision)
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo} has no revision {revision!r}", f"see {endpoint()}/{repo}/tree/main")
    if isinstance(error, errors.HfHubHTTPError):
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return refusal(repo, error.response.status_code, headers)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return NetworkError("offline mode forbids connections", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return unreachable("no answer in time")
    if isinstance(error, httpx2.HTTPError):
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return unreachable(re.sub(r"^\[Errno -?\d+\] ", "", reason))
    if isinstance(error, errors.EntryNotFoundError | ConnectionError):
        return unreachable("the connection failed")
    if isinstance(error, httpx2.InvalidURL):
        return UsageError(f"HF_ENDPOINT is not an address: {endpoint()!r}", "unset HF_ENDPOINT")
    if isinstance(
        error, errors.FileMetadataError | ValueError | TypeError | KeyError | AttributeError | RecursionError
    ):
        return nonsense(repo)  # answers of another shape than a Hub's, among them what is not JSON
    if isinstance(error, OSError):
        return disk_error(error, settings.hub_cache())
    return error


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


def unreachable(reason: str) -> NetworkError:
    return NetworkError(
        f"cannot reach {endpoint()}: {reason}",
        "check the network, its proxy and HF_ENDPOINT; installed models work without: localai list",
    )


def nonsense(repo: str) -> NetworkError:
    return NetworkError(f"{endpoint()} gives no sensible answer about {repo}", "check HF_ENDPOINT, or try again later")


# It was there, and cut: the next attempt may bring more. Others would fail again.
CUT = (http.client.IncompleteRead, http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def broken(error: Exception) -> NetworkError:
    """What a connection to the Hub that failed means; `error` is one of source.BROKEN."""
    if isinstance(error, TimeoutError):
        return unreachable("no answer in time")
    plain = isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, *CUT))
    return unreachable(str(getattr(error, "strerror", None) or error) if plain else reason_of(error))


def retry_after_s(error: Exception, tried: int) -> float:
    """Seconds after which to ask again: what the Hub says, else about twice the last."""
    said = getattr(error, "retry_after_s", None)
    if said is not None:
        return min(float(said), _LONGEST_RETRY_AFTER)
    return float(min(0.5 * 2**tried, _LONGEST_RETRY_AFTER) * random.uniform(0.5, 1.5))
