"""Fuzz the header reader: sound headers, changed at random, read as a file and in pieces as over HTTP.

    python benchmarks/fuzz_gguf.py --minutes 10

Whatever the bytes are, the answer must be a header or an EngineError, within a second (of processor time) and 200 MB.
Exits 1 else, and keeps the input that did it.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import model_headers
from gguf_files import ARRAY, STRING, Typed, gguf_bytes, text

from localai import gguf, gguf_reader, shapes
from localai.errors import EngineError

SECONDS_LIMIT, MEMORY_LIMIT_MB = 1.0, 200
EDGES = (0, 1, 2, 7, 8, 9, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
Mutation = Callable[[random.Random, bytearray], None]


class Pieces:
    """A byte source that gives what a Hub would: exactly what is asked for, of a file that claims any size."""

    def __init__(self, content: bytes, size: int) -> None:
        self.name, self.size, self._content = "fuzzed", size, content

    def read_at(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


def seeds() -> list[bytes]:
    """Headers of every architecture at hand, one with a large vocabulary, and shards."""
    words = b"".join(struct.pack("<Q", 6) + b"abcdef" for _ in range(150_000))
    vocabulary = Typed(ARRAY, struct.pack("<IQ", STRING, 150_000) + words)
    made = [
        gguf_bytes(model_headers.metadata(model), model_headers.tensors(model, quantization), data=False)
        for model in model_headers.MODELS[::3]
        for quantization in ("Q4_K_M", "F16")
    ]
    llama = model_headers.named("smollm2-135m")
    facts = {**model_headers.metadata(llama), "split.count": 1, "tokenizer.ggml.tokens": vocabulary}
    return [*made, gguf_bytes(facts, model_headers.tensors(llama, "Q8_0"), data=False), worst()]


def worst() -> bytes:
    """As many strings and tensors as the reader takes: what costs it most."""
    strings, tensors = gguf_reader.STRINGS_LIMIT, gguf.TENSORS_LIMIT
    out = [b"GGUF", struct.pack("<IQQ", 3, tensors, 1), text("a"), struct.pack("<IIQ", ARRAY, STRING, strings)]
    out.append(bytes(8 * strings))
    out += [text(f"blk.{i}.t") + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(tensors)]
    return b"".join(out)


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def edge(rng: random.Random, data: bytearray) -> None:
    """A count, length, offset or type becomes one at the border of what fits."""
    value, width = rng.choice(EDGES), rng.choice((4, 8))
    at = rng.choice((4, 8, 16, rng.randrange(len(data))))
    data[at : at + width] = (value % (1 << (8 * width))).to_bytes(width, "little")


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def double(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.choice((1, 8, 100, 5000))]


def drop(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 4, 8, 100))]


def noise(rng: random.Random, data: bytearray) -> None:
    start = rng.choice((4, 24, rng.randrange(len(data))))
    data[start:] = rng.randbytes(rng.choice((10, 1000, 100_000)))


MUTATIONS: tuple[Mutation, ...] = (flip, edge, edge, edge, cut, double, drop, noise)


def changed(rng: random.Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, data)
        if len(data) < 32:
            break
    return bytes(data)


def read(source: gguf_reader.ByteSource) -> str:
    """What became of it, all the way to shape, weights and card."""
    try:
        header = gguf.parse(source)
    except EngineError:
        return "refused"
    shapes.card(header)
    shapes.quantization(header)
    try:
        shapes.shape(header)
        shapes.weights(header)
    except EngineError:
        return "read, no model"
    return "read"


def timed(where: Path | Pieces) -> tuple[str, float]:
    """What became of it, a crash being an outcome like any other, and the seconds of the processor that it took: the
    reader waits for nothing, so that what else runs on the machine is left out.
    """
    started = time.process_time()
    try:
        if isinstance(where, Path):
            with gguf_reader.FileSource(where) as source:
                outcome = read(source)
        else:
            outcome = read(where)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        outcome = f"CRASH {type(error).__name__}: {error}"[:200]
    return outcome, time.process_time() - started


def main() -> int:
    """Run, print what was seen, and exit 1 if anything was crash, hang or hunger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    rng, sound = random.Random(options.seed), seeds()
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    seen: Counter[str] = Counter()
    longest_s, end = 0.0, time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="localai-fuzz-"))
    path = folder / "input.gguf"
    while time.monotonic() < end:
        data = changed(rng, rng.choice(sound))
        size = rng.choice((len(data), len(data) + 10**6, 10**12, 2**62))
        as_file = rng.random() < 0.2
        if as_file:
            path.write_bytes(data)
        outcome, took_s = timed(path if as_file else Pieces(data, size))
        longest_s = max(longest_s, took_s)
        if took_s > SECONDS_LIMIT:
            outcome = f"HANG of {took_s:.1f} s"
        seen[outcome] += 1
        if outcome.startswith(("CRASH", "HANG")):
            (folder / f"found-{sum(seen.values())}.gguf").write_bytes(data)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seed {options.seed}: {sum(seen.values())} inputs, longest {longest_s:.3f} s, peak memory {peak_mb:.0f} MB")
    for outcome, count in seen.most_common():
        print(f"{count:8} {outcome}")
    bad = any(outcome.startswith(("CRASH", "HANG")) for outcome in seen) or peak_mb > MEMORY_LIMIT_MB
    print(f"inputs kept in {folder}" if bad else "nothing found")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
