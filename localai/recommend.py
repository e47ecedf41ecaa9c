"""Which models of the catalog to take on a machine, ranked: pure functions. The formula is in docs/recommending.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from localai import catalog, estimate, languages, quantization, scoring, sizes, tiers
from localai.catalog import CatalogFile, CatalogModel
from localai.domain.files import Variant
from localai.domain.machine import Machine, Tier
from localai.domain.plan import MemoryNeed, Placement, Plan, SpeedRange
from localai.domain.shape import Shape
from localai.errors import NotFound, UsageError
from localai.scoring import TASKS, Score, effective_params_b, generations

STARTER_BYTES = 4 * 10**9  # hardware-tiers: to begin with, a light model (under 4 GB)
_FRAME_TOLERANCE = 1.3  # a tier "up to 3B" also takes the 3.2B–3.8B that are sold as 3B
_FRAME_BITS = 4.8944  # what the tiers' models are meant at: Q4_K_M
_SMALLEST_SPEED = 1.5  # tokens per second under which nobody waits for an answer
_USUAL_BITS = 9.0  # more than Q8_0 doubles the size for less than 0.1 % of quality


class Quantized(Protocol):
    """What a model has in several quantizations."""

    @property
    def quantization(self) -> str: ...


Q = TypeVar("Q", bound=Quantized)


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
    languages: tuple[str, ...]  # that it is known to speak
    warnings: tuple[str, ...]
    starter: bool
    at_ease: bool  # with memory to spare, as fast as the task wants it, or as anything here is (see `_at_ease`)
    bearable: bool  # the same for one who has some patience
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

    One at least runs at ease, if need be with a model that is small for the task. With `allow_low_bit` the best of
    less than 4 bits is among them. `min_speed` is tokens per second of writing, `context` tokens that must fit,
    `language` a code or a name. Raises UsageError for an unknown task or language.
    """
    check(task, language)
    name = task or "chat"
    tier = tiers.tier(machine)
    generation = generations(models)
    spoken = None if language is None else languages.code_of(language)

    def rows_of(of: Iterable[CatalogModel], small: bool = False) -> list[Recommendation]:
        rows = []
        for model in of:
            files = [
                each
                for each in model.files
                if (allow_low_bit or not quantization.is_low_bit(each.quantization))
                and _within(model, machine, tier, each.quantization)
            ]
            row = _best_row(model, files, machine, name, context, spoken, generation[model.id], small)
            if row is not None and (min_speed is None or _decode(row) >= min_speed):
                rows.append(row)
        return sorted(rows, key=_place)

    rows = _at_ease(rows_of(model for model in models if name in tasks_of(model)), name)
    if not any(row.at_ease for row in rows):
        small = [row for row in rows_of((each for each in models if name in _in_a_pinch(each)), True) if row.bearable]
        best = max(small, key=lambda row: row.score.value("quality"), default=None)
        rows = sorted([*rows, *_at_ease([best] if best else [], name)], key=_place)
    return tuple(_numbered(rows, limit))


def _place(row: Recommendation) -> tuple[float, str]:
    return -row.score.total, row.model


def check(task: str | None, language: str | None) -> None:
    """Raise UsageError for an unknown task or language."""
    if task is not None and task not in TASKS:
        raise UsageError(f"there is no task called {task!r}", f"the tasks are: {', '.join(TASKS)}")
    if language is not None:
        languages.code_of(language)


def best(machine: Machine) -> Recommendation | None:
    """The first row for chat, or None where nothing fits."""
    rows = rank(machine, catalog.load(), limit=1)
    return rows[0] if rows else None


def tasks_of(model: CatalogModel) -> tuple[str, ...]:
    """The tasks that a model is fit for, by its capabilities and size (hardware-tiers table)."""
    if model.embedding_only:
        return ("embedding",)
    size = effective_params_b(model)
    large_enough = {
        "writing": size >= 1,
        "summary": size >= 1,
        "translation": size >= 2.5,
        "code": "code" in model.capabilities or size >= 7,
        "document": size >= 2.5,
    }
    return tuple(task for task in _able(model) if large_enough.get(task, True))


def _able(model: CatalogModel) -> tuple[str, ...]:
    """The tasks that a model that writes is fit for if it is large enough."""
    fit = {
        "chat": True,
        "writing": True,
        "summary": True,
        "translation": model.french is not False or len(model.languages) > 2,
        "code": True,
        "reasoning": "reasoning" in model.capabilities,
        "vision": "vision" in model.capabilities,
        "document": (model.context_length or 0) >= TASKS["document"].context,
    }
    return tuple(task for task, able in fit.items() if able)


def _in_a_pinch(model: CatalogModel) -> set[str]:
    """The tasks that a model is too small for, and would do somehow."""
    return set() if model.embedding_only else {*_able(model)} - {*tasks_of(model)}


def choose_variant(
    variants: Sequence[Variant], shape: Shape | None, machine: Machine, projector_bytes: int = 0
) -> tuple[Variant, Plan, str]:
    """The variant to take of a repository, its plan with a projector of so many bytes, and why in words.

    The best of at least 4 bits that fits, by quality kept × speed; else the smallest of them with a plan that does not
    fit. Less than 4 bits only where there is nothing else. Raises NotFound for no variants.
    """
    if not variants:
        raise NotFound("there is no GGUF file of a model in it", "name a GGUF repository; they often end in -GGUF")
    enough = [each for each in variants if not quantization.is_low_bit(each.quantization)]
    planned = [(each, plan_variant(each, shape, machine, projector_bytes)) for each in enough or variants]
    variant, plan = best_of(planned)
    if not plan.fits:
        return variant, plan, f"the smallest {'of at least 4 bits' if enough else 'there is'}, but it does not fit here"
    if not enough:
        return variant, plan, "there is none of at least 4 bits: expect more made-up answers"
    if len(planned) == 1:
        return variant, plan, "the only one there is"
    return variant, plan, "the best balance of quality and speed that fits here"


def best_of(planned: Sequence[tuple[Q, Plan]]) -> tuple[Q, Plan]:
    """The best of the variants of one model that fits, by quality kept × speed; else the smallest."""
    fitting = [(each, plan) for each, plan in planned if plan.fits]
    if not fitting:
        return min(planned, key=lambda pair: pair[1].memory.weights_bytes)
    usual = [pair for pair in fitting if (quantization.bits(pair[0].quantization) or 0) <= _USUAL_BITS]
    variant, plan = max(usual or fitting, key=lambda pair: _variant_value(*pair))
    if plan.placement is Placement.SPLIT:
        whole = [pair for pair in usual or fitting if _stays_whole(pair[1], plan)]
        variant, plan = max(whole or [(variant, plan)], key=lambda pair: _variant_value(*pair))
    return variant, plan


def plan_variant(variant: Variant, shape: Shape | None, machine: Machine, projector_bytes: int) -> Plan:
    """How a variant would run, by its size alone; `shape` is the model's where that is known."""
    shape = shape or sizes.shape_from_size(variant.size_bytes, variant.quantization)
    weights = sizes.weights_from_size(variant.size_bytes, shape, variant.quantization)
    return estimate.plan(shape, weights, machine, quant=variant.quantization, projector_bytes=projector_bytes)


def _variant_value(variant: Quantized, plan: Plan) -> tuple[float, int]:
    kept = 1 - quantization.loss(variant.quantization)
    return kept * scoring.speed(plan, TASKS["chat"], 1.0) * scoring.ease(plan), -plan.memory.weights_bytes


# -------------------------------------------------------------------------------------------------- the factors


def _within(model: CatalogModel, machine: Machine, tier: Tier, quant: str) -> bool:
    """Whether the tier is for models of that size; of a mixture of experts the active part, memory decides the rest.

    A phone ends what takes most of its memory: there all of the parameters count. The tier speaks of 4 bits: of fewer
    a model may be as much larger.
    """
    whole = tiers.is_phone(machine) or not model.mixture_of_experts
    size = model.params_b if whole else model.active_params_b or model.params_b
    if quantization.is_low_bit(quant):
        size *= (quantization.bits(quant) or 0) / _FRAME_BITS
    return size <= tier.max_params_b * _FRAME_TOLERANCE


def _best_row(
    model: CatalogModel,
    files: Sequence[CatalogFile],
    machine: Machine,
    task: str,
    context: int | None,
    language: str | None,
    years: float,
    small: bool,
) -> Recommendation | None:
    wants = TASKS[task]
    if context is not None and context > (model.context_length or 0):  # one of unknown length promises none
        return None
    shape = sizes.shape_from_catalog(model)
    usual = [each for each in files if (quantization.bits(each.quantization) or 0) <= _USUAL_BITS]
    pictures = sizes.projector_bytes(model)
    rows = []
    for file in usual or files:
        weights = sizes.weights_from_catalog(model, file.quantization)
        plan = estimate.plan(
            shape,
            weights,
            machine,
            context=context,
            want_context=wants.context,
            quant=file.quantization,
            projector_bytes=pictures,
        )
        if not plan.fits or plan.decode_tps is None or plan.decode_tps.mid < _SMALLEST_SPEED:
            continue
        found = scoring.score(
            model,
            file.quantization,
            plan,
            task,
            trained_for=file.trained_for,
            years=years,
            asked_context=context,
            language=language,
            small=small,
        )
        warnings = (*plan.warnings, *([f"smaller than {task} asks for: expect mistakes"] if small else []))
        row = _row(model, file, weights.total_bytes, pictures, replace(plan, warnings=warnings), found)
        bearable = scoring.speed(plan, scoring.patient(wants), scoring.thinking_takes(model, task)) >= 1
        rows.append(replace(row, bearable=bearable and _has_room(found)))

    def value(row: Recommendation) -> tuple[float, int]:
        return row.score.total, -row.download_bytes

    best = max(rows, key=value, default=None)
    if best is None or best.placement is not Placement.SPLIT:
        return best
    whole = [row for row in rows if _stays_whole(row, best) and not quantization.is_low_bit(row.quantization)]
    return max(whole, key=value, default=best)


def _stays_whole(one: Recommendation | Plan, split: Recommendation | Plan) -> bool:
    """Whether one is on the GPU whole, with no less context: more bits are not worth leaving the GPU in part."""
    return one.placement is Placement.GPU and one.context >= split.context


def _row(
    model: CatalogModel, file: CatalogFile, weights_bytes: int, projector_bytes: int, plan: Plan, score: Score
) -> Recommendation:
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
        download_bytes=(file.size_bytes or weights_bytes) + projector_bytes,
        memory=plan.memory,
        placement=plan.placement,
        gpu_layers=plan.gpu_layers,
        cpu_expert_layers=plan.cpu_expert_layers,
        kv_type=plan.kv_type,
        fits=plan.fits,
        decode_tps=plan.decode_tps,
        prompt_tps=plan.prompt_tps,
        tasks=tasks_of(model),
        languages=scoring.spoken(model),
        warnings=plan.warnings,
        starter=False,
        at_ease=_has_room(score) and score.value("speed") >= 1,
        bearable=False,
        score=score,
    )


def _has_room(score: Score) -> bool:
    """Whether there is memory to spare, and the context that the task wants."""
    return score.value("ease") == score.value("context") == 1


def _at_ease(rows: list[Recommendation], task: str) -> list[Recommendation]:
    """The rows as they are where one of them runs at ease; else those do that only take some patience, and say so."""
    if any(row.at_ease for row in rows):
        return rows
    slow = f"takes some patience: on such a machine nothing fit for {task} is as fast as {task} asks for"
    return [replace(row, at_ease=True, warnings=(*row.warnings, slow)) if row.bearable else row for row in rows]


def _numbered(rows: Sequence[Recommendation], limit: int) -> Iterable[Recommendation]:
    """`limit` rows, ranked: the best of all, the best that runs at ease, the best light one, which is marked, the best
    of less than 4 bits where such are allowed, and the next best.
    """
    light = next((row for row in rows if row.download_bytes < STARTER_BYTES), None)
    easy = next((row for row in rows if row.at_ease), None)
    low = next((row for row in rows if quantization.is_low_bit(row.quantization)), None)
    first: list[Recommendation] = []
    for row in (*rows[:1], easy, light, low, *rows):
        if row is not None and row not in first and len(first) < limit:
            first.append(row)
    for number, row in enumerate(sorted(first, key=rows.index), 1):
        yield replace(row, rank=number, starter=row is light)


def _decode(row: Recommendation) -> float:
    return row.decode_tps.mid if row.decode_tps else 0.0
