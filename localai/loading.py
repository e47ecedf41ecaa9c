"""From the name of a model to a loaded one: find it, read its header, plan for this machine, load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from localai import cards, estimate, gguf, hardware, library, naming, parallelism, shapes, speculating, tuning
from localai.domain.engine import BatchEngine, ChatEngine
from localai.domain.files import RemoteFile
from localai.domain.machine import Machine
from localai.domain.plan import Placement, Plan
from localai.domain.rates import Job
from localai.domain.shape import Shape, Weights
from localai.engine import thinking
from localai.errors import EngineError, LocalaiError, UsageError
from localai.past_runs import kind_of


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How the user wants a model loaded; None leaves it to the plan."""

    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    kv_type: str | None = None
    workers: tuple[str, ...] = ()  # HOST:PORT of other machines that may hold layers
    speculate: bool = True
    draft: str | None = None  # the name of a small model that guesses


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan was made from."""

    machine: Machine
    shape: Shape
    weights: Weights


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model that fits, and how it will be loaded."""

    found: library.Found
    plan: Plan
    params: int
    context_length: int | None  # that the model was made for
    facts: Facts | None = None
    draft: speculating.Draft | None = None
    warm: ChatEngine | None = None  # the same model in the server's memory, which is used instead of loading it
    note: str | None = None
    thinks: bool = False


@dataclass(frozen=True, slots=True)
class InMemory:
    """A model in memory. `note` is what to say plainly of it before anybody trusts its answers."""

    prepared: Prepared
    note: str | None

    @property
    def name(self) -> str:
        return self.prepared.found.name

    @property
    def plan(self) -> Plan:
        return self.prepared.plan


@dataclass(frozen=True, slots=True)
class Loaded(InMemory):
    """A model in memory that answers one request at a time."""

    engine: ChatEngine


@dataclass(frozen=True, slots=True)
class LoadedBatch(InMemory):
    """A model in memory that answers many requests at once."""

    engine: BatchEngine


def prepare(
    found: library.Found,
    options: LoadOptions,
    want_context: int | None = None,
    sequences: int | None = 1,
    most_sequences: int | None = None,
    work: Job = estimate.TYPICAL_WORK,
    thoughts: int = 0,
) -> Prepared:
    """Plan how `found` would be loaded here, for so many `sequences` at once; None: as many as pay, and as fit.

    `want_context` is the number of tokens the job at hand needs, and `thoughts` how many more where the model thinks,
    used where the user asked for no context of their own; `work` is what it is, for the settings that suit it.
    Raises EngineError for a file that is no model, DoesNotFit where it would swap or die, UsageError for more threads
    than there are (llama.cpp's threads wait actively: too many make it not slow but still) and a cache it cannot have.
    """
    machine = machine_for(options)
    header = header_of(found)
    shape, weights = shapes.shape(header), shapes.weights(header)
    may_think = _thinks(header)
    wanted = (want_context or estimate.DEFAULT_CONTEXT) + (thoughts if may_think else 0)

    estimate.check_kv_type(shape, options.kv_type)
    # workers take no pictures: see engine.child
    pictures = 0 if options.workers else cards.projector_bytes(projector_of(found))

    planned = partial(
        estimate.plan,
        shape,
        weights=weights,
        machine=machine,
        context=options.context,
        gpu_layers=options.gpu_layers,
        threads=options.threads,
        kv_type=options.kv_type,
        want_context=wanted,
        projector_bytes=pictures,
        work=work,
    )

    def chosen(measured: estimate.Measure | None = None) -> Plan:
        if sequences is not None:
            return planned(sequences=sequences, measured=measured)
        return parallelism.best(lambda count: planned(sequences=count, measured=measured), most_sequences)

    plan, measured = chosen(), None
    if _is_in_doubt(plan):
        from localai import measuring

        if (measured := measuring.measure_here(shape, found.paths)) is not None:
            plan = chosen(measured)
    if (
        not plan.fits
        and pictures
        and (blind := planned(sequences=sequences or 1, projector_bytes=0, measured=measured)).fits
    ):
        plan = replace(blind, warnings=(*blind.warnings, "memory leaves no room for its projector: it cannot see now"))
    if not plan.fits:
        from localai import refusing

        again = partial(planned, sequences=plan.sequences)
        raise refusing.of_plan(found, Facts(machine, shape, weights), plan, options, again, measured)
    plan = arranged(replace(plan, workers=options.workers), Facts(machine, shape, weights))
    draft = None
    if options.speculate and sequences == 1 and not options.workers:
        plan = speculating.with_rows(plan, shape)
        draft = speculating.draft(library.find(options.draft), plan, machine) if options.draft is not None else None
    facts = Facts(machine, shape, weights)
    return Prepared(found, plan, shape.params, shape.context_length, facts, draft, thinks=may_think)


def _is_in_doubt(plan: Plan) -> bool:
    """Whether it fits, or does not, by so little that closed forms which are only near could be wrong about it.

    Elsewhere a cold start is spared the question.
    """
    need = plan.memory.total_bytes + plan.memory.overhead_bytes
    return 2 / 3 * plan.available_bytes < need < 3 / 2 * plan.available_bytes


def thinks(found: library.Found) -> bool:
    """Whether a model has a way to think. Raises EngineError for a file that is no model."""
    return _thinks(header_of(found))


def _thinks(header: gguf.Header) -> bool:
    return thinking.customary(str(header.metadata.get("tokenizer.chat_template", "")))


def arranged(plan: Plan, facts: Facts) -> Plan:
    """The plan with its tensors arranged as they are computed fastest for so many at once."""
    from localai.engine import library as llama

    tuned = tuning.found_for(facts.machine, facts.shape, facts.weights, plan.placement is Placement.GPU)
    return parallelism.arranged(plan, kind_of(facts.weights), tuned, llama.system_info)


def header_of(found: library.Found) -> gguf.Header:
    """The header of a model that writes text. Raises EngineError for what is none."""
    header = gguf.read_model(found.paths)
    if not shapes.makes_text(header):
        raise EngineError(
            f"{found.name} is a model for embeddings: it writes no text",
            f"localai embed -m {found.name if found.model else found.path} ...",
        )
    return header


def projector_of(found: library.Found) -> Path | None:
    """The file that lets a model see: the one it was installed with, or one that lies beside a file of the user's."""
    if found.model is not None:
        return found.model.projector.path if found.model.projector else None
    try:
        names = [each.name for each in found.path.parent.iterdir() if each.name.lower().endswith(".gguf")]
    except OSError:
        return None
    beside = naming.own_projectors(found.path.name, [RemoteFile(name, 0, None) for name in names])
    width = shapes.shape(header_of(found)).embedding_length if beside else None
    return next((path for each in beside if _sees_for(path := found.path.parent / each.name, width)), None)


def _sees_for(projector: Path, width: int | None) -> bool:
    """Whether a projector may be that of a model so wide; one that cannot be read is told of when it is needed."""
    try:
        return shapes.may_see_for(gguf.read_header(projector), width)
    except LocalaiError:
        return True


def refuse_blind(prepared: Prepared) -> None:
    """Raise UsageError for a model that cannot look at images, or not through workers, DoesNotFit for one that cannot
    here, EngineError for a projector that is none: all before anything is loaded.
    """
    name = prepared.found.name
    if (path := projector_of(prepared.found)) is None:
        raise UsageError(
            f"{name} cannot look at images: it has no projector (mmproj)",
            "take a model that sees, such as gemma-3-4b or qwen3-vl-2b",
        )
    if prepared.plan.workers:
        raise UsageError(f"{name} cannot look at images with --rpc: workers take none", "leave out --rpc, or --image")
    if not prepared.plan.memory.projector_bytes:
        from localai import refusing

        raise refusing.of_pictures(prepared.found)
    from localai.engine import trial

    gguf.read_header(path)  # our own reader bounds what a hostile file can do
    trial.try_out(prepared.found.path, path)


def machine_for(options: LoadOptions) -> Machine:
    """This machine, with what the chosen workers lend it. Raises UsageError, NetworkError where one is not there."""
    machine = hardware.detect()
    check_threads(options, machine)
    if not options.workers:
        return machine
    from localai import workers

    lent = workers.gpus(options.workers, machine.bandwidth.gbps)
    return replace(machine, gpus=(*lent, *machine.gpus))


def check_threads(options: LoadOptions, machine: Machine) -> None:
    """Refuse more threads than there are: llama.cpp's wait actively, and too many make it not slow but still."""
    if options.threads is not None and options.threads > machine.cpu.logical_cores:
        raise UsageError(
            f"{options.threads} threads are more than the {machine.cpu.logical_cores} of this machine",
            "leave --threads out: the plan takes one a physical core",
        )


def load(
    prepared: Prepared,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Loaded:
    """Load the model as planned and remember that it was used.

    `progress` is told the share read, `notice` what the user should know of this model (no usable chat template,
    for one). Raises EngineError, DoesNotFit, KeyboardInterrupt.
    """
    found, plan = prepared.found, prepared.plan
    loaded: ChatEngine
    if plan.workers:
        from localai.engine import child

        loaded = child.load(found.path, plan, progress, cancelled, notice)
    else:
        from localai.engine import model as engine

        sees = projector_of(found) if plan.memory.projector_bytes else None
        loaded = whole = engine.load(found.path, plan, progress, cancelled, notice, sees)
        if (draft := prepared.draft) is not None:
            try:
                pays = whole.draft_with(draft.found.path, draft.plan, draft.cost, cancelled)
                if not pays and notice is not None:
                    notice(f"the draft {draft.found.name} is too large beside {found.name} to pay: it is left out")
            except BaseException:
                whole.close()
                raise
    if found.model is not None:
        library.touch(found.model)
    return Loaded(prepared, cards.size_note(prepared.params), loaded)


def load_batch(
    prepared: Prepared,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    notice: Callable[[str], None] | None = None,
    *,
    queue: int | None = None,
    repeatable: bool = False,
    patience_s: float | None = None,
    converses: bool = True,
) -> LoadedBatch:
    """Load the model to answer `plan.sequences` requests at once; otherwise as `load`.

    `queue`, `repeatable`, `patience_s` and `converses` are those of `engine.scheduler.load`.
    """
    from localai.engine import scheduler

    found, plan = prepared.found, prepared.plan
    how: dict[str, Any] = {"repeatable": repeatable, "converses": converses}
    if queue is not None:
        how["queue"] = queue
    if patience_s is not None:
        how["patience_s"] = patience_s
    loaded: BatchEngine
    if plan.workers:
        from localai.engine import child

        loaded = child.load(found.path, plan, progress, cancelled, notice, how)
    else:
        loaded = scheduler.load(found.path, plan, progress, cancelled, notice, **how)
    if found.model is not None:
        library.touch(found.model)
    return LoadedBatch(prepared, cards.size_note(prepared.params), loaded)
