"""Does the server keep what it promises under abuse: 1,000 requests from 64 clients, a part of them hostile.

    python benchmarks/server_soak.py [--requests 1000] [--clients 64] [--json soak.json]

Each request is drawn by a seed: an ordinary one, a stream read to its end, one cut off at a random moment, one read a
few bytes at a time, a body that is no JSON, one that is cut off in its middle. Counted is what came of each; every
request that was taken (200) and not given up by its client must have ended as the API says, the server must have no
answer under way at the end, and its memory may have grown by 5 % at most between the first quarter and the last. Exit 1
otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

KINDS = ("plain", "plain", "stream", "stream", "cancelled", "cancelled", "slow", "bad", "half")
MODEL = "smollm2-135m"


def body(draw: random.Random, stream: bool) -> bytes:
    words = " ".join(draw.choice(("river", "stone", "north", "paper", "seven")) for _ in range(draw.randint(1, 60)))
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Write about {words}."}],
        "stream": stream,
        "max_tokens": draw.randint(1, 24),
    }
    return json.dumps(asked).encode()


def head(length: int) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
    )


async def one(port: int, kind: str, draw: random.Random) -> str:
    """Send one request; what became of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        stream = kind in ("stream", "slow") or (kind == "cancelled" and draw.random() < 0.5)
        content = b"{bad" if kind == "bad" else body(draw, stream)
        writer.write(head(len(content)))
        writer.write(content[: len(content) // 2] if kind == "half" else content)
        await writer.drain()
        if kind == "half":
            return "half: given up by its client"
        if kind == "cancelled":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(draw.randint(1, 2000)), draw.random() * 2)
            return "cancelled: given up by its client"
        answer = b""
        while more := await reader.read(64 if kind == "slow" else 65536):
            answer += more
            if kind == "slow":
                await asyncio.sleep(0.02)
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        if status == 200:
            whole = b"data: [DONE]" in answer if stream else b'"finish_reason":"' in answer
            return f"{kind}: {'answered' if whole else 'CUT OFF'}"
        return f"{kind}: {status}"
    finally:
        writer.close()


async def storm(port: int, requests: int, clients: int, seed: int, sample: Any) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    left = iter(range(requests))

    async def client() -> None:
        for number in left:
            draw = random.Random(seed * 1_000_003 + number)
            kind = draw.choice(KINDS)
            try:
                outcomes[await asyncio.wait_for(one(port, kind, draw), 600)] += 1
            except TimeoutError:
                outcomes[f"{kind}: NO ANSWER in 600 s"] += 1
            except OSError as error:
                outcomes[f"{kind}: {type(error).__name__}"] += 1
            sample(sum(outcomes.values()))

    await asyncio.gather(*(client() for _ in range(clients)))
    return outcomes


def metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith(f"localai_{name} ")))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", default="", help="more flags of localai serve, such as --threads 1")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "localai",
                "serve",
                "-m",
                MODEL,
                "--port",
                "0",
                "--context",
                "1024",
                *given.serve.split(),
                "--json",
            ],
            env={**os.environ, "LOCALAI_HOME": home},
            stdout=subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            text = b""
            while not text.endswith(b"}\n"):
                text += server.stdout.readline()
            port = int(json.loads(text)["url"].rpartition(":")[2])
            process = psutil.Process(server.pid)
            memory: list[tuple[int, int]] = []

            def sample(done: int) -> None:
                memory.append((done, process.memory_info().rss))

            asyncio.run(storm(port, max(given.requests // 10, 8), given.clients, 0, lambda done: None))  # warm up
            started = time.monotonic()
            outcomes = asyncio.run(storm(port, given.requests, given.clients, given.seed, sample))
            seconds = time.monotonic() - started
            deadline = time.monotonic() + 60
            while metric(port, "answers_under_way") and time.monotonic() < deadline:
                time.sleep(0.1)
            stuck = metric(port, "answers_under_way")
            tokens, interrupted = metric(port, "completion_tokens_total"), metric(port, "answers_interrupted_total")
        finally:
            server.terminate()
            server.wait(30)
    quarter = max(len(memory) // 4, 1)
    first, last = (max(rss for _, rss in part) for part in (memory[:quarter], memory[-quarter:]))
    growth = last / first - 1
    wrong = sum(count for told, count in outcomes.items() if "CUT OFF" in told or "NO ANSWER" in told or ": 5" in told)
    for told, count in sorted(outcomes.items()):
        print(f"{count:6} {told}")
    print(f"{given.requests} requests from {given.clients} clients in {seconds:.0f} s; {tokens:.0f} tokens written,")
    print(f"{interrupted:.0f} answers interrupted; {stuck:.0f} still under way;")
    print(f"memory {growth:+.1%} ({last / 2**20:.0f} MiB)")
    if given.json is not None:
        told = {"outcomes": dict(outcomes), "seconds": seconds, "stuck": stuck, "memory_growth": growth, "wrong": wrong}
        given.json.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
    return 1 if wrong or stuck or growth > 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
