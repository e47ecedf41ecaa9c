"""What is fitted to timings, predicted, tuned and learnt from past runs: pure functions on made-up timings."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, fields, replace
from pathlib import Path

import model_headers
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from localai import calibrating, estimate, experience, fitting, gguf, past_runs, roofline, shapes, speed, tuning
from localai.commands.bench import mark
from localai.domain.machine import Machine
from localai.domain.rates import Calibration, DeviceRates, Experience, Job, Setting, Tuned, Tuning
from localai.domain.shape import Shape, Weights
from localai.fitting import Timing
from localai.machines import hypothetical
from localai.past_runs import Run

DEFAULT = Setting(True, True, 2, 512, "f16")
TRUE = DeviceRates(
    decode=(("F16", 9e-11), ("Q4_K", 2.4e-11), ("Q6_K", 3.4e-11), ("Q8_0", 4.6e-11)),
    prompt=(("F16", 7e-12), ("Q4_K", 5.8e-12), ("Q6_K", 6e-12), ("Q8_0", 8e-12)),
    row=(("F16", 4e-9), ("Q4_K", 4e-9), ("Q6_K", 4e-9), ("Q8_0", 4e-9)),
    number_s=1e-9,
    norm_s=1.5e-5,
    kept_s=2e-4,
    attention_prompt_s=4e-11,
    attention_decode=((128, 1.1e-8), (256, 2.9e-8)),
)

SECONDS = tuple(each.name for each in fields(DeviceRates) if each.name.endswith("_s") and "expert" not in each.name)


def timing(
    kind: str,
    layers: int,
    width: int,
    noise: float = 0.0,
    seed: int = 0,
    vocabulary: int = 256,
    true: DeviceRates = TRUE,
) -> Timing:
    """What a machine of such rates would take for a model of that kind."""
    weights, output, tokens, depth = layers * 11 * width * width, vocabulary * width, 256, 1024
    read_weights = weights - 9 * width * width  # without the last layer's feed-forward
    heads, length = layers * width * 2, 256 if width < 1024 else 128
    decode, prompt, row = (dict(each)[kind] for each in (true.decode, true.prompt, true.row))
    rows = 11 * layers * width + vocabulary
    numbers = (11 * layers - 7 + 2 * layers) * width  # of the norms, too
    write = (weights + output) * decode + rows * row + 2 * layers * TRUE.norm_s - TRUE.kept_s
    read = tokens * (read_weights * prompt + numbers * TRUE.number_s) + tokens**2 / 2 * heads * TRUE.attention_prompt_s
    deep_write = write + depth * heads / length * dict(TRUE.attention_decode)[length]
    deep_read = read + tokens * depth * heads * TRUE.attention_prompt_s
    off = random.Random(seed)

    def heard(seconds: float) -> float:
        return seconds * (1 + noise * off.random())

    deep = (depth, heard(deep_write), heard(deep_read))
    return Timing(
        kind,
        layers,
        2 * layers,
        rows,
        numbers,
        heads,
        length,
        weights,
        read_weights,
        output,
        tokens,
        heard(write),
        heard(read),
        deep,
    )


def timings(noise: float = 0.0, true: DeviceRates = TRUE) -> list[Timing]:
    kinds = [kind for kind, _ in TRUE.decode]
    return [
        timing(kind, *shape, noise, seed, true=true)
        for seed, (kind, shape) in enumerate((k, s) for k in kinds for s in ((4, 2048), (26, 768)))
    ]


def writing(noise: float = 0.0) -> list[Timing]:
    """The models of which only writing is measured: little more than an output, and larger ones."""
    return [
        *(output(kind, noise) for kind in ("Q6_K", "Q8_0")),
        *(timing(kind, 16, 2048, noise, 98) for kind in ("Q4_K", "Q8_0")),
    ]


def output(kind: str, noise: float = 0.0) -> Timing:
    return timing(kind, 1, 768, noise, 99, vocabulary=120_000)


def near(one: float, other: float, share: float) -> bool:
    return abs(one / other - 1) <= share


def test_the_rates_behind_timings_are_found_again() -> None:
    found = fitting.fit(timings(), writing=writing())
    for name, near_ in (("decode", 1e-3), ("prompt", 1e-3), ("row", 1e-2), ("attention_decode", 1e-3)):
        assert dict(getattr(found, name)) == pytest.approx(dict(getattr(TRUE, name)), rel=near_)
    for name in SECONDS:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-2)


def test_noise_of_two_per_cent_moves_the_weights_rates_by_few() -> None:
    found = fitting.fit(timings(noise=0.02), writing=writing(0.02))
    assert all(near(dict(found.decode)[kind], rate, 0.06) for kind, rate in TRUE.decode)
    assert all(near(dict(found.prompt)[kind], rate, 0.10) for kind, rate in TRUE.prompt)


def test_rows_of_types_that_are_not_rearranged_may_be_slower() -> None:
    rows = {"F16": 4e-9, "Q4_K": 3e-9, "Q6_K": 6e-9, "Q8_0": 5e-9}
    true = replace(TRUE, row=tuple(rows.items()))
    found = fitting.fit(timings(true=true), writing=[timing(k, 30, 512, true=true) for k in ("Q4_K", "Q6_K")])
    kinds = dict(found.row)
    assert kinds["Q4_K"] < kinds["Q8_0"] < kinds["Q6_K"]
    for kind, row in rows.items():
        narrow = timing(kind, 20, 640, true=true)
        weights = (narrow.weights + narrow.output_weights) * dict(found.decode)[kind]
        seconds = weights + narrow.rows * kinds[kind] + narrow.norms * found.norm_s - found.kept_s
        assert near(seconds, narrow.write_s, 0.03), f"{kind}: rows take {row}"


def test_of_three_rounds_the_two_quickest_count() -> None:
    one = timing("Q8_0", 4, 1024)
    slow = replace(one, write_s=3 * one.write_s, read_s=3 * one.read_s, deep=(1024, 9.0, 9.0))
    quick = replace(one, write_s=0.9 * one.write_s, read_s=0.9 * one.read_s)
    found = calibrating._typical([slow, one, quick])
    assert found.write_s == pytest.approx(0.95 * one.write_s)
    assert found.read_s == pytest.approx(0.95 * one.read_s)
    assert found.deep == one.deep
    assert calibrating._typical([slow]) == slow
    fewer = replace(one, tokens=32, read_s=1e-9)
    assert calibrating._typical([one, fewer]).read_s == one.read_s, "another number of tokens is another figure"


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), min_size=8, max_size=8))
def test_whatever_is_measured_no_rate_is_negative(seconds: list[tuple[float, float]]) -> None:
    strange = [
        replace(each, write_s=write, read_s=read, deep=(512, read, write))
        for each, (write, read) in zip(timings(), seconds, strict=True)
    ]
    found = fitting.fit(strange)
    numbers = [rate for name in ("decode", "prompt", "row", "attention_decode") for _, rate in getattr(found, name)]
    numbers += [getattr(found, name) for name in SECONDS]
    assert all(0 <= number < 1e3 for number in numbers)


def test_nothing_to_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="no timings"):
        fitting.fit([])


def test_a_mixture_of_experts_has_a_layer_of_its_own() -> None:
    one = timing("Q4_K", 8, 1024)
    slow = replace(one, write_s=one.write_s + 8 * 9e-5, read_s=one.read_s * 2)
    found = fitting.fit(timings(), slow, writing())
    assert found.expert_layer_s == pytest.approx(2 * TRUE.norm_s + 9e-5, rel=0.02)
    assert found.expert_prompt is not None
    assert 1.5 < found.expert_prompt < 3


def test_what_others_left_of_the_processor_is_no_calibration() -> None:
    slow = replace(TRUE, decode=tuple((kind, 100 * rate) for kind, rate in TRUE.decode))
    assert calibrating.plausible(Calibration(TRUE, None, 1), hypothetical(16, 0, 50))
    assert not calibrating.plausible(Calibration(slow, None, 1), hypothetical(16, 0, 50))
    while_others_came = replace(TRUE, decode=(*TRUE.decode[:-1], ("Q8_0", 10 * TRUE.decode[-1][1])))
    assert not calibrating.plausible(Calibration(while_others_came, None, 1), hypothetical(16, 0, 50))
    slow_by_nature = replace(TRUE, decode=(*TRUE.decode, ("IQ3_S", 10 * TRUE.decode[-1][1])))
    assert calibrating.plausible(Calibration(slow_by_nature, None, 1), hypothetical(16, 0, 50))


# ------------------------------------------------------------------------------------------------ predictions


def calibrated(gpu: DeviceRates | None = None, **more: object) -> Machine:
    machine = hypothetical(64, 24 if gpu else 0)
    return replace(machine, experience=Experience(Calibration(TRUE, gpu, 1), **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Shape, Weights]]:
    found = {}
    folder = tmp_path_factory.mktemp("headers")
    for name in ("qwen3-0.6b", "llama-3.2-1b", "qwen3-4b", "gemma-3-4b", "olmoe-1b-7b", "mamba2-2.7b"):
        header = gguf.read_header(model_headers.write_sparse(folder, model_headers.named(name), "Q4_K_M"))
        found[name] = shapes.shape(header), shapes.weights(header)
    return found


def test_a_prediction_adds_up(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-0.6b"]
    kinds = dict(weights.layer_kinds)
    seconds = sum(kinds[kind] * dict(TRUE.decode)[kind] for kind in ("Q4_K", "Q6_K"))
    seconds += (28 * (2048 + 1024 * 4 + 3072 * 2) + 151936) * 4e-9
    seconds += kinds.get("F32", 0) * 9e-11 * 2 + 4 * 28 * TRUE.norm_s + 151936 * 1024 * 3.4e-11 - TRUE.kept_s
    seconds += 100 * 28 * 16 * 2.9e-8
    found = speed.decode_speed(shape, weights, calibrated(), depth=100)
    assert found.mid == pytest.approx(1 / seconds, rel=0.01)
    assert found.basis == "calibrated"
    assert found.low == pytest.approx(found.mid / 1.15)
    assert found.high == pytest.approx(found.mid * 1.15)


@pytest.mark.parametrize(
    ("length", "seconds"), [(32, 0.55e-8), (64, 1.1e-8), (96, 2.0e-8), (128, 2.9e-8), (256, 5.8e-8)]
)
def test_attention_takes_what_heads_of_that_length_take(
    length: int, seconds: float, models: dict[str, tuple[Shape, Weights]]
) -> None:
    shape, weights = models["qwen3-0.6b"]
    of_length = replace(shape, key_length=length, value_length=length)
    near_, far = (
        roofline.decode_s(of_length, weights, Calibration(TRUE, None, 1), roofline.Split(0.0), depth)
        for depth in (0, 1000)
    )
    assert far - near_ == pytest.approx(1000 * 28 * 16 * seconds)


def test_a_prompt_leaves_out_the_last_layers_feed_forward(models: dict[str, tuple[Shape, Weights]]) -> None:
    """llama.cpp computes it for the last token alone (with few layers it is much of the model)."""
    _, weights = models["qwen3-0.6b"]
    feed_forward = 3 * 1024 * 3072
    in_layers, in_prompts = (
        sum(n for kind, n in each if kind != "F32") for each in (weights.layer_kinds, weights.prompt_kinds)
    )
    assert in_layers - in_prompts == feed_forward
    assert weights.rows == 28 * (2048 + 2 * 1024 + 1024 + 2 * 3072 + 1024) + 151936
    normed = 28 * (1024 + 16 * 128 + 8 * 128 + 1024)
    assert weights.prompt_numbers == weights.rows - (2 * 3072 + 1024 + 151936) + normed
    assert weights.norms == 4 * 28


def test_what_is_looked_up_in_a_table_counts_as_rows(models: dict[str, tuple[Shape, Weights]]) -> None:
    """Gemma's GELU: of each layer's 10,240 numbers."""
    _, weights = models["gemma-3-4b"]
    of_layer = 8 * 256 + 2 * 4 * 256 + 2560 + 2 * 10240 + 2560
    assert weights.rows == 34 * (of_layer + 10240) + 262208
    normed = 34 * (4 * 2560 + 8 * 256 + 4 * 256)
    last = 2 * 10240 + 2560
    assert weights.prompt_numbers == 34 * of_layer - last + 2 * 33 * 10240 + normed
    assert weights.norms == 6 * 34


def test_ranges_are_wider_where_less_was_measured(models: dict[str, tuple[Shape, Weights]]) -> None:
    def width(name: str, layers: int = 0, gpu: DeviceRates | None = None) -> float:
        found = speed.decode_speed(*models[name], calibrated(gpu), layers)
        return found.high / found.mid - 1

    assert width("qwen3-4b") == pytest.approx(0.15)
    assert width("olmoe-1b-7b") == pytest.approx(0.2)
    assert width("mamba2-2.7b") == pytest.approx(0.35)
    assert width("qwen3-4b", 20, TRUE) == pytest.approx(0.3)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "gemma-3-4b", "olmoe-1b-7b", "mamba2-2.7b"])
def test_deeper_is_never_faster_and_a_faster_gpu_never_slower(
    name: str, models: dict[str, tuple[Shape, Weights]]
) -> None:
    shape, weights = models[name]
    machine = calibrated(replace(TRUE, decode=tuple((kind, rate / 10) for kind, rate in TRUE.decode)))
    writing = [speed.decode_speed(shape, weights, machine, depth=depth).mid for depth in (0, 100, 1024, 4096)]
    reading = [speed.prompt_speed(shape, weights, machine, depth=depth).mid for depth in (0, 100, 1024, 4096)]
    on_gpu = [speed.decode_speed(shape, weights, machine, layers).mid for layers in (0, 8, 16, shape.n_layers + 1)]
    assert writing == sorted(writing, reverse=True)
    assert reading == sorted(reading, reverse=True)
    assert on_gpu == sorted(on_gpu)


def test_a_window_is_the_most_that_a_sliding_layer_sees(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, _ = models["gemma-3-4b"]
    near_, far = roofline.attention_cells(shape, 1024)[0], roofline.attention_cells(shape, 4096)[0]
    whole = sum(not slides for slides in shape.sliding_layers)
    assert far - near_ == whole * 8 * 512 * 3072


def test_without_the_gpus_rates_a_gpu_is_predicted_as_before(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-4b"]
    machine = replace(hypothetical(64, 24), experience=Experience(Calibration(TRUE, None, 1)))
    assert speed.decode_speed(shape, weights, machine, 37).basis != "calibrated"


def test_a_type_that_was_not_measured_counts_as_its_like(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-4b"]
    strange = replace(weights, layer_kinds=(("Q3_K", 3_000_000_000),))
    found = speed.decode_speed(shape, strange, calibrated())
    assert found.high / found.mid == pytest.approx(1.35)
    assert found.mid == pytest.approx(
        speed.decode_speed(shape, replace(weights, layer_kinds=(("Q6_K", 3_000_000_000),)), calibrated()).mid
    )


# ----------------------------------------------------------------------------------------------------- tuning


def tuned(setting: Setting, prompt: float, decode: float, slope: float) -> Tuned:
    return Tuned(setting, prompt, 0.0, decode, slope)


NO_REPACK, NO_FLASH = replace(DEFAULT, repack=False), replace(DEFAULT, flash=False)
FIGURES = {  # seconds a token; as measured on a Zen 5 with two cores
    DEFAULT: tuned(DEFAULT, 1 / 358, 1 / 70, 17e-6),
    NO_REPACK: tuned(NO_REPACK, 1 / 538, 1 / 58, 17e-6),
    NO_FLASH: tuned(NO_FLASH, 1 / 317, 1 / 68, 8e-6),
    replace(NO_FLASH, repack=False): tuned(replace(NO_FLASH, repack=False), 1 / 500, 1 / 57, 8e-6),
}


def measuring(noise: float, figures: dict[Setting, Tuned], seed: int = 1) -> tuning.MeasurePair:
    off = random.Random(seed)

    def heard(found: Tuned) -> Tuned:
        def slower(job: Job) -> float:
            return found.job_s(job) * (1 + noise * off.random())

        near, deep = slower(Job(0, 64)), slower(Job(0, 64, 1024))  # what is measured: slopes are differences of times
        slope = max(0.0, (deep - near) / 64 / 1024)
        return Tuned(found.setting, slower(Job(512, 0)) / 512, 0.0, near / 64 - slope * 32, slope)

    def pair(setting: Setting, default: Setting) -> tuning.Pair:
        usual = figures[default]
        return heard(figures.get(setting, replace(usual, setting=setting))), heard(usual)

    return pair


def tune(noise: float, figures: dict[Setting, Tuned], seed: int = 1) -> Tuning:
    singles = tuning.candidates(DEFAULT, 2, 2, gpu=False, quantized_kv=True)
    tried = list(tuning.tune(DEFAULT, singles, measuring(noise, figures, seed), lambda text: None))
    base = figures[DEFAULT]
    kept = [tuning.scaled(base, each.setting, each.gains) for each in tried if each.adopted]
    return Tuning("qwen3", "Q4_K", 600_000_000, False, (base, *kept))


def test_each_job_gets_the_setting_that_suits_it() -> None:
    found = tune(0.03, FIGURES)
    best = {name: tuning.ranked(found, job) for name, job in tuning.JOBS.items()}
    assert best["prompt of 512"][0][0] == NO_REPACK
    assert best["answer at depth 0"] == []
    assert best["answer at depth 1,024"][0][0] == NO_FLASH
    assert best["answer at depth 3,072"][0][0] == NO_FLASH


@pytest.mark.parametrize("seed", range(20))
def test_where_the_defaults_are_best_noise_changes_nothing(seed: int) -> None:
    assert len(tune(0.04, {DEFAULT: FIGURES[DEFAULT]}, seed).settings) == 1


@pytest.mark.parametrize("noise", [0.1, 0.3, 1, 3, 10])
def test_beside_other_programs_a_setting_hardly_ever_wins_by_chance(noise: float) -> None:
    """Of five pairs one in six settings would win four by chance; where they differ so much there are twelve."""
    alike = {DEFAULT: FIGURES[DEFAULT]}
    assert sum(len(tune(noise, alike, seed).settings) > 1 for seed in range(40)) <= 6


@pytest.mark.parametrize("seed", range(20))
def test_a_setting_that_wins_at_depth_is_found_in_noise(seed: int) -> None:
    gains = dict(tuning.ranked(tune(0.1, FIGURES, seed), tuning.JOBS["answer at depth 3,072"]))
    assert 1.25 < gains[NO_FLASH] < 1.85, "1.51 by the figures"


def test_the_size_of_micro_batches_does_not_decide_on_what_is_written_token_by_token() -> None:
    smaller = replace(DEFAULT, ubatch=256)
    figures = {**FIGURES, smaller: replace(FIGURES[DEFAULT], setting=smaller, decode_s=1 / 140)}  # can only be noise
    assert smaller not in [each.setting for each in tune(0, figures).settings]


def test_a_quantized_cache_is_never_without_flash_attention() -> None:
    singles = [NO_FLASH, replace(DEFAULT, kv_type="q8_0")]
    figures = {**FIGURES, singles[1]: tuned(singles[1], 1 / 400, 1 / 90, 5e-6)}
    tried = tuning.tune(DEFAULT, singles, measuring(0, figures), lambda text: None)
    assert all(each.setting.flash or each.setting.kv_type == "f16" for each in tried)


def test_a_plan_takes_the_setting_for_its_work(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-0.6b"]
    machine = calibrated(tunings=(replace(tune(0.03, FIGURES), params=shape.params),))
    reading = estimate.plan(shape, weights, machine, work=Job(4000, 10))
    writing = estimate.plan(shape, weights, machine, work=Job(10, 500, 2000))
    short = estimate.plan(shape, weights, machine, work=Job(10, 100))
    assert (reading.repack, reading.flash_attention) == (False, True)
    assert (writing.repack, writing.flash_attention) == (True, False)
    assert (short.repack, short.flash_attention) == (True, True)
    assert reading.prompt_tps is not None
    assert short.prompt_tps is not None
    assert reading.prompt_tps.mid > 1.3 * short.prompt_tps.mid
    together = estimate.plan(shape, weights, machine, work=Job(4000, 10), sequences=4)
    assert together.repack


def test_a_setting_that_does_not_fit_is_not_taken(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-0.6b"]
    found = replace(tune(0.03, FIGURES), params=shape.params)
    work = Job(10, 500, 2000)
    for tenths in range(12, 40):
        machine = replace(hypothetical(tenths / 10), experience=Experience(tunings=(found,)))
        plan = estimate.plan(shape, weights, machine, context=16384, work=work)
        assert plan.memory.total_bytes + plan.memory.overhead_bytes <= plan.available_bytes or not plan.fits
        if plan.fits and not plan.flash_attention:
            break
        assert plan.flash_attention
    assert tenths > 13


def test_what_the_user_asks_for_stays(models: dict[str, tuple[Shape, Weights]]) -> None:
    shape, weights = models["qwen3-0.6b"]
    small = replace(DEFAULT, kv_type="q8_0")
    found = Tuning("qwen3", "Q4_K", shape.params, False, (FIGURES[DEFAULT], tuned(small, 1 / 900, 1 / 200, 1e-6)))
    machine = calibrated(tunings=(found,))
    assert estimate.plan(shape, weights, machine).kv_type == "q8_0"
    assert estimate.plan(shape, weights, machine, kv_type="f16").kv_type == "f16"
    assert estimate.plan(shape, weights, machine, threads=1).threads == 1


# -------------------------------------------------------------------------------------------------- past runs


def run(measured: float, said: float = 100.0, **more: object) -> Run:
    values = {
        "at": 1.8e9, "machine": "m", "command": "run", "model": "qwen3-0.6b", "architecture": "qwen3", "kind": "Q4_K",
        "params": 600, "placement": "cpu", "setting": "", "depth": 0, "prompt_tokens": 100, "answer_tokens": 100,
        "predicted_prompt_tps": None, "measured_prompt_tps": None, "predicted_decode_tps": said,
        "measured_decode_tps": measured, "expected_prompt_tps": None, "expected_decode_tps": said,
        "basis": "calibrated", "calibrated_at": 1, "predicted_bytes": 1, "peak_bytes": 2, "busy": False,
        "usual": True, "guessed_tokens": 0, "together": False, **more,
    }  # fmt: skip
    return Run(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({}, ""),
        ({"busy": True, "usual": False}, "busy"),
        ({"together": True}, "shared"),
        ({"usual": False, "answer_tokens": 3}, "other"),
        ({"guessed_tokens": 90, "answer_tokens": 100, "measured_prompt_tps": None}, "guessed"),
        ({"answer_tokens": 3, "measured_prompt_tps": None}, "short"),
    ],
)
def test_a_run_that_corrects_nothing_says_why(what: dict[str, object], says: str) -> None:
    assert mark(run(50.0, **what)) == says


def test_past_runs_correct_the_next_prediction(
    models: dict[str, tuple[Shape, Weights]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, weights = models["qwen3-0.6b"]
    machine = calibrated()
    monkeypatch.setattr("localai.measurement.identity", lambda machine: "m")
    for measured in (78, 80, 82, 81, 79):
        past_runs.keep(run(measured, params=shape.params))
    past_runs.keep(run(10, params=shape.params, busy=True))
    past_runs.keep(run(10, params=shape.params, calibrated_at=7))
    past_runs.keep(run(10, params=shape.params, usual=False))
    past_runs.keep(run(10, params=shape.params, together=True))
    past_runs.keep(run(10, params=shape.params, guessed_tokens=50))
    past_runs.keep(run(10, params=shape.params, answer_tokens=15))
    raw = speed.decode_speed(shape, weights, machine)
    learnt = calibrated(corrections=past_runs.corrections(machine, 1))
    found = speed.decode_speed(shape, weights, learnt)
    assert found.mid == pytest.approx(0.8 * raw.mid)
    assert found.high / found.mid == pytest.approx(1.1)
    assert "5 past runs" in found.basis
    assert speed.decode_speed(shape, weights, learnt, corrected=False).mid == raw.mid
    larger = replace(shape, params=2 * shape.params)
    assert speed.decode_speed(larger, weights, learnt).mid == pytest.approx(0.8 * raw.mid)
    assert "of its kind" in speed.decode_speed(larger, weights, learnt).basis
    assert "past" not in speed.decode_speed(replace(shape, architecture="llama"), weights, learnt).basis


def test_lines_that_a_crash_cut_short_are_skipped() -> None:
    past_runs.keep(run(1.0))
    with past_runs.file().open("ab") as stream:
        stream.write(b'\n{"at": 1, "machine"')
    past_runs.keep(run(2.0))
    assert [each.measured_decode_tps for each in past_runs.runs()] == [1.0, 2.0]


@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_no_content_of_the_file_is_a_reason_to_fail(lines: list[bytes]) -> None:
    past_runs.file().parent.mkdir(parents=True, exist_ok=True)
    past_runs.file().write_bytes(b"\n".join([*lines, json.dumps(asdict(run(3.0))).encode()]))
    assert past_runs.runs()[-1] == run(3.0)


def test_the_file_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_runs, "LARGEST_BYTES", 8000)
    for number in range(1, 60):
        past_runs.keep(run(float(number)))
        assert past_runs.file().stat().st_size < 9000
    kept = [each.measured_decode_tps for each in past_runs.runs()]
    assert kept == [float(number) for number in range(60 - len(kept), 60)]
    assert len(kept) > 3


def test_a_folder_that_cannot_be_written_fails_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCALAI_HOME", str(tmp_path / "file" / "below"))
    past_runs.keep(run(1.0))
    assert past_runs.runs() == ()
    assert not experience.keep_calibration(hypothetical(8), Calibration(TRUE, None, 1))


# ----------------------------------------------------------------------------------------------------- what is kept


def test_calibration_and_tuning_are_kept_for_this_machine_alone() -> None:
    machine, other = hypothetical(8), hypothetical(16)
    calibration = Calibration(replace(TRUE, expert_layer_s=1e-4, expert_prompt=1.7), TRUE, 123)
    found = tune(0.03, FIGURES)
    assert experience.keep_calibration(machine, calibration)
    assert experience.keep_tuning(machine, found)
    assert experience.keep_tuning(machine, replace(found, kind="Q8_0"))
    assert experience.keep_tuning(machine, found)
    known = experience.recalled(machine).experience
    assert known.calibration == calibration
    assert sorted(each.kind for each in known.tunings) == ["Q4_K", "Q8_0"]
    assert found in known.tunings
    assert experience.recalled(other).experience == Experience()


def test_a_head_of_no_numbers_is_as_if_nothing_were_known() -> None:
    machine = hypothetical(8)
    experience.keep_calibration(machine, Calibration(replace(TRUE, attention_decode=((0, 1e-8),)), None, 1))
    assert experience.recalled(machine).experience == Experience()


KEYS = st.sampled_from(["cpu", "gpu", "decode", "settings", "made_at", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)
)


@hypothesis_settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(VALUES)
def test_a_strange_file_is_as_if_nothing_were_known(content: object) -> None:
    machine = hypothetical(8)
    experience.keep_calibration(machine, Calibration(TRUE, None, 1))
    path = next(path for path in past_runs.file().parent.iterdir() if path.name == "experience.json")
    name = next(iter(json.loads(path.read_bytes())))
    path.write_text(json.dumps({name: {"calibration": content, "tunings": [content]}}))
    assert experience.recalled(machine).experience == Experience()


def test_few_runs_are_less_sure_than_many() -> None:
    assert past_runs.spread([]) == 1.0
    assert past_runs.spread([1.0]) == 0.25
    assert past_runs.spread([1.0, 1.0, 1.0]) == 0.1
    assert past_runs.spread([1.0, 1.4, 0.6]) == pytest.approx(0.4)
