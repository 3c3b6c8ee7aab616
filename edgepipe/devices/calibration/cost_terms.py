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

Terms = dict[str, float]
L1_BYTES = 32 * 1024  # L1 data cache: weights beyond it are fetched again for each tile of rows
TILE_ROWS = 16  # output pixels per tile of a matrix kernel
FEW_ROWS = 4  # up to here a convolution uses single-row kernels, which read the weights for each row
VECTOR_CHANNELS, BLOCK_CHANNELS, WIDE_CHANNELS = 16, 32, 64  # int8 channels per step of a kernel
# Kinds that XNNPACK leaves to the interpreter, by prefix; the delegate is re-entered after each run of them.
NON_XNNPACK = ("softmax", "average_pool_2d", "shape_", "pack_", "strided_slice_int32", "quantize_uint8_int8", "minimum",
               "maximum", "hard_swish", "relu", "resize_nearest_neighbor", "reshape_computed")  # fmt: skip
MATRIX_KINDS = frozenset({"conv", "conv_few", "pointwise", "vector"})


@dataclass(frozen=True)
class OperatorCost:
    """One operator of a model: its kind of work, and its terms."""

    operator_label: str
    kind: str
    terms: Terms


def operator_costs(model: Model) -> list[OperatorCost]:
    """The cost of every operator of the model, those of called subgraphs counted once."""
    reader_counts = Counter(
        (t.subgraph, t.index) for operator in model.operators for t in operator.inputs if t is not None
    )
    convolution_inputs = {
        (tensor.subgraph, tensor.index)
        for operator in model.operators
        if operator.facts.is_conv_2d and (tensor := operator.input(0)) is not None
    }
    return [_operator_cost(operator, reader_counts, convolution_inputs) for operator in model.operators]


def sum_terms(costs: list[OperatorCost]) -> Terms:
    """The terms of one inference: those of its operators, of the call, and one per change back to the delegate."""
    terms: defaultdict[str, float] = defaultdict(float, call=1.0)
    was_delegated = True
    terms["call_matrix"] = float(any(cost.kind in MATRIX_KINDS for cost in costs))
    for cost in costs:
        for name, amount in cost.terms.items():
            terms[f"{cost.kind}.{name}"] += amount
        is_delegated = not cost.kind.startswith(NON_XNNPACK)
        terms["change"] += float(is_delegated and not was_delegated)
        was_delegated = is_delegated
    return dict(terms)


def _operator_cost(
    operator: Operator, reader_counts: Counter[tuple[int, int]], convolution_inputs: set[tuple[int, int]]
) -> OperatorCost:
    output = operator.outputs[0] if operator.outputs else None
    key = (output.subgraph, output.index) if output is not None else None
    if operator.name == "PAD" and key in convolution_inputs and reader_counts[key] == 1:
        return OperatorCost(operator.location, "pad_fused", {"one": 1.0})  # XNNPACK pads while it convolves
    kind, terms = _kind_and_terms(operator)
    return OperatorCost(operator.location, kind, {name: float(amount) for name, amount in terms.items() if amount})


def _kind_and_terms(operator: Operator) -> tuple[str, Terms]:
    weights = operator.input(1)
    has_kernel = weights is not None and len(weights.shape) in (2, 4)
    if operator.name == "CONV_2D" and has_kernel and _shape(weights)[0] == _shape(weights)[3] == 1:
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
    return name if first_operand.elements == second_operand.elements else f"{name}_broadcast"


def _convolution_terms(operator: Operator) -> tuple[str, Terms]:
    filters, height, width, channels = _shape(operator.input(1))
    rows, taps = math.prod(_shape(operator.outputs[0])[:-1]), height * width
    strides = operator.options.get("strideW", 1), operator.options.get("strideH", 1)
    if taps == 1 and strides == (1, 1):
        kind = "vector" if rows == 1 else "pointwise"
    else:
        kind = "conv_few" if rows <= FEW_ROWS else "conv"
    return _kind_with_dtype(kind, operator), _matrix_terms(rows, taps, channels, filters)


def _dense_terms(operator: Operator) -> tuple[str, Terms]:
    units, inputs = _shape(operator.input(1))
    output = operator.outputs[0]
    rows = max(1, output.elements // max(1, units)) if output is not None else 1
    return _kind_with_dtype("vector" if rows == 1 else "pointwise", operator), _matrix_terms(rows, 1, inputs, units)


def _matrix_terms(rows: int, taps: int, channels: int, filters: int) -> Terms:
    """The product of rows x (taps * channels) and (taps * channels) x filters."""
    tiles, blocks = _ceil_div(rows, TILE_ROWS), _ceil_div(filters, WIDE_CHANNELS)
    depth, weight_count = taps * _ceil_div(channels, WIDE_CHANNELS), filters * taps * channels
    return {
        "one": 1,
        "rows": rows,
        "row_taps": rows * taps,
        "row_vectors": rows * _ceil_div(filters, VECTOR_CHANNELS),
        "row_tap_blocks": rows * taps * blocks,
        "row_tap_vectors": rows * taps * _ceil_div(channels, VECTOR_CHANNELS),
        "tile_blocks": tiles * blocks,
        "tile_tap_blocks": tiles * blocks * taps,
        "tile_tap_blocks_deep": tiles * blocks * taps if channels > WIDE_CHANNELS else 0,
        "tile_work": tiles * blocks * depth,
        "tile_work_narrow": tiles * _ceil_div(filters, VECTOR_CHANNELS) * depth,
        "input": rows * channels,
        "output": rows * filters,
        "work": rows * weight_count,
        "weights": weight_count,
        "weights_again": weight_count * (tiles - 1) if weight_count > L1_BYTES else 0,
    }


def _depthwise_terms(operator: Operator) -> Terms:
    _, height, width, channels = _shape(operator.input(1))
    rows, taps = math.prod(_shape(operator.outputs[0])[:-1]), height * width
    return {
        "one": 1,
        "rows": rows,
        "row_taps": rows * taps,
        "row_vectors": rows * _ceil_div(channels, VECTOR_CHANNELS),
        "row_tap_vectors": rows * taps * _ceil_div(channels, VECTOR_CHANNELS),
        "row_tap_blocks": rows * taps * _ceil_div(channels, BLOCK_CHANNELS),
        "input": _elements(operator.input(0)),
        "weights": taps * channels,
    }


def _move_terms(operator: Operator) -> Terms:
    """Terms of an operator whose time depends on the bytes it reads and writes, and on their rows."""
    output_tensors = [tensor for tensor in operator.outputs if tensor is not None]
    return {
        "one": 1,
        "read": sum(tensor.bytes for tensor in operator.inputs if tensor is not None and not tensor.is_constant),
        "written": sum(tensor.bytes for tensor in output_tensors),
        "rows": sum(math.prod(tensor.shape[:-1]) for tensor in output_tensors),
        "window": sum(tensor.elements for tensor in output_tensors) * _pool_window(operator),
        "work": operator.macs,
    }


def _pool_window(operator: Operator) -> int:
    """Elements that a pool reads per element written; 0 for other operators."""
    sides = operator.options.get("filterHeight", 0), operator.options.get("filterWidth", 0)
    return math.prod(side for side in sides if isinstance(side, int))


def _ceil_div(amount: int, step: int) -> int:
    """`amount` / `step`, rounded up."""
    return -(-amount // step)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tensor.shape


def _elements(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.elements
