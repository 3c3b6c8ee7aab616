"""Small int8 models for deployments, written without TensorFlow."""

from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_handmade import Op, T, write


def options(name: str, **fields: Any) -> Any:
    """An option table of the schema with some fields set."""
    table = getattr(schema, f"{name}T")()
    for field, value in fields.items():
        setattr(table, field, value)
    return table


def classifier(path: Path, seed: int = 0, width: int = 64, version: int = 1) -> Path:
    """Two dense layers and a softmax on 64 inputs; `width` sets its size."""
    rng = np.random.default_rng(seed)

    def dense(name: str, shape: tuple[int, int]) -> list[T]:
        weights = rng.integers(-60, 60, shape).astype(np.int8)
        bias = rng.integers(-200, 200, shape[0]).astype(np.int32)
        return [
            T(f"w{name}", shape, "int8", weights, scales=(0.01,)),
            T(f"b{name}", shape[:1], "int32", bias, scales=(0.0005,)),
        ]

    tensors = [
        T("x", (1, 64), scales=(0.05,)), *dense("1", (width, 64)), T("h", (1, width), scales=(0.1,)),
        *dense("2", (10, width)), T("z", (1, 10), scales=(0.2,)),
        T("y", (1, 10), scales=(1 / 256,), zero_points=(-128,)),
    ]  # fmt: skip
    operators = [
        Op("FULLY_CONNECTED", ("x", "w1", "b1"), ("h",), options("FullyConnectedOptions"), version=version),
        Op("FULLY_CONNECTED", ("h", "w2", "b2"), ("z",), options("FullyConnectedOptions"), version=version),
        Op("SOFTMAX", ("z",), ("y",), options("SoftmaxOptions", beta=1.0), version=2),
    ]
    return write(path, tensors, operators, ["x"], ["y"])
