"""The real huggingface_hub client against a Hub on loopback."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_on_loopback import COMMIT, Fault, HubOnLoopback, running

from localai import hub, hub_cache, hub_client, hub_errors, settings
from localai.domain.files import RemoteFile
from localai.errors import AccessDenied, HashMismatch, LocalaiError, NetworkError, NotFound, UsageError

CONTENT = b"GGUF" + bytes(1000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "m-Q4_0.gguf"
FILE = RemoteFile(NAME, len(CONTENT), SHA256)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        started.add("a/b", {NAME: CONTENT, "README.md": b"# hi"}, sha256={"README.md": None})
        yield started


def test_what_a_repository_holds(server: HubOnLoopback) -> None:
    found = hub.repository("a/b")
    assert (found.repo, found.commit, found.gated) == ("a/b", COMMIT, False)
    assert found.files == (FILE, RemoteFile("README.md", 4, None))
    assert hub.repository("a/b", "main").commit == COMMIT


def test_nothing_is_asked_that_no_user_asked_for(server: HubOnLoopback) -> None:
    hub.repository("a/b")
    put(server)
    hub.link("a/b", COMMIT, FILE)
    paths = [seen.path for seen in server.requests()]
    assert paths == ["/api/models/a/b?blobs=true", f"/a/b/resolve/{COMMIT}/{NAME}"]
    assert [seen.method for seen in server.requests()] == ["GET", "HEAD"]


@pytest.mark.parametrize("token", [None, "hf_mine"])
def test_a_repository_that_is_not_there(
    server: HubOnLoopback, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(NotFound, match="does not exist, or is private"):
        hub.repository("a/nosuch")


def test_a_revision_that_is_not_there(server: HubOnLoopback) -> None:
    with pytest.raises(NotFound, match="no revision 'v9'"):
        hub.repository("a/b", "v9")


def test_a_token_is_sent_and_a_wrong_one_is_told(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repos["a/b"].token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert hub.repository("a/b").commit == COMMIT
    assert hub_client.auth_headers() == {"Authorization": "Bearer hf_right"}
    server.listing_faults.append(Fault(status=401))
    with pytest.raises(AccessDenied, match="token"):
        hub.repository("a/b")


@pytest.mark.parametrize("secret", ["hf_\u00e9", "hf_\x01x"])
def test_a_token_that_is_none_is_told_and_not_shown(
    server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", secret)
    with pytest.raises(AccessDenied, match="your token holds characters") as caught:
        hub.repository("a/b")
    assert secret not in caught.value.message
    assert server.requests() == []


def test_a_token_file_that_is_no_text_is_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub_client.auth_headers() == {}


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDenied), (403, AccessDenied), (410, NotFound), (418, NetworkError)]
)
def test_other_refusals(server: HubOnLoopback, status: int, error: type[LocalaiError]) -> None:
    server.listing_faults.append(Fault(status=status))
    with pytest.raises(error) as caught:
        hub.repository("a/b")
    assert caught.value.hint


def test_a_busy_hub_is_asked_again(server: HubOnLoopback) -> None:
    server.listing_faults += [Fault(status=503, retry_after="0"), Fault(status=429, retry_after="0")]
    assert hub.repository("a/b").commit == COMMIT


@pytest.mark.parametrize("fault", [Fault(drop_at=0), Fault(status=503), Fault(status=429)], ids=str)
def test_a_listing_that_is_cut_or_refused_is_asked_for_again_and_told(
    server: HubOnLoopback, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waited.append)
    server.listing_faults += [fault] * 3
    told: list[str] = []
    assert hub.repository("a/b", on_retry=told.append).commit == COMMIT
    assert [line.count("asking again") for line in told] == [1, 1, 1]
    assert all(0.25 * 2**at <= seconds <= 0.75 * 2**at for at, seconds in enumerate(waited))


def test_a_renamed_repository_is_followed_to_its_new_name(server: HubOnLoopback) -> None:
    server.listing_faults += [Fault(location="/api/models/a/b?blobs=true")] * 5
    assert hub.repository("old/b").commit == COMMIT
    server.listing_faults += [Fault(location="/api/models/a/b?blobs=true")] * 6
    with pytest.raises(NetworkError, match="redirect"):
        hub.repository("old/b")


def test_an_answer_that_is_cut_off_is_asked_for_again(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    server.listing_faults.append(Fault(end_at=20))
    told: list[str] = []
    assert hub.repository("a/b", on_retry=told.append).commit == COMMIT
    assert "the connection was cut; asking again" in told[0]


def test_an_answer_without_end_is_not_read_to_its_end(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_ANSWER_BYTES", 50)
    with pytest.raises(NetworkError, match="no sensible answer"):
        hub.repository("a/b")


def test_a_listing_imports_no_more_than_it_needs(server: HubOnLoopback) -> None:
    code = "import sys; from localai import hub; hub.repository('a/b'); print([m for m in sys.modules if 'http' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stderr == ""
    assert "http.client" in done.stdout
    assert "httpx2" not in done.stdout


@pytest.mark.parametrize("place", ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_the_token_is_found_wherever_the_client_finds_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("hf_here\n")
    monkeypatch.setenv(
        place, {"HF_TOKEN": "hf_here", "HF_TOKEN_PATH": str(tmp_path / "token")}.get(place, str(tmp_path))
    )
    code = "from localai import hub_client; print(hub_client.token())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "hf_here", done.stderr


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://u:p@127.0.0.1/"])
def test_a_listing_is_not_followed_to_what_is_no_safe_address(server: HubOnLoopback, location: str) -> None:
    server.listing_faults.append(Fault(location=location))
    with pytest.raises(NetworkError, match="not safe"):
        hub.repository("a/b")
    assert len(server.requests()) == 1


def test_a_gated_repository_says_how_to_get_access(server: HubOnLoopback) -> None:
    error = hub_errors.refusal("a/b", 403, {"x-error-code": "GatedRepo"})
    assert isinstance(error, AccessDenied)
    assert error.exit_code == 9
    assert f"{server.url}/a/b" in error.hint
    assert "hf auth login" in error.hint


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NetworkError, match=r"cannot reach http://127\.0\.0\.1:9") as caught:
        hub.repository("a/b")
    assert "\n" not in caught.value.message


def test_a_hub_that_never_answers_is_given_up(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LISTING_SECONDS", 0.3)
    server.listing_faults.append(Fault(hang_at=0))
    told: list[str] = []
    with pytest.raises(NetworkError, match="no answer in time"):
        hub.repository("a/b", on_retry=told.append)
    assert hub.LISTING_SECONDS < 15
    assert len(told) == 1
    assert "has not answered yet" in told[0]


def test_a_server_that_is_no_hub(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("nonsense", "ftp://x", "http://", "http://[::1", "http://h:99999"):
        monkeypatch.setenv("HF_ENDPOINT", value)
        with pytest.raises(UsageError):
            hub.repository("a/b")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("HF_ENDPOINT", f"https://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(hub, "LISTING_SECONDS", 0.3)
        with pytest.raises(NetworkError):
            hub.repository("a/b")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        "text",
        7,
        {"id": "a/b"},
        {"sha": "../x"},
        {"sha": 7},
        {"siblings": 7},
        {"siblings": [7]},
        {"siblings": [{}]},
        {"siblings": [{"rfilename": NAME, "size": 9, "lfs": {"sha256": 7}}]},
    ],
)
def test_answers_that_make_no_sense(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    if isinstance(answer, dict) and answer:
        answer = {"id": "a/b", "sha": COMMIT, "siblings": [], **answer} if "id" not in answer else answer
    monkeypatch.setattr("hub_on_loopback.listing_of", lambda *args: answer)
    with pytest.raises(NetworkError, match="no sensible answer"):
        hub.repository("a/b")


@pytest.mark.parametrize(
    "bad", [{"sizes": {NAME: -1}}, {"sizes": {NAME: "9"}}, {"sha256": {NAME: "../x"}}, {"commit": "main"}]
)
def test_sizes_hashes_and_commits_are_checked(server: HubOnLoopback, bad: dict[str, object]) -> None:
    server.add("a/b", {NAME: CONTENT}, **bad)
    with pytest.raises(NetworkError, match="no sensible answer"):
        hub.repository("a/b")


@pytest.mark.parametrize(
    "name", ["../x.gguf", "/etc/x.gguf", "C:\\x.gguf", "a\x1b[2J.gguf", "a\0b.gguf", "x" * 300 + ".gguf"]
)
def test_a_hostile_file_name_is_refused(server: HubOnLoopback, name: str) -> None:
    server.add("a/b", {name: CONTENT})
    with pytest.raises(NetworkError, match="not safe") as caught:
        hub.repository("a/b")
    assert caught.value.message.isprintable()
    server.add("a/b", {name.replace(".gguf", ".txt"): b"", NAME: CONTENT})
    assert [file.name for file in hub.repository("a/b").files] == [NAME]


# --------------------------------------------------------------------------------------------------------- offline


@pytest.mark.parametrize(
    ("variable", "hint"), [("LOCALAI_OFFLINE", "--offline"), ("HF_HUB_OFFLINE", "HF_HUB_OFFLINE"), (None, "config set")]
)
def test_offline_mode_says_what_forbids_it(
    server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch, variable: str | None, hint: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, "1")
    else:
        settings.store("offline", "true")
    with pytest.raises(NetworkError) as caught:
        hub.repository("a/b")
    assert hint in caught.value.hint
    assert server.requests() == []


# ------------------------------------------------------------------------------------------------------- the cache


def put(server: HubOnLoopback) -> Path:
    blob = hub_cache.blob_path("a/b", SHA256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(CONTENT)
    return blob


def test_only_the_pointer_is_added(server: HubOnLoopback) -> None:
    blob = put(server)
    path = hub.link("a/b", COMMIT, FILE)
    assert path == settings.hub_cache() / "models--a--b" / "snapshots" / COMMIT / NAME
    assert path.resolve() == blob.resolve()
    assert server.downloads() == []
    assert (settings.hub_cache() / "models--a--b" / "refs" / "main").read_text() == COMMIT


def test_other_tools_find_the_file_offline(server: HubOnLoopback) -> None:
    put(server)
    path = hub.link("a/b", COMMIT, FILE)
    script = "from huggingface_hub import hf_hub_download as d; print(d('a/b', 'm-Q4_0.gguf', local_files_only=True))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert found.stdout.strip() == str(path)


def test_a_hub_that_changes_its_mind_is_not_believed(server: HubOnLoopback) -> None:
    put(server)
    server.repos["a/b"].files[NAME] = b"GGUF other"
    with pytest.raises(HashMismatch):
        hub.link("a/b", COMMIT, FILE)
    server.repos["a/b"].files[NAME] = CONTENT
    assert hub.link("a/b", COMMIT, FILE).read_bytes() == CONTENT


def test_a_pointer_that_leads_elsewhere_is_mended(server: HubOnLoopback) -> None:
    blob = put(server)
    pointer = hub_cache.pointer_path("a/b", COMMIT, NAME)
    pointer.parent.mkdir(parents=True)
    pointer.write_bytes(b"something else")
    assert hub.link("a/b", COMMIT, FILE).resolve() == blob.resolve()


def test_without_symbolic_links_there_is_still_one_file(server: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    blob = put(server)
    path = hub.link("a/b", COMMIT, FILE)
    assert not path.is_symlink()
    assert path.read_bytes() == CONTENT
    assert not blob.exists()
    assert server.downloads() == []
    assert hub_cache.bytes_at_hand("a/b", COMMIT, FILE) == len(CONTENT)
    hub_cache.reclaim("a/b", COMMIT, FILE)
    assert blob.read_bytes() == CONTENT
    assert hub.link("a/b", COMMIT, FILE) == path
    assert not blob.exists()
    assert hub_cache.unlink("a/b", COMMIT, NAME, path) == len(CONTENT)


def test_unlink_frees_what_nobody_else_needs(server: HubOnLoopback) -> None:
    blob = put(server)
    path = hub.link("a/b", COMMIT, FILE)
    other = hub_cache.pointer_path("a/b", "f" * 40, "same.gguf")
    other.parent.mkdir(parents=True)
    other.symlink_to(os.path.relpath(blob, other.parent))
    assert hub_cache.unlink("a/b", COMMIT, NAME, path) == 0
    assert not path.parent.exists()
    assert other.read_bytes() == CONTENT
    assert not (settings.hub_cache() / "models--a--b" / "refs" / "main").exists()
    assert hub_cache.unlink("a/b", "f" * 40, "same.gguf", other) == len(CONTENT)
    assert not blob.exists()


def test_unlink_touches_nothing_outside_the_repository(tmp_path: Path) -> None:
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(b"mine")
    for name, path in (("precious.gguf", precious), (NAME, hub_cache.pointer_path("c/d", COMMIT, NAME))):
        with pytest.raises(UsageError):
            hub_cache.unlink("a/b", COMMIT, name, path)
    pointer = hub_cache.pointer_path("a/b", COMMIT, NAME)
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(precious)
    assert hub_cache.unlink("a/b", COMMIT, NAME, pointer) == 0
    assert precious.exists()
