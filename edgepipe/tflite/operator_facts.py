"""What is known of TensorFlow Lite's builtin operators by their name alone, in one table.

Input positions and axes are those of the schema and the reference kernels (tensorflow/lite/kernels). Rules that need
shapes live where they are used: MACs in `macs`, scratch memory in `kernel_scratch`, arena structures in `arena_tail`.
"""

from dataclasses import dataclass
from typing import NamedTuple


class FilterLayout(NamedTuple):
    """Filters of a convolution or dense layer: the axis of the weights (input 1) that counts them, and the bias."""

    axis: int
    bias_input: int


@dataclass(frozen=True)
class OperatorTraits:
    """The facts of one operator; the defaults hold for every operator that is not in the table."""

    parameter_inputs: tuple[int, ...] = ()  # positions of weights, biases and other learned numbers
    kernel_inputs: tuple[int, ...] = ()  # positions of the matrices and filters that pruning sets to zero
    filters: FilterLayout | None = None
    is_conv_2d: bool = False  # slides filters over height and width, forwards
    reports_sparsity: bool = False  # `reader.weight_sparsity` lists its weights
    is_per_channel: bool = False  # TFLM's kernel keeps a multiplier and a shift for each filter, even with one scale
    is_lookup: bool = False  # reads only as much of its first constant as it writes
    passes_values: bool = False  # gives its input in another type or shape
    keeps_state: bool = False  # reads or writes what outlives the call, besides variable tensors
    has_uncounted_macs: bool = False  # may multiply and accumulate, but `macs` has no formula for it
    body_options: tuple[str, ...] = ()  # options that name the subgraphs it runs


_LSTM = OperatorTraits(
    parameter_inputs=(*range(1, 18), *range(20, 24)),  # 18 and 19 are the state
    kernel_inputs=tuple(range(1, 9)),
)
_RNN = OperatorTraits(parameter_inputs=(1, 2, 3))
_LOOKUP = OperatorTraits(is_lookup=True)
_PASS_THROUGH = OperatorTraits(passes_values=True)
_VARIABLE_ACCESS = OperatorTraits(keeps_state=True)
_UNCOUNTED = OperatorTraits(has_uncounted_macs=True)

OPERATORS: dict[str, OperatorTraits] = {
    "CONV_2D": OperatorTraits(
        (1, 2), (1,), FilterLayout(0, 2), is_conv_2d=True, reports_sparsity=True, is_per_channel=True
    ),
    "DEPTHWISE_CONV_2D": OperatorTraits(
        (1, 2), (1,), FilterLayout(3, 2), is_conv_2d=True, reports_sparsity=True, is_per_channel=True
    ),
    "TRANSPOSE_CONV": OperatorTraits((1, 3), (1,), FilterLayout(0, 3), reports_sparsity=True, is_per_channel=True),
    "CONV_3D": OperatorTraits((1, 2), (1,), FilterLayout(4, 2)),
    "CONV_3D_TRANSPOSE": OperatorTraits((1, 3), has_uncounted_macs=True),
    "FULLY_CONNECTED": OperatorTraits((1, 2), (1,), FilterLayout(0, 2), reports_sparsity=True),
    "BATCH_MATMUL": OperatorTraits((0, 1), (0, 1)),
    "LSTM": OperatorTraits(_LSTM.parameter_inputs),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM,
    "RNN": _RNN,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _RNN,
    "SVDF": _RNN,
    "EMBEDDING_LOOKUP": OperatorTraits((1,), is_lookup=True),
    "GATHER": _LOOKUP,
    "GATHER_ND": _LOOKUP,
    "QUANTIZE": _PASS_THROUGH,
    "DEQUANTIZE": _PASS_THROUGH,
    "RESHAPE": _PASS_THROUGH,
    "VAR_HANDLE": _VARIABLE_ACCESS,
    "ASSIGN_VARIABLE": _VARIABLE_ACCESS,
    "CALL_ONCE": OperatorTraits(keeps_state=True, body_options=("initSubgraphIndex",)),
    # The body of a loop or branch counts once, however often it runs.
    "IF": OperatorTraits(has_uncounted_macs=True, body_options=("thenSubgraphIndex", "elseSubgraphIndex")),
    "WHILE": OperatorTraits(has_uncounted_macs=True, body_options=("condSubgraphIndex", "bodySubgraphIndex")),
    "CALL": _UNCOUNTED,
    "STABLEHLO_WHILE": _UNCOUNTED,
    "STABLEHLO_COMPOSITE": _UNCOUNTED,
    "STABLEHLO_CONVOLUTION": _UNCOUNTED,
    "STABLEHLO_DOT_GENERAL": _UNCOUNTED,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _UNCOUNTED,
    "BIDIRECTIONAL_SEQUENCE_RNN": _UNCOUNTED,
    "LSH_PROJECTION": _UNCOUNTED,
    "RFFT2D": _UNCOUNTED,
}
_UNLISTED = OperatorTraits()


def facts_of(name: str) -> OperatorTraits:
    """The facts of the operator `name`; the defaults if the table does not list it, as for custom operators."""
    return OPERATORS.get(name, _UNLISTED)
