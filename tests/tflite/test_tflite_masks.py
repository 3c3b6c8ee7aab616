"""Zeros held against a real .tflite: shared kernels, kernels of one input, few zeros."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.pruning.prunable_kernels import kernels_in_tflite_order
from edgepipe.tflite import pruned_zeros
from edgepipe.tflite.reader import read

K = tf_keras.layers


def _check(model: Any, file: Any, folder: Path) -> list[pruned_zeros.KernelCheck]:
    """The zeros of `model`, held against `file` as a float .tflite."""
    (folder / "m.tflite").write_bytes(convert(file, scheme="float32", samples=None))
    return pruned_zeros.check_kernels(read(folder / "m.tflite"), kernels_in_tflite_order(model))


def _pruned(model: Any, share: float = 0.5) -> Any:
    random = np.random.default_rng(0)
    for weight in model.weights:
        values = random.normal(0, 1, weight.shape)
        weight.assign(values * (random.random(weight.shape) >= share) if len(weight.shape) > 1 else abs(values) + 0.5)
    return model


def _twice_normalized() -> Any:
    """One convolution, called twice, each time before a batch norm that is folded into a copy of its kernel."""
    x = tf_keras.Input((6, 6, 4), batch_size=1)
    shared = K.Conv2D(4, 3, padding="same", use_bias=False, name="shared")
    y = K.ReLU()(K.BatchNormalization(name="one")(shared(x)))
    return _pruned(tf_keras.Model(x, K.BatchNormalization(name="two")(shared(y))))


def test_every_copy_of_a_shared_kernel_is_checked(tmp_path: Path) -> None:
    model = _twice_normalized()
    found = _check(model, model, tmp_path)
    assert [entry.layer_name for entry in found] == ["shared", "shared"]
    assert len({entry.tensor_name for entry in found}) == 2
    assert not pruned_zeros.build_findings(found)


def test_kernels_of_one_input_are_told_apart_by_their_zeros(tmp_path: Path) -> None:
    """All their directions are alike."""
    x = tf_keras.Input((5, 1), batch_size=1)
    parts = [K.Dense(16, name=name, use_bias=False)(x) for name in ("a", "b", "c")]
    model = _pruned(tf_keras.Model(x, K.Concatenate()(parts)))
    assert not pruned_zeros.build_findings(_check(model, model, tmp_path))


@pytest.mark.parametrize("zeros", [1, 20])
def test_even_one_lost_zero_is_found(tmp_path: Path, zeros: int) -> None:
    x = tf_keras.Input((20,), batch_size=1)
    model = _pruned(tf_keras.Model(x, K.Dense(30, name="only")(x)), share=0.0)
    other = tf_keras.models.clone_model(model)
    values = model.layers[1].kernel.numpy()
    values.ravel()[:zeros] = 0
    other.set_weights(model.get_weights())
    model.layers[1].kernel.assign(values)
    assert not pruned_zeros.build_findings(_check(model, model, tmp_path))
    (lost,) = pruned_zeros.build_findings(_check(model, other, tmp_path))
    assert lost.observed.startswith(f"{zeros} of {zeros} pruned weights are not zero")
