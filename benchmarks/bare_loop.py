"""The reference of `benchmarks/engine.py`: a bare loop on llama.cpp's C API, what `llama-bench` measures.

python benchmarks/bare_loop.py MODEL CONTEXT TOKENS      reads 16 tokens and decodes TOKENS; 0 loads no model
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from time import perf_counter

import psutil

from localai.domain.generation import Sampling
from localai.domain.plan import MemoryNeed, Placement, Plan
from localai.engine import library
from localai.engine.cache import SequenceCache
from localai.engine.sampling import Sampler

SAMPLING = Sampling(seed=7)


def plan_of(context: int) -> Plan:
    """A plan made by hand: CPU, one thread a physical core, llama.cpp's usual batches."""
    threads = psutil.cpu_count(logical=False) or 1
    nothing = MemoryNeed(0, 0, 0, 0)
    return Plan(context, Placement.CPU, 0, threads, 2048, 512, "f16", True, True, nothing, 0, True, None, None)


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


if __name__ == "__main__":
    model, context, tokens = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    library.api()
    if tokens:
        BareLoop(model, plan_of(context)).run(list(range(1, 17)), tokens)
