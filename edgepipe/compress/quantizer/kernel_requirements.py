"""What TFLite's integer kernels demand of the scales of their tensors, operator by operator and by bits of activations.

One table decides which operators can be computed in integers, which of their tensors must share a scale, and which
outputs have a prescribed one. Sources: https://ai.google.dev/edge/litert/models/quantization_spec, the kernels' own
checks (tensorflow/lite/kernels), and the versions in tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, final

BitWidth = Literal[8, 16]  # of activations
QuantParams = tuple[float, int]  # scale and zero point


class ScaleRule(StrEnum):
    """Which scales an integer kernel accepts."""

    OWN = "own"  # every input and output has its own
    OF_INPUT = "of_input"  # outputs have that of the first input
    OF_OUTPUT = "of_output"  # inputs have that of the output; values beyond its range may saturate
    COMPARED = "compared"  # inputs are compared with each other; the output is bool


@final
@dataclass(frozen=True)
class KernelRequirement:
    """The integer kernels of one operator: the least version for each number of bits, and what they demand."""

    version_by_bits: Mapping[BitWidth, int]
    scale_rule: ScaleRule = ScaleRule.OWN
    fixed_output_by_bits: Mapping[BitWidth, QuantParams] | None = None  # prescribed, whatever the range
    symmetric_positions: tuple[int, ...] = ()  # inputs whose zero point must be 0
    symmetric_output: bool = False  # the output's zero point must be 0


def _kernel(version_8: int, version_16: int | None = None, rule: ScaleRule = ScaleRule.OWN) -> KernelRequirement:
    return KernelRequirement({8: version_8} if version_16 is None else {8: version_8, 16: version_16}, rule)


_PROBABILITY_PARAMS: dict[BitWidth, QuantParams] = {8: (1 / 256, -128), 16: (1 / 32768, 0)}
_IN, _OUT, _COMPARED = ScaleRule.OF_INPUT, ScaleRule.OF_OUTPUT, ScaleRule.COMPARED

KERNEL_REQUIREMENTS: dict[str, KernelRequirement] = {
    "ABS": _kernel(2, 3),
    "ADD": _kernel(2, 3),
    "ARG_MAX": _kernel(2),
    "ARG_MIN": _kernel(2),
    "AVERAGE_POOL_2D": _kernel(2, 3, _IN),
    "BATCH_MATMUL": _kernel(2, 3),
    "BATCH_TO_SPACE_ND": _kernel(2, 4, _IN),
    "BROADCAST_TO": _kernel(3, 3, _IN),
    "CAST": _kernel(1, 2),  # of integers to float: a QUANTIZE, see INTEGER_CASTS
    "CONCATENATION": _kernel(2, 3, _OUT),
    "CONV_2D": _kernel(3, 1),
    "DEPTHWISE_CONV_2D": _kernel(3, 1),
    "DEPTH_TO_SPACE": _kernel(2, None, _IN),
    "DYNAMIC_UPDATE_SLICE": _kernel(1, 4, _OUT),
    "ELU": _kernel(1),
    "EMBEDDING_LOOKUP": _kernel(1, None, _IN),
    "EQUAL": _kernel(2, 5, _COMPARED),
    "EXP": _kernel(2, 2),
    "EXPAND_DIMS": _kernel(1, 1, _IN),
    "FULLY_CONNECTED": KernelRequirement({8: 4, 16: 1}, symmetric_positions=(1,)),
    "GATHER": _kernel(2, 4, _IN),
    "GATHER_ND": _kernel(1, 3, _IN),
    "GELU": _kernel(2, 1),
    "GREATER_EQUAL": _kernel(2, 3, _COMPARED),
    "HARD_SWISH": _kernel(1),
    "L2_NORMALIZATION": KernelRequirement({8: 2}, fixed_output_by_bits={8: (1 / 128, 0)}),
    "LEAKY_RELU": _kernel(1, 2),
    "LESS": _kernel(2, 3, _COMPARED),
    "LOG": _kernel(2, 2),
    "LOGISTIC": KernelRequirement({8: 2, 16: 3}, fixed_output_by_bits=_PROBABILITY_PARAMS),
    "LOG_SOFTMAX": KernelRequirement({8: 2}, fixed_output_by_bits={8: (16 / 256, 127)}),
    "MAXIMUM": _kernel(2, 4, _OUT),
    "MAX_POOL_2D": _kernel(2, 3, _IN),
    "MEAN": _kernel(2, 3),
    "MINIMUM": _kernel(2, 4, _OUT),
    "MIRROR_PAD": _kernel(2, 3, _IN),
    "MUL": _kernel(2, 4),
    "NOT_EQUAL": _kernel(2, 4, _COMPARED),
    "ONE_HOT": _kernel(1, None, _OUT),
    "PACK": _kernel(2, 3, _OUT),
    "PAD": _kernel(2, 3, _IN),
    "PADV2": _kernel(2, 3, _OUT),
    "PRELU": _kernel(1),
    "REDUCE_MAX": _kernel(2, 3, _IN),
    "REDUCE_MIN": _kernel(2, 3, _IN),
    "REDUCE_PROD": _kernel(2, 2),
    "RELU": _kernel(2, 3),
    "RELU6": _kernel(2, 3, _OUT),  # TFLite Micro's kernel clips without rescaling; so do the next two
    "RELU_0_TO_1": _kernel(1, None, _OUT),
    "RELU_N1_TO_1": _kernel(1, None, _OUT),
    "RESHAPE": _kernel(1, 1, _IN),
    "RESIZE_BILINEAR": _kernel(2, 4, _IN),
    "RESIZE_NEAREST_NEIGHBOR": _kernel(2, 4, _IN),
    "REVERSE_V2": _kernel(3, 1, _IN),
    "RSQRT": _kernel(2, 3),
    "SCATTER_ND": KernelRequirement({8: 1}, _OUT, symmetric_output=True),  # what nothing is written to is stored as 0
    "SELECT": _kernel(1, 1, _OUT),
    "SELECT_V2": _kernel(1, 1, _OUT),
    "SHAPE": _kernel(1, 1),
    "SLICE": _kernel(2, 4, _IN),
    "SOFTMAX": KernelRequirement({8: 2, 16: 3}, fixed_output_by_bits=_PROBABILITY_PARAMS),
    "SPACE_TO_BATCH_ND": _kernel(2, 4, _IN),
    "SPACE_TO_DEPTH": _kernel(2, None, _IN),
    "SPLIT": _kernel(2, 4, _IN),
    "SPLIT_V": _kernel(2, 1, _IN),
    "SQRT": _kernel(2, 2),
    "SQUARED_DIFFERENCE": _kernel(2),
    "SQUEEZE": _kernel(1, 1, _IN),
    "STRIDED_SLICE": _kernel(2, 1, _IN),
    "SUB": _kernel(2, 5),
    "SUM": _kernel(2, 1),
    "TANH": KernelRequirement({8: 2, 16: 3}, fixed_output_by_bits={8: (1 / 128, 0), 16: (1 / 32768, 0)}),
    "TILE": _kernel(3, 1, _IN),
    "TOPK_V2": _kernel(2, 3, _IN),
    "TRANSPOSE": _kernel(2, 5, _IN),
    "TRANSPOSE_CONV": _kernel(2, 1),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _kernel(1),  # `fused_lstm_writer` has the scales of its states
    "UNPACK": _kernel(2, 4, _IN),
}
# functions of one number without a kernel, which are looked up in a table of 256 entries; see `lookup_tables`
TABULATED_OPERATORS = frozenset({"CEIL", "COS", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "POW", "ROUND", "SIGN", "SIN"})
_TABLE_REQUIREMENT = _kernel(1)


def requirement_of(kind: str) -> KernelRequirement | None:
    """What the integer form of an operator demands; None if there is none."""
    return _TABLE_REQUIREMENT if kind in TABULATED_OPERATORS else KERNEL_REQUIREMENTS.get(kind)


# operators whose weights can be stored in fewer bits although they compute in float: the axis that has its own scales
# (None: one scale for all), and the version that takes integer weights as they are
FLOAT_OPERATORS_WITH_WEIGHTS: dict[str, tuple[int | None, int]] = {
    "BATCH_MATMUL": (None, 1),
    "CONV_2D": (0, 5),
    "DEPTHWISE_CONV_2D": (3, 6),
    "EMBEDDING_LOOKUP": (0, 4),
    "FULLY_CONNECTED": (0, 12),
    "TRANSPOSE_CONV": (0, 1),
}
WEIGHTS_POSITION = 1
# types from which QUANTIZE, which reads integers as multiples of their scale, computes activations of so many bits
INTEGER_CASTS: dict[BitWidth, frozenset[str]] = {
    8: frozenset({"uint8", "int8", "int16", "int32"}),
    16: frozenset({"uint8", "int8", "int16", "int32"}),
}
# those of them that take 4-bit weights
INT4_WEIGHT_OPERATORS = frozenset({"BATCH_MATMUL", "CONV_2D", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"})
# integer operators that take 4-bit weights, with the version for the bits of their activations
INT4_VERSIONS: dict[str, dict[BitWidth, int]] = {"CONV_2D": {8: 7, 16: 7}, "FULLY_CONNECTED": {8: 10, 16: 13}}
EQUALITY_OPERATORS = frozenset({"EQUAL", "NOT_EQUAL"})
# operators that mix neighbouring values: saturating their input differs from saturating their output
AVERAGING_OPERATORS = frozenset({"AVERAGE_POOL_2D", "RESIZE_BILINEAR"})
