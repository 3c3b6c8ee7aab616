"""What TFLite's integer kernels demand of the scales of their tensors, operator by operator and by bits of activations.

One table decides which operators can be computed in integers, which of their tensors must share a scale, and which
outputs have a prescribed one. Sources: https://ai.google.dev/edge/litert/models/quantization_spec and the kernels' own
checks (tensorflow/lite/kernels).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, final

BitWidth = Literal[8, 16]  # of activations
QuantParams = tuple[float, int]  # scale and zero point
ONLY_8: tuple[BitWidth, ...] = (8,)


class ScaleRule(StrEnum):
    """Which scales an integer kernel accepts."""

    OWN = "own"  # every input and output has its own
    OF_INPUT = "of_input"  # outputs have that of the first input
    OF_OUTPUT = "of_output"  # inputs have that of the output; values beyond its range may saturate
    COMPARED = "compared"  # inputs are compared with each other; the output is bool


@final
@dataclass(frozen=True)
class KernelRequirement:
    """The integer kernels of one operator: for which bits of activations there are any, and what they demand."""

    bit_widths: tuple[BitWidth, ...] = (8, 16)
    scale_rule: ScaleRule = ScaleRule.OWN
    fixed_output_by_bits: Mapping[BitWidth, QuantParams] | None = None  # prescribed, whatever the range
    symmetric_positions: tuple[int, ...] = ()  # inputs whose zero point must be 0
    symmetric_output: bool = False  # the output's zero point must be 0


def _kernel(rule: ScaleRule = ScaleRule.OWN) -> KernelRequirement:
    return KernelRequirement(scale_rule=rule)


def _kernel_8(rule: ScaleRule = ScaleRule.OWN) -> KernelRequirement:
    return KernelRequirement(ONLY_8, rule)


_PROBABILITY_PARAMS: dict[BitWidth, QuantParams] = {8: (1 / 256, -128), 16: (1 / 32768, 0)}
_IN, _OUT, _COMPARED = ScaleRule.OF_INPUT, ScaleRule.OF_OUTPUT, ScaleRule.COMPARED

KERNEL_REQUIREMENTS: dict[str, KernelRequirement] = {
    "ABS": _kernel(),
    "ADD": _kernel(),
    "ARG_MAX": _kernel_8(),
    "ARG_MIN": _kernel_8(),
    "AVERAGE_POOL_2D": _kernel(_IN),
    "BATCH_MATMUL": _kernel(),
    "BATCH_TO_SPACE_ND": _kernel(_IN),
    "BROADCAST_TO": _kernel(_IN),
    "CAST": _kernel(),  # of integers to float: a QUANTIZE, see INTEGER_CASTS
    "CONCATENATION": _kernel(_OUT),
    "CONV_2D": _kernel(),
    "DEPTHWISE_CONV_2D": _kernel(),
    "DEPTH_TO_SPACE": _kernel_8(_IN),
    "DYNAMIC_UPDATE_SLICE": _kernel(_OUT),
    "ELU": _kernel_8(),
    "EMBEDDING_LOOKUP": _kernel_8(_IN),
    "EQUAL": _kernel(_COMPARED),
    "EXP": _kernel(),
    "EXPAND_DIMS": _kernel(_IN),
    "FULLY_CONNECTED": KernelRequirement(symmetric_positions=(1,)),
    "GATHER": _kernel(_IN),
    "GATHER_ND": _kernel(_IN),
    "GELU": _kernel(),
    "GREATER_EQUAL": _kernel(_COMPARED),
    "HARD_SWISH": _kernel_8(),
    "L2_NORMALIZATION": KernelRequirement(ONLY_8, fixed_output_by_bits={8: (1 / 128, 0)}),
    "LEAKY_RELU": _kernel(),
    "LESS": _kernel(_COMPARED),
    "LOG": _kernel(),
    "LOGISTIC": KernelRequirement(fixed_output_by_bits=_PROBABILITY_PARAMS),
    "LOG_SOFTMAX": KernelRequirement(ONLY_8, fixed_output_by_bits={8: (16 / 256, 127)}),
    "MAXIMUM": _kernel(_OUT),
    "MAX_POOL_2D": _kernel(_IN),
    "MEAN": _kernel(),
    "MINIMUM": _kernel(_OUT),
    "MIRROR_PAD": _kernel(_IN),
    "MUL": _kernel(),
    "NOT_EQUAL": _kernel(_COMPARED),
    "ONE_HOT": _kernel_8(_OUT),
    "PACK": _kernel(_OUT),
    "PAD": _kernel(_IN),
    "PADV2": _kernel(_OUT),
    "PRELU": _kernel_8(),
    "REDUCE_MAX": _kernel(_IN),
    "REDUCE_MIN": _kernel(_IN),
    "REDUCE_PROD": _kernel(),
    "RELU": _kernel(),
    "RELU6": _kernel(_OUT),  # TFLite Micro's kernel clips without rescaling; so do the next two
    "RELU_0_TO_1": _kernel_8(_OUT),
    "RELU_N1_TO_1": _kernel_8(_OUT),
    "RESHAPE": _kernel(_IN),
    "RESIZE_BILINEAR": _kernel(_IN),
    "RESIZE_NEAREST_NEIGHBOR": _kernel(_IN),
    "REVERSE_V2": _kernel(_IN),
    "RSQRT": _kernel(),
    "SCATTER_ND": KernelRequirement(ONLY_8, _OUT, symmetric_output=True),  # what nothing is written to is stored as 0
    "SELECT": _kernel(_OUT),
    "SELECT_V2": _kernel(_OUT),
    "SHAPE": _kernel(),
    "SLICE": _kernel(_IN),
    "SOFTMAX": KernelRequirement(fixed_output_by_bits=_PROBABILITY_PARAMS),
    "SPACE_TO_BATCH_ND": _kernel(_IN),
    "SPACE_TO_DEPTH": _kernel_8(_IN),
    "SPLIT": _kernel(_IN),
    "SPLIT_V": _kernel(_IN),
    "SQRT": _kernel(),
    "SQUARED_DIFFERENCE": _kernel_8(),
    "SQUEEZE": _kernel(_IN),
    "STRIDED_SLICE": _kernel(_IN),
    "SUB": _kernel(),
    "SUM": _kernel(),
    "TANH": KernelRequirement(fixed_output_by_bits={8: (1 / 128, 0), 16: (1 / 32768, 0)}),
    "TILE": _kernel(_IN),
    "TOPK_V2": _kernel(_IN),
    "TRANSPOSE": _kernel(_IN),
    "TRANSPOSE_CONV": _kernel(),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _kernel_8(),  # `fused_lstm_writer` has the scales of its states
    "UNPACK": _kernel(_IN),
}
# functions of one number without a kernel, which are looked up in a table of 256 entries; see `lookup_tables`
TABULATED_OPERATORS = frozenset({"CEIL", "COS", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "POW", "ROUND", "SIGN", "SIN"})
_TABLE_REQUIREMENT = _kernel_8()


def requirement_of(kind: str) -> KernelRequirement | None:
    """What the integer form of an operator demands; None if there is none."""
    return _TABLE_REQUIREMENT if kind in TABULATED_OPERATORS else KERNEL_REQUIREMENTS.get(kind)


# operators whose weights can be stored in fewer bits although they compute in float: the axis that has its own scales;
# None: one scale for all
FLOAT_OPERATORS_WITH_WEIGHTS: dict[str, int | None] = {
    "BATCH_MATMUL": None,
    "CONV_2D": 0,
    "DEPTHWISE_CONV_2D": 3,
    "EMBEDDING_LOOKUP": 0,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
}
WEIGHTS_POSITION = 1
# types from which QUANTIZE, which reads integers as multiples of their scale, computes activations of so many bits
INTEGER_CASTS: dict[BitWidth, frozenset[str]] = {
    8: frozenset({"uint8", "int8", "int16", "int32"}),
    16: frozenset({"uint8", "int8", "int16", "int32"}),
}
# those of them that take 4-bit weights
INT4_WEIGHT_OPERATORS = frozenset({"BATCH_MATMUL", "CONV_2D", "EMBEDDING_LOOKUP", "FULLY_CONNECTED"})
INT4_KERNELS = frozenset({"CONV_2D", "FULLY_CONNECTED"})  # integer operators that take 4-bit weights
EQUALITY_OPERATORS = frozenset({"EQUAL", "NOT_EQUAL"})
# operators that mix neighbouring values: saturating their input differs from saturating their output
AVERAGING_OPERATORS = frozenset({"AVERAGE_POOL_2D", "RESIZE_BILINEAR"})
