"""Each kind of distillation against the formula of its paper, written out in NumPy: value and gradient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgepipe.training.distillation import losses

RANDOM = np.random.RandomState(3)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def value_and_gradient(loss: Callable[[Any], Any], at: np.ndarray) -> tuple[float, np.ndarray]:
    x = tf.Variable(at, dtype=tf.float64)
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(x))
    return float(value), tape.gradient(value, x).numpy()


def central(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient by central differences."""
    found = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        moved = [at.copy(), at.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        found[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_logits(temperature: float) -> None:
    teacher, student = RANDOM.randn(5, 4) * 3, RANDOM.randn(5, 4) * 3
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    by_hand = temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=1))
    value, gradient = value_and_gradient(lambda z: losses.divergence(tf.constant(p), z, temperature, False), student)
    assert value == pytest.approx(by_hand, rel=1e-12)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 5, rtol=1e-9, atol=1e-14)  # Hinton et al., section 2.1


def test_logits_of_yes_or_no_outputs() -> None:
    teacher, student, temperature = RANDOM.randn(6, 3) * 2, RANDOM.randn(6, 3) * 2, 3.0
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    by_hand = temperature**2 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    value, gradient = value_and_gradient(lambda z: losses.divergence(tf.constant(p), z, temperature, True), student)
    assert value == pytest.approx(by_hand, rel=1e-10)
    np.testing.assert_allclose(gradient, temperature * (q - p) / 18, rtol=1e-9, atol=1e-14)


def test_a_teacher_that_is_sure_gives_no_nan() -> None:
    p = np.array([[1.0, 0.0, 0.0]])
    value, gradient = value_and_gradient(lambda z: losses.divergence(tf.constant(p), z, 1.0, False), np.zeros((1, 3)))
    assert value == pytest.approx(np.log(3))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("binary", [False, True])
def test_scores_of_probabilities_soften_as_the_logits_do(binary: bool) -> None:
    z = RANDOM.randn(4, 5) * 4
    probabilities = sigmoid(z) if binary else softmax(z)
    for temperature in (1.0, 5.0):
        got = losses.soften(losses.scores(tf.constant(probabilities), False, binary), temperature, binary)
        wanted = losses.soften(losses.scores(tf.constant(z), True, binary), temperature, binary)
        np.testing.assert_allclose(got, wanted, atol=1e-9)


def test_features() -> None:
    wanted, given = RANDOM.randn(3, 4, 2, 5), RANDOM.randn(3, 4, 2, 5)
    value, gradient = value_and_gradient(lambda x: losses.squared_difference(tf.constant(wanted), x), given)
    assert value == pytest.approx(np.mean((given - wanted) ** 2), rel=1e-12)
    np.testing.assert_allclose(gradient, 2 * (given - wanted) / given.size, rtol=1e-12)


def test_attention() -> None:
    wanted, given = RANDOM.randn(3, 4, 2, 6), RANDOM.randn(3, 4, 2, 5)

    def by_hand(x: np.ndarray) -> float:
        maps = [np.sum(f**2, axis=-1).reshape(3, 8) for f in (wanted, x)]
        teacher, student = (m / np.sqrt(np.sum(m**2, axis=1, keepdims=True)) for m in maps)
        return float(np.mean(np.sum((teacher - student) ** 2, axis=1)) / 2)

    target = losses.activity_map(tf.constant(wanted))
    value, gradient = value_and_gradient(lambda x: losses.attention_distance(target, losses.activity_map(x)), given)
    assert value == pytest.approx(by_hand(given), rel=1e-12)
    np.testing.assert_allclose(gradient, central(by_hand, given), atol=1e-8)


def distances(e: np.ndarray) -> np.ndarray:
    found = np.array([[np.linalg.norm(a - b) for b in e] for a in e])
    return found / found[found > 0].mean()


def angles(e: np.ndarray) -> np.ndarray:
    number = len(e)
    found = np.zeros((number, number, number))
    for j, i, k in np.ndindex(number, number, number):
        a, b = e[i] - e[j], e[k] - e[j]
        length = np.linalg.norm(a) * np.linalg.norm(b)
        found[j, i, k] = a @ b / length if length else 0.0
    return found


@pytest.mark.parametrize(("theirs", "own"), [(losses.pairwise_distances, distances), (losses.triple_angles, angles)])
def test_relations(theirs: Callable[[Any], Any], own: Callable[[np.ndarray], np.ndarray]) -> None:
    wanted, given = RANDOM.randn(5, 7) * 2, RANDOM.randn(5, 3)

    def by_hand(x: np.ndarray) -> float:
        error = np.abs(own(x) - own(wanted))
        return float(np.mean(np.where(error < 1, error**2 / 2, error - 0.5)))

    value, gradient = value_and_gradient(lambda x: losses.relation_loss(tf.constant(wanted), x, theirs), given)
    assert value == pytest.approx(by_hand(given), rel=1e-10)
    np.testing.assert_allclose(gradient, central(by_hand, given), atol=1e-8)


@pytest.mark.parametrize("what", [losses.pairwise_distances, losses.triple_angles])
def test_relations_of_equal_samples_have_a_gradient(what: Callable[[Any], Any]) -> None:
    same = np.ones((4, 3))
    value, gradient = value_and_gradient(lambda x: losses.relation_loss(tf.constant(RANDOM.randn(4, 3)), x, what), same)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
