"""`localai pull` from a Hub that speaks https: what it never does is fall back to http, or let the token go."""

from __future__ import annotations

import random
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from conftest import Cli
from hub_on_loopback import Fault, HubOnLoopback, running

from localai import library

REPO, NAME = "o/m-GGUF", "m-Q4_0.gguf"
CONTENT = b"GGUF" + random.Random(9).randbytes(400_000)
TOKEN = "hf_secret"
BEARER = f"Bearer {TOKEN}"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=127.0.0.1"
    words = [*request.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "certificate"]
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "certificate").read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """What a server of the tests needs; the client's processes trust it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def pull(cli: Cli, hub: HubOnLoopback) -> subprocess.CompletedProcess[str]:
    hub.add(REPO, {NAME: CONTENT}, token=TOKEN)
    return cli("pull", REPO, env={"HF_ENDPOINT": hub.url})


def listed() -> list[bytes]:
    return [model.path.read_bytes() for model in library.installed() if model.repo == REPO]


def test_a_listing_does_not_fall_back_to_http(cli: Cli, tls: ssl.SSLContext) -> None:
    with running(tls=tls) as hub, running() as plain:
        plain.add(REPO, {NAME: CONTENT})
        hub.listing_faults.append(Fault(location=f"{plain.url}/api/models/{REPO}?blobs=true"))
        done = pull(cli, hub)
        assert (done.returncode, "not safe to follow" in done.stderr) == (5, True)
        assert plain.requests() == []


@pytest.mark.parametrize("at", [None, 100_000])
def test_the_token_goes_to_the_hub_and_not_to_its_storage(cli: Cli, tls: ssl.SSLContext, at: int | None) -> None:
    with running(storage=True, tls=tls, storage_tls=tls) as hub:
        assert hub.storage is not None
        if at is not None:
            hub.fault(drop_at=at)
        done = pull(cli, hub)
        assert (done.returncode, listed()) == (0, [CONTENT]), done.stderr
        assert {seen.authorization for seen in hub.requests()} == {BEARER}
        assert {seen.authorization for seen in hub.storage.requests()} == {None}


def test_a_storage_server_without_https_is_not_asked(cli: Cli, tls: ssl.SSLContext) -> None:
    with running(storage=True, tls=tls) as hub:
        assert hub.storage is not None
        done = pull(cli, hub)
        assert (done.returncode, listed(), hub.storage.requests()) == (5, [], [])
        assert "not safe to follow" in done.stderr
        assert "hint: " in done.stderr


@pytest.mark.parametrize("at", [200_000])
def test_nor_in_the_middle_of_a_file(cli: Cli, tls: ssl.SSLContext, at: int) -> None:
    with running() as other, running(tls=tls) as hub:
        hub.fault(drop_at=at)
        hub.fault(location=f"{other.url}/{REPO}/resolve/main/{NAME}")
        done = pull(cli, hub)
        assert (done.returncode, listed(), other.requests()) == (5, [], [])
        assert pull(cli, hub).returncode == 0
        assert listed() == [CONTENT]
        assert [seen.range for seen in hub.downloads()][-1] == f"bytes={at}-"


def test_a_certificate_that_nobody_vouches_for(cli: Cli, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with running(tls=tls) as hub:
        done = pull(cli, hub)
        assert (done.returncode, listed(), hub.requests()) == (5, [], [])
        assert "certificate" in done.stderr
