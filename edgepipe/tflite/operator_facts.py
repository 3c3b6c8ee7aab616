"""What is known of TensorFlow Lite's builtin operators by their name alone, in one table.

Input positions and axes are those of the schema and the reference kernels (tensorflow/lite/kernels). Rules that need
shapes live where they are used: MACs in `macs`, scratch memory in `kernel_scratch`, arena structures in `arena_tail`.
"""

from dataclasses import dataclass
from typing import NamedTuple


class FilterLayout(NamedTuple):
    """Filters of a convolution or dense layer: the axis of the weights (input 1) that counts them, and the bias."""

    filter_axis: int
    bias_position: int


@dataclass(frozen=True)
class OperatorTraits:
    """The facts of one operator; the defaults hold for every operator that is not in the table."""

    parameter_positions: tuple[int, ...] = ()  # positions of weights, biases and other learned numbers
    kernel_positions: tuple[int, ...] = ()  # positions of the matrices and filters that pruning sets to zero
    filter_layout: FilterLayout | None = None
    is_conv_2d: bool = False  # slides filters over height and width, forwards
    reports_sparsity: bool = False  # `reader.weight_sparsity` lists its weights
    is_per_channel: bool = False  # TFLM's kernel keeps a multiplier and a shift for each filter, even with one scale
    is_lookup: bool = False  # reads only as much of its first constant as it writes
    passes_values: bool = False  # gives its input in another type or shape
    keeps_state: bool = False  # reads or writes what outlives the call, besides variable tensors
    has_uncounted_macs: bool = False  # may multiply and accumulate, but `macs` has no formula for it
    body_option_names: tuple[str, ...] = ()  # options that name the subgraphs it runs


_LSTM_TRAITS = OperatorTraits(
    parameter_positions=(*range(1, 18), *range(20, 24)),  # 18 and 19 are the state
    kernel_positions=tuple(range(1, 9)),
)
_RNN_TRAITS = OperatorTraits(parameter_positions=(1, 2, 3))
_LOOKUP_TRAITS = OperatorTraits(is_lookup=True)
_PASS_THROUGH_TRAITS = OperatorTraits(passes_values=True)
_VARIABLE_ACCESS_TRAITS = OperatorTraits(keeps_state=True)
_UNCOUNTED_TRAITS = OperatorTraits(has_uncounted_macs=True)

TRAITS_BY_OPERATOR: dict[str, OperatorTraits] = {
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
    "LSTM": OperatorTraits(_LSTM_TRAITS.parameter_positions),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _LSTM_TRAITS,
    "RNN": _RNN_TRAITS,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _RNN_TRAITS,
    "SVDF": _RNN_TRAITS,
    "EMBEDDING_LOOKUP": OperatorTraits((1,), is_lookup=True),
    "GATHER": _LOOKUP_TRAITS,
    "GATHER_ND": _LOOKUP_TRAITS,
    "QUANTIZE": _PASS_THROUGH_TRAITS,
    "DEQUANTIZE": _PASS_THROUGH_TRAITS,
    "RESHAPE": _PASS_THROUGH_TRAITS,
    "VAR_HANDLE": _VARIABLE_ACCESS_TRAITS,
    "ASSIGN_VARIABLE": _VARIABLE_ACCESS_TRAITS,
    "CALL_ONCE": OperatorTraits(keeps_state=True, body_option_names=("initSubgraphIndex",)),
    # The body of a loop or branch counts once, however often it runs.
    "IF": OperatorTraits(has_uncounted_macs=True, body_option_names=("thenSubgraphIndex", "elseSubgraphIndex")),
    "WHILE": OperatorTraits(has_uncounted_macs=True, body_option_names=("condSubgraphIndex", "bodySubgraphIndex")),
    "CALL": _UNCOUNTED_TRAITS,
    "STABLEHLO_WHILE": _UNCOUNTED_TRAITS,
    "STABLEHLO_COMPOSITE": _UNCOUNTED_TRAITS,
    "STABLEHLO_CONVOLUTION": _UNCOUNTED_TRAITS,
    "STABLEHLO_DOT_GENERAL": _UNCOUNTED_TRAITS,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _UNCOUNTED_TRAITS,
    "BIDIRECTIONAL_SEQUENCE_RNN": _UNCOUNTED_TRAITS,
    "LSH_PROJECTION": _UNCOUNTED_TRAITS,
    "RFFT2D": _UNCOUNTED_TRAITS,
}
_UNLISTED_TRAITS = OperatorTraits()


def traits_of(name: str) -> OperatorTraits:
    """The facts of the operator `name`; the defaults if the table does not list it, as for custom operators."""
    return TRAITS_BY_OPERATOR.get(name, _UNLISTED_TRAITS)
