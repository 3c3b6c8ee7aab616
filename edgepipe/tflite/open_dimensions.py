"""Open dimensions: sizes that a file leaves to the run, and for which it holds a 1 that is not always true.

With a batch of 1 that 1 is right for the batch itself, but not where an operator moves the batch into another size:
SPACE_TO_BATCH_ND of a dilated convolution makes 1 x 20 x 4 into 2 x 10 x 4, and the file still says 1 x 10 x 4. LiteRT
computes the sizes when it runs; TensorFlow Lite Micro and compilers for devices take those of the file.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from edgepipe.tflite.model import Model, Operator, Tensor, TensorKey

MAX_WALK = 1000  # tensors from which a size is computed; some ten in practice
_BATCH_MOVERS = frozenset(("TRANSPOSE", "EXPAND_DIMS", "PACK", "UNPACK", "GATHER", "SHAPE", "RESHAPE"))


def find_open_sizes(model: Model) -> dict[TensorKey, str]:
    """Why the sizes that the file holds for a tensor are not those that it has with a batch of 1, by tensor.

    A tensor computed from such a tensor is listed, too. Tensors that are not listed are as the file says.
    """
    reason_by_key = {tensor.key: _describe_open_input(name) for name, tensor in _list_open_inputs(model)}
    for operator in model.operators:
        reason = _find_reason(model, operator, reason_by_key)
        if reason:
            reason_by_key |= {t.key: reason for t in operator.outputs if t is not None and t.key not in reason_by_key}
    return reason_by_key


def _list_open_inputs(model: Model) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in model.inputs_by_name.items() if -1 in tensor.shape_signature[1:]]


def _describe_open_input(name: str) -> str:
    return f"input '{name}' has an open size besides the batch"


def _find_reason(model: Model, operator: Operator, reason_by_key: dict[TensorKey, str]) -> str:
    if inherited := next((reason_by_key[t.key] for t in _activations(operator) if t.key in reason_by_key), ""):
        # The batch that SPACE_TO_BATCH_ND moved is back behind BATCH_TO_SPACE_ND, but what is between is not.
        return inherited
    sizes_rule = _SIZE_RULES.get(operator.name)
    contradiction = sizes_rule(model, operator) if sizes_rule is not None and not operator.is_custom else ""
    if contradiction:
        return f"{operator.location} {contradiction}"
    return _describe_computed_size(model, operator)


def _describe_computed_size(model: Model, operator: Operator) -> str:
    """A size that the operator decides when it runs, from values and not from the sizes of its inputs."""
    if operator.name in _BATCH_MOVERS:
        return ""
    output = next((t for t in operator.outputs if t is not None and _is_more_open(t, operator)), None)
    if output is None or _follows_from_sizes(model, operator):
        return ""
    return (
        f"{operator.location} decides the size of '{output.name}', {_format_sizes(output.stated_shape)}, when it runs"
    )


def _is_more_open(output: Tensor, operator: Operator) -> bool:
    """Whether more of an output is open than of the activations that the operator reads."""
    input_shapes = [tensor.stated_shape for tensor in _activations(operator)]
    if -1 in output.stated_shape[1:]:
        return not any(-1 in shape[1:] for shape in input_shapes)
    return -1 in output.stated_shape and not any(-1 in shape for shape in input_shapes)


def _follows_from_sizes(model: Model, operator: Operator) -> bool:
    """Whether what tells the operator its sizes are constants or sizes of other tensors, by SHAPE."""
    unvisited = list(operator.inputs[:1] if operator.name == "FILL" else operator.inputs[1:])
    visited: set[TensorKey] = set()
    while unvisited and len(visited) < MAX_WALK:
        tensor = unvisited.pop()
        if tensor is None or tensor.is_constant or tensor.key in visited:
            continue
        visited.add(tensor.key)
        producer = model.producer_by_key.get(tensor.key)
        if producer is None:
            return False
        unvisited += () if producer.name == "SHAPE" else producer.inputs
    return bool(visited) and not unvisited


def _activations(operator: Operator) -> list[Tensor]:
    return [tensor for tensor in operator.inputs if tensor is not None and not tensor.is_constant]


def _reshape_contradiction(_: Model, operator: Operator) -> str:
    return _count_contradiction(operator.input(0), _first_output(operator))


def _count_contradiction(source: Tensor | None, target: Tensor | None) -> str:
    if source is None or target is None or source.element_count == target.element_count:
        return ""
    return _describe_contradiction(source, target, f"{source.element_count} elements")


def _space_to_batch_contradiction(model: Model, operator: Operator) -> str:
    return _block_contradiction(model, operator, lambda batch, block: batch * block)


def _batch_to_space_contradiction(model: Model, operator: Operator) -> str:
    return _block_contradiction(model, operator, lambda batch, block: batch // block)


def _block_contradiction(model: Model, operator: Operator, new_batch: Callable[[int, int], int]) -> str:
    source, blocks, target = operator.input(0), operator.input(1), _first_output(operator)
    if source is None or blocks is None or target is None or not source.shape or not target.shape:
        return ""
    if not blocks.is_constant or model.unreadable_reason(blocks):
        return "moves the batch by blocks that are computed when it runs"
    batch = new_batch(source.shape[0], math.prod(np.ravel(model.read_values(blocks)).tolist()))
    return "" if batch == target.shape[0] else _describe_contradiction(source, target, f"a batch of {batch}")


def _transpose_contradiction(_: Model, operator: Operator) -> str:
    source, target = operator.input(0), _first_output(operator)
    if source is None or target is None or sorted(source.shape) == sorted(target.shape):
        return ""
    return _describe_contradiction(source, target, "the same sizes in another order")


def _describe_contradiction(source: Tensor, target: Tensor, expected: str) -> str:
    return f"makes {expected} of {_format_sizes(source.shape)}, and the file says {_format_sizes(target.shape)}"


def _first_output(operator: Operator) -> Tensor | None:
    return operator.outputs[0] if operator.outputs else None


def _format_sizes(sizes: Iterable[int]) -> str:
    return " x ".join("?" if size < 0 else str(size) for size in sizes) or "a scalar"


_SIZE_RULES: dict[str, Callable[[Model, Operator], str]] = {
    "RESHAPE": _reshape_contradiction,
    "SPACE_TO_BATCH_ND": _space_to_batch_contradiction,
    "BATCH_TO_SPACE_ND": _batch_to_space_contradiction,
    "TRANSPOSE": _transpose_contradiction,
}
