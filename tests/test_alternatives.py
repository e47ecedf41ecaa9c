"""What is said to fit instead really does: by its plan, and through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model_headers import named, write_sparse

from localai import alternatives, estimate, gguf, shapes
from localai.catalog import resolve_name
from localai.domain.machine import Machine
from localai.domain.shape import Shape, Weights
from localai.domain.units import GIB
from localai.machines import hypothetical


def with_free(gib: float) -> Machine:
    machine = hypothetical(64)
    return replace(machine, memory=replace(machine.memory, available_bytes=round(gib * GIB)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Weights]:
    header = gguf.read_header(write_sparse(tmp_path_factory.mktemp("llama"), named("llama-3.1-8b"), "Q8_0"))
    return shapes.shape(header), shapes.weights(header)


def instead_of(pair: tuple[Shape, Weights], machine: Machine, **asked: Any) -> alternatives.Alternatives:
    refused = estimate.plan(*pair, machine, **asked)
    assert not refused.fits
    known = resolve_name("llama-3.1-8b")
    return alternatives.find(
        *pair, machine, refused, known=known, quant="Q8_0", asked_gpu_layers=asked.get("gpu_layers")
    )


def test_the_longest_context_that_fits_is_named(llama: tuple[Shape, Weights]) -> None:
    machine = with_free(10)
    found = instead_of(llama, machine, context=131072)
    assert found.context is not None
    assert estimate.plan(*llama, machine, context=found.context).fits
    assert not estimate.plan(*llama, machine, context=found.context + 256).fits
    assert f"--context {found.context} fits" in found.sentence("llama-3.1-8b:q8_0")


def test_a_smaller_cache_is_named_where_it_is_enough(llama: tuple[Shape, Weights]) -> None:
    machine = with_free(10)
    found = instead_of(llama, machine, context=16384, kv_type="f16")
    assert found.kv_type == "q8_0"
    assert estimate.plan(*llama, machine, context=16384, kv_type="q8_0").fits
    assert instead_of(llama, machine, context=131072, kv_type="f16").kv_type is None


def test_another_quantization_and_another_model_are_named(llama: tuple[Shape, Weights]) -> None:
    machine = with_free(7)
    found = instead_of(llama, machine)
    assert found.context is None
    assert found.quantization in {"Q4_K_M", "Q5_K_M", "Q6_K"}
    assert found.model is not None
    assert f"llama-3.1-8b:{str(found.quantization).lower()} fits" in found.sentence("llama-3.1-8b:q8_0")
    assert f"localai pull {found.model}" in found.sentence("llama-3.1-8b:q8_0")


def test_fewer_layers_are_named_where_they_were_asked_for(llama: tuple[Shape, Weights]) -> None:
    machine = hypothetical(32, 6)
    found = instead_of(llama, machine, gpu_layers=33)
    assert found.gpu_layers is not None
    assert estimate.plan(*llama, machine, gpu_layers=found.gpu_layers).fits
    assert f"--gpu-layers {found.gpu_layers} fits" in found.sentence("x")


def test_where_nothing_fits_that_is_said(llama: tuple[Shape, Weights]) -> None:
    found = instead_of(llama, with_free(0.05))
    assert found == alternatives.Alternatives()
    assert "close other programs" in found.sentence("x")


def test_the_command_says_what_would_fit(tmp_path: Path, cli: Any) -> None:
    path = write_sparse(tmp_path, named("qwen3-235b-a22b"), "F16")
    done = cli("run", "-m", str(path), "hello")
    assert (done.returncode, done.stdout) == (4, "")
    assert "localai pull" in done.stderr.splitlines()[-1]
    shown = json.loads(cli("show", str(path), "--json").stdout)
    assert shown["fit"]["fits"] is False
    assert shown["instead"]["model"] in done.stderr
    text = cli("show", str(path), "--check")
    assert text.returncode == 4
    assert "Instead: localai pull" in text.stdout
