"""The terms of an operator's time on a CPU with vector units, from its shapes.

Kernels work on tiles: channels are rounded up to a vector (16, 32 or 64 int8 values), output pixels to a few rows, and
the last tile costs as much as a full one. A convolution reads its inputs through a table of pointers, one per output
pixel and kernel position, for any number of channels. Each term below counts one of these; the fit finds non-negative
seconds for each, which are 0 for terms that do not matter on the device.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from edgepipe.tflite.model import Model, Operator, Tensor

TermAmounts = dict[str, float]
L1_BYTES = 32 * 1024  # L1 data cache: weights beyond it are fetched again for each tile of rows
TILE_ROWS = 16  # output pixels per tile of a matrix kernel
MAX_FEW_ROWS = 4  # up to here a convolution uses single-row kernels, which read the weights for each row
VECTOR_CHANNELS, BLOCK_CHANNELS, WIDE_CHANNELS = 16, 32, 64  # int8 channels per step of a kernel
# Kinds that XNNPACK leaves to the interpreter, by prefix; the delegate is re-entered after each run of them.
NON_XNNPACK_PREFIXES = (
    "softmax", "average_pool_2d", "shape_", "pack_", "strided_slice_int32", "quantize_uint8_int8", "minimum",
    "maximum", "hard_swish", "relu", "resize_nearest_neighbor", "reshape_computed",
)  # fmt: skip
MATRIX_KINDS = frozenset({"conv", "conv_few", "pointwise", "vector"})


@dataclass(frozen=True)
class OperatorCost:
    """One operator of a model: its kind of work, and its terms."""

    operator_label: str
    kind: str
    term_amounts: TermAmounts


def compute_operator_costs(model: Model) -> list[OperatorCost]:
    """The cost of every operator of the model, those of called subgraphs counted once."""
    reader_count_by_tensor = Counter(
        (t.subgraph_index, t.index) for operator in model.operators for t in operator.inputs if t is not None
    )
    convolution_input_keys = {
        (tensor.subgraph_index, tensor.index)
        for operator in model.operators
        if operator.traits.is_conv_2d and (tensor := operator.input(0)) is not None
    }
    return [
        _compute_operator_cost(operator, reader_count_by_tensor, convolution_input_keys) for operator in model.operators
    ]


def sum_terms(operator_costs: list[OperatorCost]) -> TermAmounts:
    """The terms of one inference: those of its operators, of the call, and one per change back to the delegate."""
    term_amounts: defaultdict[str, float] = defaultdict(float, call=1.0)
    was_delegated = True
    term_amounts["call_matrix"] = float(any(cost.kind in MATRIX_KINDS for cost in operator_costs))
    for cost in operator_costs:
        for name, amount in cost.term_amounts.items():
            term_amounts[f"{cost.kind}.{name}"] += amount
        is_delegated = not cost.kind.startswith(NON_XNNPACK_PREFIXES)
        term_amounts["change"] += float(is_delegated and not was_delegated)
        was_delegated = is_delegated
    return dict(term_amounts)


def _compute_operator_cost(
    operator: Operator, reader_count_by_tensor: Counter[tuple[int, int]], convolution_input_keys: set[tuple[int, int]]
) -> OperatorCost:
    output = operator.outputs[0] if operator.outputs else None
    output_key = (output.subgraph_index, output.index) if output is not None else None
    if operator.name == "PAD" and output_key in convolution_input_keys and reader_count_by_tensor[output_key] == 1:
        return OperatorCost(operator.location, "pad_fused", {"one": 1.0})  # XNNPACK pads while it convolves
    kind, term_amounts = _kind_and_terms(operator)
    return OperatorCost(
        operator.location, kind, {name: float(amount) for name, amount in term_amounts.items() if amount}
    )


def _kind_and_terms(operator: Operator) -> tuple[str, TermAmounts]:
    weight_tensor = operator.input(1)
    has_kernel = weight_tensor is not None and len(weight_tensor.shape) in (2, 4)
    if (
        operator.name == "CONV_2D"
        and has_kernel
        and _shape_or_empty(weight_tensor)[0] == _shape_or_empty(weight_tensor)[3] == 1
    ):
        # XNNPACK runs a convolution with a single channel as a depthwise one.
        return _kind_with_dtype("depthwise", operator), _depthwise_terms(operator)
    if operator.name == "CONV_2D" and has_kernel:
        return _convolution_terms(operator)
    if operator.name == "DEPTHWISE_CONV_2D" and has_kernel:
        return _kind_with_dtype("depthwise", operator), _depthwise_terms(operator)
    if operator.name == "FULLY_CONNECTED" and has_kernel:
        return _dense_terms(operator)
    return _kind_with_dtype(_operator_kind(operator), operator), _move_terms(operator)


def _kind_with_dtype(kind: str, operator: Operator) -> str:
    """The kind with its dtype unless that is int8: other dtypes have other kernels."""
    input_tensor, output_tensor = operator.input(0), operator.outputs[0] if operator.outputs else None
    if operator.name in ("QUANTIZE", "DEQUANTIZE", "CAST") and input_tensor is not None and output_tensor is not None:
        return f"{kind}_{input_tensor.dtype}_{output_tensor.dtype}"
    return kind if output_tensor is None or output_tensor.dtype == "int8" else f"{kind}_{output_tensor.dtype}"


def _operator_kind(operator: Operator) -> str:
    """The operator name; for elementwise ones with a suffix if an operand is constant or broadcast."""
    name, first_operand, second_operand = operator.name.lower(), operator.input(0), operator.input(1)
    if operator.name == "RESHAPE" and second_operand is not None and not second_operand.is_constant:
        return "reshape_computed"
    if (
        operator.name not in ("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM")
        or first_operand is None
        or second_operand is None
    ):
        return name
    if second_operand.is_constant or first_operand.is_constant:
        return f"{name}_constant"
    return name if first_operand.element_count == second_operand.element_count else f"{name}_broadcast"


def _convolution_terms(operator: Operator) -> tuple[str, TermAmounts]:
    filters, height, width, channels = _shape_or_empty(operator.input(1))
    row_count, tap_count = math.prod(_shape_or_empty(operator.outputs[0])[:-1]), height * width
    strides = operator.options.get("strideW", 1), operator.options.get("strideH", 1)
    if tap_count == 1 and strides == (1, 1):
        kind = "vector" if row_count == 1 else "pointwise"
    else:
        kind = "conv_few" if row_count <= MAX_FEW_ROWS else "conv"
    return _kind_with_dtype(kind, operator), _matrix_terms(row_count, tap_count, channels, filters)


def _dense_terms(operator: Operator) -> tuple[str, TermAmounts]:
    units, inputs = _shape_or_empty(operator.input(1))
    output = operator.outputs[0]
    row_count = max(1, output.element_count // max(1, units)) if output is not None else 1
    return _kind_with_dtype("vector" if row_count == 1 else "pointwise", operator), _matrix_terms(
        row_count, 1, inputs, units
    )


def _matrix_terms(row_count: int, tap_count: int, channels: int, filters: int) -> TermAmounts:
    """The product of rows x (taps * channels) and (taps * channels) x filters."""
    tile_count, block_count = _ceil_div(row_count, TILE_ROWS), _ceil_div(filters, WIDE_CHANNELS)
    depth, weight_count = tap_count * _ceil_div(channels, WIDE_CHANNELS), filters * tap_count * channels
    return {
        "one": 1,
        "rows": row_count,
        "row_taps": row_count * tap_count,
        "row_vectors": row_count * _ceil_div(filters, VECTOR_CHANNELS),
        "row_tap_blocks": row_count * tap_count * block_count,
        "row_tap_vectors": row_count * tap_count * _ceil_div(channels, VECTOR_CHANNELS),
        "tile_blocks": tile_count * block_count,
        "tile_tap_blocks": tile_count * block_count * tap_count,
        "tile_tap_blocks_deep": tile_count * block_count * tap_count if channels > WIDE_CHANNELS else 0,
        "tile_work": tile_count * block_count * depth,
        "tile_work_narrow": tile_count * _ceil_div(filters, VECTOR_CHANNELS) * depth,
        "input": row_count * channels,
        "output": row_count * filters,
        "work": row_count * weight_count,
        "weights": weight_count,
        "weights_again": weight_count * (tile_count - 1) if weight_count > L1_BYTES else 0,
    }


def _depthwise_terms(operator: Operator) -> TermAmounts:
    _, height, width, channels = _shape_or_empty(operator.input(1))
    row_count, tap_count = math.prod(_shape_or_empty(operator.outputs[0])[:-1]), height * width
    return {
        "one": 1,
        "rows": row_count,
        "row_taps": row_count * tap_count,
        "row_vectors": row_count * _ceil_div(channels, VECTOR_CHANNELS),
        "row_tap_vectors": row_count * tap_count * _ceil_div(channels, VECTOR_CHANNELS),
        "row_tap_blocks": row_count * tap_count * _ceil_div(channels, BLOCK_CHANNELS),
        "input": _element_count(operator.input(0)),
        "weights": tap_count * channels,
    }


def _move_terms(operator: Operator) -> TermAmounts:
    """Terms of an operator whose time depends on the bytes it reads and writes, and on their rows."""
    output_tensors = [tensor for tensor in operator.outputs if tensor is not None]
    return {
        "one": 1,
        "read": sum(tensor.bytes for tensor in operator.inputs if tensor is not None and not tensor.is_constant),
        "written": sum(tensor.bytes for tensor in output_tensors),
        "rows": sum(math.prod(tensor.shape[:-1]) for tensor in output_tensors),
        "window": sum(tensor.element_count for tensor in output_tensors) * _pool_window(operator),
        "work": operator.macs,
    }


def _pool_window(operator: Operator) -> int:
    """Elements that a pool reads per element written; 0 for other operators."""
    window_sides = operator.options.get("filterHeight", 0), operator.options.get("filterWidth", 0)
    return math.prod(side for side in window_sides if isinstance(side, int))


def _ceil_div(amount: int, step: int) -> int:
    """`amount` / `step`, rounded up."""
    return -(-amount // step)


def _shape_or_empty(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tensor.shape


def _element_count(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.element_count
