"""Biases that fit into 32 bits.

A bias is stored in steps of input scale times weight scale. Where the weights of a channel are tiny, or all zero as
pruning and dead filters leave them, so is that step, and litert-quantizer 0.11 clips the bias to 32 bits: the channel
comes out as zero, or with the sign turned. Such a channel gets a larger weight scale: what its weights lose is below
one part in 2^30 of its bias.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.core.arrays import Array
from edgepipe.tflite.dead_channels import FILTERS

LARGEST = 2.0**30  # of a stored bias; sums are added to it in 32 bits


def settled(content: bytes, before: bytes) -> tuple[bytes, list[str]]:
    """The quantized model `content` with every bias of the float model `before` in range; whose was not, by output."""
    model, floats = flatbuffer_edits.opened(content), flatbuffer_edits.opened(before)
    origin = {_output(floats, op): op for op in floats.subgraphs[0].operators}
    moved = []
    for operator, places in _with_bias(model):
        name = _output(model, operator)
        if name in origin and _settle(model, operator, places, _constants(floats, origin[name], places)):
            moved.append(name)
    return (flatbuffer_edits.closed(model) if moved else content), moved


def _with_bias(model: Any) -> Iterator[tuple[Any, tuple[int, int, int]]]:
    """The operators of the main subgraph that have weights and a stored bias, each with where they stand."""
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    places = {getattr(BuiltinOperator, name): (1, bias, axis) for name, (bias, axis) in FILTERS.items()}
    for operator in model.subgraphs[0].operators:
        found = places.get(flatbuffer_edits.kind(model, operator))
        if found is not None and len(operator.inputs) > found[1] and operator.inputs[found[1]] >= 0:
            yield operator, found


def _settle(model: Any, operator: Any, places: tuple[int, int, int], floats: tuple[Array, Array]) -> bool:
    """Widen the weight scales of channels whose bias is out of range; whether there were any."""
    tensors = model.subgraphs[0].tensors
    given, kernel, bias = (tensors[operator.inputs[place]] for place in (_given(places), *places[:2]))
    scales, steps = _scales(kernel), _scales(given)
    if scales is None or steps is None or _scales(bias) is None:
        return False
    step = float(steps[0])
    weights, wanted = floats
    needed = np.abs(wanted.astype(np.float64)) / (step * LARGEST)
    low = np.broadcast_to(scales, needed.shape) < needed
    if not low.any() or len(scales) != wanted.size:
        return False
    widened = np.where(low, needed, scales)
    kernel.quantization.scale = widened.astype(np.float32)
    bias.quantization.scale = (widened * step).astype(np.float32)
    _store(model, kernel, _stored(weights, widened, places[2]), np.int8)
    kind = np.int64 if _width(model, bias, wanted.size) == 8 else np.int32
    _store(model, bias, np.rint(wanted / (bias.quantization.scale.astype(np.float64))), kind)
    return True


def _given(places: tuple[int, int, int]) -> int:
    return 2 if places[1] == 3 else 0  # a transposed convolution takes its output's shape first


def _scales(tensor: Any) -> Array | None:
    found = tensor.quantization
    return None if found is None or found.scale is None or not len(found.scale) else np.asarray(found.scale, np.float64)


def _stored(weights: Array, scales: Array, axis: int) -> Array:
    shape = [-1 if place == axis else 1 for place in range(weights.ndim)]
    return np.clip(np.rint(weights / scales.reshape(shape)), -127, 127)


def _store(model: Any, tensor: Any, values: Array, kind: type) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(values.astype(kind).tobytes(), np.uint8)


def _width(model: Any, tensor: Any, elements: int) -> int:
    return len(model.buffers[tensor.buffer].data) // elements


def _constants(model: Any, operator: Any, places: tuple[int, int, int]) -> tuple[Array, Array]:
    """The float weights and bias of an operator."""
    tensors = [model.subgraphs[0].tensors[operator.inputs[place]] for place in places[:2]]
    data = [np.frombuffer(bytes(bytearray(model.buffers[t.buffer].data)), np.float32) for t in tensors]
    return data[0].reshape(tensors[0].shape), data[1]


def _output(model: Any, operator: Any) -> str:
    return str(model.subgraphs[0].tensors[operator.outputs[0]].name.decode())
