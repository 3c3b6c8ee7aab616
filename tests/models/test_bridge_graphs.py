"""Graphs: operators, sharing, nesting, several inputs and outputs, other backends, families, and injected faults."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from fault_injection import FAMILIES, inject_faults

from edgepipe.models.bridge import BridgedModel, bridge, relative_difference
from edgepipe.models.model_files import load_model

K, ops = keras.layers, keras.ops
STRICT = 1e-5
DATA = Path(__file__).parent / "data"


def _agrees(model: Any) -> BridgedModel:
    bridged = bridge(model)
    assert bridged.difference.worst_difference.relative_error < STRICT, bridged.difference.text()
    return bridged


ROWS = np.arange(12, dtype="float32").reshape(1, 3, 4) / 7
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "scale and shift": lambda x, y: x * 2 + 1,
    "one over": lambda x, y: 1 / (x * x + 1),
    "add": lambda x, y: x + y,
    "negate": lambda x, y: -x,
    "power": lambda x, y: x**2,
    "item": lambda x, y: x[:, 0],
    "last and new axis": lambda x, y: x[..., -1][:, None],
    "constant array": lambda x, y: x - ROWS,
    "compare": lambda x, y: ops.where(x > y, x, 0.5 * y),
    "keywords out of order": lambda x, y: ops.where(x1=x, condition=y > 0, x2=-y),
    "split": lambda x, y: ops.split(x, 2, axis=-1)[1],
    "unstack": lambda x, y: ops.unstack(x, axis=1)[2],
    "stack": lambda x, y: ops.stack([x, y, x], axis=2),
    "concatenate": lambda x, y: ops.concatenate([x, y, ops.zeros_like(x)], axis=1),
    "mean": lambda x, y: ops.mean(x, axis=(1, 2), keepdims=True),
    "matmul": lambda x, y: x @ ops.transpose(y, (0, 2, 1)),
    "einsum": lambda x, y: ops.einsum("bij,bkj->bik", x, y),
    "softmax": lambda x, y: ops.softmax(x, axis=1),
    "top k": lambda x, y: ops.top_k(x, 2)[0],
    "one hot": lambda x, y: ops.one_hot(ops.argmax(x, axis=-1), 5),
    "cumsum": lambda x, y: ops.cumsum(x, axis=1),
    "norm": lambda x, y: ops.norm(x, axis=-1),
    "normalize": lambda x, y: ops.normalize(x, axis=-1),
    "layer normalization": lambda x, y: ops.layer_normalization(x, axis=-1),
    "attention": lambda x, y: ops.dot_product_attention(x[:, :, None], y[:, :, None], y[:, :, None]),
    "pad and roll": lambda x, y: ops.roll(ops.pad(x, [[0, 0], [1, 1], [0, 2]]), 1, axis=2),
    "resize": lambda x, y: ops.image.resize(x[..., None], (6, 2)),
    "gelu": lambda x, y: ops.gelu(x, approximate=False),
    "moments": lambda x, y: ops.moments(x, axes=[1])[1],
    "cast": lambda x, y: ops.cast(x > 0, "float32") * y,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str) -> None:
    x, y = keras.Input((3, 4), name="x"), keras.Input((3, 4), name="y")
    _agrees(keras.Model([x, y], [OPERATORS[name](x, y), K.Dense(2, name="d")(y)], name="operators"))


def _nested_twice() -> Any:
    leaf = keras.Sequential([keras.Input((4,)), K.Dense(4, activation="tanh", name="d")], name="leaf")
    x = keras.Input((4,), name="inner")
    branch = keras.Model(x, [leaf(leaf(x)), K.BatchNormalization(name="bn")(leaf(x))], name="branch")
    a = keras.Input((4,), name="a")
    branch_outputs = branch(a)
    return keras.Model(a, [*branch(branch_outputs[1]), *branch_outputs], name="tree")


def _dictionaries() -> Any:
    inputs = {"z": keras.Input((4,), name="z"), "a": keras.Input((2,), name="a")}
    hidden = K.Dense(3, name="h")(K.Concatenate(name="c")([inputs["z"], inputs["a"]]))
    inner = keras.Model(inputs, {"twice": hidden * 2, "once": hidden}, name="inner")
    outer = {"z": keras.Input((4,), name="z"), "a": keras.Input((2,), name="a")}
    inner_outputs = inner(outer)
    return keras.Model(outer, {"sum": inner_outputs["once"] + 1.0, "raw": inner_outputs["twice"]}, name="dictionaries")


def _shared_gru() -> Any:
    gru, a, b = (
        K.GRU(3, return_sequences=True, name="gru"),
        keras.Input((5, 2), name="a"),
        keras.Input((5, 2), name="b"),
    )
    x, y = gru(a), gru(b)
    both = K.MultiHeadAttention(2, 4, name="mha")(x, y, y)
    return keras.Model(
        [a, b], [K.Bidirectional(K.LSTM(2), name="bi")(both), K.Attention(name="att")([x, y])], name="two"
    )


def _siamese() -> Any:
    tower = keras.Sequential([
        keras.Input((8, 8, 1)), K.Conv2D(3, 3, activation="relu6", name="c"), K.GlobalMaxPooling2D(name="p")
    ], name="tower")  # fmt: skip
    a, b = keras.Input((8, 8, 1), name="a"), keras.Input((8, 8, 1), name="b")
    return keras.Model([a, b], K.Dense(1, name="d")(ops.abs(tower(a) - tower(b))), name="siamese")


def _lambda() -> Any:
    x = keras.Input((4,), name="x")
    return keras.Model(x, K.Lambda(lambda t: ops.square(t) + 1.0, name="code")(K.Dense(3, name="d")(x)), name="lambda")


@pytest.mark.slow
@pytest.mark.parametrize("make", [_nested_twice, _dictionaries, _shared_gru, _siamese, _lambda])
def test_graphs(make: Callable[[], Any]) -> None:
    bridged = _agrees(make())
    assert not bridged.keras3_notes
    names = [layer.name for layer in bridged.model.layers]
    assert len(names) == len(set(names))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_models_of_other_backends(backend: str) -> None:
    model = load_model(DATA / f"{backend}.keras")
    with np.load(DATA / f"{backend}.npz") as stored:
        x, y = stored["x"], stored["y"]
    assert relative_difference(y, model(x, training=False)) < STRICT
    assert relative_difference(y, _agrees(model).model(x, training=False)) < STRICT


def test_a_twin_trains() -> None:
    twin = bridge(_siamese()).model
    weights_before = [weight.numpy() for weight in twin.trainable_weights]
    twin.compile("sgd", "mse")
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype("float32")
    twin.fit([images, images[::-1]], np.ones((8, 1)), verbose=0)
    assert any(not np.array_equal(a, b.numpy()) for a, b in zip(weights_before, twin.trainable_weights, strict=True))
    assert isinstance(twin, tf_keras.Model)


TESTED_FAMILIES = list(FAMILIES) if os.environ.get("EDGEPIPE_FAMILIES") == "all" else ["MobileNet", "MobileNetV3Small"]


@pytest.mark.slow
@pytest.mark.parametrize("family", TESTED_FAMILIES)
def test_every_injected_fault_is_located(family: str) -> None:
    faults = inject_faults(FAMILIES[family]())
    assert {fault.damage for fault in faults} >= {
        "dropped kernel",
        "dropped bias",
        "swapped kernels",
        "lost activation",
    }
    assert [fault for fault in faults if not fault.is_located] == []
