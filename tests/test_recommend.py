"""What is recommended on machines that people have, and which file of a repository is taken."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localai import catalog, estimate, languages, quantization, recommend, scoring, sizes, tiers
from localai.domain.files import RemoteFile, Variant
from localai.domain.machine import Machine
from localai.domain.plan import Placement
from localai.domain.shape import Shape, Weights
from localai.domain.units import GIB
from localai.errors import NotFound, UsageError
from localai.machines import hypothetical, listed
from localai.scoring import TASKS

MODELS = catalog.load()
PAGE = Path(__file__).parent.parent / "docs" / "recommending.md"


def rank(machine: Machine, **wishes: object) -> tuple[recommend.Recommendation, ...]:
    return recommend.rank(machine, MODELS, **wishes)  # type: ignore[arg-type]


def test_a_laptop_of_8_gib_gets_small_models() -> None:
    rows = rank(hypothetical(8))
    assert len(rows) == 10
    assert all(row.params_b < 4 for row in rows[:3])
    assert all(row.placement is Placement.CPU for row in rows)


def test_a_card_of_24_gib_gets_a_model_of_13_to_35_billion_first() -> None:
    first = rank(hypothetical(64, 24))[0]
    assert 13 <= first.params_b <= 35
    assert first.placement is Placement.GPU


def test_2_gib_get_a_model_of_less_than_a_billion() -> None:
    assert any(row.params_b < 1 for row in rank(hypothetical(2)))


def test_a_workstation_gets_models_that_nothing_smaller_holds() -> None:
    rows = rank(hypothetical(128, 48))
    assert rows[0].params_b > 25
    assert any(row.params_b > 100 for row in rows[:5])


def test_a_laptop_of_32_gib_gets_a_mixture_of_experts_near_the_top() -> None:
    assert any((row.active_params_b or row.params_b) < row.params_b / 4 for row in rank(hypothetical(32))[:3])


def test_a_machine_with_no_memory_to_speak_of_gets_nothing() -> None:
    assert rank(hypothetical(0.2)) == ()
    assert recommend.best(hypothetical(0.2)) is None


@given(st.floats(1, 512), st.sampled_from([0, 4, 8, 12, 16, 24, 48, 96]), st.sampled_from(sorted(TASKS)))
@settings(max_examples=40)
def test_rows_always_fit_are_ranked_and_never_low_bit(ram: float, vram: int, task: str) -> None:
    machine = hypothetical(ram, vram)
    rows = rank(machine, task=task)
    assert [row.rank for row in rows] == list(range(1, len(rows) + 1))
    assert len({row.model for row in rows}) == len(rows)
    for row in rows:
        assert row.fits
        assert not quantization.is_low_bit(row.quantization)
        assert task in row.tasks or any("expect mistakes" in warning for warning in row.warnings)
        assert row.download_bytes > 0
        assert row.memory.total_bytes < machine.memory.available_bytes + vram * GIB
    light = [row for row in rows if row.starter]
    assert len(light) <= 1
    assert all(row.download_bytes < recommend.STARTER_BYTES for row in light)


@pytest.mark.parametrize(("ram", "vram"), [(8, 0), (16, 0), (64, 24), (128, 48)])
def test_a_light_one_is_marked_wherever_one_fits(ram: int, vram: int) -> None:
    assert [row.download_bytes < 4e9 for row in rank(hypothetical(ram, vram)) if row.starter] == [True]


@given(st.floats(2, 512), st.sampled_from([0, 8, 24, 48]), st.integers(2, 10), st.sampled_from(sorted(TASKS)))
@settings(max_examples=30)
def test_a_row_at_ease_is_always_among_them(ram: float, vram: int, limit: int, task: str) -> None:
    everything = rank(hypothetical(ram, vram), task=task, limit=1000)
    rows = rank(hypothetical(ram, vram), task=task, limit=limit)
    assert any(row.at_ease for row in rows) == any(row.at_ease for row in everything)
    assert len(rows) == min(limit, len(everything))
    assert not rows or rows[0].model == everything[0].model


def test_every_known_machine_has_a_model_at_ease() -> None:
    for each in listed():
        assert any(row.at_ease for row in rank(each.machine)), each.id


@pytest.mark.parametrize("name", ["raspberry-pi-4-4gb", "raspberry-pi-5-4gb", "laptop-8gb", "iphone-15-pro"])
def test_a_small_machine_has_a_model_at_ease_for_every_task(name: str) -> None:
    machine = next(each.machine for each in listed() if each.id == name)
    for task, wants in TASKS.items():
        rows = rank(machine, task=task, limit=3)
        easy = [row for row in rows if row.at_ease]
        assert easy, task
        for row in easy:
            model = catalog.resolve_name(row.model)
            assert model is not None
            assert row.score.value("ease") == 1
            assert row.context >= wants.context
            assert row.prompt_tps is not None
            assert row.prompt_tps.mid >= min(10, wants.prompt_tps) * 0.8
            assert task == "embedding" or (row.decode_tps is not None and row.decode_tps.mid >= 5)
            if row.score.value("speed") < 1:
                assert any("patience" in warning for warning in row.warnings)
            if task not in row.tasks:
                assert any("expect mistakes" in warning for warning in row.warnings)


def test_patience_is_asked_for_only_where_nothing_is_quicker() -> None:
    for machine in (hypothetical(16), hypothetical(64, 24)):
        for task in TASKS:
            for row in rank(machine, task=task, limit=100):
                assert task in row.tasks
                assert not any("patience" in warning for warning in row.warnings)
                assert not row.at_ease or row.score.value("speed") >= 1


def test_thinking_is_counted_in_where_the_task_is_reasoning() -> None:
    for task, asked in (("chat", 15), ("reasoning", 20)):
        row = next(row for row in rank(hypothetical(16), task=task, limit=100) if row.model == "qwen3-4b")
        assert f"{task} asks for {asked:g}" in row.score.factors[2].why


def test_the_catalog_has_fewer_bits_for_those_who_ask() -> None:
    machine = hypothetical(24)
    low = [row for row in rank(machine, allow_low_bit=True, limit=1000) if quantization.is_low_bit(row.quantization)]
    assert low
    assert all(any("made-up answers" in warning for warning in row.warnings) for row in low)


@pytest.mark.parametrize("ram", [8, 16, 24])
def test_whoever_allows_fewer_bits_is_shown_some(ram: int) -> None:
    rows = rank(hypothetical(ram), allow_low_bit=True, limit=4)
    low = [row for row in rows if quantization.is_low_bit(row.quantization)]
    assert low
    assert all(any("under 4 bits" in warning for warning in row.warnings) for row in low)
    assert len(rows) == 4
    frame = tiers.tier(hypothetical(ram)).max_params_b * 1.3
    assert all((row.active_params_b or row.params_b) <= frame for row in rows if row not in low)
    everything = rank(hypothetical(ram), limit=1000)
    assert not any(quantization.is_low_bit(row.quantization) for row in everything)


def test_a_projector_is_downloaded_and_loaded_whatever_the_task() -> None:
    rows = [row for row in rank(hypothetical(32, 12), limit=1000) if "vision" in row.tasks]
    assert rows
    for row in rows:
        model = catalog.resolve_name(row.model)
        assert model is not None
        file = model.file(row.quantization)
        assert file is not None
        assert row.memory.projector_bytes == sizes.projector_bytes(model) > 0
        assert file.size_bytes is None or row.download_bytes == file.size_bytes + row.memory.projector_bytes


def test_what_nobody_knows_the_context_of_promises_none() -> None:
    unknown = [model.id for model in MODELS if model.context_length is None]
    assert unknown
    for task in TASKS:
        assert not {row.model for row in rank(hypothetical(64), task=task, context=4096, limit=1000)} & set(unknown)


def test_a_very_small_model_is_no_first_choice_where_a_larger_one_is_quick_enough() -> None:
    for machine in ("raspberry-pi-4-4gb", "raspberry-pi-5-4gb"):
        first = rank(next(each.machine for each in listed() if each.id == machine))[0]
        assert first.params_b >= scoring.SMALLEST_SCORED_B, machine


def test_more_bits_are_not_worth_leaving_the_gpu() -> None:
    machine = next(each.machine for each in listed() if each.id == "rtx-4090-desktop-64gb")
    row = next(row for row in rank(machine) if row.model == "qwen3.6-35b-a3b")
    assert (row.placement, row.cpu_expert_layers) == (Placement.GPU, 0)
    model = catalog.resolve_name(row.model)
    assert model is not None
    repo = [Variant(each.quantization, (RemoteFile(each.name, each.size_bytes or 0, None),)) for each in model.files]
    assert recommend.choose_variant(repo, model.shape, machine)[1].placement is Placement.GPU


@pytest.mark.parametrize("machine", ["rtx-3060-desktop-32gb", "rtx-5070-desktop-32gb"])
def test_a_larger_model_that_is_fast_enough_stands_above_a_smaller_one(machine: str) -> None:
    rows = [row.model for row in rank(next(each.machine for each in listed() if each.id == machine))]
    assert rows.index("qwen3.5-9b") < rows.index("qwen3.5-4b")


def test_where_speed_is_plenty_more_bits_are_taken() -> None:
    machine = next(each.machine for each in listed() if each.id == "mac-studio-m3-ultra-256gb")
    assert rank(machine)[0].bits_per_weight > 6


@pytest.mark.parametrize(("faster", "factor"), [(0.5, 0.5**0.7), (1, 1), (2, 1.05), (8, 1.05), (100, 1.05)])
def test_more_than_twice_the_speed_that_is_needed_is_worth_nothing(faster: float, factor: float) -> None:
    row = rank(hypothetical(16))[0]
    wants, speed = TASKS["chat"], estimate.plan(*_facts(row.model), hypothetical(16))
    fast = replace(row.decode_tps, mid=faster * wants.decode_tps) if row.decode_tps else None
    reading = replace(row.prompt_tps, mid=1000.0) if row.prompt_tps else None
    assert scoring.speed(replace(speed, decode_tps=fast, prompt_tps=reading), wants, 1.0) == pytest.approx(factor)


def _facts(name: str) -> tuple[Shape, Weights]:
    model = catalog.resolve_name(name)
    assert model is not None
    return sizes.shape_from_catalog(model), sizes.weights_from_catalog(model, "Q4_K_M")


def test_limit_bounds_the_rows() -> None:
    assert len(rank(hypothetical(16), limit=3)) == 3
    assert len(rank(hypothetical(16), limit=1)) == 1
    best = recommend.best(hypothetical(16))
    assert best is not None
    assert best.model == rank(hypothetical(16))[0].model


def test_embedding_models_are_for_embedding_only() -> None:
    chat = {row.model for row in rank(hypothetical(16), limit=100)}
    embedding = {row.model for row in rank(hypothetical(16), task="embedding", limit=100)}
    assert "bge-m3" in embedding
    assert not chat & embedding


@pytest.mark.parametrize(("task", "capability"), [("vision", "vision"), ("reasoning", "reasoning")])
def test_a_task_is_given_models_that_can_do_it(task: str, capability: str) -> None:
    for row in rank(hypothetical(32, 12), task=task):
        model = catalog.resolve_name(row.model)
        assert model is not None
        assert capability in model.capabilities


def test_an_unknown_task_names_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        rank(hypothetical(16), task="juggling")
    assert "translation" in caught.value.hint


def test_the_context_asked_for_is_held_by_every_row() -> None:
    for row in rank(hypothetical(32), context=60_000):
        model = catalog.resolve_name(row.model)
        assert model is not None
        assert row.context >= 60_000
        assert model.context_length is None or model.context_length >= 60_000


def test_min_speed_is_held_by_every_row() -> None:
    rows = rank(hypothetical(16), min_speed=30)
    assert rows
    assert all(row.decode_tps is not None and row.decode_tps.mid >= 30 for row in rows)


def test_a_language_moves_models_that_speak_it_up() -> None:
    french = [row.model for row in rank(hypothetical(8), language="fr_FR")]
    other = [row.model for row in rank(hypothetical(8))]
    assert french != other
    speaks = [catalog.resolve_name(name) for name in french[:3]]
    assert all(model is not None and model.french for model in speaks)


@pytest.mark.parametrize("text", ["fr", "FR", "fr_FR", "fr-CA", "French", "français", "FRANÇAIS", "francais"])
def test_a_language_has_a_code_and_names(text: str) -> None:
    assert languages.code_of(text) == "fr"


@pytest.mark.parametrize("text", ["klingon", "xx", "", "fre", "12", "frensh"])
def test_what_is_no_language_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        rank(hypothetical(8), language=text)


@given(
    st.floats(1, 512), st.sampled_from([0, 8, 24, 48]), st.sampled_from(sorted(TASKS)), st.sampled_from([None, "de"])
)
@settings(max_examples=30)
def test_every_row_can_say_why(ram: float, vram: int, task: str, language: str | None) -> None:
    for row in rank(hypothetical(ram, vram), task=task, language=language):
        names = [factor.name for factor in row.score.factors]
        assert names == ["quality", "kept", "speed", "context", "ease", "suits", *(["language"] if language else [])]
        assert all(factor.why and 0 < factor.value < 2 for factor in row.score.factors)
        assert row.score.total == pytest.approx(math.prod(factor.value for factor in row.score.factors))


def test_a_published_score_goes_before_the_size_and_both_say_so() -> None:
    def quality(name: str) -> scoring.Factor:
        rows = rank(hypothetical(512, 96), limit=1000)
        return next(row.score.factors[0] for row in rows if row.model == name)

    published, guessed = quality("qwen3.5-9b"), quality("phi-4")
    model = catalog.resolve_name("qwen3.5-9b")
    assert model is not None
    assert model.quality is not None
    assert published.value == pytest.approx(model.quality.score / 60)
    assert published.why.startswith("published")
    assert guessed.why.startswith("no published score")


def test_the_fit_of_unscored_models_is_that_of_the_scored_ones() -> None:
    """The coefficients on the page are the least squares fit to the catalog's own scores."""
    import numpy

    years = scoring.generations(MODELS)
    scored = [model for model in MODELS if model.quality is not None]
    known = numpy.array([model.quality.score for model in scored if model.quality])
    facts = numpy.array([[1, math.log2(scoring.effective_params_b(m)), years[m.id]] for m in scored])
    fitted = numpy.linalg.lstsq(facts, known, rcond=None)[0]
    assert fitted == pytest.approx([scoring.POINTS_AT_1B, scoring.POINTS_A_DOUBLING, scoring.POINTS_A_YEAR], abs=0.05)
    assert numpy.sqrt(numpy.mean((facts @ fitted - known) ** 2)) == pytest.approx(scoring.POINTS_OFF, abs=0.05)
    page = PAGE.read_text("utf-8")
    terms = (scoring.POINTS_AT_1B, scoring.POINTS_A_DOUBLING, scoring.POINTS_A_YEAR, scoring.POINTS_OFF)
    assert all(f" {term:g} " in page for term in terms)
    assert f"Of {len(scored)} models" in page


def test_a_phone_is_not_given_what_takes_most_of_its_memory() -> None:
    phone = next(each.machine for each in listed() if each.id == "snapdragon-8-gen-3-16gb")
    assert all(row.params_b <= 10 for row in rank(phone, limit=100))


def test_the_command_explains_itself(in_process: Any) -> None:
    done = in_process("recommend", "--ram", "16", "--language", "French", "--explain", "-n", "2")
    assert done.returncode == 0
    assert done.stdout.count("quality ") == 2
    assert "speaks French" in done.stdout
    (row, *_) = json.loads(in_process("recommend", "--ram", "16", "--json", "-n", "1").stdout)["recommendations"]
    total = math.prod(factor["value"] for factor in row["score"]["factors"])
    assert row["score"]["total"] == pytest.approx(total, rel=0.01)
    assert in_process("recommend", "--ram", "16", "--language", "klingon").returncode == 2
    assert [in_process("recommend", "--ram", "16", "--min-speed", speed).returncode for speed in ("nan", "inf")] == [
        2,
        2,
    ]


def test_what_cannot_be_recommended_for_is_said_before_anything_is_measured(in_process: Any) -> None:
    for wrong in (("--task", "juggling"), ("--language", "klingon"), ("--min-speed", "nan")):
        done = in_process("recommend", *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Measuring" not in done.stderr


def test_embedding_models_are_told_by_how_fast_they_read(in_process: Any) -> None:
    asked = ("recommend", "--ram", "16", "--task", "embedding", "--limit", "1")
    row = json.loads(in_process(*asked, "--json").stdout)["recommendations"][0]
    shown = in_process(*asked).stdout
    assert f"{row['prompt_tps']['low']:.0f}-{row['prompt_tps']['high']:.0f}" in shown
    assert "READS/S" in shown
    assert row["prompt_tps"]["basis"] in shown


def test_how_fast_prompts_are_read_is_shown_where_there_is_room(in_process: Any) -> None:
    asked = ("recommend", "--ram", "16", "--limit", "2")
    row = json.loads(in_process(*asked, "--json").stdout)["recommendations"][0]
    wide = in_process(*asked, env={"COLUMNS": "120"}).stdout
    assert re.search(r"TOKENS/S +READS/S$", wide, re.M)
    assert f"{row['prompt_tps']['low']:.0f}-{row['prompt_tps']['high']:.0f}\n" in wide
    assert max(map(len, in_process(*asked).stdout.splitlines())) <= 80


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_a_narrow_terminal_is_shown_less_of_each_row(in_process: Any, columns: int) -> None:
    asked = ("recommend", "--machine", "raspberry-pi-4-4gb", "--task", "code", "--limit", "3")
    shown = in_process(*asked, env={"COLUMNS": str(columns)}).stdout
    (headers,) = [line.split() for line in shown.splitlines() if "MODEL" in line]
    assert {"MODEL", "QUANT", "MEMORY", "TOKENS/S"} <= {*headers}
    assert ("DOWNLOAD" in headers) == (columns >= 60)
    assert ("READS/S" in headers) == (columns > 80)
    told = [line for line in shown.splitlines() if not line.startswith(("Speeds", "Next"))]
    assert max(map(len, told)) <= columns + 10
    assert "expect mistakes" in " ".join(shown.split())


def test_models_that_speak_a_language_are_marked(in_process: Any) -> None:
    rows = json.loads(in_process("recommend", "--ram", "16", "--json").stdout)["recommendations"]
    french = {row["model"] for row in rows if "fr" in row["languages"]}
    assert 0 < len(french) < len(rows)
    shown = in_process("recommend", "--ram", "16", env={"LC_ALL": "C"}).stdout
    assert "^ made to speak French" in shown
    marked = {
        line.split()[1].rstrip("*+^") for line in shown.splitlines() if len(line.split()) > 5 and "^" in line.split()[1]
    }
    assert marked == french
    assert "^ made to speak German" in in_process("recommend", "--ram", "16", env={"LC_ALL": "de_DE.UTF-8"}).stdout
    assert all(("fr" in scoring.spoken(model)) == bool(model.french) for model in MODELS)


def test_low_bit_only_where_it_is_asked_for() -> None:
    model = catalog.resolve_name("llama-3.1-8b")
    assert model is not None
    low = replace(model.files[0], quantization="Q3_K_M", names=("x-Q3_K_M.gguf",), size_bytes=None)
    only_low = replace(model, files=(low,))
    machine = hypothetical(16)
    assert recommend.rank(machine, [only_low]) == ()
    (row,) = recommend.rank(machine, [only_low], allow_low_bit=True)
    assert any("under 4 bits" in warning for warning in row.warnings)


def test_the_page_says_what_the_code_does() -> None:
    page = PAGE.read_text("utf-8")
    for name, task in TASKS.items():
        decode = f"{task.decode_tps:g}" if task.decode_tps else "–"
        assert f"| {name} | {decode} | {task.prompt_tps:g} | {task.context:,} |" in page
    for quant in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"):
        assert f"{quant} {1 - quantization.loss(quant):.3f}" in page


# ----------------------------------------------------------------------------------------- one of a repository


def variants(**gigabytes: float) -> list[Variant]:
    return [
        Variant(quant, (RemoteFile(f"m-{quant}.gguf", int(size * 1e9), None),)) for quant, size in gigabytes.items()
    ]


def test_the_balance_of_quality_and_speed_is_taken() -> None:
    repo = variants(Q2_K=3.2, Q3_K_M=4.0, Q4_K_M=5.0, Q5_K_M=5.8, Q6_K=6.7, Q8_0=8.7, F16=16.4)
    variant, plan, why = recommend.choose_variant(repo, None, hypothetical(16))
    assert variant.quantization in {"Q4_K_M", "Q5_K_M"}
    assert plan.fits
    assert "fits here" in why


def test_a_small_fast_model_is_taken_with_more_bits_but_not_16() -> None:
    repo = variants(Q4_K_M=0.4, Q8_0=0.64, F16=1.2)
    variant, _, _ = recommend.choose_variant(repo, None, hypothetical(64, 24))
    assert variant.quantization == "Q8_0"


def test_a_projector_takes_room_from_the_weights() -> None:
    repo, machine = variants(Q4_K_M=2.5, Q5_K_M=2.9, Q8_0=4.3), hypothetical(32, 7)
    assert recommend.choose_variant(repo, None, machine)[0].quantization == "Q5_K_M"
    variant, plan, _ = recommend.choose_variant(repo, None, machine, round(2.25 * GIB))
    assert (variant.quantization, plan.placement) == ("Q4_K_M", Placement.GPU)
    assert plan.memory.projector_bytes == round(2.25 * GIB)


def test_less_than_four_bits_is_not_taken_to_make_it_fit() -> None:
    variant, plan, why = recommend.choose_variant(variants(Q2_K=3.2, Q4_K_M=40, Q8_0=80), None, hypothetical(8))
    assert (variant.quantization, plan.fits) == ("Q4_K_M", False)
    assert "does not fit" in why


def test_less_than_four_bits_is_taken_where_there_is_nothing_else() -> None:
    variant, plan, why = recommend.choose_variant(variants(IQ2_XS=2.5, Q3_K_M=4.0), None, hypothetical(16))
    assert (variant.quantization, plan.fits) == ("Q3_K_M", True)
    assert "made-up" in why


def test_the_only_one_is_taken_whatever_it_is() -> None:
    shape = sizes.shape_from_params(0.5)
    variant, plan, why = recommend.choose_variant(variants(F16=1.0), shape, hypothetical(16))
    assert (variant.quantization, plan.fits, why) == ("F16", True, "the only one there is")


def test_a_repository_without_models_is_said() -> None:
    with pytest.raises(NotFound):
        recommend.choose_variant([], None, hypothetical(16))


@given(
    st.dictionaries(
        st.sampled_from(["Q2_K", "Q4_0", "Q4_K_M", "Q8_0", "BF16", "unknown"]), st.floats(0.001, 400), min_size=1
    ),
    st.floats(1, 256),
)
def test_some_variant_is_always_chosen(sizes: dict[str, float], ram: float) -> None:
    repo = variants(**sizes)
    variant, plan, why = recommend.choose_variant(repo, None, hypothetical(ram))
    assert variant in repo
    assert why
    if any(not quantization.is_low_bit(name) for name in sizes):
        assert not quantization.is_low_bit(variant.quantization)
    assert plan.fits or all(
        not recommend.choose_variant([each], None, hypothetical(ram))[1].fits
        for each in repo
        if not quantization.is_low_bit(each.quantization)
    )
