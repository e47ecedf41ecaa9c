"""Predicted memory against what llama.cpp reserves, over shapes x quantizations x contexts, and the naive rules beside.

    python benchmarks/memory.py               prints the table
    python benchmarks/memory.py --write       puts it into docs/accuracy.md
    python benchmarks/memory.py --json FILE   writes the figures
    python benchmarks/memory.py --random 30   as many shapes that nobody has: those of the list, with other dimensions

Each model is a sparse file with the header of a real model's shape: nothing is downloaded. The truth is llama.cpp's own
(`localai.engine.oracle`): its sum of the tensors, its KV cache and its compute buffers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import model_headers  # noqa: E402

from localai import estimate, gguf, measuring, quantization, shapes  # noqa: E402
from localai.domain.plan import MemoryNeed  # noqa: E402
from localai.domain.units import MIB  # noqa: E402
from localai.engine import oracle  # noqa: E402
from localai.errors import EngineError  # noqa: E402

QUANTIZATIONS = ("Q4_K_M", "Q8_0", "F16")
CONTEXTS = (512, 8192, 131072)
PAGE, BEGIN, END = ROOT / "docs" / "accuracy.md", "<!-- memory: begin -->", "<!-- memory: end -->"


@dataclass(frozen=True)
class Row:
    """One prediction: by the closed forms alone, as a plan would have it, and by the two naive rules."""

    model: str
    quant: str
    context: int
    truth: oracle.Reading
    closed: MemoryNeed
    planned: MemoryNeed
    of_size: int
    of_params: int

    @property
    def true_total(self) -> int:
        return self.truth.weights_bytes + self.truth.kv_cache_bytes + self.truth.compute_bytes

    def error(self, total: int) -> float:
        return 100 * (total / self.true_total - 1)

    @property
    def reached(self) -> bool:
        """Every component within 5 % or 32 MiB, the total within 2 % or 100 MiB, by the closed forms alone."""
        pairs = (
            (self.closed.weights_bytes, self.truth.weights_bytes),
            (self.closed.kv_cache_bytes, self.truth.kv_cache_bytes),
            (self.closed.compute_bytes, self.truth.compute_bytes),
        )
        parts = all(abs(found - true) <= max(0.05 * true, 32 * MIB) for found, true in pairs)
        return parts and abs(self.closed.total_bytes - self.true_total) <= max(0.02 * self.true_total, 100 * MIB)

    @property
    def figures(self) -> dict[str, Any]:
        """The row as JSON has it: bytes, and errors of the total in percent."""
        errors = {
            "closed": self.closed.total_bytes,
            "planned": self.planned.total_bytes,
            "of_size": self.of_size,
            "of_params": self.of_params,
        }
        return {
            **asdict(self),
            "true_total_bytes": self.true_total,
            "error_percent": {way: round(self.error(total), 3) for way, total in errors.items()},
            "reached": self.reached,
        }


def variations(count: int, seed: int) -> Iterator[model_headers.Model]:
    """Shapes of no model: depth, feed-forward, KV heads, experts, window and vocabulary of a real one changed."""
    rng = random.Random(seed)
    for number in range(count):
        model = rng.choice(model_headers.MODELS)
        dims = dict(model.dims)

        def change(key: str, choose: Callable[[int], int], dims: dict[str, Any] = dims) -> None:
            if isinstance(dims.get(key), int) and dims[key] and rng.random() < 0.7:
                dims[key] = choose(dims[key])

        if not any(isinstance(value, tuple) for value in dims.values()):
            change("block_count", lambda now: max(4, round(now * rng.uniform(0.5, 1.5))))
        change("feed_forward_length", lambda now: max(256, round(now * rng.uniform(0.5, 1.6) / 256) * 256))
        change("expert_feed_forward_length", lambda now: max(256, round(now * rng.uniform(0.5, 1.6) / 256) * 256))
        heads = dims.get("attention.head_count")
        latent = "attention.kv_lora_rank" in dims  # has one KV head, whatever it says
        shares = [n for n in range(1, heads + 1) if heads % n == 0] if isinstance(heads, int) and not latent else []
        if shares:
            change("attention.head_count_kv", lambda now, shares=shares: rng.choice(shares))  # type: ignore[misc]
        change("expert_used_count", lambda now: max(1, now + rng.choice((-1, 1, 2))))
        change("attention.sliding_window", lambda now: rng.choice((256, 1024, 3000, 4096)))
        vocabulary = rng.choice((32000, 50257, 100352, 151936, 262144))
        yield replace(model, name=f"{model.name}~{number}", dims=dims, vocabulary=vocabulary)


def rows(models: Iterable[model_headers.Model]) -> Iterator[Row]:
    """Every model at every quantization and context; what llama.cpp refuses is told and left out."""
    settings = [oracle.Setting(context) for context in CONTEXTS]
    for model in models:
        for quant in QUANTIZATIONS:
            with tempfile.TemporaryDirectory() as folder:
                path = model_headers.write_sparse(Path(folder), model, quant)
                header = gguf.read_header(path)
                shape, weights = shapes.shape(header), shapes.weights(header)
                files = measuring.header_files([path])
                try:
                    truths = oracle.measure(files, settings)
                except EngineError as error:
                    print(f"left out: {model.name} {quant}: {error.message}", file=sys.stderr)
                    continue
                measured = measuring.measure_for(shape, files)
                bits = quantization.bits(quant) or 16
                for context, truth in zip(CONTEXTS, truths, strict=True):
                    yield Row(
                        model.name,
                        quant,
                        context,
                        truth,
                        estimate.memory(shape, weights, context),
                        estimate.memory(shape, weights, context, measured=measured),
                        round(1.2 * header.file_size),
                        round(shape.params * bits / 8),
                    )


def table(found: list[Row]) -> str:
    """The rows as Markdown, with the median and the worst error of each way of reckoning."""
    lines = [
        "| model | file | context | weights | KV cache: predicted, true | compute: closed form, true | total, true"
        " | closed forms | plan | size + 20 % | parameters × bits |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found:
        closed, truth = row.closed, row.truth
        lines.append(
            f"| {row.model} | {row.quant} | {row.context:,} | {closed.weights_bytes / MIB:,.0f}"
            f" | {closed.kv_cache_bytes / MIB:,.1f}, {truth.kv_cache_bytes / MIB:,.1f}"
            f" | {closed.compute_bytes / MIB:,.1f}, {truth.compute_bytes / MIB:,.1f} | {row.true_total / MIB:,.0f}"
            f" | {row.error(closed.total_bytes):+.2f} % | {row.error(row.planned.total_bytes):+.2f} %"
            f" | {row.error(row.of_size):+.0f} % | {row.error(row.of_params):+.0f} % |"
        )
    lines += ["", *summary(found)]
    return "\n".join(lines)


def summary(found: list[Row]) -> list[str]:
    ways = {
        "closed forms": [row.error(row.closed.total_bytes) for row in found],
        "plan (llama.cpp asked where the closed form is inexact)": [
            row.error(row.planned.total_bytes) for row in found
        ],
        "file size + 20 %": [row.error(row.of_size) for row in found],
        "parameters × bits": [row.error(row.of_params) for row in found],
    }
    lines = [f"{len(found)} rows. MiB throughout; errors are of the total.", ""]
    lines += ["| way | median error | worst |", "|---|--:|--:|"]
    for name, errors in ways.items():
        worst = max(errors, key=abs)
        lines.append(f"| {name} | {statistics.median(map(abs, errors)):.2f} % | {worst:+.1f} % |")
    kv = max(abs(row.closed.kv_cache_bytes - row.truth.kv_cache_bytes) for row in found) / MIB
    compute = max(found, key=lambda row: abs(row.closed.compute_bytes - row.truth.compute_bytes))
    far = (compute.closed.compute_bytes - compute.truth.compute_bytes) / MIB
    missed = [row for row in found if not row.reached]
    lines += [
        "",
        f"KV cache: at most {kv:.2f} MiB off. Compute buffer by closed form: at most {far:+.1f} MiB, {compute.model}.",
        f"Closed forms alone outside the target (each part 5 % or 32 MiB, the total 2 % or 100 MiB): {len(missed)} rows"
        + (": " + ", ".join(sorted({row.model for row in missed})) if missed else "")
        + ".",
    ]
    return lines


def main() -> int:
    """Print the table, or put it into the page; 1 if a row misses the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/accuracy.md")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--random", type=int, metavar="N", help="N shapes that nobody has instead")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.write and options.random:
        parser.error("--write is for the shapes of the list")
    found = list(rows(variations(options.random, options.seed) if options.random else model_headers.MODELS))
    text = table(found)
    if options.write:
        page = PAGE.read_text("utf-8") if PAGE.exists() else f"# How near the predictions come\n\n{BEGIN}\n{END}\n"
        if BEGIN not in page:
            page += f"\n{BEGIN}\n{END}\n"
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        heading = "## Memory\n\nMade by `python benchmarks/memory.py --write`; how it is reckoned is in estimation.md."
        PAGE.write_text(f"{before}{BEGIN}\n{heading}\n\n{text}\n{END}{after}", "utf-8")
    print(text if not options.write else "\n".join(summary(found)))
    if options.json:
        content = {"schema_version": 1, "memory": [row.figures for row in found]}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return int(not all(row.reached for row in found))


if __name__ == "__main__":
    sys.exit(main())
