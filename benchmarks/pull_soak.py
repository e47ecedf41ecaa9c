"""Pulls under random faults and kills, for minutes; after each, only right files are listed, and none is lost.

    python benchmarks/pull_soak.py [--minutes 10] [--seed N] [--json PATH]

Each round starts `localai pull` of one model, sometimes twice at once, against a Hub on loopback that misbehaves at
random, and kills some with SIGKILL at a random moment. Then everything that is listed is compared, byte by byte, with
what the Hub holds ("bad" if it differs), and what was listed before must still be ("lost" if not). Every round ends
with a pull without faults, which must succeed. Exit code 1 unless zero are bad and zero are lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from hub_on_loopback import Fault, HubOnLoopback, running

from localai import embedded, library, removing

KEPT_LISTED = 6  # more models than these are removed again, the oldest first
HURRIED = (
    "import sys; from localai import boundary, lanes, transfer; P, L = transfer.RetryPolicy, lanes.Lanes;"
    "transfer.RetryPolicy = lambda: P(tries=3, first_wait_s=0.01, longest_wait_s=0.05, timeout_s=0.5);"
    "transfer.Lanes = lambda: L(segment_bytes=200_000, trial_s=0, gain=0, least_s=0, enough_bps=1e18)"
    " if sys.argv[1] == 'several' else L();"
    "sys.exit(boundary.run(['pull', *sys.argv[2:]]))"
)  # the command itself, with less patience, and on some runs with several connections from the start


class Soak:
    def __init__(self, seed: int, hub: HubOnLoopback, folder: Path) -> None:
        self.random = random.Random(seed)
        self.hub, self.folder = hub, folder
        self.counts: Counter[str] = Counter()
        self.expected: dict[str, bytes] = {}  # what must be listed, by repository
        self.allowed: dict[str, list[bytes]] = {}  # what may be listed: any of a repository's commits
        self.next_model = 0

    def fault(self, size: int) -> Fault:
        """A random fault, at a random byte."""
        at = self.random.choice([0, 1, size - 1, self.random.randrange(size), self.random.randrange(size)])
        kinds: dict[str, dict[str, Any]] = {
            "dropped": {"drop_at": at},
            "reset": {"drop_at": at, "reset": True},
            "ended early": {"end_at": at},
            "stalled": {"hang_at": at},
            "dripped": {"drip": 200},
            "flipped bit": {"flip_at": at},
            "500": {"status": 500},
            "503 with Retry-After": {"status": 503, "retry_after": "0"},
            "429": {"status": 429},
            "404": {"status": 404},
            "wrong length": {"announce": max(1, at)},
            "too many bytes": {"extra": 1 + at % 1000},
            "ranges ignored": {"ignore_range": True},
            "wrong range": {"content_range": f"bytes {at}-{size - 1}/{size}"},
            "redirect loop": {"location": "?again", "times": 8},
            "unsafe redirect": {"location": "ftp://127.0.0.1/x"},
        }
        name = self.random.choice(list(kinds))
        self.counts[f"fault: {name}"] += 1
        return Fault(**{"times": self.random.choice([1, 1, 2, 9]), **kinds[name]})

    def round(self) -> None:
        """One model: some pulls with faults and kills, and a pull without."""
        repo, content = self.choose()
        update = repo in self.expected
        for _ in range(self.random.randint(1, 3)):
            server = self.hub.storage if self.random.random() < 0.5 and self.hub.storage else self.hub
            server.faults += [self.fault(len(content)) for _ in range(self.random.randint(1, 4))]
            if self.random.random() < 0.1:
                self.hub.head_faults.append(Fault(status=500))
            self.pulls(repo, update)
            self.check()
        self.calm()
        if self.start(repo, update).wait():
            self.counts["LOST: a pull without faults failed"] += 1
            print(f"a pull of {repo} without faults failed", file=sys.stderr)
        self.expected[repo] = content
        self.check()
        self.counts["rounds"] += 1
        self.make_room()

    def choose(self) -> tuple[str, bytes]:
        """A new model, or a new commit of one that is listed."""
        content = b"GGUF" + self.random.randbytes(self.random.choice([1000, 300_000, 2_000_000, 6_000_000]))
        if self.expected and self.random.random() < 0.3:
            repo = self.random.choice(list(self.expected))
            name = next(iter(self.hub.repos[repo].files))
            self.hub.repos[repo].replace({name: content}, f"{self.random.getrandbits(160):040x}")
            self.counts["new commits"] += 1
        else:
            self.next_model += 1
            repo = f"soak/model{self.next_model}-GGUF"
            self.hub.add(repo, {f"model{self.next_model}-Q4_0.gguf": content})
        self.allowed.setdefault(repo, []).append(content)
        return repo, content

    def pulls(self, repo: str, update: bool) -> None:
        """One pull, or two at once, each killed at a random moment or left to end."""
        started = [self.start(repo, update) for _ in range(self.random.choice([1, 1, 1, 2]))]
        for process in started:
            if self.random.random() < 0.6:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self.random.uniform(0.2, 1.2))
                if process.poll() is None:
                    process.kill()
                    self.counts["kills"] += 1
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                self.counts["LOST: a pull that hangs"] += 1
                process.kill()
                code = process.wait()
            self.counts[f"exit code {code}"] += 1
            if code == 1:
                print((self.folder / "stderr").read_text("utf-8", "replace"), file=sys.stderr)
                self.counts["BAD: an unexpected failure"] += 1
            self.counts["pulls"] += 1

    def start(self, repo: str, update: bool) -> subprocess.Popen[bytes]:
        way = self.random.choice(["one", "several"])
        words = [sys.executable, "-c", HURRIED, way, *(["--update"] if update else []), repo]
        said = self.folder / "stderr"
        with said.open("wb") as stream:
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream)

    def calm(self) -> None:
        for server in (self.hub, self.hub.storage):
            if server is not None:
                server.faults.clear()
                server.head_faults.clear()

    def check(self) -> None:
        """Everything listed is right, everything that was listed is there."""
        listed = {model.repo or "": model.path.read_bytes() for model in library.installed(self.damaged)}
        for repo, content in listed.items():
            self.counts["files compared"] += 1
            if content not in self.allowed[repo]:
                self.counts["BAD: other bytes than the Hub's"] += 1
        for repo in self.expected:
            if repo not in listed:
                self.counts["LOST: no longer listed"] += 1

    def damaged(self, line: str) -> None:
        self.counts["BAD: a damaged record"] += 1
        print(line, file=sys.stderr)

    def make_room(self) -> None:
        while len(self.expected) > KEPT_LISTED:
            repo = next(iter(self.expected))
            del self.expected[repo]
            for model in library.installed():
                if model.repo == repo:
                    removing.remove(model)
            del self.allowed[repo], self.hub.repos[repo]

    def report(self) -> int:
        """Print the counts; 1 where anything was bad or lost."""
        bad = sum(count for name, count in self.counts.items() if name.startswith("BAD"))
        lost = sum(count for name, count in self.counts.items() if name.startswith("LOST"))
        sent = self.hub.sent + (self.hub.storage.sent if self.hub.storage else 0)
        for name, count in sorted(self.counts.items()):
            print(f"{count:8}  {name}")
        print(f"{sent / 1e6:8.0f}  MB sent\n\n{bad} bad files, {lost} lost files")
        return int(bad + lost > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}")
    embedded.find = lambda: None
    with tempfile.TemporaryDirectory() as name, running(storage=True) as hub:
        os.environ |= {"LOCALAI_HOME": f"{name}/localai", "HF_HOME": f"{name}/hf", "HF_ENDPOINT": hub.url}
        soak = Soak(options.seed, hub, Path(name))
        end = time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            soak.round()
        code = soak.report()
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, **soak.counts}, indent=1) + "\n", "utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
