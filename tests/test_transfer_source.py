"""Where bytes come from: redirects, tokens, proxies, servers that drip, and several connections for one file."""

from __future__ import annotations

import base64
import hashlib
import http.client
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub_on_loopback import QUICK, HubOnLoopback, running
from hypothesis import given
from hypothesis import strategies as st

from localai import partial, transfer
from localai.errors import DoesNotFit, HashMismatch, NetworkError
from localai.lanes import Lanes
from localai.source import MAX_REDIRECTS, Connection, Source, origin, refusal
from localai.transfer import RetryPolicy, download

CONTENT = random.Random(9).randbytes(2_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "m-Q4_0.gguf"
HASTY = replace(QUICK, timeout_s=0.5)  # for servers that stall or drip
# Several connections at once and for good, whatever is measured.
FORCED = Lanes(count=4, segment_bytes=100_000, ahead=6, trial_s=0, gain=0, enough_bps=1e18, least_s=0)


@pytest.fixture
def hub() -> Iterator[HubOnLoopback]:
    with running() as server:
        server.add("a/b", {NAME: CONTENT})
        yield server


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / SHA256


Get = Callable[..., list[str]]


@pytest.fixture
def get(blob: Path) -> Get:
    def run(hub: HubOnLoopback, **options: Any) -> list[str]:
        said: list[str] = []
        url = f"{hub.url}/a/b/resolve/main/{NAME}"
        given = {"size_bytes": len(CONTENT), "sha256": SHA256, "lock": blob.parent / "lock", "retry": QUICK}
        download(url, blob, **{**given, "on_retry": said.append, **options})
        return said

    return run


def is_right(blob: Path) -> bool:
    return blob.read_bytes() == CONTENT and [path.name for path in blob.parent.glob("*.localai.*")] == []


# ------------------------------------------------------------------------------------------------------- redirects


class Answer:
    def __init__(self, status: int, location: str | None = None) -> None:
        self.status = status
        self.headers = {} if location is None else {"Location": location}


class ScriptedConnection(Connection):
    """Answers from a script, and notes what was asked with which headers."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__(1)
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def get(self, url: str, headers: Mapping[str, str]) -> Any:
        self.asked.append((url, dict(headers)))
        return self.answers.pop(0)


TOKEN = {"Authorization": "Bearer secret"}


def source(url: str = "https://hub.example/a") -> Source:
    return Source(url, TOKEN, 1, refusal)


def test_the_token_goes_to_its_own_origin_only() -> None:
    connection = ScriptedConnection(
        Answer(302, "/b"),
        Answer(307, "https://cdn.example/x"),
        Answer(302, "https://hub.example:444/y"),
        Answer(302, "https://HUB.example:443/z"),
        Answer(200),
    )
    source().open(connection, 0)
    sent = [(url, "Authorization" in headers) for url, headers in connection.asked]
    assert sent == [
        ("https://hub.example/a", True),
        ("https://hub.example/b", True),
        ("https://cdn.example/x", False),
        ("https://hub.example:444/y", False),
        ("https://HUB.example:443/z", True),
    ]


@pytest.mark.parametrize(
    "location",
    [
        "http://hub.example/a",
        "HTTP://cdn.example/x",
        "//u:p@cdn.example/x",
        "file:///etc/passwd",
        "https://cdn.example:0/",
        "https://cdn.example:99999/",
        "https://cdn.example/\x1b",
        "https://[::1",
        "javascript:1",
    ],
)
def test_an_unsafe_redirect_is_not_followed(location: str) -> None:
    connection = ScriptedConnection(Answer(302, location), Answer(200))
    with pytest.raises(NetworkError, match="not safe"):
        source().open(connection, 0)
    assert len(connection.asked) == 1


@pytest.mark.parametrize("hops", range(MAX_REDIRECTS + 3))
def test_at_most_five_redirects(hops: int) -> None:
    connection = ScriptedConnection(*[Answer(302, f"/{hop}") for hop in range(hops)], Answer(200))
    if hops <= MAX_REDIRECTS:
        assert source().open(connection, 0).status == 200
    else:
        with pytest.raises(NetworkError, match="more than 5"):
            source().open(connection, 0)


@given(st.text(max_size=60))
def test_no_redirect_leads_below_https_or_lets_a_token_go(location: str) -> None:
    wanted = source()
    try:
        url = wanted.redirected("https://hub.example/a", location)
    except NetworkError:
        return
    assert url.startswith("https://") or origin(url)[0] == "https"
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url


# --------------------------------------------------------------------------------------------------------- proxies


def a_proxy(answer: bytes) -> tuple[int, list[bytes], threading.Thread]:
    """A proxy for one request: its port, what it was asked, and its thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve() -> None:
        with listening, listening.accept()[0] as connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(4096)
            heard.append(head)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return listening.getsockname()[1], heard, thread


def test_a_plain_proxy_gets_the_whole_address_and_its_own_password(monkeypatch: pytest.MonkeyPatch) -> None:
    port, heard, thread = a_proxy(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "other.example")
    with Connection(5) as connection:
        assert connection.get("http://hub.example/a?b=1", {"X": "y"}).read() == b"hi"
    thread.join()
    head = heard[0].decode()
    assert head.startswith("GET http://hub.example/a?b=1 HTTP/1.1\r\nHost: hub.example\r\n")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:p@ss').decode()}\r\n" in head


def test_https_goes_through_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    port, heard, thread = a_proxy(b"HTTP/1.1 403 No\r\n\r\n")
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{port}")
    with Connection(5) as connection, pytest.raises(OSError, match="403"):
        connection.get("https://hub.example/a", TOKEN)
    thread.join()
    assert heard[0].startswith(b"CONNECT hub.example:443 ")
    assert b"secret" not in heard[0]


def test_no_proxy_is_honoured(hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(NetworkError):
        get(hub)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    get(hub)
    assert is_right(blob)


# --------------------------------------------------------------------------------------------- servers that drip


@pytest.mark.parametrize("at", [0, 500_000])
def test_a_server_that_drips_is_cut_off(hub: HubOnLoopback, get: Get, blob: Path, at: int) -> None:
    if at:
        hub.fault(drop_at=at)
    hub.fault(drip=10_000)
    said = get(hub, retry=HASTY)
    assert "next to nothing" in said[-1]
    assert is_right(blob)


def test_a_head_that_drips_is_cut_off(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(drip_head=True)
    assert "next to nothing" in get(hub, retry=HASTY)[0]
    assert is_right(blob)


# -------------------------------------------------------------------------------------------- several connections


def test_several_connections_bring_the_same_bytes(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    told: list[int] = []
    assert get(hub, lanes=FORCED, progress=told.append) == []
    assert is_right(blob)
    assert told == sorted(told)
    ranges = [seen.range for seen in hub.downloads()]
    assert ranges[0] is None
    assert len(ranges) > 5, "how far the first connection comes before the others begin is the scheduler's"
    assert all(seen.if_range == f'"{SHA256[:16]}"' for seen in hub.downloads()[1:])


@pytest.mark.parametrize("segment", [1_000, 65_537, 700_000, 10**9])
@pytest.mark.parametrize(("count", "ahead"), [(1, 1), (2, 1), (4, 3), (3, 50)])
def test_any_number_of_connections(
    hub: HubOnLoopback, get: Get, blob: Path, count: int, ahead: int, segment: int
) -> None:
    hub.repos["a/b"].files[NAME] = small = CONTENT[:100_000] if segment == 1_000 else CONTENT
    sha256 = hashlib.sha256(small).hexdigest()
    lanes = replace(FORCED, count=count, ahead=ahead, segment_bytes=segment)
    get(hub, lanes=lanes, size_bytes=len(small), sha256=sha256)
    assert blob.read_bytes() == small


FAULTS: list[dict[str, Any]] = [
    {"drop_at": 777_777},
    {"drop_at": 0},
    {"end_at": 1_999_999},
    {"hang_at": 1_000_001},
    {"drop_at": 777_777, "reset": True},
    {"status": 503},
    {"status": 429, "retry_after": "0"},
    {"status": 403, "times": 1},
    {"ignore_range": True},
    {"content_range": "bytes 0-9/10"},
    {"content_range": "bytes 100000-199999/2000000"},
    {"drip": 10_000},
    {"drip_head": True},
    {"announce": 5},
    {"announce": 10**9},
    {"extra": 10},
]


@pytest.mark.parametrize("after", [1, 600_000, 1_900_000])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_several_connections_to_a_server_that_misbehaves(
    get: Get, blob: Path, fault: dict[str, Any], after: int
) -> None:
    with running(storage=True) as hub:
        hub.add("a/b", {NAME: CONTENT})
        hub.fault(**fault, only_after=after)
        stalls = {"hang_at", "drip", "drip_head", "announce"} & set(fault)
        get(hub, lanes=FORCED, retry=HASTY if stalls else QUICK)
        assert is_right(blob)
        assert all(seen.authorization is None for seen in hub.downloads())


@pytest.mark.parametrize("at", [0, 333_333, 1_999_999])
def test_a_flipped_bit_on_one_of_several_connections(hub: HubOnLoopback, get: Get, blob: Path, at: int) -> None:
    hub.fault(flip_at=at, times=99)
    with pytest.raises(HashMismatch):
        get(hub, lanes=FORCED)
    assert not blob.exists()
    hub.faults.clear()
    get(hub, lanes=FORCED)
    assert is_right(blob)


def test_another_file_on_one_of_several_connections(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    other = CONTENT[::-1]
    gate = threading.Event()
    hub.fault(gate=gate, only_after=900_000)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            get(hub, lanes=FORCED)
        except HashMismatch as error:
            raised.append(error)

    waiting = threading.Thread(target=work)
    waiting.start()
    assert hub.wait_until_sent(900_000)
    hub.repos["a/b"].files[NAME], hub.repos["a/b"].etags[NAME] = other, '"other"'
    gate.set()
    waiting.join()
    assert raised
    assert not blob.exists()


def test_what_several_connections_left_is_taken_up(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(status=500, only_after=1_000_000, times=99)
    with pytest.raises(NetworkError):
        get(hub, lanes=FORCED)
    kept = partial.partial_path(blob).read_bytes()
    assert len(kept) >= 1_000_000
    assert kept == CONTENT[: len(kept)]
    hub.faults.clear()
    get(hub, lanes=FORCED)
    assert is_right(blob)


def test_a_full_disk_with_several_connections(
    hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = partial.PartialFile.write

    def write(self: partial.PartialFile, chunk: bytes) -> None:
        if self.position > 700_000:
            raise DoesNotFit("the disk is full", "free some")
        real(self, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(partial.PartialFile, "write", write)
        with pytest.raises(DoesNotFit):
            get(hub, lanes=FORCED)
    get(hub, lanes=FORCED)
    assert is_right(blob)
    assert not [thread for thread in threading.enumerate() if thread.name == "localai-lane"]


def test_one_connection_that_is_fast_stays_alone(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    get(hub, lanes=replace(FORCED, enough_bps=1))
    assert len(hub.downloads()) == 1
    blob.unlink()
    get(hub, lanes=replace(FORCED, least_s=1e9))
    assert len(hub.downloads()) == 2


@pytest.mark.parametrize("single_bps", [1e4, 3e5, 1e6, 20e6, 99e6])
def test_segments_fit_the_rate_so_that_a_trial_sees_several(single_bps: float) -> None:
    """What comes ahead of the first segment counts only when that is whole: on a slow line it must be small."""
    lanes = Lanes().for_rate(single_bps)
    assert lanes.segment_bytes <= max(single_bps * lanes.trial_s / 4, 1 << 18)
    assert lanes.segment_bytes <= Lanes().segment_bytes


def test_several_that_bring_too_little_are_given_up(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    get(hub, lanes=replace(FORCED, gain=1e18))
    assert is_right(blob)
    assert hub.downloads()[-1].range is not None
    assert hub.downloads()[-1].range.endswith("-")  # type: ignore[union-attr]


def test_without_a_strong_etag_there_is_one_connection(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.repos["a/b"].etags[NAME] = 'W/"weak"'
    get(hub, lanes=FORCED)
    assert is_right(blob)
    assert len(hub.downloads()) == 1


def test_a_connection_that_the_server_closed_is_made_anew(hub: HubOnLoopback) -> None:
    url = f"{hub.url}/a/b/resolve/main/{NAME}"
    with Connection(5) as connection:
        connection.get(url, {}).read()
        connection.cut()
        assert connection.get(url, {"Range": "bytes=0-9"}).read() == CONTENT[:10]


# -------------------------------------------------------------------------------------------------- after a crash


def leave(hub: HubOnLoopback, get: Get, at: int) -> None:
    hub.fault(drop_at=at)
    with pytest.raises(NetworkError):
        get(hub, retry=RetryPolicy(tries=1))


def test_after_a_restart_only_what_was_synced_is_believed(
    hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_SYNC_BYTES", 100_000)
    leave(hub, get, 1_500_000)
    content = bytearray(partial.partial_path(blob).read_bytes())
    content[-50_000:] = bytes(50_000)  # what a power loss leaves of bytes that were never written
    partial.partial_path(blob).write_bytes(content)
    monkeypatch.setattr(partial, "boot_id", lambda: "another")
    get(hub)
    assert is_right(blob)
    begin = int((hub.downloads()[-1].range or "").removeprefix("bytes=").rstrip("-") or 0)
    assert 0 < begin < 1_450_000


def test_a_damaged_rest_costs_one_more_fetch(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    leave(hub, get, 1_500_000)
    partial.partial_path(blob).write_bytes(bytes(1_500_000))
    assert "damaged" in get(hub)[0]
    assert is_right(blob)


@pytest.mark.parametrize(
    "state", [b"", b"{", b"[]", b"7", b'{"etag": 7, "boot": 7, "synced_bytes": "x"}', b"\xff" * 9, b"[" * 5000]
)
def test_a_damaged_note_is_not_believed(hub: HubOnLoopback, get: Get, blob: Path, state: bytes) -> None:
    leave(hub, get, 1_500_000)
    blob.with_name(f"{SHA256}.localai.state").write_bytes(state)
    get(hub)
    assert is_right(blob)
    assert hub.downloads()[-1].range == "bytes=1500000-"


def test_the_machines_start_has_a_name() -> None:
    partial.boot_id.cache_clear()
    assert partial.boot_id() == partial.boot_id() != ""


def test_a_reply_that_is_no_http() -> None:
    port, _, thread = a_proxy(b"SSH-2.0\r\n\r\n")
    with Connection(5) as connection, pytest.raises(http.client.BadStatusLine):
        connection.get(f"http://127.0.0.1:{port}/", {})
    thread.join()


def test_patience_is_long_enough_for_a_slow_line() -> None:
    assert transfer.RetryPolicy().least_bytes / transfer.RetryPolicy().timeout_s < 1000  # bytes per second
