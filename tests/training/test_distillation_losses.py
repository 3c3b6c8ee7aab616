"""Each kind of distillation against the formula of its paper, written out in NumPy: value and gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from training_references import softmax

from edgepipe.training.distillation import losses

RANDOM = np.random.RandomState(3)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def value_and_gradient(loss: Callable[[Any], Any], at: np.ndarray) -> tuple[float, np.ndarray]:
    x = tf.Variable(at, dtype=tf.float64)
    with tf.GradientTape() as tape:
        loss_value = tf.reduce_mean(loss(x))
    return float(loss_value), tape.gradient(loss_value, x).numpy()


def central_difference(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient by central differences."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shifted_points = [at.copy(), at.copy()]
        shifted_points[0][index] += step
        shifted_points[1][index] -= step
        gradient[index] = (function(shifted_points[0]) - function(shifted_points[1])) / (2 * step)
    return gradient


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_logits(temperature: float) -> None:
    teacher, student = RANDOM.randn(5, 4) * 3, RANDOM.randn(5, 4) * 3
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    by_hand = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    loss_value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence(tf.constant(p), z, temperature, False), student
    )
    assert loss_value == pytest.approx(by_hand, rel=1e-12)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 5, rtol=1e-9, atol=1e-14)  # Hinton et al., section 2.1


def test_logits_of_yes_or_no_outputs() -> None:
    teacher, student, temperature = RANDOM.randn(6, 3) * 2, RANDOM.randn(6, 3) * 2, 3.0
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    by_hand = temperature**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    loss_value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence(tf.constant(p), z, temperature, True), student
    )
    assert loss_value == pytest.approx(by_hand, rel=1e-10)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 18, rtol=1e-9, atol=1e-14)


def test_a_certain_teacher_gives_no_nan() -> None:
    p = np.array([[1.0, 0.0, 0.0]])
    loss_value, gradient = value_and_gradient(
        lambda z: losses.kl_divergence(tf.constant(p), z, 1.0, False), np.zeros((1, 3))
    )
    assert loss_value == pytest.approx(np.log(3))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("binary", [False, True])
def test_scores_of_probabilities_soften_like_logits(binary: bool) -> None:
    z = RANDOM.randn(4, 5) * 4
    probabilities = sigmoid(z) if binary else softmax(z)
    for temperature in (1.0, 5.0):
        got = losses.soften_scores(losses.class_scores(tf.constant(probabilities), False, binary), temperature, binary)
        expected_probabilities = losses.soften_scores(
            losses.class_scores(tf.constant(z), True, binary), temperature, binary
        )
        np.testing.assert_allclose(got, expected_probabilities, atol=1e-9)


def test_features() -> None:
    teacher_features, student_features = RANDOM.randn(3, 4, 2, 5), RANDOM.randn(3, 4, 2, 5)
    loss_value, gradient = value_and_gradient(
        lambda x: losses.squared_difference(tf.constant(teacher_features), x), student_features
    )
    assert loss_value == pytest.approx(np.mean((student_features - teacher_features) ** 2), rel=1e-12)
    np.testing.assert_allclose(gradient, 2 * (student_features - teacher_features) / student_features.size, rtol=1e-12)


def test_attention() -> None:
    teacher_features, student_features = RANDOM.randn(3, 4, 2, 6), RANDOM.randn(3, 4, 2, 5)

    def by_hand(x: np.ndarray) -> float:
        maps = [np.sum(f**2, axis=-1).reshape(3, 8) for f in (teacher_features, x)]
        teacher, student = (m / np.sqrt(np.sum(m**2, axis=1, keepdims=True)) for m in maps)
        return float(np.mean(np.sum((teacher - student) ** 2, axis=1)) / 2)

    target = losses.attention_map(tf.constant(teacher_features))
    loss_value, gradient = value_and_gradient(
        lambda x: losses.attention_distance(target, losses.attention_map(x)), student_features
    )
    assert loss_value == pytest.approx(by_hand(student_features), rel=1e-12)
    np.testing.assert_allclose(gradient, central_difference(by_hand, student_features), atol=1e-8)


def distances(e: np.ndarray) -> np.ndarray:
    pair_distances = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
    return pair_distances / pair_distances[pair_distances > 0].mean()


def angles(e: np.ndarray) -> np.ndarray:
    number = len(e)
    cosines = np.zeros((number, number, number))
    for j, i, k in np.ndindex(number, number, number):
        a, b = e[i] - e[j], e[k] - e[j]
        length = np.linalg.norm(a) * np.linalg.norm(b)
        cosines[j, i, k] = a @ b / length if length else 0.0
    return cosines


@pytest.mark.parametrize(
    ("relation_fn", "reference_fn"), [(losses.pairwise_distances, distances), (losses.triple_angles, angles)]
)
def test_relations(relation_fn: Callable[[Any], Any], reference_fn: Callable[[np.ndarray], np.ndarray]) -> None:
    teacher_features, student_features = RANDOM.randn(5, 7) * 2, RANDOM.randn(5, 3)

    def by_hand(x: np.ndarray) -> float:
        error = np.abs(reference_fn(x) - reference_fn(teacher_features))
        return float(np.mean(np.where(error < 1, error**2 / 2, error - 0.5)))

    loss_value, gradient = value_and_gradient(
        lambda x: losses.relation_loss(tf.constant(teacher_features), x, relation_fn), student_features
    )
    assert loss_value == pytest.approx(by_hand(student_features), rel=1e-10)
    np.testing.assert_allclose(gradient, central_difference(by_hand, student_features), atol=1e-8)


@pytest.mark.parametrize("relation_fn", [losses.pairwise_distances, losses.triple_angles])
def test_relations_of_equal_samples_have_a_gradient(relation_fn: Callable[[Any], Any]) -> None:
    same = np.ones((4, 3))
    loss_value, gradient = value_and_gradient(
        lambda x: losses.relation_loss(tf.constant(RANDOM.randn(4, 3)), x, relation_fn), same
    )
    assert np.isfinite(loss_value)
    assert np.isfinite(gradient).all()
