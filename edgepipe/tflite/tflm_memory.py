"""The memory of a model in TensorFlow Lite Micro's layout: the planned arena, and the structures behind it."""

from dataclasses import dataclass

from edgepipe.core.errors import InputError
from edgepipe.core.metric import Evidence, Metric, unavailable_metric
from edgepipe.core.units import Dimension
from edgepipe.tflite import tflm_runtime
from edgepipe.tflite.arena_minimum import least_arena_bytes
from edgepipe.tflite.arena_plan import ArenaPlan, plan_arena
from edgepipe.tflite.arena_tail import ArenaTail, compute_tail
from edgepipe.tflite.model import Model
from edgepipe.tflite.structure_sizes import SIZES_32_BIT, SIZES_64_BIT
from edgepipe.tflite.tflm_runtime import ArenaRecord

KERNELS_NOTE = "portable kernels (CMSIS-NN and ESP-NN need more scratch memory)"


@dataclass(frozen=True)
class TflmMemory:
    """A plan, or the reason why there is none, and the tail.

    `least_bytes` is the least arena in which the model can be allocated, `head_bytes_32_bit` the planned peak of a
    32-bit build.
    """

    arena_plan: ArenaPlan | None
    missing_plan_reason: str
    arena_tail: ArenaTail
    least_bytes: int = 0
    head_bytes_32_bit: int = 0
    least_bytes_32_bit: int = 0

    @property
    def total_bytes_32_bit(self) -> int:
        """Bytes in use on 32 bits when the model is allocated."""
        return self.head_bytes_32_bit + self.arena_tail.total_bytes_32_bit


def plan_memory(model: Model) -> TflmMemory:
    """The memory plan of `model`; without one, `missing_plan_reason` says why."""
    if model.open_size_reason:
        return TflmMemory(None, f"the file does not hold all sizes: {model.open_size_reason}", compute_tail(model))
    try:
        arena_plan, plan_32_bit = plan_arena(model), plan_arena(model, SIZES_32_BIT.pointer)
    except InputError as error:
        return TflmMemory(None, str(error), compute_tail(model))
    return TflmMemory(
        arena_plan,
        "",
        compute_tail(model),
        least_arena_bytes(model, arena_plan, SIZES_64_BIT),
        plan_32_bit.peak_bytes,
        least_arena_bytes(model, plan_32_bit, SIZES_32_BIT),
    )


def arena_32_bit(model: Model, arena_record: ArenaRecord, device: str | None = None) -> Metric:
    """The metric `ram` of a 32-bit device: the least arena, from what the allocator recorded on this 64-bit host.

    Simulated where edgepipe's copy of the allocator explains every byte of the record, because the 32-bit build
    differs in sizes alone; else estimated, its bounds holding the bytes that are not explained.
    """
    model_memory = plan_memory(model)
    if model_memory.arena_plan is None or arena_record.total_bytes is None:
        return tflm_runtime.arena_metric(arena_record, device)
    unexplained_bytes = arena_record.total_bytes - (
        model_memory.arena_plan.peak_bytes + model_memory.arena_tail.total_bytes
    )
    if unexplained_bytes:
        return _partly_explained_arena(model_memory, arena_record.total_bytes, unexplained_bytes, device)
    return Metric(
        name="ram",
        value=model_memory.least_bytes_32_bit,
        unit=Dimension.BYTES,
        evidence=Evidence.SIMULATED,
        device=device,
        how=(
            f"least tensor arena in 32 bits{_allocation_note(model_memory)}: planned by "
            f"{tflm_runtime.runtime_name()}'s own allocator on this 64-bit host, which records "
            f"{arena_record.total_bytes} bytes, its structures counted in their 32-bit sizes; {KERNELS_NOTE}"
        ),
        details=_details_32_bit(model_memory) | {"host_64_bit": arena_record.total_bytes},
    )


def estimate_arena_32_bit(model: Model, device: str | None = None) -> Metric:
    """The metric `ram`, estimated: the least arena of `model` on a 32-bit device with portable kernels.

    The interval is as wide as the data of kernels that are not known. Works where the package tflite-micro does not,
    and for models that it refuses.
    """
    model_memory = plan_memory(model)
    if model_memory.arena_plan is None:
        return unavailable_metric("ram", Dimension.BYTES, model_memory.missing_plan_reason, device)
    arena_tail = model_memory.arena_tail
    low, high = arena_tail.interval_32_bit
    missing_note = (
        f"; kernels' data of {', '.join(arena_tail.unknown_operators)} is left out" if arena_tail.unknown_count else ""
    )
    least_bytes = model_memory.least_bytes_32_bit
    return Metric(
        name="ram",
        value=least_bytes,
        unit=Dimension.BYTES,
        evidence=Evidence.ESTIMATED,
        interval=(least_bytes, least_bytes + high - low),
        device=device,
        how=(
            f"least tensor arena in 32 bits{_allocation_note(model_memory)}, by edgepipe's copy of TensorFlow Lite "
            f"Micro's allocator; {KERNELS_NOTE}{missing_note}"
        ),
        details=_details_32_bit(model_memory),
    )


def _partly_explained_arena(
    model_memory: TflmMemory, recorded_bytes: int, unexplained_bytes: int, device: str | None
) -> Metric:
    """What is not explained may be pointers, of which half stay, or numbers, of which all do."""
    low, high = sorted((unexplained_bytes // 2, unexplained_bytes))
    least_bytes = model_memory.least_bytes_32_bit
    return Metric(
        name="ram",
        value=least_bytes + high,
        unit=Dimension.BYTES,
        evidence=Evidence.ESTIMATED,
        interval=(least_bytes + low, least_bytes + high),
        device=device,
        how=(
            f"least tensor arena in 32 bits{_allocation_note(model_memory)}, by edgepipe's copy of TensorFlow Lite "
            f"Micro's allocator; {tflm_runtime.runtime_name()} records {recorded_bytes} bytes on this 64-bit host, "
            f"which differs by {unexplained_bytes:+} bytes from the copy's; {KERNELS_NOTE}"
        ),
        details=_details_32_bit(model_memory) | {"host_64_bit": recorded_bytes},
    )


def _allocation_note(model_memory: TflmMemory) -> str:
    """Says where allocating the model takes more than what stays in use."""
    if model_memory.least_bytes_32_bit == model_memory.total_bytes_32_bit:
        return ""
    return f" while it is allocated ({model_memory.total_bytes_32_bit} bytes afterwards)"


def _details_32_bit(model_memory: TflmMemory) -> dict[str, float | int | str]:
    return {
        "head": model_memory.head_bytes_32_bit,
        "tail": model_memory.arena_tail.total_bytes_32_bit,
        "allocated": model_memory.total_bytes_32_bit,
    }
