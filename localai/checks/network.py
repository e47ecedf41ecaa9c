"""The Hub and the token. Only the configured endpoint is asked, with one short request each, and none offline."""

from __future__ import annotations

import os
from collections.abc import Iterable

from localai import hub, hub_client, settings
from localai.checks.finding import Finding, fault, ok, warning
from localai.errors import AccessDenied, LocalaiError


def check_hub() -> Iterable[Finding]:
    """Whether the Hub answers and accepts the token."""
    try:
        if settings.offline():
            yield _chosen()
            return
        hub.reachable()
    except LocalaiError as error:
        yield fault("hub", f"{error.message}. Installed models run, nothing can be downloaded. {_cause()}", _mend())
        return
    yield ok("hub", f"{hub_client.endpoint()} answers")
    yield _token()


def _chosen() -> Finding:
    """Offline mode was chosen, so it is no fault; how to end it is said all the same."""
    setting = settings.load()["offline"]
    if not setting.value:
        how, command = "To end it:", "unset HF_HUB_OFFLINE"
    elif setting.source == "environment":
        how, command = "To end it, leave out --offline, or:", f"unset {setting.key.variable}"
    else:
        how, command = "To end it:", "localai config set offline false"
    return ok("hub", f"offline, as chosen: nothing is downloaded, installed models run. {how}", command)


def _cause() -> str:
    if os.environ.get("HF_ENDPOINT"):
        return "HF_ENDPOINT names another Hub; to take the public one:"
    return "Check the network and its proxy; if it is meant to be off, tell localai:"


def _mend() -> str:
    if os.environ.get("HF_ENDPOINT"):
        return "unset HF_ENDPOINT"
    return "localai config set offline true"


def _token() -> Finding:
    try:
        name = hub.token_owner()
    except AccessDenied as error:
        command = "unset HF_TOKEN" if os.environ.get("HF_TOKEN") else "hf auth login"
        return fault("token", f"{error.message}: gated models cannot be pulled", command)
    except LocalaiError as error:
        return warning("token", f"whether the token is accepted could not be asked: {error.message}")
    if name is None:
        return ok("token", "none, and none is needed but for gated models (hf auth login)")
    return ok("token", f"accepted, of {name}")
