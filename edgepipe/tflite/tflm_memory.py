"""The memory of a model in TensorFlow Lite Micro's layout: the planned arena, and the structures behind it."""

from dataclasses import dataclass

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.tflite.arena_plan import ArenaPlan, plan_arena
from edgepipe.tflite.arena_tail import ArenaTail, compute_tail
from edgepipe.tflite.model import Model

UNKNOWN_KERNEL_BYTES = 1024  # upper bound for an operator whose kernel is not in the tables


@dataclass(frozen=True)
class TflmMemory:
    """A plan, or the reason why there is none, and the tail."""

    arena_plan: ArenaPlan | None
    missing_plan_reason: str
    arena_tail: ArenaTail


def plan_memory(model: Model) -> TflmMemory:
    """The memory plan of `model`; without one, `reason` says why."""
    if model.open_size_reason:
        return TflmMemory(None, f"the file does not hold all sizes: {model.open_size_reason}", compute_tail(model))
    try:
        return TflmMemory(plan_arena(model), "", compute_tail(model))
    except InputError as error:
        return TflmMemory(None, str(error), compute_tail(model))


def estimate_arena_32_bit(model: Model, device: str | None = None) -> Metric:
    """The metric `ram`, estimated: the arena of `model` on a 32-bit device with TensorFlow Lite Micro's own kernels.

    The planned part does not depend on the width of pointers. The interval of the tail runs from half of its 64-bit
    size, all of which could be pointers, to all of it. Works where the package tflite-micro does not, and for models
    that it refuses.
    """
    model_memory = plan_memory(model)
    if model_memory.arena_plan is None:
        return unavailable_metric("ram", Dimension.BYTES, model_memory.missing_plan_reason, device)
    head_bytes, arena_tail = model_memory.arena_plan.peak_bytes, model_memory.arena_tail
    low, high = arena_tail.interval_32_bit
    unknown_locations = [op.location for op in model.operators if op.name in arena_tail.unknown_operators]
    missing_note = (
        f"; kernels' data of {', '.join(arena_tail.unknown_operators)} is left out" if unknown_locations else ""
    )
    return Metric(
        name="ram",
        value=head_bytes + arena_tail.total_bytes_32_bit,
        unit=Dimension.BYTES,
        evidence=Evidence.ESTIMATED,
        interval=(head_bytes + low, head_bytes + high + UNKNOWN_KERNEL_BYTES * len(unknown_locations)),
        device=device,
        how=(
            "tensor arena by edgepipe's copy of TensorFlow Lite Micro's planner, its structures scaled to 32-bit "
            f"pointers; portable kernels (CMSIS-NN needs more scratch memory){missing_note}"
        ),
        details={"head": head_bytes, "tail": arena_tail.total_bytes_32_bit},
    )
