"""Small models of what runtimes differ in: custom operators, states, scales, types, crashes, open sizes."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from tflite_handmade import Graph, Op, T, write, write_graphs

Build = Callable[[Path], Path]
STRIDES = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
HALF: dict[str, Any] = {"scales": (0.5,)}


def options(name: str, **fields: Any) -> Any:
    """An option table of the schema with some fields set."""
    table = getattr(schema, f"{name}T")()
    for field, value in fields.items():
        setattr(table, field, value)
    return table


def _pair(dtype: str = "int8") -> list[T]:
    scale = HALF if dtype == "int8" else {}
    return [T(name, (1, 16), dtype, **scale) for name in ("x", "y")]


def custom(code: str) -> Callable[[Path], Path]:
    """One custom operator on int8."""
    return lambda path: write(path, _pair(), [Op("CUSTOM", ("x",), ("y",), custom=code)], ["x"], ["y"])


def audio_front_end(path: Path) -> Path:
    """A window over 16 samples of audio: one of TensorFlow Lite Micro's signal operators."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("shift", 12)
    weights = T("w", (16,), "int16", np.full(16, 4096, np.int16))
    op = Op("CUSTOM", ("x", "w"), ("y",), custom="SignalWindow", custom_options=bytes(builder.Finish()))
    return write(path, [T("x", (1, 16), "int16"), weights, T("y", (1, 16), "int16")], [op], ["x"], ["y"])


def mediapipe(path: Path) -> Path:
    """MediaPipe's transposed convolution with bias, which XNNPACK computes and LiteRT has no kernel for."""
    tensors = [
        T("x", (1, 4, 4, 3), "float32"), T("w", (2, 2, 2, 3), "float32", np.ones((2, 2, 2, 3), np.float32)),
        T("b", (2,), "float32", np.ones(2, np.float32)), T("y", (1, 8, 8, 2), "float32"),
    ]  # fmt: skip
    op = Op(
        "CUSTOM",
        ("x", "w", "b"),
        ("y",),
        custom="Convolution2DTransposeBias",
        custom_options=struct.pack("<3i", 1, 2, 2),
    )
    return write(path, tensors, [op], ["x"], ["y"])


def _streaming_ops() -> tuple[list[T], list[Op], Any]:
    handle = options("VarHandleOptions", container="", sharedName="states")
    tensors = [T("states", (), "resource"), *(T(name, (1, 16), "int8", **HALF) for name in ("x", "old", "y"))]
    ops = [
        Op("VAR_HANDLE", (), ("states",), handle),
        Op("READ_VARIABLE", ("states",), ("old",), options("ReadVariableOptions")),
        Op("ADD", ("x", "old"), ("y",), options("AddOptions")),
        Op("ASSIGN_VARIABLE", ("states", "y"), (), options("AssignVariableOptions")),
    ]
    return tensors, ops, handle


def streaming(path: Path) -> Path:
    """A streaming model: its state is a resource that a subgraph initializes."""
    tensors, ops, handle = _streaming_ops()
    zeros = T("zeros", (1, 16), "int8", np.zeros((1, 16), np.int8), **HALF)
    start = Graph(
        [T("states", (), "resource"), zeros],
        [Op("VAR_HANDLE", (), ("states",), handle),
         Op("ASSIGN_VARIABLE", ("states", "zeros"), (), options("AssignVariableOptions"))],
        [], [],
    )  # fmt: skip
    once = Op("CALL_ONCE", (), (), options("CallOnceOptions", initSubgraphIndex=1))
    return write_graphs(path, [Graph(tensors, [once, *ops], ["x"], ["y"]), start])


def streaming_without_start(path: Path) -> Path:
    """The same without an initialization: LiteRT's own kernels refuse to read the state, XNNPACK reads zeros."""
    tensors, ops, _ = _streaming_ops()
    return write(path, tensors, ops, ["x"], ["y"])


def bias_axis(path: Path) -> Path:
    """A depthwise convolution whose bias names an axis that it does not have, as in person_detect."""
    weights = np.ones((1, 3, 3, 8), np.int8)
    tensors = [
        T("x", (1, 4, 4, 8), **HALF), T("w", (1, 3, 3, 8), data=weights, scales=(0.5,) * 8, axis=3),
        T("b", (8,), "int32", np.zeros(8, np.int32), scales=(0.25,) * 8, axis=3), T("y", (1, 4, 4, 8), **HALF),
    ]  # fmt: skip
    op = Op(
        "DEPTHWISE_CONV_2D", ("x", "w", "b"), ("y",), options("DepthwiseConv2DOptions", depthMultiplier=1, **STRIDES)
    )
    return write(path, tensors, [op], ["x"], ["y"])


def old_uint8(path: Path) -> Path:
    """A convolution in uint8, as converters wrote them until 2019."""
    tensors = [
        T("x", (1, 4, 4, 8), "uint8", **HALF), T("w", (6, 3, 3, 8), "uint8", np.ones((6, 3, 3, 8), np.uint8), **HALF),
        T("b", (6,), "int32", np.zeros(6, np.int32), scales=(0.25,)), T("y", (1, 4, 4, 6), "uint8", **HALF),
    ]  # fmt: skip
    return write(
        path, tensors, [Op("CONV_2D", ("x", "w", "b"), ("y",), options("Conv2DOptions", **STRIDES))], ["x"], ["y"]
    )


def endless(path: Path) -> Path:
    """An IF whose branch is the graph that it stands in: every runtime recurses until it crashes."""
    tensors = [T("c", (1,), "bool"), T("y", (1,), "int32")]
    return write(path, tensors, [Op("IF", ("c", "c"), ("y",), options("IfOptions"))], ["c"], ["y"])


def split_into_none(path: Path) -> Path:
    """A SPLIT into no parts, on which XNNPACK divides by zero and TensorFlow Lite Micro copies its input."""
    tensors = [
        T("axis", (1,), "int32", np.array([2], np.int32)), T("x", (1, 4, 4), **HALF), T("y", (1, 4, 4), **HALF)
    ]  # fmt: skip
    return write(
        path, tensors, [Op("SPLIT", ("axis", "x"), ("y",), options("SplitOptions", numSplits=0))], ["x"], ["y"]
    )


def unwritten(path: Path) -> Path:
    """An ADD of a tensor that nothing writes, which TensorFlow Lite Micro runs nevertheless."""
    tensors = [T(name, (1, 16), **HALF) for name in ("x", "nowhere", "y")]
    return write(path, tensors, [Op("ADD", ("x", "nowhere"), ("y",), options("AddOptions"))], ["x"], ["y"])


def large_crash(path: Path) -> Path:
    """A MEAN without axes, on which TensorFlow Lite Micro crashes, with an input of 750 KB."""
    tensors = [T("x", (1, 500, 500, 3), **HALF), T("y", (1, 3), **HALF)]
    return write(path, tensors, [Op("MEAN", ("x",), ("y",), options("ReducerOptions"))], ["x"], ["y"])


def large(path: Path) -> Path:
    """A RELU on 750 KB, which twice do not fit into 640 KiB."""
    tensors = [T(name, (1, 500, 500, 3), **HALF) for name in ("x", "y")]
    return write(path, tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])


def dilated_with_open_batch(path: Path) -> Path:
    """SPACE_TO_BATCH_ND around a convolution; the file says 1 for every batch."""

    def real(name: str, *shape: int) -> T:
        return T(name, shape, signature=(-1, *shape[1:]), **HALF)

    blocks = T("blocks", (2,), "int32", np.array([1, 2], np.int32))
    none = T("none", (2, 2), "int32", np.zeros((2, 2), np.int32))
    tensors = [
        real("x", 1, 1, 8, 4), real("a", 1, 1, 4, 4), real("b", 1, 1, 4, 4), real("y", 1, 1, 8, 4), blocks, none,
        T("w", (4, 1, 1, 4), data=np.ones((4, 1, 1, 4), np.int8), scales=(0.5,) * 4),
        T("bias", (4,), "int32", np.zeros(4, np.int32), scales=(0.25,) * 4),
    ]  # fmt: skip
    ops = [
        Op("SPACE_TO_BATCH_ND", ("x", "blocks", "none"), ("a",)),
        Op("CONV_2D", ("a", "w", "bias"), ("b",), options("Conv2DOptions", **STRIDES)),
        Op("BATCH_TO_SPACE_ND", ("b", "blocks", "none"), ("y",)),
    ]
    return write(path, tensors, ops, ["x"], ["y"])


def open_image(path: Path) -> Path:
    """A RELU on images of any size."""
    tensors = [T(name, (1, 1, 1, 3), signature=(-1, -1, -1, 3), **HALF) for name in ("x", "y")]
    return write(path, tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])


def open_batch(path: Path) -> Path:
    """A RELU with an open batch, which is 1 everywhere."""
    tensors = [T(name, (1, 8, 8, 3), signature=(-1, 8, 8, 3), **HALF) for name in ("x", "y")]
    return write(path, tensors, [Op("RELU", ("x",), ("y",))], ["x"], ["y"])


def looping(path: Path) -> Path:
    """A WHILE that counts to three; the file does not say how often it runs."""
    one = T("one", (1,), "int32", np.ones(1, np.int32))
    limit = T("limit", (1,), "int32", np.full(1, 3, np.int32))
    x, y, more = T("x", (1,), "int32"), T("y", (1,), "int32"), T("more", (1,), "bool")
    main = Graph(
        [x, y], [Op("WHILE", ("x",), ("y",), options("WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2))],
        ["x"], ["y"],
    )  # fmt: skip
    condition = Graph([x, limit, more], [Op("LESS", ("x", "limit"), ("more",))], ["x"], ["more"])
    body = Graph([x, one, y], [Op("ADD", ("x", "one"), ("y",), options("AddOptions"))], ["x"], ["y"])
    return write_graphs(path, [main, condition, body])


def text_input(path: Path) -> Path:
    """A model that takes text, which edgepipe cannot fill."""
    tensors = [T("x", (1,), "string"), T("y", (1,), "int32")]
    return write(path, tensors, [Op("SHAPE", ("x",), ("y",), options("ShapeOptions"))], ["x"], ["y"])


def division(path: Path) -> Path:
    """x / x, which has no value for zeros."""
    tensors = [T("x", (1, 4), "int32"), T("y", (1, 4), "int32")]
    return write(path, tensors, [Op("FLOOR_DIV", ("x", "x"), ("y",))], ["x"], ["y"])


def relu(path: Path) -> Path:
    """A model that everything runs."""
    return write(path, _pair(), [Op("RELU", ("x",), ("y",))], ["x"], ["y"])
