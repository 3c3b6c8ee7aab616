"""The version of an operator that its tensors and options demand, by TFLite's own versioning.

A runtime looks an operator up by name and version: a version that is too low finds an old kernel, which may compute
something else with the same tensors and say nothing; one that is too high is refused. Every file that edgepipe writes
has the versions of this table.

Convolutions and float operators with 4-bit weights get more than TFLite asks, whose rules name 8-bit weights only:
releases without such kernels would load the first version and compute garbage.

Source: tflite/converter/tools/versioning/op_version.cc and op_signature.cc of LiteRT (August 2026), which TensorFlow's
converter calls; tests compare both.
"""

from collections.abc import Callable, Mapping

import numpy as np

from edgepipe.tflite.model import Operator, Tensor

Condition = Callable[[Operator], bool]
Rules = tuple[tuple[int, Condition], ...]  # the first condition that holds decides; none: the first version

# types that newer releases of TFLite give versions of their own; operators with them keep the version that they have
UNRULED_TYPES = frozenset({"int2", "uint4", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
FLOAT16_OPERATORS = frozenset({"CAST", "DEQUANTIZE"})  # those that the table has rules for with float16


def required_version(operator: Operator) -> int | None:
    """The version that TFLite demands for these tensors and options; None if the table has no rule for them."""
    rules = VERSION_RULES.get(operator.name)
    if operator.is_custom or rules is None or _has_unruled_types(operator):
        return None
    base_version = BASE_VERSIONS.get(operator.name, 1)
    return next((version for version, condition in rules if condition(operator)), base_version)


def _has_unruled_types(operator: Operator) -> bool:
    ruled_types = {"float16"} if operator.name in FLOAT16_OPERATORS else set()
    return any(tensor.dtype in UNRULED_TYPES - ruled_types for tensor in operator.tensors)


def _dtype(tensors: tuple[Tensor | None, ...], position: int) -> str:
    tensor = tensors[position] if position < len(tensors) else None
    return "" if tensor is None else tensor.dtype


def _reads(*dtypes: str, at: int = 0) -> Condition:
    """The input at a position has one of these types."""
    return lambda operator: _dtype(operator.inputs, at) in dtypes


def _writes(*dtypes: str, at: int = 0) -> Condition:
    return lambda operator: _dtype(operator.outputs, at) in dtypes


def _touches(*dtypes: str) -> Condition:
    """The first input or the first output has one of these types."""
    return _any(_reads(*dtypes), _writes(*dtypes))


def _all(*conditions: Condition) -> Condition:
    return lambda operator: all(condition(operator) for condition in conditions)


def _any(*conditions: Condition) -> Condition:
    return lambda operator: any(condition(operator) for condition in conditions)


def _not(condition: Condition) -> Condition:
    return lambda operator: not condition(operator)


def _computes(activations: str, weights: str, at: int = 1) -> Condition:
    """Input and output have the type of activations, the weights theirs."""
    return _all(_reads(activations), _reads(weights, at=at), _writes(activations))


def _option(name: str, *values: object) -> Condition:
    """An option is set, or has one of these values."""
    return lambda op: op.options.get(name) in values if values else bool(op.options.get(name))


def _scale_count(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.quantization is None else len(tensor.quantization.scales)


def _has_scale(*positions: int) -> Condition:
    return lambda operator: any(_scale_count(operator.input(position)) for position in positions)


def _per_channel(axis: int, at: int = 1) -> Condition:
    """There is one scale for each slice of an axis, also where that is one slice."""

    def has_channel_scales(operator: Operator) -> bool:
        tensor = operator.input(at)
        return tensor is not None and len(tensor.shape) > axis and _scale_count(tensor) == tensor.shape[axis]

    return has_channel_scales


def _per_axis(operator: Operator) -> bool:
    """The tensor that QUANTIZE writes or that DEQUANTIZE reads has several scales."""
    return any(_scale_count(tensor) > 1 for tensor in operator.tensors)


def _has_several_table_scales(operator: Operator) -> bool:
    return _scale_count(operator.input(1)) > 1


def _rank(tensor: Tensor | None) -> int:
    return 0 if tensor is None else len(tensor.shape)


def _rank_over(limit: int) -> Condition:
    return lambda operator: _rank(operator.input(0)) > limit


def _has_rank_4(operator: Operator) -> bool:
    return _rank(operator.input(0)) == 4


def _has_rank_5(operator: Operator) -> bool:
    return any(_rank(tensor) == 5 for tensor in operator.inputs)


def _broadcasts_over_4(operator: Operator) -> bool:
    shapes = [() if tensor is None else tensor.shape for tensor in operator.inputs]
    return shapes[0] != shapes[1] and max(map(len, shapes)) > 4


def _is_grouped(operator: Operator) -> bool:
    source, filters = operator.input(0), operator.input(1)
    return source is not None and filters is not None and source.shape[-1:] != filters.shape[-1:]


def _rescales_up(operator: Operator) -> bool:
    """The product of the input scales is at least the output scale, so that codes are multiplied by one or more."""
    tensors = (operator.input(0), operator.input(1), operator.outputs[0] if operator.outputs else None)
    scales = [tensor.quantization.scales[0] for tensor in tensors if tensor is not None and tensor.quantization]
    if len(scales) < 3 or not all(scales):
        return False
    first, second, output = map(np.float32, scales)  # TFLite computes in single precision
    return bool(first * second / output >= 1.0)


def _has_bias_at(position: int) -> Condition:
    return lambda operator: operator.input(position) is not None


def _is_sparse_weight(operator: Operator) -> bool:
    weights = operator.input(1)
    return weights is not None and weights.is_sparse


_INT8, _INT16 = _reads("int8"), _reads("int16")
_INT16_TO_INT16 = _all(_INT16, _writes("int16"))
_HYBRID = _computes("float32", "int8")
_HYBRID_INT4 = _computes("float32", "int4")
_ASYMMETRIC = _option("asymmetricQuantizeInputs")
_INT16_WITH_INT8 = _computes("int16", "int8")
_INT16_WITH_INT4 = _computes("int16", "int4")
_HALF_PIXEL = _option("halfPixelCenters")

_BY_INT8: Rules = ((2, _INT8),)
_BY_INT8_INT16: Rules = ((3, _INT16), (2, _INT8))
_BY_INT8_TO_INT16: Rules = ((3, _INT16_TO_INT16), (2, _INT8))
_BY_EITHER: Rules = ((2, _reads("int8", "int16")),)
_EXTREMES: Rules = ((4, _INT16_TO_INT16), (3, _broadcasts_over_4), (2, _INT8))
_PADDING: Rules = ((5, _reads("bool")), (4, _rank_over(4)), (3, _INT16), (2, _INT8))
_POSITIONS: Rules = ((3, _reads("bool")), (2, _INT8))
_BATCHES: Rules = ((4, _INT16), (3, _not(_has_rank_4)), (2, _INT8))
_HYBRID_RECURRENT = _all(_reads("int8", at=1), _writes("float32"))
_RECURRENT: Rules = ((3, _all(_HYBRID_RECURRENT, _ASYMMETRIC)), (2, _HYBRID_RECURRENT))

BASE_VERSIONS = {"BROADCAST_TO": 2}  # its first version was withdrawn

VERSION_RULES: Mapping[str, Rules] = {
    "ABS": ((5, _reads("int32")), (3, _all(_INT16, _has_scale(0))), (4, _INT16), (2, _reads("int8", "uint8"))),
    "ADD": (
        (5, _all(_INT16, _not(_has_scale(0)))),
        (4, _reads("int64")),
        (3, _all(_INT16_TO_INT16, _not(_option("potScaleInt16")))),
        (2, _INT8),
    ),
    "ARG_MAX": _POSITIONS,
    "ARG_MIN": _POSITIONS,
    "AVERAGE_POOL_2D": _BY_INT8_TO_INT16,
    "BATCH_MATMUL": ((3, _INT16), (2, _INT8), (4, _all(_HYBRID, _ASYMMETRIC))),
    "BATCH_TO_SPACE_ND": _BATCHES,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _RECURRENT,
    "BIDIRECTIONAL_SEQUENCE_RNN": _RECURRENT,
    "BROADCAST_TO": ((3, _reads("int8", "int16")),),
    "CAST": (
        (6, _all(_reads("int4"), _writes("float32"))),
        (5, _touches("float64", "float16")),
        (4, _touches("uint16")),
        (3, _touches("int8")),
        (2, _touches("uint32")),
    ),
    "CONCATENATION": ((5, _reads("int4")), (4, _reads("uint32")), *_BY_INT8_INT16),
    "CONV_2D": (
        # 16-bit: TFLite takes the option that says the bias's type as set even if it is not
        (8, _any(_INT16_WITH_INT8, _INT16_WITH_INT4, _HYBRID_INT4)),
        (6, _is_grouped),
        (3, _computes("int8", "int8")),
        (7, _computes("int8", "int4")),
        (5, _all(_HYBRID, _per_channel(0))),
        (2, _HYBRID),
    ),
    "DEPTHWISE_CONV_2D": (
        (6, _all(_HYBRID, _per_channel(3))),
        (4, _HYBRID),
        (3, _computes("int8", "int8")),
        (7, _computes("int8", "int4")),
        (2, _any(_not(_option("dilationWFactor", 1)), _not(_option("dilationHFactor", 1)))),
    ),
    "DEPTH_TO_SPACE": _BY_INT8,
    "DEQUANTIZE": (
        (6, _reads("int4")),
        (3, _reads("int16", "float16")),
        (5, _all(_INT8, _per_axis)),
        (2, _INT8),
    ),
    "DIV": ((2, _broadcasts_over_4),),
    "DYNAMIC_UPDATE_SLICE": ((5, _reads("int4")), (4, _INT16), (2, _reads("int64", at=2))),
    "EMBEDDING_LOOKUP": ((4, _any(_reads("int4", at=1), _has_several_table_scales)),),
    "EQUAL": ((5, _INT16), (3, _reads("string")), (2, _INT8)),
    "EXP": _BY_EITHER,
    "FAKE_QUANT": ((2, _option("narrowRange")),),
    "FILL": ((3, _reads("int8", "int16", at=1)), (2, _reads("bool", "string", at=1))),
    "FLOOR_DIV": ((3, _reads("int8", "int16")), (2, _reads("float32"))),
    "FLOOR_MOD": _BY_EITHER,
    "FULLY_CONNECTED": (
        (13, _INT16_WITH_INT4),
        (12, _all(_any(_HYBRID, _HYBRID_INT4), _per_channel(0))),
        (11, _INT16_WITH_INT8),
        (8, _is_sparse_weight),
        (7, _computes("int16", "int16")),
        (6, lambda op: len(op.inputs) == 2),
        (5, _option("keepNumDims")),
        (4, _computes("int8", "int8")),
        (10, _any(_computes("int8", "int4"), _HYBRID_INT4)),
        (9, _all(_HYBRID, _ASYMMETRIC)),
        (3, _HYBRID),
        (2, _option("weightsFormat", 1)),
    ),
    "GATHER": (
        (7, _reads("int4")),
        (6, _reads("int16", at=1)),
        (5, _option("batchDims")),
        (4, _INT16),
        (3, _reads("bool")),
        (2, _INT8),
    ),
    "GATHER_ND": ((5, _reads("bool")), (4, _reads("int16", at=1)), (3, _INT16), (2, _reads("string"))),
    "GELU": ((2, _reads("int8", "uint8")),),
    "GREATER": _BY_INT8,
    "GREATER_EQUAL": _BY_INT8_INT16,
    "L2_NORMALIZATION": ((2, _writes("int8")),),
    "LEAKY_RELU": ((2, _INT16),),
    "LESS": _BY_INT8_INT16,
    "LESS_EQUAL": _BY_INT8,
    "LOG": _BY_EITHER,
    "LOGISTIC": _BY_INT8_TO_INT16,
    "LOG_SOFTMAX": _BY_INT8,
    "LSTM": (
        (5, _all(_option("kernelType", 0), _computes("int16", "int8", at=2))),
        (4, _all(_option("kernelType", 0), _computes("float32", "int8", at=2), _ASYMMETRIC)),
        (3, _all(_option("kernelType", 0), _computes("float32", "int8", at=2))),
        (2, _option("kernelType", 1)),
    ),
    "MAXIMUM": _EXTREMES,
    "MAX_POOL_2D": _BY_INT8_TO_INT16,
    "MEAN": _BY_INT8_INT16,
    "MINIMUM": _EXTREMES,
    "MIRROR_PAD": _BY_INT8_INT16,
    "MUL": (
        (7, _any(_all(_INT16, _not(_has_scale(0, 1))), _reads("uint32"))),
        (6, _reads("complex64")),
        (5, _reads("int64")),
        (4, _INT16),
        (3, _rescales_up),
        (2, _INT8),
    ),
    "NOT_EQUAL": ((4, _INT16), (3, _reads("string")), (2, _INT8)),
    "PACK": ((2, _INT8), (3, _INT16_TO_INT16), (4, _reads("uint32"))),
    "PAD": _PADDING,
    "PADV2": _PADDING,
    "QUANTIZE": ((4, _touches("int4")), (3, _per_axis), (2, _writes("int16"))),
    "RANGE": ((2, _reads("int64")),),
    "REDUCE_MAX": _BY_INT8_INT16,
    "REDUCE_MIN": _BY_INT8_INT16,
    "REDUCE_PROD": _BY_EITHER,
    "RELU": ((3, _INT16), (2, _reads("int8", "uint8"))),
    "RELU6": _BY_INT8_INT16,
    "RESIZE_BILINEAR": ((4, _INT16), (3, _HALF_PIXEL), (2, _INT8)),
    "RESIZE_NEAREST_NEIGHBOR": ((4, _INT16), (3, _any(_HALF_PIXEL, _option("alignCorners"))), (2, _INT8)),
    "REVERSE_V2": ((3, _INT8), (2, _reads("bool"))),
    "RNN": _RECURRENT,
    "RSQRT": _BY_INT8_INT16,
    "SELECT": (
        (4, _reads("uint32")),
        (3, _has_rank_5),
        (2, _INT8),
    ),
    "SELECT_V2": ((2, _reads("uint32")),),
    "SIGN": ((2, _reads("int32")),),
    "SLICE": (
        (7, _reads("int4")),
        (6, _reads("uint32")),
        (5, _rank_over(4)),
        (4, _INT16),
        (3, _reads("string")),
        (2, _INT8),
    ),
    "SOFTMAX": _BY_INT8_INT16,
    "SPACE_TO_BATCH_ND": _BATCHES,
    "SPACE_TO_DEPTH": _BY_INT8,
    "SPARSE_TO_DENSE": ((3, _reads("int8", "uint8", at=2)), (2, _reads("int64", at=2))),
    "SPLIT": ((4, _reads("int16", at=1)), (3, _reads("int32", at=1)), (2, _reads("int8", at=1))),
    "SPLIT_V": _BY_INT8,
    "SQRT": _BY_EITHER,
    "SQUARED_DIFFERENCE": _BY_INT8,
    "SQUEEZE": ((2, _reads("string")),),
    "STRIDED_SLICE": (
        (8, _option("offset")),
        (7, _reads("uint32")),
        (6, _any(_option("ellipsisMask"), _option("newAxisMask"))),
        (5, _reads("string")),
        (4, _rank_over(4)),
        (3, _reads("bool")),
        (2, _INT8),
    ),
    "SUB": (
        (5, _all(_INT16_TO_INT16, _not(_option("potScaleInt16")))),
        (4, _reads("int64")),
        (3, _broadcasts_over_4),
        (2, _INT8),
    ),
    "SUM": _BY_INT8,
    "SVDF": ((3, _INT8), (4, _all(_HYBRID, _ASYMMETRIC)), (2, _HYBRID)),
    "TANH": _BY_INT8_TO_INT16,
    "TILE": ((3, _INT8), (2, _reads("string"))),
    "TOPK_V2": ((3, _any(_INT16, _reads("int16", at=1), _writes("int16", at=1))), (2, _INT8)),
    "TRANSPOSE": (
        (8, _rank_over(6)),
        (7, _reads("int4")),
        (6, _rank_over(5)),
        (5, _INT16),
        (4, _rank_over(4)),
        (3, _reads("bool")),
        (2, _INT8),
    ),
    "TRANSPOSE_CONV": (
        # TFLite's rule for a type of bias looks at the first input, the output's shape, and so never holds
        (4, _option("fusedActivationFunction")),
        (3, _has_bias_at(3)),
        (2, _reads("int8", at=1)),
    ),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (
        (5, _computes("int16", "int8", at=2)),
        (4, _option("diagonalRecurrentTensors")),
        (3, _all(_computes("float32", "int8", at=2), _ASYMMETRIC)),
        (2, _computes("float32", "int8", at=2)),
    ),
    "UNIDIRECTIONAL_SEQUENCE_RNN": _RECURRENT,
    "UNPACK": ((2, _reads("int8", "uint8")), (3, _reads("bool")), (4, _INT16_TO_INT16)),
    "WHERE": ((2, _not(_reads("bool"))),),
}
