"""Many requests at once: over one after another, over one alone, and over llama-server with as many slots.

    python benchmarks/batch.py [--model PATH] [--made FOLDER] [--server llama-server] [--prompts 32] [--pairs 5]
                               [--only prefix|server|planned] [--json PATH]

prefix: prompts with a common beginning of 1,000 tokens, over the same prompts one after another (each read whole).
server: 8 at once, over llama-server with 8 slots on the same model (left out where there is no llama-server): total
decode where every answer is long and every prompt a few words; and all tokens over the whole time, and the worst time
to the first token, where every prompt is long: a server that reads all prompts before it writes has a high speed of
writing then, one that reads while it writes early answers.
planned: as many as the plan takes, over one sequence alone as its plan has it (map --parallel 1), on a model of
Qwen3-0.6B's shape with random weights (made in the folder `--made`, if need be). Runs alternate; a figure is the median
of the pairs' ratios. To reach (spec): 3, 1 and 3.5.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import random_models

from localai import embedded, estimate, gguf, hardware, loading, parallelism, shapes
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, PromptProgress, Sampling
from localai.domain.plan import Plan
from localai.engine import model as one_engine
from localai.engine import scheduler
from localai.errors import LocalaiError

SENTENCE = "The stone lies on the way to the old mill, and nobody has moved it for years. "
PREFIX_TOKENS = 1000
GREEDY = Sampling(temperature=0)
SLOTS = 8


@dataclass(frozen=True)
class Run:
    """What a number of requests took: tokens drawn, seconds in all and from the first token, the worst first token."""

    tokens: int
    seconds: float
    decode_s: float
    worst_first_s: float

    @property
    def decode_tps(self) -> float:
        return self.tokens / self.decode_s

    @property
    def total_tps(self) -> float:
        return self.tokens / self.seconds


def plan_for(path: Path, context: int, sequences: int | None, most: int | None = None) -> Plan:
    header = gguf.read_model([path])
    shape, weights, machine = shapes.shape(header), shapes.weights(header), hardware.detect()

    def planned(count: int) -> Plan:
        return estimate.plan(shape, weights, machine, want_context=context, sequences=count)

    plan = planned(sequences) if sequences is not None else parallelism.best(planned, most)
    return loading.arranged(plan, loading.Facts(machine, shape, weights))


def never_ending(engine: Any) -> Sampling:
    """Greedy, and never the end of the text: every run draws as many tokens."""
    vocabulary = engine._prompts.vocabulary
    size = engine._api.llama_vocab_n_tokens(vocabulary.pointer)
    return replace(GREEDY, logit_bias=tuple((token, -1000.0) for token in range(size) if vocabulary.is_end(token)))


def at_once(engine: scheduler.Scheduler, requests: Sequence[GenerationRequest]) -> Run:
    ends: queue.Queue[AnswerEnd | LocalaiError] = queue.Queue()
    started = perf_counter()
    for request in requests:
        engine.submit(request, lambda event: ends.put(event) if isinstance(event, AnswerEnd | LocalaiError) else None)
    found = [ends.get() for _ in requests]
    seconds = perf_counter() - started
    if failed := next((each for each in found if isinstance(each, LocalaiError)), None):
        raise SystemExit(failed.message)
    firsts = [(each.timings.first_token_ms or 0) / 1000 for each in found if isinstance(each, AnswerEnd)]
    tokens = sum(each.usage.completion_tokens for each in found if isinstance(each, AnswerEnd))
    return Run(tokens, seconds, seconds - min(firsts), max(firsts))


# ---------------------------------------------------------------------------------------------------- common beginnings


def prefix(path: Path, count: int, pairs: int, answer: int) -> dict[str, Any]:
    alone = one_engine.load(path, plan_for(path, 2048, 1))
    many = scheduler.load(path, plan_for(path, 2048, None, count), queue=count, patience_s=2.0)
    beginning = SENTENCE * (PREFIX_TOKENS // len(many._prompts.vocabulary.tokenize(SENTENCE)))
    texts = [f"{beginning}\n\nRecord {number}: {number * 7919 % 1000}" for number in range(count)]
    requests = [GenerationRequest((Message("user", text),), never_ending(many), answer) for text in texts]
    rows = []
    for pair in range(pairs):
        started = perf_counter()
        for request in requests:
            alone.forget()
            tokens = 0
            for event in alone.generate(request, lambda: False):
                tokens = event.total_tokens if isinstance(event, PromptProgress) else tokens
        seconds = perf_counter() - started
        for number in range(many.sequences):  # nothing is known from the pair before
            many._sequences.clear(number)
        run = at_once(many, requests)
        rows.append((seconds, run.seconds))
        print(
            f"  prefix {pair + 1}: {tokens} tokens each; one after another {seconds:.1f} s, at once {run.seconds:.1f} s"
        )
    alone.close()
    many.close()
    return {
        "prompts": count,
        "prompt_tokens": tokens,
        "sequences": many.sequences,
        "one_after_another_s": median(row[0] for row in rows),
        "at_once_s": median(row[1] for row in rows),
        "ratio": median(row[0] / row[1] for row in rows),
    }


# --------------------------------------------------------------------------------------------------------- llama-server


@contextmanager
def llama_server(binary: str, path: Path, context: int, threads: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, "-m", str(path), "--port", str(port), "-np", str(SLOTS), "-c", str(context * SLOTS)]
    command += ["-t", str(threads), "-tb", str(threads), "-fa", "on", "--no-webui"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"{binary} ended: {log.read()[-2000:].decode('utf-8', 'replace')}")
                try:
                    with urllib.request.urlopen(f"{url}/health") as answer:
                        if answer.status == 200:
                            break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait()


def ask_server(url: str, prompts: Sequence[list[int]], answer: int) -> Run:
    firsts = [0.0] * len(prompts)
    counts = [0] * len(prompts)

    def ask(number: int) -> None:
        body = {"prompt": prompts[number], "n_predict": answer, "temperature": 0, "ignore_eos": True, "stream": True}
        body |= {"cache_prompt": True, "samplers": ["temperature"]}
        request = urllib.request.Request(
            f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as stream:
            for line in stream:
                if line.startswith(b"data: "):
                    firsts[number] = firsts[number] or perf_counter() - started
        counts[number] = answer

    started = perf_counter()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - started
    return Run(sum(counts), seconds, seconds - min(firsts), max(firsts))


def against_server(binary: str, path: Path, pairs: int, answer: int) -> dict[str, Any]:
    planned = plan_for(path, 1024, SLOTS)
    engine = scheduler.load(path, planned, queue=SLOTS)
    rows = []
    with llama_server(binary, path, planned.context, planned.threads) as url:

        def pair_of(pair: int, beside: str, tokens: int) -> tuple[Run, Run]:
            texts = [f"Pair {pair}. Tell the story of traveller {number}. {beside}" for number in range(SLOTS)]
            requests = [GenerationRequest((Message("user", text),), never_ending(engine), tokens) for text in texts]
            prompts = [engine._prompts.prompt(request.messages, None).tokens for request in requests]
            runs = {}
            for name in ("ours", "theirs") if pair % 2 else ("theirs", "ours"):
                runs[name] = at_once(engine, requests) if name == "ours" else ask_server(url, prompts, tokens)
            return runs["ours"], runs["theirs"]

        for pair in range(pairs):
            writing, reading = pair_of(pair, "", 4 * answer), pair_of(pair, "He walks. " * 60, answer)
            rows.append((writing, reading))
            print(
                f"  server {pair + 1}: decode {writing[0].decode_tps:.1f} t/s over {writing[1].decode_tps:.1f};"
                f" long prompts: {reading[0].total_tps:.1f} t/s in all over {reading[1].total_tps:.1f},"
                f" worst first token {reading[0].worst_first_s:.2f} s over {reading[1].worst_first_s:.2f}"
            )
    engine.close()
    return {
        "slots": SLOTS,
        "decode_tps": median(writing[0].decode_tps for writing, _ in rows),
        "server_decode_tps": median(writing[1].decode_tps for writing, _ in rows),
        "ratio": median(writing[0].decode_tps / writing[1].decode_tps for writing, _ in rows),
        "total_tps": median(reading[0].total_tps for _, reading in rows),
        "server_total_tps": median(reading[1].total_tps for _, reading in rows),
        "total_ratio": median(reading[0].total_tps / reading[1].total_tps for _, reading in rows),
        "worst_first_token_s": median(reading[0].worst_first_s for _, reading in rows),
        "server_worst_first_token_s": median(reading[1].worst_first_s for _, reading in rows),
        "first_token_ratio": median(reading[0].worst_first_s / reading[1].worst_first_s for _, reading in rows),
    }


# -------------------------------------------------------------------------------------------------- as many as planned


def planned_over_one(path: Path, pairs: int, answer: int) -> dict[str, Any]:
    """As many as are planned, over one alone as it is planned. Prompts are read before: only writing counts."""
    alone = scheduler.load(path, plan_for(path, 512, 1), queue=1)
    engine = scheduler.load(path, plan_for(path, 512, None), queue=64, patience_s=2.0)
    sampling = never_ending(engine)

    def written(asked: scheduler.Scheduler, count: int, pair: int) -> Run:
        texts = [f"{pair} {number} begins so" for number in range(count)]
        requests = [GenerationRequest((Message("user", text),), sampling, answer) for text in texts]
        at_once(asked, [replace(request, max_tokens=1) for request in requests])
        return at_once(asked, requests)

    rows = []
    for pair in range(pairs):
        found = {}
        for asked in (alone, engine) if pair % 2 else (engine, alone):
            found[asked] = written(asked, asked.sequences, pair)
        rows.append((found[alone].decode_tps, found[engine].decode_tps))
        print(f"  planned {pair + 1}: {rows[-1][1]:.1f} t/s with {engine.sequences}, {rows[-1][0]:.1f} alone")
    alone.close()
    engine.close()
    return {
        "sequences": engine.sequences,
        "one_decode_tps": median(row[0] for row in rows),
        "decode_tps": median(row[1] for row in rows),
        "ratio": median(row[1] / row[0] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="default: the embedded one")
    parser.add_argument("--made", type=Path, default=Path(tempfile.gettempdir()) / "localai-random-models")
    parser.add_argument("--server", default="llama-server")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--answer", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=("prefix", "server", "planned"), default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if (path := options.model) is None:
        if (found := embedded.find()) is None:
            raise SystemExit("the embedded model is not installed: give one with --model")
        path = found.path
    result: dict[str, Any] = {
        "schema_version": 1,
        "model": path.name,
        "threads": os.cpu_count(),
        "pairs": options.pairs,
    }
    if options.only in (None, "prefix"):
        result["prefix"] = prefix(path, options.prompts, options.pairs, options.answer // 3)
    if options.only in (None, "server"):
        binary = shutil.which(options.server)
        if binary is None:
            print(f"  server: there is no {options.server}; name one with --server")
        else:
            result["server"] = against_server(binary, path, options.pairs, options.answer)
    if options.only in (None, "planned"):
        result["planned"] = planned_over_one(
            random_models.kept(options.made, "qwen3-0.6b", "Q4_K_M"), options.pairs, 3 * options.answer
        )
    print(f"\n{'':10}{'ours':>12}{'reference':>12}{'ratio':>8}")
    if row := result.get("prefix"):
        print(f"{'prefix s':10}{row['at_once_s']:12.1f}{row['one_after_another_s']:12.1f}{row['ratio']:8.2f}")
    if row := result.get("server"):
        print(f"{'decode t/s':10}{row['decode_tps']:12.1f}{row['server_decode_tps']:12.1f}{row['ratio']:8.2f}")
        print(f"{'total t/s':10}{row['total_tps']:12.1f}{row['server_total_tps']:12.1f}{row['total_ratio']:8.2f}")
        first = (row["worst_first_token_s"], row["server_worst_first_token_s"], row["first_token_ratio"])
        print(f"{'first s':10}{first[0]:12.2f}{first[1]:12.2f}{first[2]:8.2f}")
    if row := result.get("planned"):
        print(f"{'planned':10}{row['decode_tps']:12.1f}{row['one_decode_tps']:12.1f}{row['ratio']:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
