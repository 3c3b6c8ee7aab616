"""Small models of many kinds, written by hand: what the memory plan is held against, and what mutants are made of."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Graph, Op, T, write, write_graphs

RNG = np.random.default_rng(7)


def options(name: str, **fields: Any) -> Any:
    """An option table of the schema with some fields set."""
    made = getattr(schema, f"{name}T")()
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def quantized(name: str, shape: tuple[int, ...], dtype: str = "int8", **more: Any) -> T:
    """A tensor with a scale of one half."""
    return T(name, shape, dtype, **{"scales": (0.5,), **more})


def constant(name: str, shape: tuple[int, ...], dtype: str = "int8", **more: Any) -> T:
    """A quantized constant of random numbers."""
    data = RNG.integers(-9, 9, shape).astype(dtype)
    return quantized(name, shape, dtype, data=data, **more)


def indices(name: str, *values: int) -> T:
    """A constant list of int32."""
    return T(name, (len(values),), "int32", np.array(values, np.int32))


def network(path: Path) -> Path:
    """An int8 network with a branch: convolution, depthwise, add, mean, dense, softmax."""
    tensors = [
        quantized("x", (1, 12, 12, 3)),
        constant("w1", (8, 3, 3, 3), scales=(0.5,) * 8),
        constant("b1", (8,), "int32", scales=(0.25,) * 8),
        quantized("a", (1, 12, 12, 8)),
        constant("w2", (1, 3, 3, 8), scales=(0.5,) * 8, axis=3),
        constant("b2", (8,), "int32", scales=(0.25,) * 8),
        quantized("c", (1, 12, 12, 8)),
        quantized("d", (1, 12, 12, 8)),
        indices("axes", 1, 2),
        quantized("e", (1, 8)),
        constant("w3", (5, 8)),
        constant("b3", (5,), "int32", scales=(0.25,)),
        quantized("f", (1, 5)),
        quantized("y", (1, 5), scales=(1 / 256,), zero_points=(-128,)),
    ]
    strides = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    ops = [
        Op("CONV_2D", ("x", "w1", "b1"), ("a",), options("Conv2DOptions", **strides)),
        Op("DEPTHWISE_CONV_2D", ("a", "w2", "b2"), ("c",),
           options("DepthwiseConv2DOptions", depthMultiplier=1, **strides)),
        Op("ADD", ("a", "c"), ("d",), options("AddOptions")),
        Op("MEAN", ("d", "axes"), ("e",), options("ReducerOptions")),
        Op("FULLY_CONNECTED", ("e", "w3", "b3"), ("f",), options("FullyConnectedOptions")),
        Op("SOFTMAX", ("f",), ("y",), options("SoftmaxOptions", beta=1.0)),
    ]  # fmt: skip
    return write(path, tensors, ops, ["x"], ["y"])


def stateful(path: Path) -> Path:
    """An SVDF, whose state is a variable."""
    tensors = [
        quantized("x", (2, 9)), constant("wf", (6, 9)), constant("wt", (6, 5), "int16"),
        constant("b", (3,), "int32", scales=(0.25,)), quantized("state", (2, 30), "int16", variable=True),
        quantized("y", (2, 3)),
    ]  # fmt: skip
    op = Op("SVDF", ("x", "wf", "wt", "b", "state"), ("y",), options("SVDFOptions", rank=2))
    return write(path, tensors, [op], ["x"], ["y"])


def packed(path: Path) -> Path:
    """A dense layer with weights of 4 bits."""
    tensors = [
        quantized("x", (1, 64)), quantized("w", (10, 64), "int4", data=RNG.bytes(320)),
        constant("b", (10,), "int32", scales=(0.25,)), quantized("y", (1, 10)),
    ]  # fmt: skip
    op = Op("FULLY_CONNECTED", ("x", "w", "b"), ("y",), options("FullyConnectedOptions"))
    return write(path, tensors, [op], ["x"], ["y"])


def branching(path: Path) -> Path:
    """An IF with two branches, one of which needs room."""
    flag, x, y = T("c", (1,), "bool"), T("x", (4, 50), "float32"), T("y", (4, 50), "float32")
    main = Graph([flag, x, y], [Op("IF", ("c", "x"), ("y",), options("IfOptions", thenSubgraphIndex=1,
                 elseSubgraphIndex=2))], ["c", "x"], ["y"])  # fmt: skip
    room = [T(name, (4, 50), "float32") for name in ("x", "a", "b", "y")]
    then = Graph(room, [Op("EXP", ("x",), ("a",)), Op("NEG", ("a",), ("b",)),
                        Op("ADD", ("a", "b"), ("y",), options("AddOptions"))], ["x"], ["y"])  # fmt: skip
    other = Graph([x, y], [Op("NEG", ("x",), ("y",))], ["x"], ["y"])
    return write_graphs(path, [main, then, other])


def looping(path: Path) -> Path:
    """A WHILE that counts a float up to three."""
    one = T("one", (1,), "float32", np.ones(1, np.float32))
    limit = T("limit", (1,), "float32", np.full(1, 3, np.float32))
    x, y, done = T("x", (1,), "float32"), T("y", (1,), "float32"), T("more", (1,), "bool")
    main = Graph([x, y], [Op("WHILE", ("x",), ("y",), options("WhileOptions", condSubgraphIndex=1,
                 bodySubgraphIndex=2))], ["x"], ["y"])  # fmt: skip
    cond = Graph([x, limit, done], [Op("LESS", ("x", "limit"), ("more",))], ["x"], ["more"])
    body = Graph([x, one, y], [Op("ADD", ("x", "one"), ("y",), options("AddOptions"))], ["x"], ["y"])
    return write_graphs(path, [main, cond, body])


SEEDS = (network, stateful, packed, branching, looping)
