"""Where a model goes: experts beside the GPU, several GPUs, what is given up first; and that llama.cpp does it so."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_headers import named, write_sparse
from moe_model import write_moe
from real_model import model_file, plan

from localai import estimate, experts, gguf, placement, shapes, sizes
from localai.catalog import resolve_name
from localai.domain.generation import GenerationRequest, Message
from localai.domain.machine import Gpu, Machine
from localai.domain.plan import Placement
from localai.domain.shape import Shape, Weights
from localai.domain.units import GIB
from localai.engine.model import load
from localai.machines import hypothetical

DESKTOP = hypothetical(32, 12)


def read(folder: Path, name: str, quantization: str = "Q4_K_M") -> tuple[Shape, Weights]:
    header = gguf.read_header(write_sparse(folder, named(name), quantization))
    return shapes.shape(header), shapes.weights(header)


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, Weights]:
    """Qwen3 30B A3B: 48 layers, nearly all of their bytes experts."""
    return read(tmp_path_factory.mktemp("moe"), "qwen3-30b-a3b")


def card(gib: float) -> Gpu:
    return Gpu("NVIDIA", "card", int(gib * GIB), int(gib * GIB), usable_by_engine=True, bandwidth_gbps=300)


def with_cards(*gibs: float, ram: float = 64) -> Machine:
    return replace(hypothetical(ram), gpus=tuple(card(gib) for gib in gibs))


def held_by_gpu(shape: Shape, weights: Weights, found: estimate.Plan) -> int:
    """Bytes on the one GPU, reckoned anew: everything but the embedding and the experts that stayed."""
    moved = sum(weights.expert_bytes[: found.cpu_expert_layers])
    tied = weights.tied_bytes if not weights.output_bytes else 0
    need = found.memory
    return need.weights_bytes - weights.embedding_bytes + tied - moved + need.kv_cache_bytes + need.compute_bytes


# ----------------------------------------------------------------------------------------------- experts in RAM


def test_experts_that_do_not_fit_stay_in_ram_and_no_more_than_must(moe: tuple[Shape, Weights]) -> None:
    shape, weights = moe
    found = estimate.plan(shape, weights, DESKTOP)
    assert (found.placement, found.gpu_layers, found.fits) == (Placement.SPLIT, 49, True)
    assert 0 < found.cpu_expert_layers < 48
    assert not found.use_mmap
    room = (DESKTOP.gpus[0].vram_free_bytes or 0) - GIB
    one_more = weights.expert_bytes[found.cpu_expert_layers - 1]
    assert held_by_gpu(shape, weights, found) <= room < held_by_gpu(shape, weights, found) + one_more
    assert any("experts of" in warning for warning in found.warnings)


def test_experts_in_ram_are_faster_than_whole_layers_there(moe: tuple[Shape, Weights]) -> None:
    shape, weights = moe
    beside, layers = (estimate.plan(shape, weights, DESKTOP, gpu_layers=wish) for wish in (None, 20))
    assert beside.decode_tps is not None
    assert layers.decode_tps is not None
    assert layers.cpu_expert_layers == 0
    assert beside.decode_tps.mid > layers.decode_tps.mid
    whole = estimate.plan(shape, weights, with_cards(48)).decode_tps
    assert whole is not None
    assert whole.mid > beside.decode_tps.mid


def test_all_layers_asked_for_leave_the_experts_behind(moe: tuple[Shape, Weights]) -> None:
    shape, weights = moe
    asked = estimate.plan(shape, weights, DESKTOP, gpu_layers=99)
    assert (asked.gpu_layers, asked.fits) == (49, True)
    assert asked.cpu_expert_layers == estimate.plan(shape, weights, DESKTOP).cpu_expert_layers


def test_ram_must_hold_the_experts_that_stay(moe: tuple[Shape, Weights]) -> None:
    shape, weights = moe
    assert not estimate.plan(shape, weights, with_cards(6, ram=8)).fits


def test_a_card_too_small_for_all_but_the_experts_takes_layers(moe: tuple[Shape, Weights]) -> None:
    shape, weights = moe
    found = estimate.plan(shape, weights, with_cards(2))
    assert (found.cpu_expert_layers, found.fits) == (0, True)
    assert found.gpu_layers < 20


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    assert (sum(weights.expert_bytes), experts.layer_bytes(shape, weights)) == (0, ())
    assert estimate.plan(shape, weights, with_cards(4)).cpu_expert_layers == 0


def test_layers_without_experts_move_nothing(tmp_path: Path) -> None:
    """GLM 4.7 Flash's like: the first layers are dense, so keeping their experts back frees nothing."""
    _, weights = read(tmp_path, "glm-4.5-air")
    assert weights.expert_bytes[0] == 0 < weights.expert_bytes[1]
    assert all(some <= whole for some, whole in zip(weights.expert_bytes, weights.layer_bytes, strict=True))


def test_without_a_header_the_parameters_tell_the_experts_share(moe: tuple[Shape, Weights]) -> None:
    model = resolve_name("qwen3-30b-a3b-2507")
    assert model is not None
    assert model.shape is not None
    guessed = experts.layer_bytes(model.shape, sizes.weights_from_catalog(model, "Q4_K_M"))
    exact = experts.layer_bytes(*moe)
    assert len(guessed) == len(exact) == 48
    assert sum(guessed) == pytest.approx(sum(exact), rel=0.05)


@given(st.floats(2, 40), st.floats(8, 128), st.sampled_from([2048, 8192, 32768]))
@settings(max_examples=60)
def test_a_plan_of_experts_never_fills_more_than_there_is(
    moe: tuple[Shape, Weights], vram: float, ram: float, context: int
) -> None:
    shape, weights = moe
    machine = with_cards(vram, ram=ram)
    found = estimate.plan(shape, weights, machine, context=context)
    assert 0 <= found.cpu_expert_layers <= 48
    if found.fits and found.gpu_layers == 49:
        assert held_by_gpu(shape, weights, found) <= (machine.gpus[0].vram_free_bytes or 0) - GIB
        in_ram = weights.embedding_bytes + sum(weights.expert_bytes[: found.cpu_expert_layers])
        assert in_ram <= machine.memory.available_bytes


# ------------------------------------------------------------------------------------------------- several GPUs


def test_gpus_share_the_layers_by_their_free_memory() -> None:
    layers = [10] * 10
    assert placement._shares(layers, 10, [card(1)]) == [100]
    assert placement._shares(layers, 10, [card(8), card(8)]) == [50, 50]
    assert placement._shares(layers, 10, [card(24), card(8)]) == [80, 20]
    assert placement._shares(layers, 5, [card(24), card(8)]) == [40, 10]
    assert placement._shares(layers, 0, [card(24), card(8)]) == [0, 0]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.lists(st.floats(1, 96), min_size=1, max_size=5))
def test_every_layer_is_on_one_gpu(layers: list[int], gibs: list[float]) -> None:
    for count in range(len(layers) + 1):
        shares = placement._shares(layers, count, [card(gib) for gib in gibs])
        assert sum(shares) == sum(layers[len(layers) - count :])
        assert len(shares) == len(gibs)


# ---------------------------------------------------------------------------------------- what is given up first


def test_a_cache_of_half_the_size_makes_a_context_fit(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    machine = hypothetical(16)
    machine = replace(machine, memory=replace(machine.memory, available_bytes=int(8.6 * GIB)))
    found = estimate.plan(shape, weights, machine, context=32768)
    assert (found.fits, found.kv_type, found.context) == (True, "q8_0", 32768)
    assert any("q8_0" in warning for warning in found.warnings)
    assert not estimate.plan(shape, weights, machine, context=32768, kv_type="f16").fits
    roomy = estimate.plan(shape, weights, hypothetical(32), context=32768)
    assert (roomy.kv_type, roomy.ubatch) == ("f16", 512)


def test_smaller_steps_come_before_a_smaller_cache(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    machine = hypothetical(16)
    full, small = (estimate.memory(shape, weights, 8192, ubatch=each) for each in (512, 128))
    assert small.compute_bytes < full.compute_bytes
    between = round(((full.total_bytes + small.total_bytes) / 2 + full.overhead_bytes) / 0.95)
    found = estimate.plan(
        shape, weights, replace(machine, memory=replace(machine.memory, available_bytes=between)), context=8192
    )
    assert (found.fits, found.kv_type, found.ubatch) == (True, "f16", 128)


def test_a_gpu_is_kept_by_a_smaller_cache(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    need = estimate.memory(shape, weights, 8192)
    machine = with_cards((need.total_bytes - weights.embedding_bytes + 0.8 * GIB) / GIB)
    found = estimate.plan(shape, weights, machine)
    assert (found.placement, found.context, found.kv_type) == (Placement.GPU, 8192, "q8_0")
    assert estimate.plan(shape, weights, machine, kv_type="f16").context < 8192


def test_what_is_asked_for_is_taken_and_what_fits_nowhere_is_told_as_asked(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    asked = estimate.plan(shape, weights, hypothetical(32), kv_type="q4_0", ubatch=64)
    assert (asked.kv_type, asked.ubatch, asked.fits) == ("q4_0", 64, True)
    refused = estimate.plan(shape, weights, hypothetical(4), context=131072)
    assert (refused.fits, refused.kv_type, refused.ubatch) == (False, "f16", 512)


def test_a_projector_takes_its_bytes(tmp_path: Path) -> None:
    shape, weights = read(tmp_path, "llama-3.1-8b")
    without = estimate.plan(shape, weights, hypothetical(16))
    beside = estimate.plan(shape, weights, hypothetical(16), projector_bytes=GIB)
    assert beside.memory.projector_bytes == GIB
    assert beside.memory.total_bytes == without.memory.total_bytes + GIB
    tight = with_cards(without.memory.total_bytes / GIB + 1.2)
    assert estimate.plan(shape, weights, tight).placement is Placement.GPU
    assert (
        estimate.plan(shape, weights, tight, kv_type="f16", ubatch=512, context=8192, projector_bytes=GIB).gpu_layers
        < 33
    )


# --------------------------------------------------------------------------------------------- llama.cpp does it

# Loads as localai does and prints which tensors llama.cpp was told to keep in RAM (its own debug log).
OVERRIDDEN = """
import json, re, sys
from localai.engine import library

api = library.api()
lines = []
log = api.llama_log_callback(lambda level, text, user: lines.append((text or b"").decode("utf-8", "replace")))
api.llama_log_set(log, None)
library.forget_log = lambda: None
from dataclasses import replace
from pathlib import Path
from real_model import plan
from localai.engine import weights

found = weights.load_model(api, Path(sys.argv[1]), replace(plan(), cpu_expert_layers=int(sys.argv[2])), None, None)
api.llama_model_free(found)
print(json.dumps(re.findall(r"tensor (\\S+) .*buffer type overridden to (\\w+)", "".join(lines))))
"""


def overridden(path: Path, layers: int) -> dict[str, str]:
    script = ["-c", OVERRIDDEN, str(path), str(layers)]
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, check=True, timeout=60, cwd=Path(__file__).parent
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def small_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_moe(tmp_path_factory.mktemp("small"), model_file(), layers=12)


def test_llama_cpp_keeps_exactly_those_experts_in_ram(small_moe: Path) -> None:
    """12 layers: `blk.1` must not be taken for `blk.10` and `blk.11`."""
    for layers in (2, 12):
        kept = overridden(small_moe, layers)
        parts = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        assert set(kept) == {f"blk.{layer}.{part}.weight" for layer in range(layers) for part in parts}
        assert all(kind.startswith("CPU") for kind in kept.values())
    assert overridden(small_moe, 0) == {}


def test_a_model_loaded_so_answers_the_same(small_moe: Path) -> None:
    def answer(layers: int) -> str:
        engine = load(small_moe, replace(plan(256), cpu_expert_layers=layers, use_mmap=layers != 5))
        request = GenerationRequest((Message("user", "Hello"),), max_tokens=8)
        request = replace(request, sampling=replace(request.sampling, temperature=0))
        try:
            return str([getattr(event, "text", "") for event in engine.generate(request, lambda: False)])
        finally:
            engine.close()

    assert answer(0) == answer(5) == answer(12)
