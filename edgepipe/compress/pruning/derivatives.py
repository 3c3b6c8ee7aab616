"""First and second derivatives of a loss by each weight: the gradient, and three methods for the Hessian's diagonal.

- `exact`: one Hessian-vector product (Pearlmutter 1994) for each weight; for small models.
- `hutchinson`: v * Hv for random signs v, whose mean is the diagonal (Bekas, Kokiopoulou, Saad 2007). Unbiased for the
  Hessian itself; noisy, and a single estimate may be negative where the true value is not.
- `gauss_newton`: the squared gradient of random combinations of the outputs, whose mean is the diagonal of the
  Gauss-Newton matrix J' S S' J (Schraudolph 2002). Never negative; omits the curvature of the network itself, which
  vanishes where the errors do.

Arrays are float64 and have the shapes of the weights.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from edgepipe.compress.pruning.saliency_loss import Objective
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError

HessianMethod = Literal["exact", "hutchinson", "gauss_newton"]


@dataclass(frozen=True)
class Curvature:
    """The diagonal of the Hessian for each weight tensor, and its uncertainty.

    `error` is the standard error of each entry over the probes; zeros where the diagonal is exact.
    """

    diagonals: tuple[Array, ...]
    standard_errors: tuple[Array, ...]
    method: HessianMethod
    probe_count: int

    def relative_error(self, index: int) -> float:
        """Standard error of tensor `index`: root mean square of the errors over that of the entries."""
        diagonal_rms = float(np.sqrt(np.mean(np.square(self.diagonals[index]))))
        return float(np.sqrt(np.mean(np.square(self.standard_errors[index])))) / diagonal_rms if diagonal_rms else 0.0


def compute_gradient(objective: Objective, weights: list[Any]) -> list[Array]:
    """dL/dw for each tensor of `weights`; zeros if the loss does not depend on it."""

    def compute_batch_gradient(x: Any, y: Any, seed: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = objective.compute_loss(y, objective.compute_outputs(x))
        return list(tape.gradient(loss, weights, unconnected_gradients="zero"))

    return _mean_over_samples(objective, _trace_batch_function(objective, compute_batch_gradient), seed=0)


def estimate_curvature(
    objective: Objective, weights: list[Any], method: HessianMethod, probe_count: int, seed: int
) -> Curvature:
    """The diagonal of the Hessian of the loss by each tensor of `weights`.

    Args:
        objective: the loss and its samples.
        weights: trainable variables.
        method: exact, hutchinson or gauss_newton.
        probe_count: random vectors for each estimate; not used by `exact`.
        seed: of the random vectors.

    Raises:
        InputError: `gauss_newton` of a loss whose Hessian by the outputs is not implemented.
    """
    if method == "gauss_newton" and objective.hessian_root is None:
        raise InputError(
            "gauss_newton needs cross-entropy of logits, or mse: the Hessian of any other loss by the outputs is "
            "not known; use `hessian: hutchinson`"
        )
    estimate_batch = _trace_batch_function(objective, _ESTIMATOR_BY_METHOD[method](objective, weights))
    if method == "exact":
        diagonals = _mean_over_samples(objective, estimate_batch, seed)
        return Curvature(tuple(diagonals), tuple(np.zeros_like(tensor) for tensor in diagonals), method, 0)
    mean_diagonals, mean_squares = ([np.zeros(w.shape) for w in weights] for _ in range(2))
    for probe_index in range(probe_count):
        for index, probe_diagonal in enumerate(_mean_over_samples(objective, estimate_batch, seed + probe_index)):
            mean_diagonals[index] += probe_diagonal / probe_count
            mean_squares[index] += np.square(probe_diagonal) / probe_count
    variances = [
        np.maximum(s - np.square(m), 0) / max(probe_count - 1, 1)
        for m, s in zip(mean_diagonals, mean_squares, strict=True)
    ]
    return Curvature(tuple(mean_diagonals), tuple(np.sqrt(s) for s in variances), method, probe_count)


def _trace_batch_function(objective: Objective, batch_function: Any) -> Any:
    """`batch_function(x, y, seed)` traced as one graph for batches of any size."""
    tensor_specs = [tf.nest.map_structure(_any_batch_spec, batch_part) for batch_part in objective.batches[0]]
    return tf.function(batch_function).get_concrete_function(*tensor_specs, tf.TensorSpec((2,), tf.int32))


def _any_batch_spec(tensor: Any) -> Any:
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def _mean_over_samples(objective: Objective, batch_function: Any, seed: int) -> list[Array]:
    """The mean of `batch_function` over all samples."""
    weighted_arrays = []
    for batch_number, (x, y, sample_share) in enumerate(objective.weighted_batches()):
        batch_tensors = batch_function(x, y, tf.constant([seed, batch_number]))
        weighted_arrays.append([sample_share * tensor.numpy().astype(np.float64) for tensor in batch_tensors])
    return [np.sum(tensor_terms, axis=0) for tensor_terms in zip(*weighted_arrays, strict=True)]


def _exact_estimator(objective: Objective, weights: list[Any]) -> Any:
    """One Hessian-vector product with each unit vector: the derivative of a gradient's entry by its own weight."""

    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        return [compute_diagonal(x, y, weight) for weight in weights]

    def compute_diagonal(x: Any, y: Any, weight: Any) -> Any:
        def compute_entry(index: Any) -> Any:
            with tf.GradientTape() as outer_tape:
                with tf.GradientTape() as inner_tape:
                    loss = objective.compute_loss(y, objective.compute_outputs(x))
                gradient_entry = tf.reshape(inner_tape.gradient(loss, weight, unconnected_gradients="zero"), [-1])[
                    index
                ]
            return tf.reshape(outer_tape.gradient(gradient_entry, weight, unconnected_gradients="zero"), [-1])[index]

        return tf.reshape(
            tf.map_fn(compute_entry, tf.range(tf.size(weight)), fn_output_signature=weight.dtype), weight.shape
        )

    return batch_function


def _hutchinson_estimator(objective: Objective, weights: list[Any]) -> Any:
    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        random_signs = [
            _random_signs(tf.shape(w), w.dtype, seed + tf.constant([0, 7919 * index]))
            for index, w in enumerate(weights)
        ]
        with tf.GradientTape() as outer_tape:
            with tf.GradientTape() as inner_tape:
                loss = objective.compute_loss(y, objective.compute_outputs(x))
            gradients = inner_tape.gradient(loss, weights, unconnected_gradients="zero")
            dot_product = tf.add_n([tf.reduce_sum(slope * v) for slope, v in zip(gradients, random_signs, strict=True)])
        hessian_products = outer_tape.gradient(dot_product, weights, unconnected_gradients="zero")
        return [v * product for v, product in zip(random_signs, hessian_products, strict=True)]

    return batch_function


def _gauss_newton_estimator(objective: Objective, weights: list[Any]) -> Any:
    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        assert objective.hessian_root is not None, "`estimate_curvature` refuses losses without"
        with tf.GradientTape() as tape:
            outputs = objective.compute_outputs(x)
            direction = objective.hessian_root(outputs, _random_signs(tf.shape(outputs), outputs.dtype, seed))
            dot_product = tf.reduce_sum(outputs * tf.stop_gradient(direction))
        gradients = tape.gradient(dot_product, weights, unconnected_gradients="zero")
        # signs of different samples are independent: the mixed terms of the square vanish in the mean
        return [tf.square(slope) / tf.cast(tf.shape(outputs)[0], slope.dtype) for slope in gradients]

    return batch_function


_ESTIMATOR_BY_METHOD = {
    "exact": _exact_estimator,
    "hutchinson": _hutchinson_estimator,
    "gauss_newton": _gauss_newton_estimator,
}


def _random_signs(shape: Any, dtype: Any, seed: Any) -> Any:
    return 2 * tf.cast(tf.random.stateless_uniform(shape, seed, 0, 2, tf.int32), dtype) - 1
