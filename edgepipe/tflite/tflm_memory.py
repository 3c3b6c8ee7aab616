"""The memory of a model in TensorFlow Lite Micro's layout: the planned arena, and the structures behind it."""

from dataclasses import dataclass

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, unavailable
from edgepipe.core.units import Dimension
from edgepipe.tflite.arena_plan import Plan, plan
from edgepipe.tflite.arena_tail import Tail, tail
from edgepipe.tflite.model import Model

UNKNOWN_KERNEL = 1024  # bytes that the upper bound grants an operator whose kernel was never looked at


@dataclass(frozen=True)
class Memory:
    """A plan, or the reason why there is none, and the tail."""

    plan: Plan | None
    reason: str
    tail: Tail


def memory(model: Model) -> Memory:
    """The memory plan of `model`; without one, `reason` says why."""
    try:
        return Memory(plan(model), "", tail(model))
    except InputError as error:
        return Memory(None, str(error), tail(model))


def arena_32_bit(model: Model, device: str | None = None) -> Metric:
    """The metric `ram`, estimated: the arena of `model` on a 32-bit device with TensorFlow Lite Micro's own kernels.

    The planned part does not depend on the width of pointers. The interval of the tail reaches from half of its 64-bit
    size, all of which could be pointers, to all of it. Works where the package tflite-micro does not, and for models
    that it refuses.
    """
    found = memory(model)
    if found.plan is None:
        return unavailable("ram", Dimension.BYTES, found.reason, device)
    head, behind = found.plan.peak, found.tail
    low, high = behind.narrow_interval
    unknown = [op.place for op in model.operators if op.name in behind.unknown]
    missing = f"; kernels' data of {', '.join(behind.unknown)} is left out" if unknown else ""
    return Metric(
        name="ram",
        value=head + behind.narrow,
        unit=Dimension.BYTES,
        evidence=Evidence.ESTIMATED,
        interval=(head + low, head + high + UNKNOWN_KERNEL * len(unknown)),
        device=device,
        how=(
            "tensor arena by edgepipe's copy of TensorFlow Lite Micro's planner, its structures scaled to 32-bit "
            f"pointers; portable kernels (CMSIS-NN asks for scratch memory besides){missing}"
        ),
        details={"head": head, "tail": behind.narrow},
    )
