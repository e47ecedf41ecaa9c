"""The transfer against a server that misbehaves: after each fault either the right file or none."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_on_loopback import HubOnLoopback, running
from waiting import wait_for

from localai import locks, partial, source, transfer
from localai.errors import AccessDenied, DoesNotFit, HashMismatch, LocalaiError, NetworkError, NotFound
from localai.transfer import RetryPolicy, download

CONTENT = random.Random(7).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(tries=4, first_wait_s=0.0, longest_wait_s=0.0, timeout_s=5)
NAME = "m-Q4_0.gguf"


@pytest.fixture
def hub() -> Iterator[HubOnLoopback]:
    with running() as server:
        server.add("a/b", {NAME: CONTENT})
        yield server


@pytest.fixture
def two_hosts() -> Iterator[HubOnLoopback]:
    with running(storage=True) as server:
        server.add("a/b", {NAME: CONTENT})
        yield server


Get = Callable[..., list[str]]


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / SHA256


@pytest.fixture
def get(blob: Path) -> Get:
    """Download the file; returns the lines that a user would read on the way."""

    def run(hub: HubOnLoopback, **options: Any) -> list[str]:
        said: list[str] = []
        settings: dict[str, Any] = {
            "size_bytes": len(CONTENT),
            "sha256": SHA256,
            "lock": blob.parent / "lock",
            "on_retry": said.append,
            "retry": QUICK,
        }
        url = options.pop("url", f"{hub.url}/a/b/resolve/main/{NAME}")
        download(url, blob, **{**settings, **options})
        return said

    return run


def is_right(blob: Path) -> bool:
    return blob.read_bytes() == CONTENT and not partial.partial_path(blob).exists()


def test_a_file_arrives_and_progress_is_told(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    told: list[int] = []
    assert get(hub, progress=told.append) == []
    assert is_right(blob)
    assert told[-1] == len(CONTENT)
    assert sorted(path.name for path in blob.parent.iterdir()) == sorted([SHA256, "lock"])


def test_a_file_that_is_there_is_not_fetched_again(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    get(hub)
    get(hub)
    assert len(hub.downloads()) == 1


@pytest.mark.parametrize("at", [0, 1, 65_535, 65_536, 1_000_000, len(CONTENT) - 1])
@pytest.mark.parametrize("how", ["drop_at", "end_at"])
def test_a_lost_connection_is_taken_up_where_it_broke(
    hub: HubOnLoopback, get: Get, blob: Path, how: str, at: int
) -> None:
    hub.fault(**{how: at})
    said = get(hub)
    assert len(said) == 1
    assert is_right(blob)
    assert [seen.range for seen in hub.downloads()] == [None, f"bytes={at}-" if at else None]


def test_a_reset_connection_is_taken_up(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(drop_at=2_000_000, reset=True, times=2)
    get(hub)
    assert is_right(blob)


def test_the_hash_covers_the_bytes_of_an_earlier_process(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(drop_at=1_000_000)
    with pytest.raises(NetworkError):
        get(hub, retry=RetryPolicy(tries=1))
    assert not blob.exists()
    told: list[int] = []
    get(hub, progress=told.append)
    assert told[0] == 1_000_000
    assert is_right(blob)
    assert hub.downloads()[-1].range == "bytes=1000000-"
    assert hub.downloads()[-1].if_range == f'"{SHA256[:16]}"'


@pytest.mark.parametrize("at", [0, 1_500_000, len(CONTENT) - 1])
def test_a_flipped_bit_is_detected_and_mended(hub: HubOnLoopback, get: Get, blob: Path, at: int) -> None:
    hub.fault(flip_at=at)
    with pytest.raises(HashMismatch) as caught:
        get(hub)
    assert caught.value.exit_code == 5
    assert not blob.exists()
    assert not partial.partial_path(blob).exists()
    get(hub)
    assert is_right(blob)


def test_a_changed_etag_starts_over(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(drop_at=1_000_000)
    with pytest.raises(NetworkError):
        get(hub, retry=RetryPolicy(tries=1))
    hub.repos["a/b"].etags[NAME] = '"another"'
    get(hub)
    assert is_right(blob)
    assert [seen.status for seen in hub.downloads()] == [200, 200]


@pytest.mark.parametrize("etag", ["", 'W/"weak"', "unquoted", '"\t"', '"' + "x" * 600 + '"'])
def test_an_etag_that_cannot_be_used_is_left_out(hub: HubOnLoopback, get: Get, blob: Path, etag: str) -> None:
    hub.repos["a/b"].etags[NAME] = etag
    hub.fault(drop_at=1_000_000)
    get(hub)
    assert is_right(blob)
    assert [(seen.range, seen.if_range) for seen in hub.downloads()] == [(None, None), ("bytes=1000000-", None)]


def test_a_server_that_ignores_ranges(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(drop_at=1_000_000)
    hub.fault(ignore_range=True)
    get(hub)
    assert is_right(blob)


@pytest.mark.parametrize("said", ["bytes 7-99/100", "bytes 1000000-2999999/4000000", "nonsense", "bytes -1--1/-1"])
def test_another_range_than_asked_for_is_not_believed(hub: HubOnLoopback, get: Get, blob: Path, said: str) -> None:
    hub.fault(drop_at=1_000_000)
    hub.fault(content_range=said)
    get(hub)
    assert is_right(blob)


def test_a_partial_file_that_is_too_long_or_beyond_the_end(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    blob.parent.mkdir()
    partial.partial_path(blob).write_bytes(CONTENT + b"more")
    get(hub)
    assert is_right(blob)
    hub.repos["a/b"].files[NAME] = CONTENT[:500_000]  # the server has less than what is here: 416
    blob.unlink()
    partial.partial_path(blob).write_bytes(CONTENT[:1_000_000])
    with pytest.raises(NetworkError):
        get(hub)
    assert not blob.exists()


def test_a_whole_partial_file_needs_no_request(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    blob.parent.mkdir()
    partial.partial_path(blob).write_bytes(CONTENT)
    get(hub)
    assert is_right(blob)
    assert hub.requests() == []


@pytest.mark.parametrize("announced", [1, len(CONTENT) - 1, len(CONTENT) + 1, 10**15])
def test_a_length_that_lies(hub: HubOnLoopback, get: Get, blob: Path, announced: int) -> None:
    hub.fault(announce=announced, times=99)
    with pytest.raises(NetworkError, match="announces"):
        get(hub)
    assert not blob.exists()


def test_more_bytes_than_announced(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(extra=10)
    with pytest.raises(NetworkError, match="more than"):
        get(hub)
    assert not blob.exists()
    assert not partial.partial_path(blob).exists()
    get(hub)
    assert is_right(blob)


def test_a_server_that_stalls(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(hang_at=1_000_000)
    said = get(hub, retry=RetryPolicy(tries=2, first_wait_s=0, longest_wait_s=0, timeout_s=0.3))
    assert "next to nothing for too long" in said[0]
    assert is_right(blob)


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_a_busy_server_is_asked_again(hub: HubOnLoopback, get: Get, blob: Path, status: int) -> None:
    hub.fault(status=status, retry_after="0", times=2)
    said = get(hub)
    assert len(said) == 2
    assert str(status) in said[0]
    assert is_right(blob)


def test_the_wait_is_the_servers_but_bounded(hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: Any) -> None:
    waited: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", waited.append)
    hub.fault(status=503, retry_after="7")
    get(hub)
    assert waited == [7.0]
    blob.unlink()
    hub.fault(status=429, retry_after="86400")
    with pytest.raises(NetworkError, match="86400"):
        get(hub)


def test_waits_grow_and_stay_bounded() -> None:
    policy = RetryPolicy()
    for tried in range(1, 40):
        shortest = min(30, 0.5 * 2 ** (tried - 1)) * 0.5
        assert shortest <= policy.wait_s(tried, None) <= 45


def test_tries_are_bounded_but_getting_further_counts(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(status=503, times=99)
    with pytest.raises(NetworkError, match="4 tries"):
        get(hub)
    assert len(hub.requests()) == 4
    hub.faults.clear()
    for at in (1_100_000, 1_100_000, 1_100_000, 2_200_000, 2_200_000):
        hub.fault(drop_at=at)
    get(hub)
    assert is_right(blob)


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, NotFound), (400, NetworkError)]
)
def test_a_refusal_is_not_tried_again(hub: HubOnLoopback, get: Get, status: int, error: type[Exception]) -> None:
    hub.fault(status=status, times=9)
    with pytest.raises(error):
        get(hub)
    assert len(hub.requests()) == 1


def test_no_server(get: Get, hub: HubOnLoopback) -> None:
    with pytest.raises(NetworkError, match="no connection"):
        get(hub, url=f"http://127.0.0.1:9/a/b/resolve/main/{NAME}", retry=RetryPolicy(tries=2, first_wait_s=0))


@pytest.mark.parametrize("at", [None, 0, 1, 999_999, 1_000_000, 1_500_000, len(CONTENT) - 1])
def test_a_file_too_large_for_one_request_comes_in_parts(
    hub: HubOnLoopback, get: Get, blob: Path, at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "LARGEST_REQUEST_BYTES", 1_000_000)
    if at is not None:
        hub.fault(drop_at=at, only_after=at // 1_000_000 * 1_000_000)
    said = get(hub)
    assert is_right(blob)
    assert len(said) == (at is not None)
    asked = [seen.range for seen in hub.downloads()]
    assert asked[0] == "bytes=0-999999"
    assert None not in asked
    assert {seen.if_range for seen in hub.downloads()[1:]} == {f'"{SHA256[:16]}"'}
    assert sum(seen.sent for seen in hub.downloads()) == len(CONTENT)


def test_another_file_between_two_parts(
    hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "LARGEST_REQUEST_BYTES", 1_000_000)
    hub.fault(drop_at=1_500_000, only_after=1_000_000)
    with pytest.raises(NetworkError):
        get(hub, retry=RetryPolicy(tries=1))
    hub.repos["a/b"].etags[NAME] = '"another"'
    get(hub)
    assert is_right(blob)


# ------------------------------------------------------------------------------------------------------- redirects


def test_the_token_stays_with_the_hub(two_hosts: HubOnLoopback, get: Get, blob: Path) -> None:
    get(two_hosts, headers={"Authorization": "Bearer secret"})
    assert is_right(blob)
    assert two_hosts.storage is not None
    assert [seen.authorization for seen in two_hosts.requests()] == ["Bearer secret"]
    assert [seen.authorization for seen in two_hosts.storage.requests()] == [None]


def test_an_expired_storage_address_is_asked_for_again(two_hosts: HubOnLoopback, get: Get, blob: Path) -> None:
    two_hosts.fault(status=403)
    assert "storage" in get(two_hosts)[0]
    assert is_right(blob)


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[", "http://u:p@127.0.0.1/"])
def test_a_redirect_to_what_is_no_safe_address(hub: HubOnLoopback, get: Get, blob: Path, location: str) -> None:
    hub.fault(location=location)
    with pytest.raises(NetworkError, match="not safe"):
        get(hub)
    assert not blob.exists()


def test_redirects_in_a_circle_end(hub: HubOnLoopback, get: Get) -> None:
    hub.fault(location=f"/a/b/resolve/main/{NAME}", times=99)
    with pytest.raises(NetworkError, match="more than 5 times"):
        get(hub)
    assert len(hub.requests()) == 6


def test_five_redirects_are_followed(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    hub.fault(location=f"/a/b/resolve/main/{NAME}", times=5)
    get(hub)
    assert is_right(blob)


def test_https_never_falls_back_to_http() -> None:
    wanted = source.Source("https://hub.example/a", {}, 5, source.refusal)
    with pytest.raises(NetworkError):
        wanted.redirected("https://hub.example/a", "http://hub.example/a")
    assert wanted.redirected("https://hub.example/a", "/b c?d=%20#e") == "https://hub.example/b%20c?d=%20"


# ---------------------------------------------------------------------------------------------------- the disk


def test_a_full_disk_keeps_what_came(hub: HubOnLoopback, get: Get, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    room = 1_000_000

    def write(descriptor: int, data: Any) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        count = real(descriptor, bytes(data)[:room])
        room -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(partial.os, "write", write)
        with pytest.raises(DoesNotFit) as caught:
            get(hub)
    assert caught.value.exit_code == 4
    kept = partial.partial_path(blob).stat().st_size
    assert kept + 1000 > 1_000_000  # but for the little that is written about it
    get(hub)
    assert is_right(blob)
    assert hub.downloads()[-1].range == f"bytes={kept}-"


def test_a_folder_that_is_a_file(hub: HubOnLoopback, get: Get, blob: Path) -> None:
    blob.parent.write_text("in the way")
    with pytest.raises(LocalaiError) as caught:
        get(hub)
    assert caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_a_planted_link_is_not_written_through(hub: HubOnLoopback, get: Get, blob: Path, tmp_path: Path) -> None:
    blob.parent.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    partial.partial_path(blob).symlink_to(precious)
    with pytest.raises(LocalaiError):
        get(hub)
    assert precious.read_text() == "mine"


def test_a_wrong_file_of_another_tool_stays_until_the_right_one_is_there(
    hub: HubOnLoopback, get: Get, blob: Path
) -> None:
    blob.parent.mkdir()
    wrong = bytes(len(CONTENT))
    blob.write_bytes(wrong)
    hub.fault(flip_at=3)
    with pytest.raises(HashMismatch):
        get(hub)
    assert blob.read_bytes() == wrong
    assert "anew" in get(hub)[0]
    assert is_right(blob)


# -------------------------------------------------------------------------------------------- other processes

CHILD = """
import sys
from pathlib import Path
from localai.transfer import download
url, blob, size, sha256 = sys.argv[1:]
download(url, Path(blob), size_bytes=int(size), sha256=sha256, lock=Path(blob).parent / "lock",
         on_wait=lambda: print("waiting", flush=True))
print("done", flush=True)
"""


def child(hub: HubOnLoopback, blob: Path) -> subprocess.Popen[str]:
    url = f"{hub.url}/a/b/resolve/main/{NAME}"
    arguments = [sys.executable, "-c", CHILD, url, str(blob), str(len(CONTENT)), SHA256]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("at", [200_000, 1_500_000, 2_900_000])
def test_killed_at_any_byte_the_next_goes_on_from_there(hub: HubOnLoopback, get: Get, blob: Path, at: int) -> None:
    hub.fault(hang_at=at)
    process = child(hub, blob)
    with process:
        assert hub.wait_until_sent(at)
        wait_for(lambda: partial.partial_path(blob).exists() and partial.partial_path(blob).stat().st_size == at)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not blob.exists()
    get(hub)
    assert is_right(blob)
    assert hub.downloads()[-1].range == f"bytes={at}-"


def test_of_two_at_once_one_waits_and_finds_the_file(hub: HubOnLoopback, blob: Path) -> None:
    gate = threading.Event()
    hub.fault(gate=gate)
    with child(hub, blob) as first:
        wait_for(lambda: partial.partial_path(blob).exists())
        with child(hub, blob) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting\n"
            gate.set()
            assert second.stdout.readline() == "done\n"
        assert first.stdout is not None
        assert first.stdout.readline() == "done\n"
    assert is_right(blob)
    assert len(hub.downloads()) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks(
    hub: HubOnLoopback, get: Get, blob: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.hold(blob.parent / "other"):
        with pytest.raises(TimeoutError):
            locks.hold(blob.parent / "other", timeout_s=0)
        with locks.if_free(blob.parent / "other") as free:
            assert not free
    get(hub)
    assert is_right(blob)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fault", [{"status": 416}, {"content_range": "bytes 7-99/100"}], ids=str)
def test_one_wrong_answer_costs_no_byte_that_is_here(
    hub: HubOnLoopback, get: Get, blob: Path, fault: dict[str, Any], times: int
) -> None:
    hub.fault(drop_at=2_000_000)
    hub.fault(**fault, times=times)
    get(hub)
    assert is_right(blob)
    assert hub.downloads()[-1].range == ("bytes=2000000-" if times == 1 else None)
