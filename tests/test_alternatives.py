"""What is said to fit instead really does: by its plan, and through the command line."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_headers import named, write_sparse

from localai import alternatives, estimate, gguf, hardware, library, loading, measuring, shapes, sizes
from localai.catalog import resolve_name
from localai.domain.machine import Machine
from localai.domain.shape import Shape, Weights
from localai.domain.units import GIB
from localai.errors import DoesNotFit
from localai.machines import hypothetical


def with_free(gib: float) -> Machine:
    machine = hypothetical(64)
    return replace(machine, memory=replace(machine.memory, available_bytes=round(gib * GIB)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Weights]:
    header = gguf.read_header(write_sparse(tmp_path_factory.mktemp("llama"), named("llama-3.1-8b"), "Q8_0"))
    return shapes.shape(header), shapes.weights(header)


def instead_of(pair: tuple[Shape, Weights], machine: Machine, **asked: Any) -> alternatives.Alternatives:
    shape, weights = pair
    again = partial(estimate.plan, shape, weights=weights, machine=machine, **asked)
    refused = again()
    assert not refused.fits
    known = resolve_name("llama-3.1-8b")
    wishes = {name: asked.get(name) for name in ("context", "gpu_layers")}
    return alternatives.find(again, refused, shape, weights, machine, known=known, quant="Q8_0", **wishes)


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


def test_as_many_at_once_as_fit_are_named(llama: tuple[Shape, Weights]) -> None:
    shape, weights = llama
    again = partial(estimate.plan, shape, weights=weights, machine=with_free(14), context=8192, kv_type="f16")
    assert not again(sequences=8).fits
    most = alternatives.most_at_once(again, 8)
    assert most is not None
    assert again(sequences=most).fits
    assert not again(sequences=most + 1).fits
    assert alternatives.most_at_once(partial(again, machine=with_free(4)), 8) is None


def test_a_context_that_no_model_has_does_not_keep_a_smaller_model_from_being_named(
    llama: tuple[Shape, Weights],
) -> None:
    found = instead_of(llama, with_free(4), context=4_000_000)
    assert found.context is None
    assert found.model is not None


def hungry(context: int, kv_type: str, ubatch: int) -> tuple[int, int]:
    """As if llama.cpp itself took a GiB more than the closed forms say."""
    return 131072 * context, 2 * GIB


@given(
    st.floats(3, 20),
    st.sampled_from([0, 6, 12]),
    st.sampled_from([None, 4096, 16384, 131072]),
    st.sampled_from([None, "f16", "q8_0"]),
    st.sampled_from([None, 12, 33]),
    st.sampled_from([0, 2 * GIB]),
    st.sampled_from([1, 4]),
    st.booleans(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_offered_fits_when_it_is_asked_for(
    llama: tuple[Shape, Weights],
    gib: float,
    vram: int,
    context: int | None,
    kv_type: str | None,
    layers: int | None,
    projector: int,
    sequences: int,
    asks_llama: bool,
) -> None:
    """Everything else stays as it was asked for: the projector, so many at once, the layers, the cache."""
    shape, weights = llama
    machine = replace(with_free(gib), gpus=hypothetical(64, vram).gpus)
    measured = hungry if asks_llama and sequences == 1 else None
    asked: dict[str, Any] = {"context": context, "kv_type": kv_type, "gpu_layers": layers, "ubatch": 512}
    again = partial(
        estimate.plan, shape, weights=weights, machine=machine, projector_bytes=projector, sequences=sequences, **asked
    )
    refused = again(measured=measured)
    if refused.fits:
        return
    wishes = {"context": context, "gpu_layers": layers, "measured": measured}
    known = resolve_name("llama-3.1-8b")
    found = alternatives.find(again, refused, shape, weights, machine, known=known, quant="Q8_0", **wishes)
    for name in ("context", "kv_type", "gpu_layers"):
        if (offered := getattr(found, name)) is not None:
            assert again(**{name: offered, "measured": measured}).fits, name
    if found.quantization is not None:
        assert known is not None
        smaller = sizes.weights_from_catalog(known, found.quantization)
        assert again(weights=smaller, measured=measured).fits
    assert found.model != "llama-3.1-8b"


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


def test_llama_cpp_is_asked_where_forms_that_are_only_near_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where there is room enough, nor where there is far too little: a cold start would wait for it."""
    found = library.find(str(write_sparse(tmp_path, named("qwen3-30b-a3b"))))
    asked: list[tuple[Path, ...]] = []
    monkeypatch.setattr(measuring, "measure_here", lambda shape, paths: asked.append(paths))
    for gib, fits, count in ((100, True, 0), (21, True, 1), (16, False, 2), (4, False, 2)):
        machine = with_free(gib)
        monkeypatch.setattr(hardware, "detect", lambda machine=machine: machine)
        with contextlib.nullcontext() if fits else pytest.raises(DoesNotFit):
            loading.prepare(found, loading.LoadOptions())
        assert len(asked) == count, gib


def test_the_command_says_what_would_fit(tmp_path: Path, cli: Any) -> None:
    path = write_sparse(tmp_path, named("qwen3-235b-a22b"), "F16")
    done = cli("run", "-m", str(path), "hello")
    assert (done.returncode, done.stdout) == (4, "")
    assert "localai pull" in done.stderr.splitlines()[-1]
    shown = json.loads(cli("show", str(path), "--json").stdout)
    assert shown["fit"]["fits"] is False
    assert shown["instead"]["model"] is not None
    text = cli("show", str(path), "--check")
    assert text.returncode == 4
    assert re.search(r"Instead: \S+ fits: localai pull \S+$", text.stdout, re.M)
