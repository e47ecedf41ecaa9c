"""What guessing at tokens (`engine.speculation`) takes: rows of logits, and a draft model beside the large one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localai import buffers, estimate, gguf, library, shapes
from localai.domain.machine import Machine
from localai.domain.plan import Placement, Plan
from localai.domain.shape import Shape
from localai.domain.units import GIB
from localai.errors import DoesNotFit

LEAST_COST = 0.02  # of the large model's evaluation: some of one is the same for any size
ROW_BYTES = 4  # of each token of the vocabulary


@dataclass(frozen=True, slots=True)
class Draft:
    """A small model that guesses: how it is loaded, and what one evaluation takes in those of the large one."""

    found: library.Found
    plan: Plan
    cost: float


def with_rows(plan: Plan, shape: Shape) -> Plan:
    """The plan with rows of logits to check guesses in, where there is memory for them and the model can go back."""
    from localai.engine.speculation import ROWS

    vocabulary, rows = shape.vocab_size or 0, min(ROWS, plan.ubatch)
    one, all_ = (
        buffers.compute_bytes(shape, plan.context, plan.ubatch, outputs, plan.flash_attention) for outputs in (1, rows)
    )
    more = all_ - one + (rows - 1) * vocabulary * ROW_BYTES
    if (
        shape.recurrent_state_bytes
        or plan.memory.total_bytes + plan.memory.overhead_bytes + more > plan.available_bytes
    ):
        return plan
    return replace(plan, outputs=rows, memory=replace(plan.memory, compute_bytes=plan.memory.compute_bytes + more))


def draft(found: library.Found, large: Plan, machine: Machine) -> Draft:
    """Plan the draft model beside the large one. Raises EngineError for a file that is no model, DoesNotFit."""
    header = gguf.read_model(found.paths)
    shape, weights = shapes.shape(header), shapes.weights(header)
    plan = estimate.plan(
        shape, weights, _beside(large, machine), context=large.context, threads=large.threads, kv_type="f16"
    )
    if not plan.fits or large.outputs == 1:
        need, free = plan.memory.total_bytes + plan.memory.overhead_bytes, plan.available_bytes
        raise DoesNotFit(
            f"the draft model {found.name} needs {need / GIB:.1f} GiB of memory beside the other one,"
            f" and {max(free, 0) / GIB:.1f} GiB are free",
            "take a smaller one for --draft, or leave it out",
        )
    cost = max(LEAST_COST, plan.memory.weights_bytes / max(large.memory.weights_bytes, 1))
    return Draft(found, plan, cost)


def _beside(large: Plan, machine: Machine) -> Machine:
    """The machine with the memory that the large model leaves."""
    need = large.memory.total_bytes
    memory, gpus = machine.memory, machine.gpus
    if large.placement is not Placement.GPU or all(gpu.shared_memory for gpu in gpus):
        memory = replace(memory, available_bytes=max(0, memory.available_bytes - need))
    if large.placement is not Placement.CPU:
        share = need // max(len(gpus), 1)
        gpus = tuple(
            gpu if gpu.vram_free_bytes is None else replace(gpu, vram_free_bytes=max(0, gpu.vram_free_bytes - share))
            for gpu in gpus
        )
    return replace(machine, memory=memory, gpus=gpus)
