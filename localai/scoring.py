"""The factors that rank a model, each a number and the words for it. The formula is in docs/recommending.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from localai import quantization
from localai.catalog import CatalogModel
from localai.domain.plan import Placement, Plan
from localai.domain.units import GIB
from localai.languages import name_of


@dataclass(frozen=True, slots=True)
class Task:
    """What a kind of work asks of a machine: comfortable speeds in tokens per second, and room for the text."""

    decode_tps: float
    prompt_tps: float
    context: int


# People read 5 to 8 tokens per second; code is skimmed, thinking is waited for (and counted in, of reasoning). What is
# asked in a chat has some dozens of tokens; a summary waits for its prompt.
TASKS = {
    "chat": Task(10, 10, 8192),
    "writing": Task(8, 10, 8192),
    "summary": Task(8, 100, 16384),
    "translation": Task(8, 30, 8192),
    "code": Task(15, 60, 16384),
    "reasoning": Task(20, 10, 16384),
    "vision": Task(8, 60, 8192),
    "document": Task(8, 150, 32768),
    "embedding": Task(0, 100, 2048),
}
_THINKING_TAKES = 1.5  # a model that thinks before it answers writes that much more
# What one who has some patience asks of a machine that has nothing quicker: writing as fast as people read, and some
# dozens of tokens read in some seconds.
_PATIENT_DECODE_TPS, _PATIENT_PROMPT_TPS = 5.0, 10.0
_OWN_CAPABILITY = {"code": "code", "reasoning": "reasoning", "vision": "vision", "embedding": "embedding"}

# Of a model without a published score: points by the effective billions of parameters and the years since the start of
# 2024, fitted by least squares to the 29 models of the catalog that have one; it is off by 3.4 points (root mean
# square), which are taken off, so that nobody's guess passes what somebody measured.
POINTS_AT_1B, POINTS_A_DOUBLING, POINTS_A_YEAR, POINTS_OFF = 27.4, 4.6, 7.8, 3.4
FULL_POINTS = 60.0
# The smallest that has one (Qwen3 0.6B). Nobody has measured the line below it; there a halving costs twice as much,
# since such models are often wrong.
SMALLEST_SCORED_B = 0.6


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor of a row's place, and why it is what it is."""

    name: str
    value: float
    why: str


@dataclass(frozen=True, slots=True)
class Score:
    """Why a row stands where it does; `total` is the product of its factors."""

    factors: tuple[Factor, ...]

    @property
    def total(self) -> float:
        return math.prod(factor.value for factor in self.factors)

    def value(self, name: str) -> float:
        return next(factor.value for factor in self.factors if factor.name == name)


def score(
    model: CatalogModel,
    quant: str,
    plan: Plan,
    task: str,
    *,
    trained_for: bool,
    years: float,
    asked_context: int | None,
    language: str | None,
    small: bool = False,
) -> Score:
    """The factors of a model of the catalog at a quantization, planned for a machine, for a kind of work.

    `years` is when it came out, counted from the start of 2024; `language` a code of ISO 639-1; `small` says that the
    model is smaller than the work asks for.
    """
    wants = TASKS[task]
    factors = [
        _quality(model, years),
        _kept(quant, trained_for),
        _speed_factor(model, plan, wants, task),
        _context(plan, wants, task, asked_context),
        _ease_factor(plan),
        Factor("suits", 0.5, f"smaller than {task} asks for") if small else _suits(model, task),
    ]
    if language is not None:
        factors.append(_speaks(model, language))
    return Score(tuple(factors))


def effective_params_b(model: CatalogModel) -> float:
    """Billions of parameters of a dense model of about the same quality: √(total × active) where only some are used."""
    return math.sqrt(model.params_b * (model.active_params_b or model.params_b))


def generations(models: Sequence[CatalogModel]) -> dict[str, float]:
    """Years since the start of 2024 that each model came out; one without a date counts as the oldest of its family."""
    dated = {model.id: _years(model.release) for model in models if model.release}
    family: dict[str, float] = {}
    for model in models:
        if model.id in dated:
            family[model.family] = min(family.get(model.family, math.inf), dated[model.id])
    return {model.id: dated.get(model.id, family.get(model.family, 0.0)) for model in models}


def _years(release: str) -> float:
    year, _, month = release.partition("-")
    return int(year) - 2024 + (int(month or 1) - 1) / 12


def _quality(model: CatalogModel, years: float) -> Factor:
    if (found := model.quality) is not None:
        points = found.score
        said = f"published: {points:g} ± {found.spread:g} points from {found.results} results (whatmodel.sh)"
    else:
        size, when = effective_params_b(model), model.release or "its family's first year"
        doublings = math.log2(size) + min(0.0, math.log2(size / SMALLEST_SCORED_B))
        points = POINTS_AT_1B + POINTS_A_DOUBLING * doublings + POINTS_A_YEAR * years - POINTS_OFF
        points = max(points, 5.0)
        said = f"no published score: {points:.1f} points by its size ({size:.3g}B) and date ({when})"
    return Factor("quality", points / FULL_POINTS, said)


def _kept(quant: str, trained_for: bool) -> Factor:
    kept = 1 - quantization.loss(quant, trained_for=trained_for)
    made = ", which it was trained for," if trained_for else ""
    return Factor("kept", kept, f"{quant}{made} leaves {kept:.1%} of it")


def thinking_takes(model: CatalogModel, task: str) -> float:
    """How many times as much a model writes for an answer as the task counts on."""
    return _THINKING_TAKES if "reasoning" in model.capabilities and task != "reasoning" else 1.0


def patient(wants: Task) -> Task:
    """The same kind of work, of a machine that is not so fast as that wants it."""
    slow = min(wants.decode_tps, _PATIENT_DECODE_TPS), min(wants.prompt_tps, _PATIENT_PROMPT_TPS)
    return Task(*slow, wants.context)


def _speed_factor(model: CatalogModel, plan: Plan, wants: Task, task: str) -> Factor:
    thinks = thinking_takes(model, task)
    said = []
    if plan.decode_tps and wants.decode_tps:
        more = f" ({wants.decode_tps:g} × {thinks:g}: it thinks first)" if thinks > 1 else ""
        said.append(
            f"writes {plan.decode_tps.mid:.1f} tokens/s where {task} asks for {wants.decode_tps * thinks:g}{more}"
        )
    if plan.prompt_tps:
        said.append(f"reads {plan.prompt_tps.mid:.0f} where it asks for {wants.prompt_tps:g}")
    return Factor("speed", speed(plan, wants, thinks), ", ".join(said) or "its speed is not known")


def speed(plan: Plan, wants: Task, thinks: float) -> float:
    """Slower writing than the task needs counts nearly in proportion, slower reading less, since it is done once.

    Twice what is needed adds 5 %, more than that nothing: nobody reads so fast, and more bits or a larger model are
    then worth more.
    """
    decode = plan.decode_tps.mid / (wants.decode_tps * thinks) if plan.decode_tps and wants.decode_tps else 1.0
    prompt = plan.prompt_tps.mid / wants.prompt_tps if plan.prompt_tps else 1.0
    writing = math.pow(decode, 0.7) if decode < 1 else 1 + 0.05 * min(math.log2(decode), 1)
    return writing * math.pow(min(1.0, prompt), 0.3)


def _context(plan: Plan, wants: Task, task: str, asked: int | None) -> Factor:
    wanted, who = (wants.context, f"{task} asks") if asked is None or asked >= wants.context else (asked, "you ask")
    value = min(1.0, plan.context / wanted) ** 0.15
    return Factor("context", value, f"{plan.context:,} tokens fit where {who} for {wanted:,}")


def _ease_factor(plan: Plan) -> Factor:
    where = "the GPU's memory" if plan.placement is Placement.GPU else "the free memory"
    return Factor("ease", ease(plan), f"fills {_used(plan):.0%} of {where} ({plan.available_bytes / GIB:.1f} GiB)")


def ease(plan: Plan) -> float:
    """Something off for filling more than 70 % of the memory: of RAM, which other programs want too, up to 15 %."""
    return 1 - (0.1 if plan.placement is Placement.GPU else 0.5) * min(0.3, max(0.0, _used(plan) - 0.7))


def _used(plan: Plan) -> float:
    return (plan.memory.total_bytes + plan.memory.overhead_bytes) / max(plan.available_bytes, 1)


def _suits(model: CatalogModel, task: str) -> Factor:
    """A model made for the task, or with its capability, is preferred; one made for something else is not."""
    made_for = _made_for(model)
    if made_for is not None:
        return Factor("suits", 1.1 if made_for == task else 0.92, f"made for {made_for}")
    if task in _OWN_CAPABILITY and _OWN_CAPABILITY[task] in model.capabilities:
        return Factor("suits", 1.05, f"able to do {task}")
    return Factor("suits", 1.0, "made for all kinds of work")


def _made_for(model: CatalogModel) -> str | None:
    name = model.name.lower()
    if "coder" in name or "devstral" in name:
        return "code"
    return "vision" if "-vl" in name or "smolvlm" in name else None


def spoken(model: CatalogModel) -> tuple[str, ...]:
    """The languages that a model is known to speak, by their codes; empty where its makers name none."""
    return tuple(sorted({*model.languages, "fr"} if model.french else {*model.languages} - {"fr"}))


def _speaks(model: CatalogModel, code: str) -> Factor:
    """1 for a language that the model is known to speak, 0.85 where nothing is known, 0.5 where it does not."""
    language = name_of(code)
    knows = code in model.languages if model.languages else None
    if code == "fr":
        knows = model.french
    if code == "en" or knows:
        return Factor("language", 1.0, f"speaks {language}")
    if knows is False:
        return Factor("language", 0.5, f"is not made for {language}")
    if code != "fr" and model.french and model.languages_note:
        many = model.languages_note.partition(" (")[0]
        return Factor("language", 0.95, f"speaks {many}, {language} probably among them")
    return Factor("language", 0.85, f"nothing is known of its {language}")
