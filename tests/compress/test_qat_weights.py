"""Fake-quant of kernels against plain numpy; zeros stay zero and clusters equal through training and conversion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.qat import range_initialization
from edgepipe.compress.qat.fake_quant import QatRecipe, build_fake_quant, constant_kernels, kernel_wrappers
from edgepipe.compress.qat.quantizers import KernelStructure, WeightQuantizer, detect_structure
from edgepipe.core.errors import InputError
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
DATA = np.random.RandomState(1).rand(96, 8, 8, 3).astype(np.float32)


def _quantize(kernel: Any, axis: tuple[int, ...]) -> Any:
    """Symmetric, 127 steps to each side, one scale for each slice: reimplemented from the specification."""
    reduced_axes = tuple(a for a in range(kernel.ndim) if a not in axis)
    scale = np.abs(kernel).max(axis=reduced_axes, keepdims=True) / 127
    return np.rint(kernel / scale) * scale


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3, 4, 6), (3,)), ((3, 3, 4, 2), (2, 3)), ((5, 7), (1,)), ((3, 3, 6, 4), (2,))],
    ids=["convolution", "depthwise", "dense", "transposed"],
)
def test_each_channel_has_a_scale_of_its_own(shape: tuple[int, ...], axis: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    wide = [shape[a] if a in axis else 1 for a in range(len(shape))]
    kernel = (generator.normal(0, 1, shape) * 10 ** generator.uniform(-3, 3, wide)).astype(np.float32)
    fake_quantized = np.asarray(WeightQuantizer(axis, KernelStructure())(kernel, False, {}))
    assert np.allclose(fake_quantized, _quantize(kernel, axis), rtol=1e-5, atol=0)


def test_a_channel_of_zeros_is_no_division_by_zero() -> None:
    kernel = np.array([[0.0, 1.0], [0.0, -0.5]], np.float32)
    assert np.asarray(WeightQuantizer((1,), KernelStructure())(kernel, False, {}))[:, 0].tolist() == [0.0, 0.0]


def _model(kernel: Any) -> Any:
    set_seeds(2)
    inputs = tf_keras.Input((8, 8, 3), name="x")
    x = K.ReLU()(K.BatchNormalization()(K.Conv2D(8, 3, use_bias=False, name="conv")(inputs)))
    model = tf_keras.Model(inputs, K.Dense(3, name="out")(K.GlobalAveragePooling2D()(x)))
    model.get_layer("conv").set_weights([kernel(model.get_layer("conv").get_weights()[0])])
    return model


def _prune(kernel: Any) -> Any:
    return np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0, kernel)


def _cluster(kernel: Any) -> Any:
    centres = np.quantile(kernel, np.linspace(0.05, 0.95, 8))
    return centres[np.abs(kernel[..., None] - centres).argmin(-1)].astype(np.float32)


def _train(base: Any, recipe: QatRecipe) -> Any:
    fake_quant = build_fake_quant(base, recipe, DATA[:2])
    range_initialization.initialize_ranges(fake_quant.model, DATA, seed=0, use_batch_statistics=False)
    fake_quant.model.compile(tf_keras.optimizers.Adam(0.01), "mse")
    fake_quant.model.fit(DATA, np.ones((96, 3)), epochs=2, verbose=0)
    return fake_quant


def _effective_kernel(fake_quant: Any) -> Any:
    wrapper = next(w for w in kernel_wrappers(fake_quant.model) if w.layer.name == "conv")
    variable, quantizer, _ = wrapper._weight_vars[0]
    with constant_kernels(fake_quant.model):
        return np.asarray(quantizer(variable, False, {}))


@pytest.mark.slow
@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_stay_zero_unless_switched_off(keep_zeros: bool, tmp_path: Path) -> None:
    base = _model(_prune)
    zeros = base.get_layer("conv").get_weights()[0] == 0
    fake_quant = _train(base, QatRecipe(keep_zeros=keep_zeros))
    kept_zeros = int((_effective_kernel(fake_quant)[zeros] == 0).sum())
    assert (kept_zeros == zeros.sum()) if keep_zeros else (kept_zeros < zeros.sum() / 2)
    assert (fake_quant.kernel_structures["conv"].zero_mask is not None) == keep_zeros
    assert fake_quant.kernel_structures["out"].zero_mask is None


@pytest.mark.slow
def test_zeros_are_in_the_file(tmp_path: Path) -> None:
    from edgepipe.tflite.reader import read, weight_sparsity

    fake_quant = _train(_model(_prune), QatRecipe())
    (tmp_path / "m.tflite").write_bytes(convert(fake_quant.model, samples=DATA))
    shares = {layer.operator: layer.share for layer in weight_sparsity(read(tmp_path / "m.tflite"))}
    assert next(share for operator, share in shares.items() if operator.startswith("CONV_2D")) >= 0.5


def test_clusters_per_channel_are_detected_where_there_are_too_many_in_all() -> None:
    signs = np.sign(np.random.default_rng(0).normal(0, 1, (3, 3, 2, 200)))
    kernel = (signs * np.linspace(0.5, 2, 200)).astype(np.float32)
    structure = detect_structure(kernel, (3,))
    assert structure.cluster_count == np.unique(kernel).size == 400 > 256
    assert all(np.unique(kernel[structure.cluster_indices == number]).size == 1 for number in range(400))
    assert np.array_equal(
        detect_structure(np.moveaxis(kernel, 3, 2), (2,)).cluster_indices, np.moveaxis(structure.cluster_indices, 3, 2)
    )
    assert np.allclose(np.asarray(WeightQuantizer((3,), structure).apply_structure(kernel)), kernel, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("keep_clusters", [True, False])
def test_equal_weights_stay_equal_unless_switched_off(keep_clusters: bool) -> None:
    base = _model(_cluster)
    kernel_before = base.get_layer("conv").get_weights()[0]
    fake_quant = _train(base, QatRecipe(keep_clusters=keep_clusters))
    kernel_after = _effective_kernel(fake_quant)
    assert (np.unique(kernel_after).size <= 8) == keep_clusters
    assert not np.allclose(kernel_after, kernel_before, atol=1e-4)  # they were trained
    assert fake_quant.kernel_structures["conv"].cluster_count == (8 if keep_clusters else 0)


def test_a_plain_kernel_has_no_structure() -> None:
    structure = detect_structure(np.random.default_rng(0).normal(0, 1, (3, 3, 8, 8)).astype(np.float32), (3,))
    assert (structure.zero_mask, structure.cluster_indices) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (QatRecipe(excluded_layers=("cov.*",)), "no layer is called 'cov"),
        (QatRecipe(excluded_types=("Conv1D",)), "of the class 'Conv1D'"),
    ],
)
def test_a_name_that_no_layer_has(recipe: QatRecipe, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_fake_quant(_model(_prune), recipe)
