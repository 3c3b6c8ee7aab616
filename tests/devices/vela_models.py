"""Small handmade models for the tests of Vela: supported, left to the core, or crashing it."""

from pathlib import Path
from typing import Any

import numpy as np
from tflite_handmade import Op, T, write

QUANTIZATION: dict[str, Any] = {"scales": (0.1,)}
SHAPE = (1, 4, 4, 4)


def chain(path: Path, names: list[str]) -> Path:
    """A chain of int8 operators with one input each; the outputs are t0, t1, ..."""
    wires = ["x", *(f"t{i}" for i in range(len(names)))]
    ops = [Op(name, (wires[i],), (wires[i + 1],)) for i, name in enumerate(names)]
    return write(path, [T(wire, SHAPE, **QUANTIZATION) for wire in wires], ops, ["x"], wires[-1:])


def namesakes(path: Path) -> Path:
    """Two RELU and two LOG_SOFTMAX whose outputs share one name, with a comma and a quote in it."""
    chain(path, ["RELU", "LOG_SOFTMAX", "RELU", "LOG_SOFTMAX"])
    content = path.read_bytes()
    for i in range(4):
        content = content.replace(b"\x02\0\0\0t%d\0" % i, b'\x02\0\0\0,"\0')
    path.write_bytes(content)
    return path


def crashing(path: Path) -> Path:
    """A CONV_2D without its options, which crashes Vela 5.2.0 with a segmentation fault."""
    tensors = [
        T("x", SHAPE, **QUANTIZATION),
        T("w", (2, 1, 1, 4), data=np.ones((2, 1, 1, 4), np.int8), **QUANTIZATION),
        T("y", (1, 4, 4, 2), **QUANTIZATION),
    ]
    return write(path, tensors, [Op("CONV_2D", ("x", "w", None), ("y",))], ["x"], ["y"])


def unreadable(path: Path) -> Path:
    """A CONCATENATION without inputs, which Vela cannot read."""
    tensors = [T("x", SHAPE, **QUANTIZATION), T("y", SHAPE, **QUANTIZATION)]
    return write(path, tensors, [Op("CONCATENATION", (), ("y",))], ["x"], ["y"])


def without_operators(path: Path) -> Path:
    """A model without operators."""
    return write(path, [T("x", SHAPE, **QUANTIZATION)], [], ["x"], ["x"])


def with_loop(path: Path) -> Path:
    """A WHILE with condition and body subgraphs, from TensorFlow's converter."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 4))])
    def double_three_times(x: Any) -> Any:
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 2.0), (tf.constant(0), x))[1]

    converter = tf.lite.TFLiteConverter.from_concrete_functions([double_three_times.get_concrete_function()])
    path.write_bytes(converter.convert())
    return path
