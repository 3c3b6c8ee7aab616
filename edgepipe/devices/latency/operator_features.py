"""The features of a latency model, counted from the shapes of operators.

Features count elements and multiply-accumulates, not bytes: a fit is for one activation type. Operators whose inputs
are all known before the model runs (shapes, anchors) are constant-folded by all compilers and cost nothing.
"""

import math
from collections.abc import Callable, Iterator

from edgepipe.devices.latency.feature_names import FEATURE_DESCRIPTIONS, SCALAR_TILE, ChannelTile, FeatureAmounts
from edgepipe.tflite.model import Model, Operator, Tensor

CURVE_OPERATORS = frozenset(("LOGISTIC", "SOFTMAX", "TANH", "HARD_SWISH", "EXP", "LOG", "ELU", "GELU", "LOG_SOFTMAX"))
VIEW_OPERATORS = frozenset(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"))  # no data moves
MOVE_OPERATORS = frozenset(
    {
        *("PAD", "PADV2", "MIRROR_PAD", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "SPLIT_V", "PACK"),
        *("UNPACK", "TILE", "TRANSPOSE", "GATHER", "GATHER_ND", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE", "REVERSE_V2"),
    }
)
REDUCTION_OPERATORS = frozenset(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"))
POOL_OPERATORS = frozenset(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"))
MAX_FIRST_LAYER_CHANNELS = 4


def sum_features(model: Model, tile: ChannelTile = SCALAR_TILE, on_chip_weights: int | None = None) -> FeatureAmounts:
    """The sum over all operators, and `inference`; `on_chip` is how many weights fit on the chip (int8: bytes)."""
    total_features = dict.fromkeys(FEATURE_DESCRIPTIONS, 0.0)
    total_features["inference"] = 1.0
    for _, amounts in iter_features(model, tile, on_chip_weights):
        for name, amount in amounts.items():
            total_features[name] += amount
    return total_features


def iter_features(
    model: Model, tile: ChannelTile = SCALAR_TILE, on_chip_weights: int | None = None
) -> Iterator[tuple[Operator, FeatureAmounts]]:
    """Each operator of the main subgraph that does work at run time, with its features."""
    operator_feature_pairs = [
        (operator, _operator_features(operator, tile)) for operator in _computing_operators(model)
    ]
    weights_spill = (
        on_chip_weights is not None
        and sum(amounts.get("weights", 0) for _, amounts in operator_feature_pairs) > on_chip_weights
    )
    for operator, amounts in operator_feature_pairs:
        if weights_spill and amounts.get("weights"):
            amounts["spilled_weights"] = amounts["weights"]
        yield operator, amounts


def _computing_operators(model: Model) -> Iterator[Operator]:
    """The operators that remain after constant folding."""
    constant_tensor_indices: set[int] = set()
    for operator in model.operators:
        if operator.subgraph_index:
            continue
        dynamic_inputs = [tensor for tensor in operator.inputs if tensor is not None and not tensor.is_constant]
        if operator.name == "SHAPE" or all(tensor.index in constant_tensor_indices for tensor in dynamic_inputs):
            constant_tensor_indices |= {tensor.index for tensor in operator.outputs if tensor is not None}
        elif operator.name not in VIEW_OPERATORS:
            yield operator


def _operator_features(operator: Operator, tile: ChannelTile) -> FeatureAmounts:
    if operator.name in ("QUANTIZE", "DEQUANTIZE"):
        return {"requantized_outputs": _output_elements(operator)}
    feature_function = _COUNT_FUNCTION_BY_OPERATOR.get(
        operator.name, _product_features if operator.macs else _arithmetic_features
    )
    constant_tensors = (tensor for tensor in operator.inputs if tensor is not None and tensor.is_constant)
    common_features = {
        "operators": 1.0,
        "activations": _input_elements(operator) + _output_elements(operator),
        "weights": float(sum(tensor.element_count for tensor in constant_tensors)) if operator.macs else 0.0,
    }
    return {**common_features, **feature_function(operator, tile)}


def _convolution_features(operator: Operator, tile: ChannelTile) -> FeatureAmounts:
    kernel = operator.input(1)
    if kernel is None or len(kernel.shape) != 4:
        return _product_features(operator, tile)
    output_channels, height, width, channels = kernel.shape
    if height * width == 1 and _output_positions(operator) == 1:
        return _product_features(operator, tile)
    is_first_layer = height * width > 1 and channels <= MAX_FIRST_LAYER_CHANNELS
    input_padding_factor = 1 if is_first_layer else _padding_factor(channels, tile.input_channels)
    padded_macs = operator.macs * _padding_factor(output_channels, tile.output_channels) * input_padding_factor
    features = {"conv_outputs": _output_elements(operator)}
    if height * width == 1:
        return {**features, "pointwise_macs": padded_macs, "conv_macs": padded_macs}
    features |= {"kernel_macs": padded_macs, "patch_elements": operator.macs / output_channels}
    if is_first_layer:
        return {**features, "first_macs": padded_macs, "first_outputs": _output_elements(operator)}
    return {**features, "conv_macs": padded_macs}


def _depthwise_features(operator: Operator, tile: ChannelTile) -> FeatureAmounts:
    kernel = operator.input(1)
    kernel_shape = kernel.shape if kernel is not None else (1, 0, 0, 1)
    padded_macs = operator.macs * _padding_factor(kernel_shape[-1], tile.output_channels)
    feature_name = "depthwise3_macs" if kernel_shape[1:3] == (3, 3) else "depthwise_other_macs"
    return {"depthwise_macs": padded_macs, feature_name: padded_macs, "depthwise_outputs": _output_elements(operator)}


def _product_features(operator: Operator, tile: ChannelTile) -> FeatureAmounts:
    kernel = operator.input(1)
    if kernel is None or not kernel.is_constant or len(kernel.shape) < 2:
        return {"dense_macs": float(operator.macs)}
    padding_factor = _padding_factor(kernel.shape[0], tile.output_channels) * _padding_factor(
        kernel.shape[-1], tile.input_channels
    )
    return {"dense_macs": operator.macs * padding_factor}


def _pool_features(operator: Operator, tile: ChannelTile) -> FeatureAmounts:
    window_sizes = [operator.options.get(side, 1) for side in ("filterWidth", "filterHeight")]
    return {
        "pooled_elements": _output_elements(operator)
        * math.prod(side for side in window_sizes if isinstance(side, int))
    }


def _counting_feature_function(
    feature_name: str, count: Callable[[Operator], float]
) -> Callable[[Operator, ChannelTile], FeatureAmounts]:
    return lambda operator, tile: {feature_name: count(operator)}


def _output_elements(operator: Operator) -> float:
    return _sum_elements(operator.outputs)


def _input_elements(operator: Operator) -> float:
    return _sum_elements(tuple(t for t in operator.inputs if t is not None and not t.is_constant))


def _sum_elements(tensors: tuple[Tensor | None, ...]) -> float:
    return float(sum(tensor.element_count for tensor in tensors if tensor is not None))


def _output_positions(operator: Operator) -> int:
    output = operator.outputs[0] if operator.outputs else None
    return math.prod(output.shape[1:-1]) if output is not None else 0


def _padding_factor(channels: int, multiple: int) -> float:
    """The factor by which padding to whole tiles multiplies the work on `channels`."""
    return math.ceil(channels / multiple) * multiple / channels if channels else 1.0


_arithmetic_features = _counting_feature_function("arithmetic_outputs", _output_elements)
_COUNT_FUNCTION_BY_OPERATOR: dict[str, Callable[[Operator, ChannelTile], FeatureAmounts]] = {
    "CONV_2D": _convolution_features,
    "DEPTHWISE_CONV_2D": _depthwise_features,
    **dict.fromkeys(POOL_OPERATORS, _pool_features),
    **dict.fromkeys(REDUCTION_OPERATORS, _counting_feature_function("reduced_inputs", _input_elements)),
    **dict.fromkeys(MOVE_OPERATORS, _counting_feature_function("moved_outputs", _output_elements)),
    **dict.fromkeys(CURVE_OPERATORS, _counting_feature_function("looked_up_outputs", _output_elements)),
    **dict.fromkeys(
        ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), _counting_feature_function("resized_outputs", _output_elements)
    ),
}
