"""Random models of one to twelve layers, of every kind of operator that converters write, in four types.

A model is a chain with branches: each layer takes the newest tensor, and one of two takes an earlier one of the same
shape too. Scales are such that numbers neither vanish nor saturate. `write_random_model(seed, path)` is a pure function
of the seed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from runtime_models import options
from tflite_handmade import Op, T, write

KINDS = ("int8", "int8", "int8", "int8", "int16", "float32", "hybrid", "uint8")  # one of two is int8
STEP = {"int8": 0.05, "uint8": 0.05, "int16": 0.0005}
MAX_ELEMENTS = 4096  # of a tensor


class Network:
    """A graph under construction; `current` is the tensor that the next layer takes."""

    def __init__(self, kind: str, rng: np.random.Generator) -> None:
        self.kind, self.rng = kind, rng
        self.dtype = "float32" if kind == "hybrid" else kind
        self.tensors: list[T] = []
        self.ops: list[Op] = []
        self.current = self.activation((1, *(int(rng.choice([4, 8])) for _ in range(2)), int(rng.choice([4, 8]))))
        self.input_name = self.current.name

    def activation(
        self, shape: tuple[int, ...], dtype: str | None = None, scale: float | None = None, zero: int = 0
    ) -> T:
        """A new tensor that an operator computes."""
        dtype = dtype or self.dtype
        scales = () if dtype in ("float32", "int32", "bool") else (scale or STEP[dtype],)
        zero_point = zero if dtype != "uint8" else zero + 128
        tensor = T(f"t{len(self.tensors)}", shape, dtype, scales=scales, zero_points=(zero_point,) if scales else ())
        self.tensors.append(tensor)
        return tensor

    def constant(self, array: Any, **more: Any) -> str:
        """A new constant; its name."""
        array = np.asarray(array)
        self.tensors.append(T(f"t{len(self.tensors)}", array.shape, more.pop("dtype", str(array.dtype)), array, **more))
        return self.tensors[-1].name

    def indices(self, *numbers: int) -> str:
        """A constant list of int32."""
        return self.constant(np.array(numbers, np.int32))

    def weights(self, shape: tuple[int, ...], axis: int) -> tuple[str, str]:
        """Weights and a bias, with a scale for each index of `axis` or, one time in three, a single one."""
        count = shape[axis]
        if self.dtype == "float32" and self.kind != "hybrid":
            names = [self.rng.normal(size=size).astype("float32") / 4 for size in (shape, (count,))]
            return self.constant(names[0]), self.constant(names[1])
        per_axis = self.kind != "uint8" and self.rng.random() < 0.67
        scales = tuple(self.rng.uniform(0.003, 0.006, count)) if per_axis else (0.005,)
        if self.kind == "uint8":
            quantized = self.constant(
                self.rng.integers(1, 256, shape).astype(np.uint8), scales=scales, zero_points=(128,)
            )
        else:
            quantized = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8), scales=scales, axis=axis)
        if self.kind == "hybrid":
            return quantized, self.constant(np.zeros(count, np.float32))
        bias_type = np.int64 if self.kind == "int16" else np.int32
        input_scale = self.current.scales[0]
        bias_scales = tuple(input_scale * scale for scale in scales)
        return quantized, self.constant(self.rng.integers(-50, 50, count).astype(bias_type), scales=bias_scales)

    def add(self, name: str, inputs: tuple[str, ...], output: T, table: Any = None, version: int = 1) -> None:
        """Append an operator, whose output is what the next layer takes."""
        self.ops.append(Op(name, inputs, (output.name,), table, version=version))
        self.current = output

    def partner(self) -> str:
        """An earlier tensor of the shape of the current one, or the current one itself."""
        earlier = [
            t.name
            for t in self.tensors
            if t.data is None and (t.shape, t.dtype) == (self.current.shape, self.current.dtype)
        ]
        return str(self.rng.choice(earlier))


Layer = Callable[[Network], None]
STRIDES = {"strideW": 1, "strideH": 1}
DILATED = {**STRIDES, "dilationWFactor": 1, "dilationHFactor": 1}


def _version(net: Network, base: int = 3, wide: int = 4) -> int:
    return wide if net.kind == "int16" else base


def conv(net: Network) -> None:
    batch, height, width, depth = net.current.shape
    filters, size, stride = int(net.rng.choice([4, 8])), int(net.rng.choice([1, 3])), int(net.rng.choice([1, 2]))
    weights, bias = net.weights((filters, size, size, depth), 0)
    table = options(
        "Conv2DOptions",
        **{**DILATED, "strideW": stride, "strideH": stride},
        fusedActivationFunction=int(net.rng.choice([0, 1, 3])),
    )
    output = net.activation((batch, -(-height // stride), -(-width // stride), filters))
    net.add(
        "CONV_2D", (net.current.name, weights, bias), output, table, _version(net, 5 if net.kind == "hybrid" else 3)
    )


def depthwise(net: Network) -> None:
    shape = net.current.shape
    weights, bias = net.weights((1, 3, 3, shape[3]), 3)
    table = options("DepthwiseConv2DOptions", depthMultiplier=1, **DILATED)
    version = _version(net, 6 if net.kind == "hybrid" else 3, 5)
    net.add("DEPTHWISE_CONV_2D", (net.current.name, weights, bias), net.activation(shape), table, version)


def transpose_conv(net: Network) -> None:
    batch, height, width, depth = net.current.shape
    weights, bias = net.weights((4, 2, 2, depth), 0)
    shape = net.indices(batch, 2 * height, 2 * width, 4)
    table = options("TransposeConvOptions", strideW=2, strideH=2)
    net.add(
        "TRANSPOSE_CONV",
        (shape, weights, net.current.name, bias),
        net.activation((batch, 2 * height, 2 * width, 4)),
        table,
        3,
    )


def dense(net: Network) -> None:
    shape = net.current.shape
    weights, bias = net.weights((6, shape[-1]), 0)
    table = options("FullyConnectedOptions", keepNumDims=True)
    per_axis = len(next(t for t in net.tensors if t.name == weights).scales) > 1
    version = 9 if net.kind == "hybrid" else 7 if net.kind == "int16" else 12 if per_axis else 5
    net.add("FULLY_CONNECTED", (net.current.name, weights, bias), net.activation((*shape[:-1], 6)), table, version)


def pool(name: str) -> Layer:
    def layer(net: Network) -> None:
        batch, height, width, depth = net.current.shape
        table = options("Pool2DOptions", strideW=2, strideH=2, filterWidth=2, filterHeight=2)
        output = net.activation((batch, -(-height // 2), -(-width // 2), depth), scale=_scale(net))
        net.add(name, (net.current.name,), output, table)

    return layer


def _scale(net: Network) -> float | None:
    return net.current.scales[0] if net.current.scales else None


def unary(name: str, table: str = "", version: int = 1, **fields: Any) -> Layer:
    def layer(net: Network) -> None:
        output = net.activation(net.current.shape, scale=_scale(net))
        net.add(name, (net.current.name,), output, options(table, **fields) if table else None, version)

    return layer


def bounded(name: str, low: float, width: float) -> Layer:
    """An operator whose output has a scale that its kernel prescribes."""

    def layer(net: Network) -> None:
        scale, zero = (1 / 32768, 0) if net.kind == "int16" else (width / 256, -128 if low == 0 else 0)
        table = options("SoftmaxOptions", beta=1.0) if name == "SOFTMAX" else None
        net.add(name, (net.current.name,), net.activation(net.current.shape, scale=scale, zero=zero), table)

    return layer


def binary(name: str, table: str, version: int = 1) -> Layer:
    def layer(net: Network) -> None:
        # ADD and SUB of int16 need scales that are powers of two, or pot_scale_int16 off and version 4
        fields = {"potScaleInt16": False} if net.kind == "int16" and name in ("ADD", "SUB") else {}
        net.add(
            name, (net.current.name, net.partner()), net.activation(net.current.shape, scale=_scale(net)),
            options(table, **fields) if table else None, version,
        )  # fmt: skip

    return layer


def reduce(name: str) -> Layer:
    def layer(net: Network) -> None:
        shape, keep = net.current.shape, bool(net.rng.random() < 0.5)
        target = (shape[0], 1, 1, shape[3]) if keep else (shape[0], shape[3])
        scale = _scale(net)
        if name == "SUM" and scale:  # else it saturates, which kernels do differently
            scale *= shape[1] * shape[2]
        output = net.activation(target, scale=scale)
        net.add(name, (net.current.name, net.indices(1, 2)), output, options("ReducerOptions", keepDims=keep))

    return layer


def _moved(
    name: str,
    shape: Callable[[tuple[int, ...]], tuple[int, ...]],
    operands: Callable[[Network], tuple[str, ...]] | None = None,
    table: str = "",
    **fields: Any,
) -> Layer:
    """An operator that moves numbers without computing, so that the scale stays."""

    def layer(net: Network) -> None:
        extra = operands(net) if operands is not None else ()
        output = net.activation(shape(net.current.shape), scale=_scale(net))
        net.add(name, (net.current.name, *extra), output, options(table, **fields) if table else None)

    return layer


def concatenate(net: Network) -> None:
    shape = net.current.shape
    output = net.activation((*shape[:-1], 2 * shape[-1]), scale=_scale(net))
    net.add(
        "CONCATENATION", (net.current.name, net.partner()), output, options("ConcatenationOptions", axis=len(shape) - 1)
    )


def strided_slice(net: Network) -> None:
    shape = net.current.shape
    operands = (
        net.indices(0, 0, 0, 0),
        net.indices(1, shape[1], shape[2], max(shape[3] // 2, 1)),
        net.indices(1, 1, 1, 1),
    )
    output = net.activation((*shape[:3], max(shape[3] // 2, 1)), scale=_scale(net))
    net.add("STRIDED_SLICE", (net.current.name, *operands), output, options("StridedSliceOptions"))


def prelu(net: Network) -> None:
    slopes = np.full((1, 1, net.current.shape[3]), 0.25, np.float32)
    name = (
        net.constant(slopes)
        if net.dtype == "float32"
        else net.constant((slopes * 100).astype(net.dtype), scales=(0.01,), zero_points=(0,))
    )
    net.add("PRELU", (net.current.name, name), net.activation(net.current.shape))


def positive(name: str) -> Layer:
    """A function of positive numbers, behind an ABS."""

    def layer(net: Network) -> None:
        unary("ABS")(net)
        unary(name)(net)

    return layer


def divide(name: str, table: str) -> Layer:
    """A division by a constant that has no zeros."""

    def layer(net: Network) -> None:
        shape, is_float = net.current.shape, net.dtype == "float32"
        divisor = 2 if is_float else 168 if net.dtype == "uint8" else 40
        quantization = {} if is_float else {"scales": net.current.scales, "zero_points": net.current.zero_points}
        divisors = net.constant(np.full(shape, divisor, net.dtype), **quantization)
        net.add(name, (net.current.name, divisors), net.activation(shape, scale=_scale(net)), options(table))

    return layer


def requantize(net: Network) -> None:
    if net.dtype == "float32":
        return unary("NEG")(net)
    return net.add("QUANTIZE", (net.current.name,), net.activation(net.current.shape, scale=1.5 * STEP[net.dtype]))


def float_part(net: Network) -> None:
    """DEQUANTIZE, an operator in float, QUANTIZE."""
    if net.dtype == "float32":
        return unary("COS")(net)
    shape = net.current.shape
    net.add("DEQUANTIZE", (net.current.name,), net.activation(shape, "float32"))
    net.add(str(net.rng.choice(["SIN", "COS", "ABS"])), (net.current.name,), net.activation(shape, "float32"))
    return net.add("QUANTIZE", (net.current.name,), net.activation(shape))


def matmul(net: Network) -> None:
    shape = net.current.shape
    transposed = net.activation((*shape[:2], shape[3], shape[2]), scale=_scale(net))
    before = net.current.name
    net.add("TRANSPOSE", (before, net.indices(0, 1, 3, 2)), transposed, options("TransposeOptions"))
    output = net.activation((*shape[:3], shape[2]))
    net.add("BATCH_MATMUL", (before, transposed.name), output, options("BatchMatMulOptions"))


def dilated_pair(net: Network) -> None:
    batch, height, width, depth = net.current.shape
    blocks, none = net.indices(2, 2), net.constant(np.zeros((2, 2), np.int32))
    inside = net.activation((4 * batch, height // 2, width // 2, depth), scale=_scale(net))
    net.add("SPACE_TO_BATCH_ND", (net.current.name, blocks, none), inside)
    depthwise(net)
    net.add(
        "BATCH_TO_SPACE_ND",
        (net.current.name, blocks, none),
        net.activation((batch, height, width, depth), scale=_scale(net)),
    )


def _pads(net: Network) -> tuple[str, ...]:
    return (net.constant(np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)),)


def _turn(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[2], shape[1], shape[3])


def _double(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], 2 * shape[1], 2 * shape[2], shape[3])


def _doubled_size(net: Network) -> tuple[str, ...]:
    return (net.indices(*_double(net.current.shape)[1:3]),)


LAYERS: dict[str, Layer] = {
    "CONV_2D": conv, "DEPTHWISE_CONV_2D": depthwise, "TRANSPOSE_CONV": transpose_conv, "FULLY_CONNECTED": dense,
    "AVERAGE_POOL_2D": pool("AVERAGE_POOL_2D"), "MAX_POOL_2D": pool("MAX_POOL_2D"), "L2_POOL_2D": pool("L2_POOL_2D"),
    **{name: unary(name) for name in
       ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "HARD_SWISH", "ABS", "NEG", "ELU", "GELU", "SQUARE", "EXP",
        "SIGN", "FLOOR", "CEIL", "ROUND")},
    "LEAKY_RELU": unary("LEAKY_RELU", "LeakyReluOptions", alpha=0.1), "PRELU": prelu,
    "LOGISTIC": bounded("LOGISTIC", 0, 1), "TANH": bounded("TANH", -1, 2), "SOFTMAX": bounded("SOFTMAX", 0, 1),
    **{name: binary(name, f"{name.capitalize()}Options") for name in ("ADD", "SUB", "MUL")},
    "MAXIMUM": binary("MAXIMUM", "MaximumMinimumOptions"), "MINIMUM": binary("MINIMUM", "MaximumMinimumOptions"),
    "SQUARED_DIFFERENCE": binary("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
    "DIV": divide("DIV", "DivOptions"), "FLOOR_DIV": divide("FLOOR_DIV", "FloorDivOptions"),
    "FLOOR_MOD": divide("FLOOR_MOD", "FloorModOptions"), "POW": divide("POW", "PowOptions"),
    **{name: positive(name) for name in ("SQRT", "RSQRT", "LOG")},
    **{name: reduce(name) for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN")},
    "CONCATENATION": concatenate, "STRIDED_SLICE": strided_slice, "QUANTIZE": requantize, "DEQUANTIZE": float_part,
    "BATCH_MATMUL": matmul, "SPACE_TO_BATCH_ND": dilated_pair,
    "PAD": _moved("PAD", lambda s: (s[0], s[1] + 2, s[2] + 2, s[3]), _pads),
    "MIRROR_PAD": _moved("MIRROR_PAD", lambda s: (s[0], s[1] + 2, s[2] + 2, s[3]), _pads, "MirrorPadOptions"),
    "RESHAPE": _moved("RESHAPE", _turn, lambda n: (n.indices(*_turn(n.current.shape)),), "ReshapeOptions"),
    "TRANSPOSE": _moved("TRANSPOSE", _turn, lambda n: (n.indices(0, 2, 1, 3),), "TransposeOptions"),
    "TILE": _moved("TILE", lambda s: (*s[:3], 2 * s[3]), lambda n: (n.indices(1, 1, 1, 2),), "TileOptions"),
    "REVERSE_V2": _moved("REVERSE_V2", lambda s: s, lambda n: (n.indices(1),), "ReverseV2Options"),
    "RESIZE_BILINEAR": _moved("RESIZE_BILINEAR", _double, _doubled_size, "ResizeBilinearOptions"),
    "RESIZE_NEAREST_NEIGHBOR":
        _moved("RESIZE_NEAREST_NEIGHBOR", _double, _doubled_size, "ResizeNearestNeighborOptions"),
    "SPACE_TO_DEPTH": _moved("SPACE_TO_DEPTH", lambda s: (s[0], s[1] // 2, s[2] // 2, 4 * s[3]), None,
                             "SpaceToDepthOptions", blockSize=2),
    "DEPTH_TO_SPACE": _moved("DEPTH_TO_SPACE", lambda s: (s[0], 2 * s[1], 2 * s[2], s[3] // 4), None,
                             "DepthToSpaceOptions", blockSize=2),
    "GATHER": _moved("GATHER", lambda s: (*s[:3], 2), lambda n: (n.indices(1, 0),), "GatherOptions", axis=3),
    "SLICE": _moved("SLICE", lambda s: (*s[:3], 1), lambda n: (n.indices(0, 0, 0, 1), n.indices(-1, -1, -1, 1)),
                    "SliceOptions"),
    "CUMSUM": _moved("CUMSUM", lambda s: s, lambda n: (n.constant(np.array(1, np.int32)),), "CumsumOptions"),
}  # fmt: skip
AMPLIFIERS = (
    "RSQRT",
    "SQRT",
    "LOG",
    "EXP",
    "POW",
    "SQUARE",
    "DIV",
    "FLOOR_DIV",
    "FLOOR_MOD",
    "FLOOR",
    "CEIL",
    "ROUND",
    "SIGN",
)
NEEDS_EVEN = ("SPACE_TO_DEPTH", "SPACE_TO_BATCH_ND", "DEPTH_TO_SPACE")


def write_random_model(seed: int, path: Path) -> tuple[Path, str, list[str]]:
    """The model of `seed` at `path`, its kind, and the names of its layers."""
    rng = np.random.default_rng(seed)
    net = Network(str(rng.choice(KINDS)), rng)
    layer_names: list[str] = []
    # Each operator comes first in turn. What turns a difference of one step into many stands nowhere else.
    later_names = [name for name in LAYERS if name not in AMPLIFIERS]
    wanted = [
        list(LAYERS)[seed % len(LAYERS)],
        *(str(name) for name in rng.choice(later_names, int(rng.integers(0, 12)))),
    ]
    for name in wanted:
        if _fits(net, name):
            LAYERS[name](net)
            layer_names.append(name)
    write(path, net.tensors, net.ops, [net.input_name], [net.current.name])
    return path, net.kind, layer_names


def _fits(net: Network, name: str) -> bool:
    """Whether the newest tensor is an image of the network's type and of a size that the layer takes."""
    shape = net.current.shape
    if len(shape) != 4 or net.current.dtype != net.dtype or int(np.prod(shape)) > MAX_ELEMENTS or shape[3] < 2:
        return False
    return name not in NEEDS_EVEN or (all(size % 2 == 0 for size in shape[1:3]) and shape[3] % 4 == 0)
