"""Small models for the tests of Vela, written by hand: what it takes, what it leaves to the core, what it dies of."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SCALED: dict[str, Any] = {"scales": (0.1,)}
SHAPE = (1, 4, 4, 4)


def _handmade() -> ModuleType:
    """tests/tflite/tflite_handmade.py, which writes .tflite files through the schema."""
    file = Path(__file__).parents[1] / "tflite" / "tflite_handmade.py"
    if "tflite_handmade" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tflite_handmade", file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["tflite_handmade"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["tflite_handmade"])
    return sys.modules["tflite_handmade"]


def chain(path: Path, names: list[str]) -> Path:
    """Int8 operators of one input, one after the other; their outputs are t0, t1, ..."""
    made = _handmade()
    wires = ["x", *(f"t{i}" for i in range(len(names)))]
    ops = [made.Op(name, (wires[i],), (wires[i + 1],)) for i, name in enumerate(names)]
    return made.write(path, [made.T(wire, SHAPE, **SCALED) for wire in wires], ops, ["x"], wires[-1:])  # type: ignore[no-any-return]


def namesakes(path: Path) -> Path:
    """Two RELU and two LOG_SOFTMAX whose outputs all bear one name, with a comma and a quote in it."""
    chain(path, ["RELU", "LOG_SOFTMAX", "RELU", "LOG_SOFTMAX"])
    data = path.read_bytes()
    for i in range(4):
        data = data.replace(b"\x02\0\0\0t%d\0" % i, b'\x02\0\0\0,"\0')
    path.write_bytes(data)
    return path


def crashing(path: Path) -> Path:
    """A CONV_2D without its options, which ends Vela 5.2.0 by a segmentation fault."""
    made = _handmade()
    tensors = [
        made.T("x", SHAPE, **SCALED),
        made.T("w", (2, 1, 1, 4), data=np.ones((2, 1, 1, 4), np.int8), **SCALED),
        made.T("y", (1, 4, 4, 2), **SCALED),
    ]
    return made.write(path, tensors, [made.Op("CONV_2D", ("x", "w", None), ("y",))], ["x"], ["y"])  # type: ignore[no-any-return]


def refused(path: Path) -> Path:
    """A CONCATENATION of nothing, which Vela cannot read."""
    made = _handmade()
    tensors = [made.T("x", SHAPE, **SCALED), made.T("y", SHAPE, **SCALED)]
    return made.write(path, tensors, [made.Op("CONCATENATION", (), ("y",))], ["x"], ["y"])  # type: ignore[no-any-return]


def empty(path: Path) -> Path:
    """No operator at all."""
    made = _handmade()
    return made.write(path, [made.T("x", SHAPE, **SCALED)], [], ["x"], ["x"])  # type: ignore[no-any-return]


def loop(path: Path) -> Path:
    """A WHILE with its two bodies, through TensorFlow's converter."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4))])
    def doubled(x: Any) -> Any:
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0), (tf.constant(0), x))[1]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([doubled.get_concrete_function()])
    path.write_bytes(converter.convert())
    return path
