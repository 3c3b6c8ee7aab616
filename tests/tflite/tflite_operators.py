"""One model for each operator that TensorFlow Lite Micro's memory was looked at for."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tflite_handmade import Op, T, write
from tflite_seeds import constant, indices, options, quantized


class Case(NamedTuple):
    """A model of one operator: `ins` are its inputs, in order; those that are no constants are the model's inputs."""

    name: str
    tensors: tuple[T, ...]
    options: Any = None
    ins: tuple[str | None, ...] | None = None
    outputs: tuple[str, ...] = ("y",)

    def write(self, path: Path) -> Path:
        """The model, at `path`."""
        names = tuple(t.name for t in self.tensors if t.name not in self.outputs)
        given = [t.name for t in self.tensors if t.data is None and not t.variable and t.name not in self.outputs]
        op = Op(self.name, self.ins or names, self.outputs, self.options)
        return write(path, list(self.tensors), [op], given, list(self.outputs))

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{t.dtype}{list(t.shape)}" for t in self.tensors[:2])])


def _real(name: str, *shape: int) -> T:
    return T(name, shape, "float32")


def _reals(name: str, *shape: int) -> T:
    return T(name, shape, "float32", np.ones(shape, np.float32))


_STRIDES = {"strideW": 1, "strideH": 1}
_DILATED = {**_STRIDES, "dilationWFactor": 1, "dilationHFactor": 1}
_CONV = options("Conv2DOptions", **_DILATED)
_DEPTHWISE = options("DepthwiseConv2DOptions", depthMultiplier=1, **_DILATED)
_DENSE = options("FullyConnectedOptions")
_TRANSPOSED = options("TransposeConvOptions", **_STRIDES)
_POOL = options("Pool2DOptions", strideW=2, strideH=2, filterWidth=2, filterHeight=2)
_PADS = T("p", (4, 2), "int32", np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
_NONE = T("p", (2, 2), "int32", np.zeros((2, 2), np.int32))
_IMAGE, _MADE = quantized("x", (1, 4, 4, 3)), quantized("y", (1, 4, 4, 3))
_REDUCE = options("ReducerOptions")


def _convolutions() -> list[Case]:
    x, y = quantized("x", (1, 8, 8, 8)), quantized("y", (1, 8, 8, 6))
    b = constant("b", (6,), "int32", scales=(0.25,))
    many = constant("b", (6,), "int32", scales=(0.25,) * 6)
    w = constant("w", (6, 3, 3, 8), scales=(0.5,) * 6)
    shape = indices("s", 1, 8, 8, 6)
    wide, out = quantized("x", (1, 8, 8, 8), "int16"), quantized("y", (1, 8, 8, 6), "int16")
    return [
        Case("CONV_2D", (x, constant("w", (6, 3, 3, 8)), b, y), _CONV),
        Case("CONV_2D", (x, quantized("w", (6, 3, 3, 8), "int4", data=bytes(216)), b, y), _CONV),
        Case("DEPTHWISE_CONV_2D", (x, quantized("w", (1, 3, 3, 8), "int4", data=bytes(36), scales=(0.5,) * 8, axis=3),
                                   constant("b", (8,), "int32", scales=(0.25,) * 8), quantized("y", (1, 8, 8, 8))),
             _DEPTHWISE),
        Case("TRANSPOSE_CONV", (shape, w, x, many, y), _TRANSPOSED),
        Case("TRANSPOSE_CONV", (shape, w, wide, constant("b", (6,), "int16", scales=(0.25,) * 6), out), _TRANSPOSED),
        Case("TRANSPOSE_CONV", (shape, _reals("w", 6, 3, 3, 8), _real("x", 1, 8, 8, 8), _real("y", 1, 8, 8, 6)),
             _TRANSPOSED),
    ]  # fmt: skip


def _products() -> list[Case]:
    x, y = quantized("x", (1, 64)), quantized("y", (1, 10))
    b = constant("b", (10,), "int32", scales=(0.25,))
    many = constant("b", (10,), "int32", scales=(0.25,) * 10)
    dense = [
        Case("FULLY_CONNECTED", (x, constant("w", (10, 64)), b, y), _DENSE),
        Case("FULLY_CONNECTED", (x, constant("w", (10, 64), scales=(0.5,) * 10), many, y), _DENSE),
        Case("FULLY_CONNECTED", (x, quantized("w", (10, 64), "int4", data=bytes(320)), b, y), _DENSE),
    ]
    matmul = [
        Case("BATCH_MATMUL",
             (quantized("x", (1, 7, 5) if left else (1, 5, 7)), quantized("z", (1, 6, 7) if right else (1, 7, 6)),
              quantized("y", (1, 5, 6))), options("BatchMatMulOptions", adjX=left, adjY=right))
        for left, right in ((False, False), (True, False), (False, True))
    ]  # fmt: skip
    return dense + matmul


def _reductions() -> list[Case]:
    found = []
    x, axes, last = quantized("x", (1, 8, 8, 20)), indices("a", 1, 2), indices("a", 3)
    for name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
        kept = options("ReducerOptions", keepDims=True)
        found += [
            Case(name, (x, axes, quantized("y", (1, 20))), _REDUCE),
            Case(name, (x, axes, quantized("y", (1, 1, 1, 20))), kept),
            Case(name, (x, last, quantized("y", (1, 8, 8))), _REDUCE),
            Case(name, (_real("x", 1, 8, 8, 20), last, _real("y", 1, 8, 8)), _REDUCE),
        ]
    flags = Case("REDUCE_ALL", (T("x", (1, 8, 8, 20), "bool"), last, T("y", (1, 8, 8), "bool")), _REDUCE)
    return [*found, flags]


def _recurrent() -> list[Case]:
    svdf = options("SVDFOptions", rank=2)
    state = quantized("st", (2, 30), "int16", variable=True)
    names = [*(f"w{i}" for i in range(4)), *(f"r{i}" for i in range(4)), *(f"b{i}" for i in range(4))]
    shapes = [*[(4, 3)] * 4, *[(4, 4)] * 4, *[(4,)] * 4]
    weights = [_reals(name, *shape) for name, shape in zip(names, shapes, strict=True)]
    kept = [T(name, (1, 4), "float32", variable=True) for name in ("h", "c")]
    ins = ("x", *names[:8], None, None, None, *names[8:], None, None, "h", "c", None, None, None, None)
    lstm = options("UnidirectionalSequenceLSTMOptions", fusedActivationFunction=4)
    return [
        Case("SVDF", (quantized("x", (2, 9)), constant("wf", (6, 9)), constant("wt", (6, 5), "int16"),
                      constant("b", (3,), "int32", scales=(0.25,)), state, quantized("y", (2, 3))), svdf),
        Case("SVDF", (_real("x", 2, 9), _reals("wf", 6, 9), _reals("wt", 6, 5), _reals("b", 3),
                      T("st", (2, 30), "float32", variable=True), _real("y", 2, 3)), svdf),
        Case("UNIDIRECTIONAL_SEQUENCE_LSTM", (_real("x", 1, 5, 3), *weights, *kept, _real("y", 1, 5, 4)), lstm, ins),
    ]  # fmt: skip


def _elementwise() -> list[Case]:
    two = (_IMAGE, quantized("z", (1, 4, 4, 3)), _MADE)
    tables = {"MAXIMUM": "MaximumMinimum", "MINIMUM": "MaximumMinimum", "SQUARED_DIFFERENCE": "SquaredDifference"}
    found = [
        Case(name, two, options(f"{tables.get(name, name.capitalize())}Options"))
        for name in ("ADD", "SUB", "MUL", *tables)
    ]
    reals = (_real("x", 1, 4, 3), _real("z", 1, 4, 3), _real("y", 1, 4, 3))
    found += [Case(name, reals, options(f"{table}Options")) for name, table in
              (("DIV", "Div"), ("FLOOR_MOD", "FloorMod"))]  # fmt: skip
    ones = [
        "EXP",
        "LOG",
        "SQRT",
        "RSQRT",
        "SQUARE",
        "NEG",
        "FLOOR",
        "CEIL",
        "ROUND",
        "SIN",
        "COS",
        "ZEROS_LIKE",
        "LOG_SOFTMAX",
    ]
    found += [Case(name, (_real("x", 1, 4, 3), _real("y", 1, 4, 3))) for name in ones]
    flags = T("y", (1, 4, 4, 3), "bool")
    found += [Case(name, (*two[:2], flags)) for name in
              ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")]  # fmt: skip
    added = [quantized(name, (1, 10)) for name in ("x", "z", "v", "y")]
    return [
        *found,
        Case("LOGICAL_AND", tuple(T(name, (1, 10), "bool") for name in ("x", "z", "y"))),
        Case("SELECT_V2", (T("c", (1, 10), "bool"), *(quantized(name, (1, 10)) for name in ("x", "z", "y")))),
        Case("ADD_N", tuple(added)),
        Case("ADD_N", (_real("x", 1, 10), _real("z", 1, 10), _real("y", 1, 10))),
        Case("PRELU", (_IMAGE, constant("a", (1, 1, 3)), _MADE)),
    ]


def _activations() -> list[Case]:
    half, positive = {"scales": (1 / 128,)}, {"scales": (1 / 256,), "zero_points": (-128,)}
    plain = [Case(name, (_IMAGE, _MADE)) for name in ("RELU", "RELU6", "HARD_SWISH", "ABS", "QUANTIZE", "ELU")]
    return [
        *plain,
        Case("DEQUANTIZE", (quantized("x", (1, 4, 3)), _real("y", 1, 4, 3))),
        Case("LOGISTIC", (_IMAGE, quantized("y", (1, 4, 4, 3), **positive))),
        Case("TANH", (_IMAGE, quantized("y", (1, 4, 4, 3), **half))),
        Case("LEAKY_RELU", (_IMAGE, _MADE), options("LeakyReluOptions", alpha=0.1)),
        Case("L2_NORMALIZATION", (_IMAGE, quantized("y", (1, 4, 4, 3), **half)), options("L2NormOptions")),
        Case("SOFTMAX", (quantized("x", (1, 10)), quantized("y", (1, 10), **positive)),
             options("SoftmaxOptions", beta=1.0)),
        Case("SOFTMAX", (T("x", (1, 10), "int16", scales=(0.001,)), T("y", (1, 10), "int16", scales=(1 / 32768,))),
             options("SoftmaxOptions", beta=1.0)),
    ]  # fmt: skip


def _movements() -> list[Case]:
    small, wide = quantized("y", (1, 2, 2, 3)), quantized("y", (1, 8, 8, 3))
    start, end, steps = indices("a", 0, 0, 0, 0), indices("b", 1, 2, 2, 3), indices("s", 1, 1, 1, 1)
    pair = (quantized("y", (1, 4, 2)), quantized("y2", (1, 4, 2)))
    padded = quantized("y", (1, 6, 6, 3))
    return [
        Case("CONCATENATION", (_IMAGE, quantized("z", (1, 4, 4, 3)), quantized("y", (1, 4, 4, 6))),
             options("ConcatenationOptions", axis=3)),
        Case("AVERAGE_POOL_2D", (_IMAGE, small), _POOL),
        Case("MAX_POOL_2D", (_IMAGE, small), _POOL),
        Case("L2_POOL_2D", (_real("x", 1, 4, 4, 3), _real("y", 1, 2, 2, 3)), _POOL),
        Case("PAD", (_IMAGE, _PADS, padded)),
        Case("PADV2", (_IMAGE, _PADS, constant("v", (1,)), padded)),
        Case("MIRROR_PAD", (_IMAGE, _PADS, padded), options("MirrorPadOptions")),
        Case("RESIZE_BILINEAR", (_IMAGE, indices("s", 8, 8), wide), options("ResizeBilinearOptions")),
        Case("RESIZE_NEAREST_NEIGHBOR", (_IMAGE, indices("s", 8, 8), wide), options("ResizeNearestNeighborOptions")),
        Case("TRANSPOSE", (_IMAGE, indices("p", 0, 3, 1, 2), quantized("y", (1, 3, 4, 4)))),
        Case("STRIDED_SLICE", (_IMAGE, start, end, steps, small), options("StridedSliceOptions")),
        Case("SLICE", (_IMAGE, start, end, small)),
        Case("PACK", (quantized("x", (4, 3)), quantized("z", (4, 3)), quantized("y", (2, 4, 3))),
             options("PackOptions", valuesCount=2)),
        Case("UNPACK", (quantized("x", (2, 4, 3)), quantized("y", (4, 3)), quantized("y2", (4, 3))),
             options("UnpackOptions", num=2), outputs=("y", "y2")),
        Case("SPLIT", (indices("a", 2), quantized("x", (1, 4, 4)), *pair), options("SplitOptions", numSplits=2),
             outputs=("y", "y2")),
        Case("SHAPE", (quantized("x", (1, 4, 4)), T("y", (3,), "int32")), options("ShapeOptions")),
        Case("RESHAPE", (_IMAGE, quantized("y", (1, 48))), options("ReshapeOptions", newShape=[1, 48])),
        Case("SQUEEZE", (_IMAGE, quantized("y", (4, 4, 3))), options("SqueezeOptions")),
        Case("EXPAND_DIMS", (quantized("x", (1, 10)), indices("a", 0), quantized("y", (1, 1, 10)))),
        Case("GATHER", (quantized("x", (6, 4)), indices("i", 1, 2), quantized("y", (2, 4))), options("GatherOptions")),
        Case("GATHER_ND", (quantized("x", (6, 4)), T("i", (2, 1), "int32", np.array([[1], [2]], np.int32)),
                           quantized("y", (2, 4)))),
        Case("EMBEDDING_LOOKUP", (T("x", (3,), "int32"), constant("w", (10, 6)), quantized("y", (3, 6)))),
        Case("ARG_MAX", (quantized("x", (1, 10)), indices("a", 1), T("y", (1,), "int32")), options("ArgMaxOptions")),
        Case("CAST", (quantized("x", (1, 10)), _real("y", 1, 10)), options("CastOptions")),
        Case("DEPTH_TO_SPACE", (quantized("x", (1, 2, 2, 4)), quantized("y", (1, 4, 4, 1))),
             options("DepthToSpaceOptions", blockSize=2)),
        Case("SPACE_TO_DEPTH", (quantized("x", (1, 4, 4, 1)), quantized("y", (1, 2, 2, 4))),
             options("SpaceToDepthOptions", blockSize=2)),
        Case("SPACE_TO_BATCH_ND", (_IMAGE, indices("s", 2, 2), _NONE, quantized("y", (4, 2, 2, 3)))),
        Case("BATCH_TO_SPACE_ND", (quantized("x", (4, 2, 2, 3)), indices("s", 2, 2), _NONE, _MADE)),
        Case("CUMSUM", (quantized("x", (1, 10)), T("a", (), "int32", np.array(1, np.int32)), quantized("y", (1, 10))),
             options("CumsumOptions")),
        Case("BROADCAST_TO", (quantized("x", (1, 10)), indices("s", 3, 10), quantized("y", (3, 10)))),
        Case("REVERSE_V2", (quantized("x", (1, 10)), indices("a", 1), quantized("y", (1, 10)))),
    ]  # fmt: skip


CASES = [
    *(*_convolutions(), *_products(), *_reductions(), *_recurrent()),
    *(*_elementwise(), *_activations(), *_movements()),
]
