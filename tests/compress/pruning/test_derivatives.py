"""Gradients and Hessian diagonals compared with independent computations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from small_networks import K, flat

from edgepipe.compress.pruning.derivatives import compute_gradient, estimate_curvature
from edgepipe.compress.pruning.saliency_loss import build_objective
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.data.splits import SplitData
from edgepipe.tasks.quality import Measure, Task
from edgepipe.training.training_loop import set_seeds

SAMPLES = 12
MEASURES = {"quality": Measure(lambda truth, outputs: 0.0)}
CLASSES = Task("auto", MEASURES, "classification")
MULTI_LABEL = Task("auto", MEASURES, "classification", labels="many")
REGRESSION = Task("mse", MEASURES, "regression")
CUSTOM_LOSS = Task(lambda y, z: tf.reduce_mean(tf.square(z), axis=-1), MEASURES, "custom")


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    """Differences of differences need float64."""
    tf_keras.backend.set_floatx("float64")
    yield
    tf_keras.backend.set_floatx("float32")


def _network(*layers: Any) -> Any:
    return tf_keras.Sequential([tf_keras.Input((4, 4, 1)), *layers])


CASES: dict[str, tuple[Any, Task]] = {
    "dense, softmax": (lambda: _network(K.Flatten(), K.Dense(3, "tanh"), K.Dense(4, "softmax")), CLASSES),
    "convolution and batch norm": (lambda: _network(
        K.Conv2D(2, 2, use_bias=False), K.BatchNormalization(), K.Activation("tanh"), K.DepthwiseConv2D(2),
        K.GlobalAveragePooling2D(), K.Dense(4, "softmax")), CLASSES),
    "logits": (lambda: _network(K.Flatten(), K.Dense(4)), CLASSES),
    "softmax as a layer": (lambda: _network(K.Flatten(), K.Dense(4), K.Softmax()), CLASSES),
    "many labels": (lambda: _network(K.Flatten(), K.Dense(3, "tanh"), K.Dense(3, "sigmoid")), MULTI_LABEL),
    "mean squared error": (lambda: _network(K.Flatten(), K.Dense(3, "tanh"), K.Dense(2)), REGRESSION),
}  # fmt: skip


def _build_case(name: str) -> tuple[Any, Any, list[Any]]:
    set_seeds(1)
    build, task = CASES[name]
    model, random = build(), np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(0, 0.4, weight.shape) + (1.0 if "variance" in weight.name else 0.0))
    x = random.random((SAMPLES, 4, 4, 1))
    several = {
        "many labels": (random.random((SAMPLES, 3)) > 0.5) * 1.0,
        "mean squared error": random.random((SAMPLES, 2)),
    }
    y = several.get(name, random.integers(0, 4, SAMPLES))
    return model, build_objective(model, task, SplitData(x, y), SAMPLES, 0), list(model.trainable_weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradient_and_exact_diagonal_are_those_of_differences(name: str) -> None:
    _, objective, weights = _build_case(name)
    losses = list(_perturbed_losses(objective, weights, (1e-5, 1e-3)))
    gradient = flat(compute_gradient(objective, weights))
    expected = np.array([(near_up - near_down) / 2e-5 for (near_up, near_down, _, _), _ in losses])
    assert np.abs(gradient - expected).max() <= 1e-6 * np.abs(expected).max()
    diagonal = flat(estimate_curvature(objective, weights, "exact", 0, 0).diagonals)
    expected = np.array([(far_up - 2 * middle + far_down) / 1e-6 for (_, _, far_up, far_down), middle in losses])
    assert np.abs(diagonal - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_that_of_the_outputs_of_the_whole_model(name: str) -> None:
    """Differentiated above: it must not be another one where outputs are replaced by logits."""
    model, objective, weights = _build_case(name)
    ((x, y),) = objective.batches
    for _ in range(2):
        expected = _loss_of_outputs(name)(y, model(x, training=False))
        assert objective.mean_loss() == pytest.approx(float(expected), rel=1e-6)
        weights[0].assign(weights[0] * 0.5)


def _loss_of_outputs(name: str) -> Any:
    losses = tf_keras.losses
    if name == "many labels":
        return losses.BinaryCrossentropy()
    if name == "mean squared error":
        return losses.MeanSquaredError()
    return losses.SparseCategoricalCrossentropy(from_logits=name == "logits")


def _perturbed_losses(
    objective: Any, weights: list[Any], steps: tuple[float, ...]
) -> Iterator[tuple[list[float], float]]:
    """The loss with each weight each step up and down, and unchanged."""
    ((x, y),) = objective.batches
    loss = tf.function(lambda: objective.compute_loss(y, objective.compute_outputs(x)))
    middle = float(loss())
    for weight in weights:
        original_array = weight.numpy()
        for index in np.ndindex(*original_array.shape):
            losses = []
            for step in (signed for size in steps for signed in (size, -size)):
                perturbed_array = original_array.copy()
                perturbed_array[index] += step
                weight.assign(perturbed_array)
                losses.append(float(loss()))
            yield losses, middle
        weight.assign(original_array)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [
    ("convolution and batch norm", "hutchinson"), ("convolution and batch norm", "gauss_newton"),
    ("many labels", "gauss_newton"), ("mean squared error", "gauss_newton"),
])  # fmt: skip
def test_an_estimate_is_within_its_standard_error(name: str, method: Any) -> None:
    """Hutchinson's knows no losses, Gauss-Newton's has a formula for each; cross-entropy alone is in the next test."""
    _, objective, weights = _build_case(name)
    curvature = estimate_curvature(objective, weights, method, 200, 0)
    expected = flat(_reference(name, objective, weights, method))
    deviations, standard_errors = np.abs(flat(curvature.diagonals) - expected), flat(curvature.standard_errors)
    assert np.mean(deviations <= 4 * standard_errors + 1e-12) > 0.98
    assert np.sqrt(np.mean(np.square(standard_errors))) < 0.3 * np.sqrt(np.mean(np.square(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hutchinson", "gauss_newton"])
def test_more_probes_are_closer(method: Any) -> None:
    _, objective, weights = _build_case("dense, softmax")
    expected = flat(_reference("dense, softmax", objective, weights, method))
    coarse, fine = (flat(estimate_curvature(objective, weights, method, probes, 0).diagonals) for probes in (4, 400))
    assert np.abs(fine - expected).mean() < np.abs(coarse - expected).mean() / 3


def _reference(name: str, objective: Any, weights: list[Any], method: str) -> list[Array]:
    if method == "hutchinson":
        return list(estimate_curvature(objective, weights, "exact", 0, 0).diagonals)
    return _gauss_newton(name, objective, weights)


def _gauss_newton(name: str, objective: Any, weights: list[Any]) -> list[Array]:
    """J' H J from the whole Jacobian of the outputs, sample by sample, H by automatic differentiation."""
    x, y = objective.batches[0]
    with tf.GradientTape(persistent=True) as tape:
        outputs = objective.compute_outputs(x)
    jacobians = [tape.jacobian(outputs, weight, experimental_use_pfor=False).numpy() for weight in weights]
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(outputs)
        with tf.GradientTape() as inner:
            inner.watch(outputs)
            loss = objective.compute_loss(y, outputs)
        slope = inner.gradient(loss, outputs)
    hessians = outer.batch_jacobian(slope, outputs, experimental_use_pfor=False).numpy()
    diagonals = []
    for jacobian in jacobians:
        flat_ = jacobian.reshape(*jacobian.shape[:2], -1)
        diagonals.append(np.einsum("nak,nab,nbk->k", flat_, hessians, flat_).reshape(jacobian.shape[2:]))
    return diagonals


def test_gauss_newton_of_an_own_loss_is_refused() -> None:
    model, data = _build_case("logits")[0], SplitData(np.zeros((8, 4, 4, 1)), np.zeros(8))
    objective = build_objective(model, CUSTOM_LOSS, data, 8, 0)
    with pytest.raises(InputError, match=r"gauss_newton needs cross-entropy of logits, or mse.*hutchinson"):
        estimate_curvature(objective, model.trainable_weights, "gauss_newton", 4, 0)
    assert estimate_curvature(objective, model.trainable_weights, "hutchinson", 4, 0).probe_count == 4


def test_exact_has_no_error() -> None:
    _, objective, weights = _build_case("logits")
    curvature = estimate_curvature(objective, weights, "exact", 0, 0)
    assert curvature.relative_error(0) == 0.0


def test_a_loss_of_the_outputs_is_not_taken_of_logits() -> None:
    """With a squared error, as for an autoencoder, a final sigmoid is part of the model."""
    model, random = _network(K.Flatten(), K.Dense(3, "tanh"), K.Dense(2, "sigmoid")), np.random.default_rng(0)
    x, y = random.random((SAMPLES, 4, 4, 1)), random.random((SAMPLES, 2))
    loss = build_objective(model, REGRESSION, SplitData(x, y), SAMPLES, 0).mean_loss()
    assert loss == pytest.approx(float(np.mean((model(x).numpy() - y) ** 2)), rel=1e-6)  # in float32
