"""`localai pull` as a user meets it, against a Hub on loopback that misbehaves.

After each fault there is the right file or none that is listed, the user has read one line that says what happened, and
the next pull goes on from what is valid.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from hub_on_loopback import COMMIT, QUICK, Fault, HubOnLoopback, running
from small_models import model_bytes
from waiting import wait_for

from localai import boundary, claims, hardware, hub_cache, library, partial, removing, settings, transfer
from localai.commands import pull as command
from localai.domain.machine import Machine
from localai.domain.units import GIB
from localai.errors import NotFound

pytestmark = pytest.mark.usefixtures("no_embedded")

REPO, NAME = "o/m-GGUF", "m-Q4_0.gguf"
CONTENT = b"GGUF" + random.Random(3).randbytes(1_500_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NEWER = b"GGUF" + random.Random(4).randbytes(1_200_000)
NEW_COMMIT = "beef" * 10
HASTY = replace(QUICK, timeout_s=0.4)  # for servers that stall; on a busy machine others may seem to
MIDDLE = len(CONTENT) // 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add(REPO, {NAME: CONTENT})
        yield server


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that says what happened; a hint must follow it."""
        lines = self.err.splitlines()
        assert lines[-2].startswith("error: ")
        assert lines[-1].startswith("hint: ")
        return lines[-2]


Pull = Callable[..., Result]


@pytest.fixture
def pull(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pull:
    """The command in this process, with little patience; a terminal it never has."""
    monkeypatch.setattr(transfer, "RetryPolicy", lambda: QUICK)
    machine = hardware.detect(engine=False)
    monkeypatch.setattr(hardware, "detect", lambda **_: machine)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = boundary.run(["pull", *(arguments or (REPO,))])
        return Result(code, *capsys.readouterr())

    return run


def blob(content: bytes = CONTENT) -> Path:
    return hub_cache.blob_path(REPO, hashlib.sha256(content).hexdigest())


def listed() -> list[bytes]:
    return [model.path.read_bytes() for model in library.installed()]


def fetched(hub: HubOnLoopback) -> int:
    return sum(seen.sent for seen in hub.downloads())


# ------------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("at", [0, 1, 65_536, MIDDLE, len(CONTENT) - 1])
@pytest.mark.parametrize("what", ["drop_at", "end_at", "hang_at"])
def test_an_interruption_is_told_in_one_line_and_overcome(
    hub: HubOnLoopback, pull: Pull, what: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "hang_at":
        monkeypatch.setattr(transfer, "RetryPolicy", lambda: HASTY)
    hub.fault(**{what: at})
    result = pull()
    assert result.code == 0
    assert "trying again" in result.err
    assert listed() == [CONTENT]
    if what != "hang_at":
        assert result.err.count("trying again") == 1
        assert fetched(hub) == len(CONTENT)


@pytest.mark.parametrize("at", [0, 65_536, MIDDLE, len(CONTENT) - 1])
@pytest.mark.parametrize("what", ["drop_at", "end_at", "hang_at"])
def test_what_lasts_ends_the_pull_and_the_next_one_goes_on(
    hub: HubOnLoopback, pull: Pull, what: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if what == "hang_at":
            patch.setattr(transfer, "RetryPolicy", lambda: HASTY)
        hub.fault(**{what: at}, times=99)
        result = pull()
    assert result.code == 5
    assert "3 tries" in result.error
    assert listed() == []
    hub.faults.clear()
    assert pull().code == 0
    assert listed() == [CONTENT]
    assert fetched(hub) == len(CONTENT)


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize(
    ("status", "retry_after"), [(500, None), (502, "0"), (503, None), (503, "0"), (429, None), (429, "0"), (504, "x")]
)
def test_a_busy_server(hub: HubOnLoopback, pull: Pull, status: int, retry_after: str | None, times: int) -> None:
    hub.fault(drop_at=MIDDLE)
    hub.fault(status=status, retry_after=retry_after, times=times)
    result = pull()
    assert f"the server answered {status}" in result.err
    if times == 1:
        assert (result.code, listed()) == (0, [CONTENT])
        return
    assert (result.code, listed()) == (5, [])
    assert str(status) in result.error
    hub.faults.clear()
    assert (pull().code, listed()) == (0, [CONTENT])
    assert fetched(hub) == len(CONTENT)


@pytest.mark.parametrize("at", [0, 1, MIDDLE, len(CONTENT) - 1])
def test_a_flipped_bit(hub: HubOnLoopback, pull: Pull, at: int) -> None:
    hub.fault(flip_at=at)
    result = pull()
    assert (result.code, listed()) == (5, [])
    assert "SHA-256" in result.error
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.parametrize("at", [0, 1000, MIDDLE - 1])
def test_a_flipped_bit_that_an_earlier_pull_left_is_mended_by_the_next(hub: HubOnLoopback, pull: Pull, at: int) -> None:
    hub.fault(flip_at=at, drop_at=MIDDLE)
    hub.fault(status=500, times=9)
    assert pull().code == 5
    hub.faults.clear()
    result = pull()
    assert (result.code, listed()) == (0, [CONTENT])
    assert "damaged" in result.err


@pytest.mark.parametrize("announced", [1, MIDDLE, len(CONTENT) - 1, len(CONTENT) + 1, 10**15])
def test_a_wrong_length(hub: HubOnLoopback, pull: Pull, announced: int) -> None:
    hub.fault(announce=announced, times=99)
    result = pull()
    assert (result.code, listed()) == (5, [])
    assert "announces" in result.error
    hub.faults.clear()
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.parametrize("size", [1, MIDDLE, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_listing_that_lies_about_the_size(hub: HubOnLoopback, pull: Pull, size: int) -> None:
    hub.repos[REPO].sizes[NAME] = size
    assert (pull().code, listed()) == (5, [])
    hub.repos[REPO].sizes.clear()
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.parametrize("extra", [1, 100_000])
def test_more_than_was_announced(hub: HubOnLoopback, pull: Pull, extra: int) -> None:
    hub.fault(extra=extra)
    result = pull()
    assert (result.code, listed()) == (5, [])
    assert "more than" in result.error
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.parametrize("at", [1, 65_536, MIDDLE, len(CONTENT) - 1])
def test_a_new_commit_between_two_requests(hub: HubOnLoopback, pull: Pull, at: int) -> None:
    """What was planned is what comes; the next pull, of the interrupted model, is of what there is now."""
    hub.fault(drop_at=at)
    hub.fault(status=500, times=9)
    assert (pull().code, listed()) == (5, [])
    hub.repos[REPO].replace({NAME: NEWER}, NEW_COMMIT)
    hub.faults.clear()
    assert (pull().code, listed()) == (0, [NEWER])
    assert library.installed()[0].commit == NEW_COMMIT


@pytest.mark.parametrize("at", [1, 65_536, MIDDLE, len(CONTENT) - 1])
def test_other_bytes_under_the_same_commit(hub: HubOnLoopback, pull: Pull, at: int) -> None:
    other = CONTENT[:-5] + b"other"
    gate = threading.Event()
    hub.fault(drop_at=at)
    hub.fault(gate=gate)
    told: list[Result] = []
    hub.repos[REPO].sha256[NAME] = SHA256
    with_thread = threading.Thread(target=lambda: told.append(pull()))
    with_thread.start()
    assert hub.wait_until_sent(at)
    hub.repos[REPO].files[NAME] = other
    hub.repos[REPO].etags[NAME] = '"other"'
    gate.set()
    with_thread.join()
    assert (told[0].code, listed()) in [(5, []), (0, [CONTENT])]
    hub.repos[REPO].sha256.clear()
    assert pull().code == 0
    assert listed() in [[other], [CONTENT]]


@pytest.mark.parametrize(
    ("location", "times", "said"),
    [
        ("/o/m-GGUF/resolve/main/m-Q4_0.gguf", 99, "more than 5 times"),
        ("/o/m-GGUF/resolve/main/m-Q4_0.gguf", 6, "more than 5 times"),
        ("ftp://127.0.0.1/x", 1, "not safe"),
        ("file:///etc/passwd", 1, "not safe"),
        ("http://[::1", 1, "not safe"),
        ("//u:p@127.0.0.1/x", 1, "not safe"),
        ("", 99, "more than 5 times"),
    ],
)
def test_redirects_that_lead_nowhere(hub: HubOnLoopback, pull: Pull, location: str, times: int, said: str) -> None:
    hub.fault(drop_at=MIDDLE)
    hub.fault(location=location, times=times)
    result = pull()
    assert (result.code, listed()) == (5, [])
    assert said in result.error
    hub.faults.clear()
    assert (pull().code, listed()) == (0, [CONTENT])
    assert fetched(hub) == len(CONTENT)


def test_a_file_without_a_hash(hub: HubOnLoopback, pull: Pull) -> None:
    hub.repos[REPO].sha256[NAME] = None
    result = pull()
    assert (result.code, listed()) == (5, [])
    assert "no SHA-256" in result.error
    assert hub.downloads() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("room", [0, 65_536, MIDDLE])
def test_a_disk_that_refuses(
    hub: HubOnLoopback, pull: Pull, room: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.write, room

    def write(descriptor: int, data: Any) -> int:
        nonlocal left
        if len(data) < 1000:  # not the model's bytes
            return real(descriptor, data)
        if left <= 0:
            raise OSError(number, os.strerror(number))
        count = real(descriptor, bytes(data)[:left])
        left -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(partial.os, "write", write)
        result = pull()
    assert result.code == (4 if number in {errno.ENOSPC, errno.EDQUOT} else 1)
    assert result.error
    assert listed() == []
    assert (pull().code, listed()) == (0, [CONTENT])
    assert hub.downloads()[-1].range == (f"bytes={room}-" if room else None)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end(
    hub: HubOnLoopback, pull: Pull, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(partial.PartialFile, "_write_state", lambda *_: None)
        patch.setattr(claims, "add", lambda claim: claim)
        patch.setattr(partial.os, step, fail)
        assert (pull().code, listed()) == (1, [])
    assert (pull().code, listed()) == (0, [CONTENT])
    # What could not be synced may be in memory alone, though it reads well: it is fetched again.
    assert fetched(hub) == len(CONTENT) * (2 if step == "fsync" else 1)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_sync_that_fails_on_the_way_is_not_forgotten(
    hub: HubOnLoopback, pull: Pull, interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a failed write once: the sync after it succeeds, and the bytes are not on the disk."""
    real, failed = os.fsync, threading.Event()
    hub.fault(drop_at=MIDDLE)
    hub.fault(gate=failed, only_after=1)

    def fsync(descriptor: int) -> None:
        if threading.current_thread().name == "localai-disk" and not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    def close(disk: partial.Disk, really: Callable[[partial.Disk], None] = partial.Disk.close) -> None:
        really(disk)
        raise KeyboardInterrupt  # while it is waited for

    with monkeypatch.context() as patch:
        patch.setattr(partial, "_SYNC_BYTES", 200_000)
        patch.setattr("localai.alongside._SYNC_SECONDS", 0)
        patch.setattr("localai.alongside.os.fsync", fsync)
        if interrupted:
            patch.setattr(partial.Disk, "close", close)
        result = pull()
        assert (result.code, listed()) == (130 if interrupted else 1, [])
        assert interrupted or "Input/output error" in result.error
    assert partial.partial_path(blob()).read_bytes() == b""
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.skipif(sys.platform != "linux", reason="needs ulimit as Linux has it")
def test_a_file_system_that_takes_no_file_so_large(hub: HubOnLoopback, cli: Cli) -> None:
    limited = ["sh", "-c", 'ulimit -f 1024; exec "$@"', "-", sys.executable, "-m", "localai", "pull", REPO]
    result = subprocess.run(limited, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 4, result.stderr
    assert "takes no file that large" in result.stderr
    assert "exFAT" in result.stderr.splitlines()[-1]
    kept = partial.partial_path(blob()).stat().st_size
    assert kept > 500_000
    assert library.installed() == ()
    assert cli("pull", REPO).returncode == 0
    assert listed() == [CONTENT]
    assert hub.downloads()[-1].range == f"bytes={kept}-"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_small_disk(hub: HubOnLoopback, pull: Pull, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = isolated / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        monkeypatch.setenv("HF_HOME", str(disk))
        before = pull()
        assert (before.code, hub.downloads()) == (4, [])  # known before the first byte
        assert "free" in before.error
        usage = shutil.disk_usage(disk)
        with monkeypatch.context() as patch:  # somebody else fills the disk meanwhile
            patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
            result = pull()
        assert result.code == 4
        assert "the disk is full" in result.error
        assert listed() == []
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
        assert (pull().code, listed()) == (0, [CONTENT])
        assert fetched(hub) <= len(CONTENT) + (1 << 20)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("folder", ["hf", "hf/hub", "hf/hub/models--o--m-GGUF/blobs", "localai/data"])
def test_a_folder_that_may_not_be_written(
    hub: HubOnLoopback, cli: Cli, isolated: Path, folder: str, bound_by_permissions: list[str]
) -> None:
    (isolated / folder).mkdir(parents=True)
    (isolated / folder).chmod(0o500)
    done = cli("pull", REPO, under=bound_by_permissions)
    result = Result(done.returncode, done.stdout, done.stderr)
    assert (result.code, listed()) == (1, [])
    assert "may not write" in result.error or "cannot write" in result.error
    (isolated / folder).chmod(0o700)
    assert (cli("pull", REPO, under=bound_by_permissions).returncode, listed()) == (0, [CONTENT])
    assert fetched(hub) == len(CONTENT)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount")
@pytest.mark.parametrize("folder", ["hf", "localai/data"])
def test_a_disk_that_is_read_only(hub: HubOnLoopback, pull: Pull, isolated: Path, folder: str) -> None:
    (isolated / folder).mkdir(parents=True)
    mounting = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(isolated / folder)]
    if subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        result = pull(REPO, "--yes")
        assert (result.code, listed()) == (1, [])
        assert "may not write" in result.error or "cannot write" in result.error
        subprocess.run(["mount", "-o", "remount,rw", str(isolated / folder)], check=True)
        assert (pull().code, listed()) == (0, [CONTENT])
        assert fetched(hub) == len(CONTENT)
    finally:
        subprocess.run(["umount", "-l", str(isolated / folder)], check=True)


@pytest.mark.parametrize("folder", ["hf", "hf/hub", "hf/hub/models--o--m-GGUF", "hf/hub/.locks", "localai/data/models"])
def test_a_file_where_a_folder_should_be(hub: HubOnLoopback, pull: Pull, isolated: Path, folder: str) -> None:
    (isolated / folder).parent.mkdir(parents=True, exist_ok=True)
    (isolated / folder).write_text("in the way")
    result = pull()
    assert (result.code, listed()) == (1, [])
    assert result.error
    (isolated / folder).unlink()
    assert (pull().code, listed()) == (0, [CONTENT])


@pytest.mark.parametrize("when", [0, 4_000_000_000])
def test_a_clock_that_is_changed(hub: HubOnLoopback, pull: Pull, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fault(drop_at=MIDDLE)
    hub.fault(status=500, times=9)
    assert pull().code == 5
    for path in (isolated_path for isolated_path in settings.hub_cache().rglob("*")):
        os.utime(path, (when, when))
    hub.faults.clear()
    monkeypatch.setattr(time, "time", lambda: float(when))
    assert (pull().code, listed()) == (0, [CONTENT])
    assert fetched(hub) == len(CONTENT)


@pytest.mark.parametrize("status", [500, 503, 404])
def test_a_hub_that_fails_after_the_last_byte(
    hub: HubOnLoopback, pull: Pull, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's own back-off
    hub.head_faults += [Fault(status=status)] * 9
    result = pull()
    assert (result.code in {3, 5}, listed()) == (True, [])
    assert result.error
    hub.head_faults.clear()
    assert (pull().code, listed()) == (0, [CONTENT])
    assert fetched(hub) == len(CONTENT)


def test_a_disk_without_links(hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    assert (pull().code, listed()) == (0, [CONTENT])
    assert pull(f"{REPO}@main").code == 0  # asks the Hub, and finds every byte here
    assert listed() == [CONTENT]
    assert fetched(hub) == len(CONTENT)
    assert [path for path in settings.hub_cache().rglob("*") if path.is_file() and path.stat().st_size > 1000] == [
        hub_cache.pointer_path(REPO, COMMIT, NAME)
    ]


# ----------------------------------------------------------------------------------------------------- processes


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "localai", "pull", REPO], stderr=subprocess.PIPE, text=True)


def test_killed_at_any_moment_the_next_pull_fetches_the_rest(hub: HubOnLoopback, cli: Cli) -> None:
    gate = threading.Event()
    for at in (0, 65_536, MIDDLE, len(CONTENT)):
        if at < len(CONTENT):
            hub.fault(hang_at=at)
        else:
            hub.head_faults.append(Fault(gate=gate))
        process = start()
        with process:
            wait_for(lambda: not hub.faults)  # else a fault meant for this pull strikes the next
            assert hub.wait_until_sent(at)
            wait_for(lambda at=at: arrived() >= at)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
        assert library.installed() == ()
    gate.set()
    assert cli("pull", REPO).returncode == 0
    assert listed() == [CONTENT]
    assert fetched(hub) == len(CONTENT)


def arrived() -> int:
    for path in (blob(), partial.partial_path(blob())):
        if path.exists():
            return path.stat().st_size
    return -1


def test_two_pulls_at_once(hub: HubOnLoopback) -> None:
    gate = threading.Event()
    hub.fault(gate=gate)
    with start() as first, start() as second:
        wait_for(lambda: sum("/api/" in seen.path for seen in hub.requests()) == 2)
        gate.set()
        told = [process.communicate()[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], told
    assert listed() == [CONTENT]
    assert fetched(hub) == len(CONTENT)


def test_interrupted_from_the_keyboard(hub: HubOnLoopback, cli: Cli) -> None:
    hub.fault(hang_at=MIDDLE)
    with start() as process:
        wait_for(lambda: arrived() == MIDDLE)
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in told
    assert cli("pull", REPO).returncode == 0
    assert fetched(hub) == len(CONTENT)


OTHER_TOOL = f"from huggingface_hub import hf_hub_download as d; d({REPO!r}, {NAME!r})"


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_tool_at_the_same_time(hub: HubOnLoopback, ours_first: bool) -> None:
    """huggingface_hub and we hold the same lock: the second finds the file that the first has brought."""
    gate = threading.Event()
    hub.fault(gate=gate)
    theirs = [sys.executable, "-c", OTHER_TOOL]
    ours = [sys.executable, "-m", "localai", "pull", REPO]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(ours if ours_first else theirs, env=environment, stderr=subprocess.PIPE) as first:
        wait_for(lambda: any(seen.method == "GET" and "/resolve/" in seen.path for seen in hub.requests()))
        with subprocess.Popen(
            theirs if ours_first else ours, env=environment, stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None
            if ours_first:
                wait_for(lambda: sum(seen.method == "HEAD" for seen in hub.requests()) >= 1)
            else:
                while "another program is downloading" not in (line := second.stderr.readline()):
                    assert line
            gate.set()
            second.communicate()
        first.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(hub.downloads()) == 1
    if not ours_first:
        assert listed() == [CONTENT]


# ------------------------------------------------------------------------------------------------------ the plan


def test_the_plan_is_shown_before_the_first_byte(hub: HubOnLoopback, pull: Pull) -> None:
    result = pull()
    told = result.err[: result.err.index("100%")]
    for expected in (REPO, COMMIT[:12], NAME, "1.5 MB", "free on the disk after", "GiB of memory", "fits"):
        assert expected in told
    assert result.out == ""


def small(machine: Machine) -> Machine:
    return replace(machine, memory=replace(machine.memory, total_bytes=GIB // 64, available_bytes=GIB // 64), gpus=())


def test_what_does_not_fit_the_memory_needs_yes(
    hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = small(hardware.detect())
    monkeypatch.setattr(hardware, "detect", lambda **_: machine)
    result = pull()
    assert (result.code, listed(), hub.downloads()) == (4, [], [])
    assert "memory" in result.error
    assert "--yes" in result.err.splitlines()[-1]
    assert pull(REPO, "--yes").code == 0


@pytest.mark.parametrize("flags", [(), ("--yes",)])
def test_what_does_not_fit_the_disk_never_begins(hub: HubOnLoopback, pull: Pull, flags: tuple[str, ...]) -> None:
    hub.repos[REPO].sizes[NAME] = 10**15
    result = pull(REPO, *flags)
    assert (result.code, hub.downloads()) == (4, [])
    assert "disk" in result.error


def test_the_sum_of_several_must_fit_the_disk(hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("o/other", {"other-Q4_0.gguf": NEWER})
    usage = shutil.disk_usage("/")
    room = len(CONTENT) + len(NEWER) // 2 + 256 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room))
    result = pull(REPO, "o/other")
    assert (result.code, listed()) == (4, [CONTENT])


def test_size_alone_never_asks_without_a_terminal(
    hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ASK_OVER_BYTES", 1000)
    assert pull().code == 0


@pytest.mark.parametrize(("answer", "code"), [("n", 1), ("", None), ("y", 3)])
def test_a_terminal_is_asked_about_what_is_large(hub: HubOnLoopback, answer: str, code: int | None) -> None:
    pexpect = pytest.importorskip("pexpect")
    size = 4_500_000_000
    if shutil.disk_usage(settings.hub_cache().parent.parent).free < 2 * size:
        pytest.skip("needs the room that it will not use")
    hub.repos[REPO].sizes[NAME] = size
    hub.fault(status=404, times=2)  # no header for the plan, and saying yes fails soon
    terminal = pexpect.spawn(
        sys.executable, ["-m", "localai", "pull", REPO], encoding="utf-8", timeout=60, dimensions=(24, 200)
    )
    terminal.expect(r"Download 4\.5 GB.*\[(Y/n|y/N)\]")
    default = terminal.match[1]
    assert hub.downloads() == []
    terminal.send(answer + "\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == (code if code is not None else {"Y/n": 3, "y/N": 1}[default])
    assert [seen.range is None for seen in hub.requests()[1:]] == [False, *([True] * (terminal.exitstatus == 3))]


@pytest.mark.parametrize(("answer", "code"), [("", 1), ("y", 3)])
def test_a_terminal_is_asked_about_what_does_not_fit(hub: HubOnLoopback, answer: str, code: int) -> None:
    pexpect = pytest.importorskip("pexpect")
    size = hardware.detect(engine=False).memory.total_bytes + 2 * GIB
    if shutil.disk_usage(settings.hub_cache().parent.parent).free < size + GIB:
        pytest.skip("needs the room that it will not use")
    hub.repos[REPO].sizes[NAME] = size
    hub.fault(status=404, times=2)  # no header for the plan, and saying yes fails soon
    terminal = pexpect.spawn(
        sys.executable, ["-m", "localai", "pull", REPO], encoding="utf-8", timeout=60, dimensions=(24, 200)
    )
    terminal.expect(r"It will not run here: it needs about .* GiB of memory.*Download .* all the same\?.*\[y/N\]")
    assert hub.downloads() == []
    terminal.send(answer + "\r")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert (terminal.exitstatus, listed()) == (code, [])


def test_a_plan_goes_by_the_files_own_header(hub: HubOnLoopback, pull: Pull, monkeypatch: Any) -> None:
    from localai import choosing

    content = model_bytes(**{"llama.context_length": 512})
    hub.repos[REPO].files[NAME] = content
    monkeypatch.setattr(choosing, "WORTH_READING_BYTES", 1000)
    result = pull()
    assert "context 512)" in result.err
    assert "warning" not in result.err
    assert [seen.range for seen in hub.downloads()] == [f"bytes=0-{len(content) - 1}", None]


def test_a_header_that_is_not_to_be_had_holds_up_nothing(hub: HubOnLoopback, pull: Pull) -> None:
    hub.repos[REPO].sizes[NAME] = 600_000_000
    hub.fault(status=404, times=2)
    result = pull()
    assert (result.code, len(hub.requests())) == (3, 3)
    assert "to run: about" in result.err


def test_what_is_no_model_is_told_before_and_after(hub: HubOnLoopback, pull: Pull, cli: Cli, monkeypatch: Any) -> None:
    from localai import choosing

    result = pull()
    assert result.code == 0
    assert "warning: every byte is the Hub's, but no model to run" in result.err
    assert listed() == [CONTENT]
    removing.remove(library.installed()[0])
    monkeypatch.setattr(choosing, "WORTH_READING_BYTES", 1000)
    told = pull().err
    assert "it can be downloaded, but not run" in told[: told.index("100%")]
    assert cli("run", "-m", REPO, "hello").returncode == 6


# ------------------------------------------------------------------------------------------ several, and updates


def test_one_of_several_that_fails_does_not_stop_the_others(hub: HubOnLoopback, pull: Pull) -> None:
    hub.add("o/last", {"last-Q4_0.gguf": NEWER})
    result = pull("nosuchmodel", REPO, "o/none", "o/last", "--json")
    assert result.code == 3
    told = json.loads(result.out)
    assert [model["repo"] for model in told["models"]] == [REPO, "o/last"]
    assert [(each["model"], each["exit_code"]) for each in told["errors"]] == [("nosuchmodel", 3), ("o/none", 3)]
    assert sorted(listed()) == sorted([CONTENT, NEWER])
    assert result.err.count("error: ") == result.err.count("hint: ") == 2


def test_a_download_among_several_that_fails(hub: HubOnLoopback, pull: Pull) -> None:
    hub.add("o/last", {"last-Q4_0.gguf": NEWER})
    hub.fault(flip_at=5)
    result = pull(REPO, "o/last")
    assert (result.code, listed()) == (5, [NEWER])


def test_nothing_named(hub: HubOnLoopback, pull: Pull) -> None:
    assert pull("--json").code == 2
    result = pull("--update")
    assert (result.code, hub.requests()) == (0, [])
    assert "nothing to update" in result.err


@pytest.mark.parametrize("arguments", [("--update",), ("--update", REPO), ("-u", f"{REPO}:q4_0")])
def test_an_update_brings_the_newer_revision(hub: HubOnLoopback, pull: Pull, arguments: tuple[str, ...]) -> None:
    pull()
    result = pull(*arguments)
    assert "up to date" in result.err
    hub.repos[REPO].replace({NAME: NEWER}, NEW_COMMIT)
    assert "already installed" in pull().err
    assert pull(*arguments).code == 0
    assert listed() == [NEWER]
    assert library.installed()[0].commit == NEW_COMMIT
    assert fetched(hub) == len(CONTENT) + len(NEWER)


def test_an_update_of_the_same_bytes_fetches_none(hub: HubOnLoopback, pull: Pull) -> None:
    pull()
    hub.repos[REPO].replace({NAME: CONTENT, "README.md": b"new"}, NEW_COMMIT)
    assert pull("--update").code == 0
    assert library.installed()[0].commit == NEW_COMMIT
    assert fetched(hub) == len(CONTENT)


def test_an_update_that_fails_leaves_what_was_there(hub: HubOnLoopback, pull: Pull) -> None:
    pull()
    hub.repos[REPO].replace({NAME: NEWER}, NEW_COMMIT)
    hub.fault(flip_at=7)
    assert (pull("--update").code, listed()) == (5, [CONTENT])
    hub.repos[REPO].replace({"x-Q8_0.gguf": b"GGUF"}, "abcd" * 10)
    result = pull("--update", REPO)
    assert (result.code, listed()) == (3, [CONTENT])
    assert "no longer has" in result.error


def test_a_pinned_commit_is_never_updated(hub: HubOnLoopback, pull: Pull) -> None:
    hub.repos[REPO].replace({NAME: NEWER}, NEW_COMMIT)
    assert pull(f"{REPO}@{COMMIT}").code == 0
    assert listed() == [CONTENT]
    assert "nothing to update" in pull("--update").err
    assert pull("--update", f"{REPO}@{COMMIT}").code == 2
    assert listed() == [CONTENT]


# --------------------------------------------------------------------------------------------------- hostile names


@pytest.mark.parametrize(
    "name",
    [
        "../../x-Q4_0.gguf",
        "/etc/x-Q4_0.gguf",
        "C:\\x-Q4_0.gguf",
        "C:x-Q4_0.gguf",
        "a\\..\\x-Q4_0.gguf",
        "a\0b-Q4_0.gguf",
        "x" * 300 + "-Q4_0.gguf",
        "\x1b]0;title\x07x-Q4_0.gguf",
        "\x1b[2Jx-Q4_0.gguf",
        "a/./x-Q4_0.gguf",
        "a//x-Q4_0.gguf",
        "nul.gguf",
        "a\nb-Q4_0.gguf",
        "a\u2028b-Q4_0.gguf",
        "~/.ssh/x.gguf ",
    ],
)
def test_a_hostile_file_name_of_the_hub(hub: HubOnLoopback, pull: Pull, isolated: Path, name: str) -> None:
    hub.add(REPO, {name: CONTENT})
    before = sorted(isolated.rglob("*"))
    result = pull()
    assert result.code in {3, 5}
    assert "\x1b" not in result.err
    assert "\0" not in result.err
    assert result.error
    assert sorted(isolated.rglob("*")) == before
    assert hub.downloads() == []


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "..",
        "C:\\x",
        "o/..",
        "o/m/../../x",
        "o/" + "m" * 300,
        "\x1b[2J",
        "o/m:../../x.gguf",
        "o/m:C:\\x.gguf",
        "o/m:" + "x" * 300 + ".gguf",
        "o/m@../../x",
        "o/m@\x1b[2J",
        "o/m:a\x07b.gguf",
        "a\nb",
        "https://evil.example/o/m",
        "file:///etc/passwd",
        "\udcff/x",
    ],
)
def test_a_hostile_name_on_the_command_line(hub: HubOnLoopback, pull: Pull, isolated: Path, name: str) -> None:
    before = sorted(isolated.rglob("*"))
    result = pull(name)
    assert result.code in {2, 3}
    assert "\x1b" not in result.err
    assert result.error
    assert sorted(isolated.rglob("*")) == before
    assert hub.requests() == []


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
@pytest.mark.parametrize("planted", ["partial", "state", "pointer", "ref", "blob"])
def test_a_link_in_the_tree_is_not_written_through(
    hub: HubOnLoopback, pull: Pull, isolated: Path, planted: str
) -> None:
    precious = isolated / "precious"
    precious.write_text("mine")
    link = {
        "partial": partial.partial_path(blob()),
        "state": blob().with_name(f"{SHA256}.localai.state"),
        "pointer": hub_cache.pointer_path(REPO, COMMIT, NAME),
        "ref": settings.hub_cache() / "models--o--m-GGUF" / "refs" / "main",
        "blob": blob(),
    }[planted]
    link.parent.mkdir(parents=True)
    link.symlink_to(precious)
    result = pull()
    assert precious.read_text() == "mine"
    assert listed() == ([CONTENT] if result.code == 0 else [])


# ------------------------------------------------------------------------------------------------ after the pull


def test_what_was_written_to_since_is_hashed_again_and_mended(hub: HubOnLoopback, pull: Pull) -> None:
    assert pull().code == 0
    path = hub_cache.blob_path(REPO, SHA256)
    path.write_bytes(b"GGUF" + bytes(len(CONTENT) - 4))
    later = time.time() + 3600
    os.utime(path, (later, later))
    assert pull().code == 0
    assert path.read_bytes() == CONTENT
    assert listed() == [CONTENT]


def test_a_folder_for_records_that_cannot_be_written_is_told_before_the_first_byte(
    hub: HubOnLoopback, pull: Pull, isolated: Path
) -> None:
    (isolated / "localai").mkdir(exist_ok=True)
    (isolated / "localai" / "data").write_text("in the way")
    result = pull()
    assert result.code == 1
    assert "LOCALAI_HOME" in result.err
    assert fetched(hub) == 0


def test_end_of_input_at_a_question_is_no(hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    from localai.render import questions

    monkeypatch.setattr(questions, "is_terminal", lambda stream: True)
    monkeypatch.setattr(questions, "ask", lambda question: None)
    assert questions.confirmed("Download 5 GB?") is False


def test_mending_a_large_model_is_asked_for_and_needs_its_room(
    hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull().code == 0
    path = hub_cache.blob_path(REPO, SHA256)
    path.write_bytes(b"GGUF" + bytes(len(CONTENT) - 4))
    os.utime(path, (4_000_000_000, 4_000_000_000))
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=256 * 2**20 + 1000))
        assert pull().code == 4
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(command, "ASK_OVER_BYTES", 1000)
        patched.setattr(command.render, "confirmed", lambda question, default: bool(asked.append(question)))
        assert pull().code == 1
    assert "Download 1.5 MB?" in asked
    assert (pull().code, listed()) == (0, [CONTENT])


def test_a_model_is_called_by_the_revision_it_was_pulled_as(hub: HubOnLoopback, pull: Pull) -> None:
    hub.repos[REPO].replace({NAME: NEWER}, NEW_COMMIT)
    hub.repos[REPO].tags["v1.0"] = COMMIT
    assert pull(f"{REPO}@v1.0").code == 0
    before = len(hub.requests())
    for name in ("v1.0", COMMIT, COMMIT[:7]):
        assert library.find(f"{REPO}@{name}").path.read_bytes() == CONTENT
    assert "already installed" in pull(f"{REPO}@v1.0").err
    assert len(hub.requests()) == before
    for name in ("v1", COMMIT[:1], COMMIT[:6], "main"):
        with pytest.raises(NotFound):
            library.find(f"{REPO}@{name}")
    assert pull("--update", f"{REPO}:{NAME}@main").code == 0
    assert library.find(f"{REPO}@main").path.read_bytes() == NEWER


def test_what_was_pulled_without_a_revision_is_of_main(hub: HubOnLoopback, pull: Pull) -> None:
    assert pull(REPO).code == 0
    assert library.find(f"{REPO}@main").path.read_bytes() == CONTENT
    before = len(hub.requests())
    assert "already installed" in pull(f"{REPO}@main").err
    assert len(hub.requests()) == before


def test_a_branch_that_cannot_be_noted_is_no_reason_to_fail(
    hub: HubOnLoopback, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = settings.hub_cache() / "models--o--m-GGUF" / "refs"
    refs.mkdir(parents=True)
    (refs / "main.new").write_text("half of another process's note")
    replace_whole = hub_cache.replace_whole

    def racing(path: Path, content: bytes) -> None:
        replace_whole(path, content)
        raise FileNotFoundError(errno.ENOENT, "taken by another process", str(path))

    monkeypatch.setattr(hub_cache, "replace_whole", racing)
    assert (pull().code, listed()) == (0, [CONTENT])
    assert (refs / "main").read_text() == COMMIT
    assert (refs / "main.new").exists()  # and theirs was not touched
