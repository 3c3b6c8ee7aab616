"""The least arena in which TensorFlow Lite Micro can allocate a model: what it records, or more while it allocates.

While kernels are prepared and the plan is made, lists and temporary tensors lie where the planned arena will be. They
are gone when the allocator records its sizes, but the arena must have had room for them:

    preparing  requests for scratch memory, and the temporary tensors of one kernel
    planning   the same requests, a lifetime for each tensor of the model, the planner's tables for each planned buffer

A network with large activations needs less for this than for its plan; one with small activations and many tensors,
such as a stack of dense layers or an unrolled LSTM, more. Every tensor of a kernel is counted as a temporary one; those
that free some of them early need up to 96 bytes less, which shows in models of one or two operators.

Source: tensorflow/tflite-micro, micro_allocator.cc (FinishPrepareNodeAllocations, CommitStaticMemoryPlan),
micro_allocation_info.h, greedy_memory_planner.h.
"""

from edgepipe.tflite.arena_plan import ALIGNMENT, ArenaPlan
from edgepipe.tflite.arena_tail import (
    TailReplay,
    initial_allocations,
    interface_allocations,
    prepare_allocations,
    variable_allocations,
)
from edgepipe.tflite.kernel_scratch import scratch_sizes
from edgepipe.tflite.model import Model, Operator
from edgepipe.tflite.structure_sizes import StructureSizes

SPARE_SCRATCH_REQUESTS = 12  # kept free for the next kernel: kMaxScratchBuffersPerOp
# Inputs and outputs that kernels of integers open a second time, by their indices.
_TENSORS_OPENED_TWICE: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "CONV_2D": ((0, 1), (0,)),
    "DEPTHWISE_CONV_2D": ((0, 1), (0,)),
    "TRANSPOSE_CONV": ((1, 2), (0,)),
    "CONCATENATION": ((0,), ()),
    "TANH": ((0,), ()),
}
PLANNED_BUFFER_BYTES = 40  # of the planner's tables for each buffer, in numbers of 32 bits


def least_arena_bytes(model: Model, arena_plan: ArenaPlan, sizes: StructureSizes) -> int:
    """Bytes of the least arena in which a build with `sizes` allocates and runs `model`."""
    replay = TailReplay()
    replay.add(initial_allocations(model, sizes))
    preparing_bytes = _prepare_kernels(model, replay, sizes)
    replay.add(variable_allocations(model, sizes))
    planning_bytes = _planning_bytes(model, arena_plan, sizes) + _align(replay.used_bytes)
    replay.add(interface_allocations(model, sizes))
    return max(arena_plan.peak_bytes + replay.used_bytes, _align(preparing_bytes), _align(planning_bytes))


def _prepare_kernels(model: Model, replay: TailReplay, sizes: StructureSizes) -> int:
    """The most bytes in use while kernels are prepared one after another."""
    most_bytes, request_count = 0, SPARE_SCRATCH_REQUESTS
    for operator, allocations in prepare_allocations(model, sizes):
        replay.add(allocations)
        in_use = sizes.scratch_request * request_count + _temporary_bytes(operator, sizes) + replay.used_bytes
        most_bytes = max(most_bytes, in_use)
        request_count += len(scratch_sizes(operator))
    return most_bytes


def _temporary_bytes(operator: Operator, sizes: StructureSizes) -> int:
    """Tensors with their quantization, for each input and output of an operator."""
    input_indices, output_indices = _TENSORS_OPENED_TWICE.get(operator.name, ((), ()))
    candidates = [
        *(*operator.inputs, *operator.outputs),
        *(operator.input(index) for index in input_indices),
        *(operator.outputs[index] for index in output_indices if index < len(operator.outputs)),
    ]
    tensors = [tensor for tensor in candidates if tensor is not None]
    return sum(
        sizes.tensor + sizes.quantization + _align(4 + 4 * len(tensor.quantization.scales), sizes.pointer)
        if tensor.quantization is not None
        else sizes.tensor
        for tensor in tensors
    )


def _planning_bytes(model: Model, arena_plan: ArenaPlan, sizes: StructureSizes) -> int:
    scratch_count = sum(len(scratch_sizes(operator)) for operator in model.operators)
    list_bytes = (
        sizes.scratch_request * (scratch_count + SPARE_SCRATCH_REQUESTS)
        + sizes.pointer * len(model.subgraphs)
        + sizes.buffer_lifetime * (len(model.tensors) + scratch_count)
    )
    return _align(list_bytes) + PLANNED_BUFFER_BYTES * len(arena_plan.buffers)


def _align(size: int, alignment: int = ALIGNMENT) -> int:
    return -(-size // alignment) * alignment
