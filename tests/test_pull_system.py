"""What a pull asks of the operating system, seen from outside: what it writes, where, and in which order."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_on_loopback import COMMIT, running

CALLS = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir"
SYNCS = "fsync,fdatasync,write,pwrite64,truncate,ftruncate"
CONTENT = b"GGUF" + random.Random(5).randbytes(800_000)

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@dataclass
class Call:
    """One system call that did not fail: its name, the text of its arguments, and the paths among them."""

    name: str
    arguments: str
    paths: list[str]


@pytest.fixture
def calls(isolated: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Call]]:
    """A pull of two files, of which the first connection breaks, under strace: the calls of each thread, in order."""
    traces = tmp_path_factory.mktemp("strace")
    with running() as hub:
        hub.add("o/m", {"m-Q4_0.gguf": CONTENT, "mmproj-m-F16.gguf": CONTENT[:1000]})
        hub.fault(drop_at=400_000)
        strace = ["strace", "-ff", "-y", "-s", "4096", "-o", str(traces / "t"), "-e", f"trace={CALLS},{SYNCS}"]
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*strace, sys.executable, "-m", "localai", "pull", "o/m"],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=isolated,
        )
    if "PTRACE" in done.stderr or "ptrace" in done.stderr:
        pytest.skip("may not trace")
    assert done.returncode == 0, done.stderr
    return [parsed(path.read_text("utf-8", "replace"), isolated) for path in sorted(traces.iterdir())]


def parsed(trace: str, cwd: Path) -> list[Call]:
    found = []
    for line in trace.splitlines():
        if (match := re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", line)) and int(match[3]) >= 0:
            name, arguments = match[1], match[2]
            # A relative path belongs to the folder that stands before it, as in openat(3</folder>, "name").
            paths = [
                os.path.normpath(os.path.join(folder or str(cwd), text))
                for folder, text in re.findall(r'(?:<([^>]*)>, )?"((?:[^"\\]|\\.)*)"', arguments)
            ]
            if name in {"symlink", "symlinkat"}:  # the first text is what the link says
                paths = [os.path.normpath(os.path.join(str(cwd), re.findall(r'"([^"]*)"', arguments)[1]))]
            if name in SYNCS.split(","):
                paths = re.findall(r"^\d+<([^>]*)>", arguments)
            found.append(Call(name, arguments, paths))
    return found


def test_nothing_is_written_outside_the_cache_and_the_settings(calls: list[list[Call]], isolated: Path) -> None:
    allowed = (str(isolated / "hf"), str(isolated / "localai"), "/dev/")
    written = 0
    for call in (call for thread in calls for call in thread):
        writes = call.name not in SYNCS.split(",") and (
            not call.name.startswith("open") or re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call.arguments)
        )
        if writes:
            written += 1
            assert all(path.startswith(allowed) for path in call.paths), call
    assert written > 10


def test_what_is_listed_was_synced_before_it_had_its_name(calls: list[list[Call]], isolated: Path) -> None:
    renamed = []
    for thread in calls:
        for at, call in enumerate(thread):
            if not call.name.startswith("rename"):
                continue
            temporary, final = call.paths
            if "/blobs/" not in final and not ("/data/models/" in final and final.endswith(".json")):
                continue  # notes that may be lost
            if final.endswith(".localai.state"):
                continue
            renamed.append(final)
            touching = [each.name for each in thread[:at] if each.paths == [temporary]]
            assert "fsync" in touching, final
            last = max(index for index, name in enumerate(touching) if name == "fsync")
            assert not {"write", "pwrite64", "ftruncate"} & set(touching[last:]), final
            assert [str(Path(final).parent)] in [each.paths for each in thread[at:] if each.name == "fsync"], final
    assert sum("/blobs/" in path for path in renamed) == 2
    assert sum("/data/models/" in path for path in renamed) == 1


def test_the_pointers_are_safe_before_the_record(calls: list[list[Call]], isolated: Path) -> None:
    thread = next(each for each in calls if any("/data/models/" in "".join(call.paths) for call in each))
    folder = str(isolated / "hf" / "hub" / "models--o--m" / "snapshots" / COMMIT)
    synced = next(at for at, call in enumerate(thread) if call.name == "fsync" and call.paths == [folder])
    recorded = next(at for at, call in enumerate(thread) if call.name == "rename" and "/data/models/" in call.paths[1])
    assert synced < recorded
