"""What an operator's time is made of on a CPU with vector units, from its shapes.

Kernels work on tiles: channels are rounded up to a vector (16, 32 or 64 int8 values), output pixels to a few rows, and
the last tile costs as much as a full one. A convolution reads its inputs through a table of pointers, one for each
output pixel and kernel position, whatever the number of channels. Each term below counts one of these; the fit finds
the seconds of each, none of them negative, and drops those that the device does not know.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from edgepipe.tflite.model import Model, Operator, Tensor

Terms = dict[str, float]
FAST_CACHE = 32 * 1024  # a first-level data cache, in bytes: weights beyond it are fetched again for each tile of rows
ROWS = 16  # output pixels that a matrix kernel works on at a time
FEW_ROWS = 4  # up to here a convolution gets a kernel for single rows, which reads the weights for each of them
VECTOR, BLOCK, WIDE = 16, 32, 64  # int8 channels that kernels work on at a time
# Kinds that XNNPACK leaves to the interpreter, by how they begin; it is entered anew after each run of them.
INTERPRETED = ("softmax", "average_pool_2d", "shape_", "pack_", "strided_slice_int32", "quantize_uint8_int8", "minimum",
               "maximum", "hard_swish", "relu", "resize_nearest_neighbor", "reshape_computed")  # fmt: skip
MATRICES = frozenset({"conv", "conv_few", "pointwise", "vector"})
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})


@dataclass(frozen=True)
class Part:
    """One operator of a model: what kind of work it is, and its terms."""

    place: str
    kind: str
    terms: Terms


def parts(model: Model) -> list[Part]:
    """Every operator of the main subgraph and of those it calls, each counted once."""
    readers = Counter((t.subgraph, t.index) for operator in model.operators for t in operator.inputs if t is not None)
    kernels = {
        (tensor.subgraph, tensor.index)
        for operator in model.operators
        if operator.name in CONVOLUTIONS and (tensor := operator.input(0)) is not None
    }
    return [_part(operator, readers, kernels) for operator in model.operators]


def total(found: list[Part]) -> Terms:
    """The terms of one inference: its parts', the call's, and one for each change back to the delegate."""
    terms: defaultdict[str, float] = defaultdict(float, call=1.0)
    delegated = True
    terms["call_matrix"] = float(any(part.kind in MATRICES for part in found))
    for part in found:
        for name, value in part.terms.items():
            terms[f"{part.kind}.{name}"] += value
        now = not part.kind.startswith(INTERPRETED)
        terms["change"] += float(now and not delegated)
        delegated = now
    return dict(terms)


def _part(operator: Operator, readers: Counter[tuple[int, int]], kernels: set[tuple[int, int]]) -> Part:
    out = operator.outputs[0] if operator.outputs else None
    key = (out.subgraph, out.index) if out is not None else None
    if operator.name == "PAD" and key in kernels and readers[key] == 1:
        return Part(operator.place, "pad_fused", {"one": 1.0})  # XNNPACK pads while it convolves
    kind, terms = _terms(operator)
    return Part(operator.place, kind, {name: float(value) for name, value in terms.items() if value})


def _terms(operator: Operator) -> tuple[str, Terms]:
    weights = operator.input(1)
    known = weights is not None and len(weights.shape) in (2, 4)
    if operator.name == "CONV_2D" and known and _shape(weights)[0] == _shape(weights)[3] == 1:
        return _typed("depthwise", operator), _depthwise(operator)  # XNNPACK takes one channel for a depthwise one
    if operator.name == "CONV_2D" and known:
        return _convolution(operator)
    if operator.name == "DEPTHWISE_CONV_2D" and known:
        return _typed("depthwise", operator), _depthwise(operator)
    if operator.name == "FULLY_CONNECTED" and known:
        return _dense(operator)
    return _typed(_plain(operator), operator), _moved(operator)


def _typed(kind: str, operator: Operator) -> str:
    """The kind with the type of its data where that is not int8: a float kernel is another kernel."""
    first, out = operator.input(0), operator.outputs[0] if operator.outputs else None
    if operator.name in ("QUANTIZE", "DEQUANTIZE", "CAST") and first is not None and out is not None:
        return f"{kind}_{first.dtype}_{out.dtype}"
    return kind if out is None or out.dtype == "int8" else f"{kind}_{out.dtype}"


def _plain(operator: Operator) -> str:
    """The name; that of an elementwise one says whether its second operand is a constant or has fewer elements."""
    name, first, second = operator.name.lower(), operator.input(0), operator.input(1)
    if operator.name == "RESHAPE" and second is not None and not second.constant:
        return "reshape_computed"
    if operator.name not in ("ADD", "SUB", "MUL", "MINIMUM", "MAXIMUM") or first is None or second is None:
        return name
    if second.constant or first.constant:
        return f"{name}_constant"
    return name if first.elements == second.elements else f"{name}_broadcast"


def _convolution(operator: Operator) -> tuple[str, Terms]:
    filters, height, width, channels = _shape(operator.input(1))
    rows, taps = math.prod(_shape(operator.outputs[0])[:-1]), height * width
    moves = operator.options.get("strideW", 1), operator.options.get("strideH", 1)
    if taps == 1 and moves == (1, 1):
        return _typed("vector" if rows == 1 else "pointwise", operator), _matrix(rows, 1, channels, filters)
    return _typed("conv_few" if rows <= FEW_ROWS else "conv", operator), _matrix(rows, taps, channels, filters)


def _dense(operator: Operator) -> tuple[str, Terms]:
    units, inputs = _shape(operator.input(1))
    out = operator.outputs[0]
    rows = max(1, out.elements // max(1, units)) if out is not None else 1
    return _typed("vector" if rows == 1 else "pointwise", operator), _matrix(rows, 1, inputs, units)


def _matrix(rows: int, taps: int, channels: int, filters: int) -> Terms:
    """rows x (taps * channels) times (taps * channels) x filters."""
    tiles, blocks = _up(rows, ROWS), _up(filters, WIDE)
    depth, size = taps * _up(channels, WIDE), filters * taps * channels
    return {
        "one": 1,
        "rows": rows,
        "row_taps": rows * taps,
        "row_vectors": rows * _up(filters, VECTOR),
        "row_tap_blocks": rows * taps * blocks,
        "row_tap_vectors": rows * taps * _up(channels, VECTOR),
        "tile_blocks": tiles * blocks,
        "tile_tap_blocks": tiles * blocks * taps,
        "tile_tap_blocks_deep": tiles * blocks * taps if channels > WIDE else 0,
        "tile_work": tiles * blocks * depth,
        "tile_work_narrow": tiles * _up(filters, VECTOR) * depth,
        "input": rows * channels,
        "output": rows * filters,
        "work": rows * size,
        "weights": size,
        "weights_again": size * (tiles - 1) if size > FAST_CACHE else 0,
    }


def _depthwise(operator: Operator) -> Terms:
    _, height, width, channels = _shape(operator.input(1))
    rows, taps = math.prod(_shape(operator.outputs[0])[:-1]), height * width
    return {
        "one": 1,
        "rows": rows,
        "row_taps": rows * taps,
        "row_vectors": rows * _up(channels, VECTOR),
        "row_tap_vectors": rows * taps * _up(channels, VECTOR),
        "row_tap_blocks": rows * taps * _up(channels, BLOCK),
        "input": _elements(operator.input(0)),
        "weights": taps * channels,
    }


def _moved(operator: Operator) -> Terms:
    """An operator whose time goes with the bytes it reads and writes, and with the rows they lie in."""
    written = [tensor for tensor in operator.outputs if tensor is not None]
    return {
        "one": 1,
        "read": sum(tensor.bytes for tensor in operator.inputs if tensor is not None and not tensor.constant),
        "written": sum(tensor.bytes for tensor in written),
        "rows": sum(math.prod(tensor.shape[:-1]) for tensor in written),
        "window": sum(tensor.elements for tensor in written) * _window(operator),
        "work": operator.macs,
    }


def _window(operator: Operator) -> int:
    """Elements that a pool reads for each one it writes; 0 of other operators."""
    sides = operator.options.get("filterHeight", 0), operator.options.get("filterWidth", 0)
    return math.prod(side for side in sides if isinstance(side, int))


def _up(value: int, step: int) -> int:
    """How many steps hold the value."""
    return -(-value // step)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tensor.shape


def _elements(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.elements
