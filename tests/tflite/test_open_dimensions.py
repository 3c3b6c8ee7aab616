"""Open sizes that a file gets wrong, against the sizes that LiteRT computes; TensorFlow leaves the batch open."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepipe.tflite import reader
from edgepipe.tflite.interpreter import Runtime, run_on_zeros

Body = Callable[[Any, Any], Any]
CASES: dict[str, tuple[tuple[int | None, ...], Body]] = {
    "convolution": ((8, 8, 3), lambda layers, x: layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(x)))),
    "dilated in time": ((16, 4), lambda layers, x: layers.Conv1D(4, 3, dilation_rate=2, padding="causal")(x)),
    "dilated image": ((16, 16, 4), lambda layers, x: layers.Conv2D(4, 3, dilation_rate=2, padding="same")(x)),
    "unrolled": ((6, 4), lambda layers, x: layers.GRU(5, unroll=True)(x)),
    "distributed": ((3, 8, 8, 2), lambda layers, x: layers.TimeDistributed(layers.Conv2D(2, 3))(x)),
    "attention": ((6, 8), lambda layers, x: layers.MultiHeadAttention(2, 4)(x, x)),
    "resized": ((4, 4, 3), lambda layers, x: layers.UpSampling2D()(x)),
    "merged": ((6, 8), lambda layers, x: _ops().reshape(x, (-1, 8))),
    "batch moved inside": ((6, 8), lambda layers, x: _ops().transpose(x, (1, 0, 2))),
    "last step": ((6, 8), lambda layers, x: x[:, -1]),
}


def _ops() -> Any:
    import keras

    return keras.ops


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_open_sizes_are_those_that_the_file_gets_wrong(name: str, tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    shape, body = CASES[name]
    x = keras.Input(shape)
    keras.Model(x, body(keras.layers, x)).export(tmp_path / "saved", verbose=False)
    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert())
    lite = reader.read(path)
    interpreter, _ = run_on_zeros(lite, Runtime.BUILTIN, threads=1)
    shape_by_index = {details["index"]: tuple(details["shape"]) for details in interpreter.get_tensor_details()}
    wrong = [t for t in lite.tensors if not t.is_constant and shape_by_index.get(t.index, t.shape) != t.shape]
    assert bool(lite.open_size_reason) is bool(wrong), (lite.open_size_reason, wrong)
    assert {tensor.key for tensor in wrong} <= lite.open_sizes.keys()
