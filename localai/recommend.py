"""Which models of the catalog to take on a machine, ranked: pure functions. The formula is in docs/recommending.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from localai import estimate, quantization, tiers
from localai.catalog import CatalogFile, CatalogModel
from localai.domain import Machine, MemoryNeed, Placement, Plan, Shape, SpeedRange, Tier, Variant
from localai.errors import NotFound, UsageError

STARTER_BYTES = 4 * 10**9  # hardware-tiers: to begin with, a light model (under 4 GB)
_FRAME_TOLERANCE = 1.3  # a tier "up to 3B" also takes the 3.2B–3.8B that are sold as 3B
_SMALLEST_SPEED = 1.5  # tokens per second under which nobody waits for an answer
_USUAL_BITS = 9.0  # more than Q8_0 doubles the size for less than 0.1 % of quality


@dataclass(frozen=True, slots=True)
class Task:
    """What a kind of work asks of a machine: comfortable speeds in tokens per second, and room for the text."""

    decode_tps: float
    prompt_tps: float
    context: int


# People read 5 to 8 tokens per second; code is skimmed, thinking is waited for; a summary waits for its prompt.
TASKS = {
    "chat": Task(10, 20, 8192),
    "writing": Task(8, 20, 8192),
    "summary": Task(8, 100, 16384),
    "translation": Task(8, 30, 8192),
    "code": Task(15, 60, 16384),
    "reasoning": Task(20, 20, 16384),
    "vision": Task(8, 60, 8192),
    "document": Task(8, 150, 32768),
    "embedding": Task(0, 100, 2048),
}
_THINKING_TAKES = 1.5  # a model that thinks before it answers writes that much more
_OWN_CAPABILITY = {"code": "code", "reasoning": "reasoning", "vision": "vision", "embedding": "embedding"}


@dataclass(frozen=True, slots=True)
class Score:
    """The factors of a row's place; `total` is their product."""

    quality: float
    kept: float
    speed: float
    context: float
    ease: float
    suits: float

    @property
    def total(self) -> float:
        return self.quality * self.kept * self.speed * self.context * self.ease * self.suits


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One row: a model at its best quantization, how it would run, and why it stands where it does."""

    rank: int
    model: str
    name: str
    repo: str
    file: str
    quantization: str
    bits_per_weight: float
    params_b: float
    active_params_b: float | None
    context: int
    download_bytes: int
    memory: MemoryNeed
    placement: Placement
    gpu_layers: int
    cpu_expert_layers: int
    kv_type: str
    fits: bool
    decode_tps: SpeedRange | None
    prompt_tps: SpeedRange | None
    tasks: tuple[str, ...]
    warnings: tuple[str, ...]
    starter: bool
    score: Score


def rank(
    machine: Machine,
    models: Sequence[CatalogModel],
    *,
    task: str | None = None,
    context: int | None = None,
    min_speed: float | None = None,
    limit: int = 10,
    language: str | None = None,
    allow_low_bit: bool = False,
) -> tuple[Recommendation, ...]:
    """The best rows, one a model, within the machine's tier; nothing that does not fit, and the best light one marked.

    `min_speed` is tokens per second of writing, `context` tokens that must fit. Raises UsageError for an unknown task.
    """
    name = task or "chat"
    if name not in TASKS:
        raise UsageError(f"there is no task called {name!r}", f"the tasks are: {', '.join(TASKS)}")
    tier = tiers.tier(machine)
    generation = _generations(models)
    rows = []
    for model in models:
        if name not in tasks_of(model) or not _within(model, tier):
            continue
        row = _best_row(model, machine, name, context, language, allow_low_bit, generation[model.id])
        if row is not None and (min_speed is None or _decode(row) >= min_speed):
            rows.append(row)
    rows.sort(key=lambda row: (-row.score.total, row.model))
    return tuple(_numbered(rows, limit))


def best(machine: Machine, models: Sequence[CatalogModel] | None = None) -> Recommendation | None:
    """The first row for chat, or None where nothing fits."""
    from localai import catalog

    rows = rank(machine, catalog.load() if models is None else models, limit=1)
    return rows[0] if rows else None


def tasks_of(model: CatalogModel) -> tuple[str, ...]:
    """The tasks that a model is fit for, by its capabilities and size (hardware-tiers table)."""
    if model.embedding_only:
        return ("embedding",)
    size = effective_params_b(model)
    fit = {
        "chat": True,
        "writing": size >= 1,
        "summary": size >= 1,
        "translation": size >= 2.5 and (model.french is not False or len(model.languages) > 2),
        "code": "code" in model.capabilities or size >= 7,
        "reasoning": "reasoning" in model.capabilities,
        "vision": "vision" in model.capabilities,
        "document": size >= 2.5 and (model.context_length or 0) >= TASKS["document"].context,
    }
    return tuple(task for task, able in fit.items() if able)


def effective_params_b(model: CatalogModel) -> float:
    """Billions of parameters of a dense model of about the same quality: √(total × active) where only some are used."""
    return math.sqrt(model.params_b * (model.active_params_b or model.params_b))


def choose_variant(
    variants: Sequence[Variant], shape: Shape | None, machine: Machine, context: int | None = None
) -> tuple[Variant, Plan, str]:
    """The variant to take of a repository, its plan, and why in words.

    The best of at least 4 bits that fits, by quality kept × speed; else the smallest of them with a plan that does not
    fit. Less than 4 bits only where there is nothing else. Raises NotFound for no variants.
    """
    if not variants:
        raise NotFound("there is no GGUF file of a model in it", "name a GGUF repository; they often end in -GGUF")
    enough = [each for each in variants if not quantization.is_low_bit(each.quantization)]
    planned = [(each, _variant_plan(each, shape, machine, context)) for each in enough or variants]
    fitting = [(each, plan) for each, plan in planned if plan.fits]
    if not fitting:
        variant, plan = min(planned, key=lambda pair: pair[0].size_bytes)
        return variant, plan, f"the smallest {'of at least 4 bits' if enough else 'there is'}, but it does not fit here"
    usual = [pair for pair in fitting if (quantization.bits(pair[0].quantization) or 0) <= _USUAL_BITS]
    variant, plan = max(usual or fitting, key=lambda pair: _variant_value(*pair))
    if not enough:
        return variant, plan, "there is none of at least 4 bits: expect more made-up answers"
    if len(planned) == 1:
        return variant, plan, "the only one there is"
    return variant, plan, "the best balance of quality and speed that fits here"


def _variant_plan(variant: Variant, shape: Shape | None, machine: Machine, context: int | None) -> Plan:
    shape = shape or estimate.shape_from_size(variant.size_bytes, variant.quantization)
    weights = estimate.weights_from_size(variant.size_bytes, shape, variant.quantization)
    return estimate.plan(shape, weights, machine, context=context, quant=variant.quantization)


def _variant_value(variant: Variant, plan: Plan) -> tuple[float, int]:
    kept = 1 - quantization.loss(variant.quantization)
    return kept * _speed(plan, TASKS["chat"], 1.0) * _ease(plan), -variant.size_bytes


# -------------------------------------------------------------------------------------------------- the factors


def _within(model: CatalogModel, tier: Tier) -> bool:
    """Whether the tier is for models of that size; of a mixture of experts the active part, memory decides the rest."""
    size = model.active_params_b or model.params_b if model.mixture_of_experts else model.params_b
    return size <= tier.max_params_b * _FRAME_TOLERANCE


def _best_row(
    model: CatalogModel,
    machine: Machine,
    task: str,
    context: int | None,
    language: str | None,
    allow_low_bit: bool,
    years: float,
) -> Recommendation | None:
    wants = TASKS[task]
    if context is not None and model.context_length is not None and context > model.context_length:
        return None
    shape = model.shape or replace(
        estimate.shape_from_params(model.params_b, model.active_params_b), context_length=model.context_length
    )
    files = [each for each in model.files if allow_low_bit or not quantization.is_low_bit(each.quantization)]
    usual = [each for each in files if (quantization.bits(each.quantization) or 0) <= _USUAL_BITS]
    rows = []
    for file in usual or files:
        weights = estimate.weights_from_catalog(model, file.quantization)
        plan = estimate.plan(
            shape, weights, machine, context=context, want_context=wants.context, quant=file.quantization
        )
        if not plan.fits or plan.decode_tps is None or plan.decode_tps.mid < _SMALLEST_SPEED:
            continue
        thinks = _THINKING_TAKES if "reasoning" in model.capabilities else 1.0
        score = Score(
            quality=_quality(model, years),
            kept=1 - quantization.loss(file.quantization, trained_for=file.trained_for),
            speed=_speed(plan, wants, thinks),
            context=min(1.0, plan.context / min(wants.context, context or wants.context)) ** 0.15,
            ease=_ease(plan),
            suits=_suits(model, task) * _speaks(model, language),
        )
        rows.append(_row(model, file, weights.total_bytes, plan, score))
    return max(rows, key=lambda row: (row.score.total, -row.download_bytes), default=None)


def _row(model: CatalogModel, file: CatalogFile, weights_bytes: int, plan: Plan, score: Score) -> Recommendation:
    return Recommendation(
        rank=0,
        model=model.id,
        name=model.name,
        repo=model.repo,
        file=file.name,
        quantization=file.quantization,
        bits_per_weight=round(weights_bytes * 8 / (model.params_b * 1e9), 2),
        params_b=model.params_b,
        active_params_b=model.active_params_b,
        context=plan.context,
        download_bytes=file.size_bytes or weights_bytes,
        memory=plan.memory,
        placement=plan.placement,
        gpu_layers=plan.gpu_layers,
        cpu_expert_layers=plan.cpu_expert_layers,
        kv_type=plan.kv_type,
        fits=plan.fits,
        decode_tps=plan.decode_tps,
        prompt_tps=plan.prompt_tps,
        tasks=tasks_of(model),
        warnings=plan.warnings,
        starter=False,
        score=score,
    )


def _numbered(rows: Sequence[Recommendation], limit: int) -> Iterable[Recommendation]:
    """The first `limit` rows, ranked; the best light one is marked, and takes the last place if it has none."""
    light = next((row for row in rows if row.download_bytes < STARTER_BYTES), None)
    shown = list(rows[:limit])
    if light is not None and light not in shown and limit > 1:
        shown[-1] = light
    for number, row in enumerate(shown, 1):
        yield replace(row, rank=number, starter=row is light)


def _generations(models: Sequence[CatalogModel]) -> dict[str, float]:
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


def _quality(model: CatalogModel, years: float) -> float:
    """Quality by size and generation: linear in log2 of the effective size, a year counting as one doubling.

    An assumption, not a measurement: "densing law" (Xiao et al. 2024) has capability per parameter double in 3.3
    months on benchmarks; less than a third of that is taken.
    """
    return max(0.05, 0.5 + 0.08 * (math.log2(effective_params_b(model)) + years))


def _decode(row: Recommendation) -> float:
    return row.decode_tps.mid if row.decode_tps else 0.0


def _speed(plan: Plan, wants: Task, thinks: float) -> float:
    """Slower writing than the task needs counts nearly in proportion, slower reading less, since it is done once.

    Above what is needed, each doubling adds 5 %, three times at most.
    """
    decode = plan.decode_tps.mid / (wants.decode_tps * thinks) if plan.decode_tps and wants.decode_tps else 1.0
    prompt = plan.prompt_tps.mid / wants.prompt_tps if plan.prompt_tps else 1.0
    writing = math.pow(decode, 0.7) if decode < 1 else 1 + 0.05 * min(math.log2(decode), 3)
    return writing * math.pow(min(1.0, prompt), 0.3)


def _ease(plan: Plan) -> float:
    """Something off for filling more than 70 % of the memory: of RAM, which other programs want too, up to 15 %."""
    used = (plan.memory.total_bytes + plan.memory.overhead_bytes) / max(plan.available_bytes, 1)
    return 1 - (0.2 if plan.placement is Placement.GPU else 0.5) * min(0.3, max(0.0, used - 0.7))


def _suits(model: CatalogModel, task: str) -> float:
    """A model made for the task, or with its capability, is preferred; one made for something else is not."""
    made_for = _made_for(model)
    if made_for is not None:
        return 1.1 if made_for == task else 0.92
    return 1.05 if task in _OWN_CAPABILITY and _OWN_CAPABILITY[task] in model.capabilities else 1.0


def _made_for(model: CatalogModel) -> str | None:
    name = model.name.lower()
    if "coder" in name or "devstral" in name:
        return "code"
    return "vision" if "-vl" in name or "smolvlm" in name else None


def _speaks(model: CatalogModel, language: str | None) -> float:
    """1 for a language that the model is known to speak, 0.85 where nothing is known, 0.5 where it does not."""
    code = (language or "en").strip().lower().replace("_", "-").partition("-")[0]
    if code == "en":
        return 1.0
    knows = code in model.languages if model.languages else None
    if code == "fr":
        knows = model.french
    if knows is None:
        return 0.95 if code != "fr" and model.french and model.languages_note else 0.85
    return 1.0 if knows else 0.5
