"""The features of a latency model, counted from the shapes of operators.

Features count elements and multiply-accumulates, not bytes: a fit is for one activation type. Operators whose inputs
are all known before the model runs (shapes, anchors) are constant-folded by all compilers and cost nothing.
"""

import math
from collections.abc import Callable, Iterator

from edgepipe.devices.latency.feature_names import FEATURES, SCALAR_TILE, Features, Tile
from edgepipe.tflite.model import Model, Operator, Tensor

CURVES = frozenset(("LOGISTIC", "SOFTMAX", "TANH", "HARD_SWISH", "EXP", "LOG", "ELU", "GELU", "LOG_SOFTMAX"))
VIEWS = frozenset(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"))  # no data moves
MOVES = frozenset(
    {
        *("PAD", "PADV2", "MIRROR_PAD", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PACK"),
        *("UNPACK", "TILE", "TRANSPOSE", "GATHER", "GATHER_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "REVERSE_V2"),
    }
)
REDUCTIONS = frozenset(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"))
POOLS = frozenset(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"))
FEW_CHANNELS = 4


def sum_features(model: Model, tile: Tile = SCALAR_TILE, on_chip: int | None = None) -> Features:
    """The sum over all operators, and `inference`; `on_chip` is how many weights fit on the chip (int8: bytes)."""
    total = dict.fromkeys(FEATURES, 0.0)
    total["inference"] = 1.0
    for _, amounts in iter_features(model, tile, on_chip):
        for name, amount in amounts.items():
            total[name] += amount
    return total


def iter_features(
    model: Model, tile: Tile = SCALAR_TILE, on_chip: int | None = None
) -> Iterator[tuple[Operator, Features]]:
    """Each operator of the main subgraph that does work at run time, with its features."""
    operator_amounts = [(operator, _operator_features(operator, tile)) for operator in _computing_operators(model)]
    weights_spill = on_chip is not None and sum(amounts.get("weights", 0) for _, amounts in operator_amounts) > on_chip
    for operator, amounts in operator_amounts:
        if weights_spill and amounts.get("weights"):
            amounts["spilled_weights"] = amounts["weights"]
        yield operator, amounts


def _computing_operators(model: Model) -> Iterator[Operator]:
    """The operators that remain after constant folding."""
    known_tensors: set[int] = set()
    for operator in model.operators:
        if operator.subgraph:
            continue
        dynamic_inputs = [tensor for tensor in operator.inputs if tensor is not None and not tensor.is_constant]
        if operator.name == "SHAPE" or all(tensor.index in known_tensors for tensor in dynamic_inputs):
            known_tensors |= {tensor.index for tensor in operator.outputs if tensor is not None}
        elif operator.name not in VIEWS:
            yield operator


def _operator_features(operator: Operator, tile: Tile) -> Features:
    if operator.name in ("QUANTIZE", "DEQUANTIZE"):
        return {"requantized_outputs": _output_elements(operator)}
    rule = _RULE_BY_OPERATOR.get(operator.name, _product_features if operator.macs else _arithmetic_features)
    constants = (tensor for tensor in operator.inputs if tensor is not None and tensor.is_constant)
    common_features = {
        "operators": 1.0,
        "activations": _input_elements(operator) + _output_elements(operator),
        "weights": float(sum(tensor.elements for tensor in constants)) if operator.macs else 0.0,
    }
    return {**common_features, **rule(operator, tile)}


def _convolution_features(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    if kernel is None or len(kernel.shape) != 4:
        return _product_features(operator, tile)
    outputs, height, width, channels = kernel.shape
    if height * width == 1 and _output_positions(operator) == 1:
        return _product_features(operator, tile)
    is_first_layer = height * width > 1 and channels <= FEW_CHANNELS
    input_padding = 1 if is_first_layer else _padding_factor(channels, tile.inputs)
    macs = operator.macs * _padding_factor(outputs, tile.outputs) * input_padding
    features = {"conv_outputs": _output_elements(operator)}
    if height * width == 1:
        return {**features, "pointwise_macs": macs, "conv_macs": macs}
    features |= {"kernel_macs": macs, "patch_elements": operator.macs / outputs}
    if is_first_layer:
        return {**features, "first_macs": macs, "first_outputs": _output_elements(operator)}
    return {**features, "conv_macs": macs}


def _depthwise_features(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    shape = kernel.shape if kernel is not None else (1, 0, 0, 1)
    macs = operator.macs * _padding_factor(shape[-1], tile.outputs)
    kernel_feature = "depthwise3_macs" if shape[1:3] == (3, 3) else "depthwise_other_macs"
    return {"depthwise_macs": macs, kernel_feature: macs, "depthwise_outputs": _output_elements(operator)}


def _product_features(operator: Operator, tile: Tile) -> Features:
    kernel = operator.input(1)
    if kernel is None or not kernel.is_constant or len(kernel.shape) < 2:
        return {"dense_macs": float(operator.macs)}
    padding = _padding_factor(kernel.shape[0], tile.outputs) * _padding_factor(kernel.shape[-1], tile.inputs)
    return {"dense_macs": operator.macs * padding}


def _pool_features(operator: Operator, tile: Tile) -> Features:
    window = [operator.options.get(side, 1) for side in ("filterWidth", "filterHeight")]
    return {"pooled_elements": _output_elements(operator) * math.prod(side for side in window if isinstance(side, int))}


def _counting_rule(feature: str, count: Callable[[Operator], float]) -> Callable[[Operator, Tile], Features]:
    return lambda operator, tile: {feature: count(operator)}


def _output_elements(operator: Operator) -> float:
    return _sum_elements(operator.outputs)


def _input_elements(operator: Operator) -> float:
    return _sum_elements(tuple(t for t in operator.inputs if t is not None and not t.is_constant))


def _sum_elements(tensors: tuple[Tensor | None, ...]) -> float:
    return float(sum(tensor.elements for tensor in tensors if tensor is not None))


def _output_positions(operator: Operator) -> int:
    output = operator.outputs[0] if operator.outputs else None
    return math.prod(output.shape[1:-1]) if output is not None else 0


def _padding_factor(channels: int, multiple: int) -> float:
    """The factor by which padding to whole tiles multiplies the work on `channels`."""
    return math.ceil(channels / multiple) * multiple / channels if channels else 1.0


_arithmetic_features = _counting_rule("arithmetic_outputs", _output_elements)
_RULE_BY_OPERATOR: dict[str, Callable[[Operator, Tile], Features]] = {
    "CONV_2D": _convolution_features,
    "DEPTHWISE_CONV_2D": _depthwise_features,
    **dict.fromkeys(POOLS, _pool_features),
    **dict.fromkeys(REDUCTIONS, _counting_rule("reduced_inputs", _input_elements)),
    **dict.fromkeys(MOVES, _counting_rule("moved_outputs", _output_elements)),
    **dict.fromkeys(CURVES, _counting_rule("looked_up_outputs", _output_elements)),
    **dict.fromkeys(
        ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _counting_rule("resized_outputs", _output_elements)
    ),
}
