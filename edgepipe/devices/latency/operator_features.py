"""What makes an operator slow, counted from its shapes: the features that a latency model gives a price to.

Counts are of elements and multiply-accumulates, not of bytes: a fit holds for one type of activations. Operators whose
inputs are all known before the model runs (shapes, anchors) are folded by every compiler here and cost nothing.
"""

import math
from collections.abc import Callable, Iterator

from edgepipe.devices.latency.feature_names import FEATURES, WHOLE, Features, Tile
from edgepipe.tflite.model import Model, Operator, Tensor

CURVES = frozenset(("LOGISTIC", "SOFTMAX", "TANH", "HARD_SWISH", "EXP", "LOG", "ELU", "GELU", "LOG_SOFTMAX"))
NAMES_ONLY = frozenset(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"))  # the bytes stay where they are
MOVES = frozenset(
    {
        *("PAD", "PADV2", "MIRROR_PAD", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PACK"),
        *("UNPACK", "TILE", "TRANSPOSE", "GATHER", "GATHER_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "REVERSE_V2"),
    }
)
REDUCTIONS = frozenset(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"))
POOLS = frozenset(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"))
FEW_CHANNELS = 4


def of_model(model: Model, tile: Tile = WHOLE, on_chip: int | None = None) -> Features:
    """The sum over all operators, and `inference`; `on_chip` is how many weights the chip holds (int8: bytes)."""
    total = dict.fromkeys(FEATURES, 0.0)
    total["inference"] = 1.0
    for _, found in of_operators(model, tile, on_chip):
        for name, amount in found.items():
            total[name] += amount
    return total


def of_operators(model: Model, tile: Tile = WHOLE, on_chip: int | None = None) -> Iterator[tuple[Operator, Features]]:
    """Each operator of the main subgraph that computes something when the model runs, with its features."""
    computing = [(operator, _of(operator, tile)) for operator in _computing(model)]
    spilled = on_chip is not None and sum(found.get("weights", 0) for _, found in computing) > on_chip
    for operator, found in computing:
        if spilled and found.get("weights"):
            found["spilled_weights"] = found["weights"]
        yield operator, found


def _computing(model: Model) -> Iterator[Operator]:
    """The operators that are left when all that is known before the model runs has been computed."""
    known: set[int] = set()
    for operator in model.operators:
        if operator.subgraph:
            continue
        given = [tensor for tensor in operator.inputs if tensor is not None and not tensor.constant]
        if operator.name == "SHAPE" or all(tensor.index in known for tensor in given):
            known |= {tensor.index for tensor in operator.outputs if tensor is not None}
        elif operator.name not in NAMES_ONLY:
            yield operator


def _of(operator: Operator, tile: Tile) -> Features:
    if operator.name in ("QUANTIZE", "DEQUANTIZE"):
        return {"requantized_outputs": _outputs(operator)}
    rule = _RULES.get(operator.name, _product if operator.macs else _arithmetic)
    constants = (tensor for tensor in operator.inputs if tensor is not None and tensor.constant)
    common = {
        "operators": 1.0,
        "activations": _inputs(operator) + _outputs(operator),
        "weights": float(sum(tensor.elements for tensor in constants)) if operator.macs else 0.0,
    }
    return {**common, **rule(operator, tile)}


def _convolution(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    if kernel is None or len(kernel.shape) != 4:
        return _product(operator, tile)
    outputs, height, width, channels = kernel.shape
    if height * width == 1 and _positions(operator) == 1:
        return _product(operator, tile)
    first = height * width > 1 and channels <= FEW_CHANNELS
    macs = operator.macs * _padding(outputs, tile.outputs) * (1 if first else _padding(channels, tile.inputs))
    found = {"conv_outputs": _outputs(operator)}
    if height * width == 1:
        return {**found, "pointwise_macs": macs, "conv_macs": macs}
    found |= {"kernel_macs": macs, "patch_elements": operator.macs / outputs}
    return {**found, **({"first_macs": macs, "first_outputs": _outputs(operator)} if first else {"conv_macs": macs})}


def _depthwise(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    shape = kernel.shape if kernel is not None else (1, 0, 0, 1)
    macs = operator.macs * _padding(shape[-1], tile.outputs)
    own = "depthwise3_macs" if shape[1:3] == (3, 3) else "depthwise_other_macs"
    return {"depthwise_macs": macs, own: macs, "depthwise_outputs": _outputs(operator)}


def _product(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    if kernel is None or not kernel.constant or len(kernel.shape) < 2:
        return {"dense_macs": float(operator.macs)}
    padding = _padding(kernel.shape[0], tile.outputs) * _padding(kernel.shape[-1], tile.inputs)
    return {"dense_macs": operator.macs * padding}


def _pool(operator: Operator, tile: Tile) -> Features:
    window = [operator.options.get(side, 1) for side in ("filterWidth", "filterHeight")]
    return {"pooled_elements": _outputs(operator) * math.prod(side for side in window if isinstance(side, int))}


def _counting(feature: str, count: Callable[[Operator], float]) -> Callable[[Operator, Tile], Features]:
    return lambda operator, tile: {feature: count(operator)}


def _outputs(operator: Operator) -> float:
    return _elements(operator.outputs)


def _inputs(operator: Operator) -> float:
    return _elements(tuple(t for t in operator.inputs if t is not None and not t.constant))


def _elements(tensors: tuple[Tensor | None, ...]) -> float:
    return float(sum(tensor.elements for tensor in tensors if tensor is not None))


def _positions(operator: Operator) -> int:
    output = operator.outputs[0] if operator.outputs else None
    return math.prod(output.shape[1:-1]) if output is not None else 0


def _padding(channels: int, multiple: int) -> float:
    """By how much computing whole tiles multiplies the work on `channels`."""
    return math.ceil(channels / multiple) * multiple / channels if channels else 1.0


_arithmetic = _counting("arithmetic_outputs", _outputs)
_RULES: dict[str, Callable[[Operator, Tile], Features]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    **dict.fromkeys(POOLS, _pool),
    **dict.fromkeys(REDUCTIONS, _counting("reduced_inputs", _inputs)),
    **dict.fromkeys(MOVES, _counting("moved_outputs", _outputs)),
    **dict.fromkeys(CURVES, _counting("looked_up_outputs", _outputs)),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _counting("resized_outputs", _outputs)),
}
