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

    diagonal: tuple[Array, ...]
    error: tuple[Array, ...]
    method: HessianMethod
    probes: int

    def relative_error(self, index: int) -> float:
        """Standard error of tensor `index`: root mean square of the errors over that of the entries."""
        size = float(np.sqrt(np.mean(np.square(self.diagonal[index]))))
        return float(np.sqrt(np.mean(np.square(self.error[index])))) / size if size else 0.0


def compute_gradient(objective: Objective, weights: list[Any]) -> list[Array]:
    """dL/dw for each tensor of `weights`; zeros if the loss does not depend on it."""

    def batch_gradient(x: Any, y: Any, seed: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = objective.loss(y, objective.outputs(x))
        return list(tape.gradient(loss, weights, unconnected_gradients="zero"))

    return _mean_over_samples(objective, _trace_batch_function(objective, batch_gradient), seed=0)


def estimate_curvature(
    objective: Objective, weights: list[Any], method: HessianMethod, probes: int, seed: int
) -> Curvature:
    """The diagonal of the Hessian of the loss by each tensor of `weights`.

    Args:
        objective: the loss and its samples.
        weights: trainable variables.
        method: exact, hutchinson or gauss_newton.
        probes: random vectors for each estimate; not used by `exact`.
        seed: of the random vectors.

    Raises:
        InputError: `gauss_newton` of a loss whose Hessian by the outputs is not implemented.
    """
    if method == "gauss_newton" and objective.hessian_root is None:
        raise InputError(
            "gauss_newton needs cross-entropy of logits, or mse: the Hessian of any other loss by the outputs is "
            "not known; use `hessian: hutchinson`"
        )
    estimate = _trace_batch_function(objective, _ESTIMATORS[method](objective, weights))
    if method == "exact":
        diagonal = _mean_over_samples(objective, estimate, seed)
        return Curvature(tuple(diagonal), tuple(np.zeros_like(tensor) for tensor in diagonal), method, 0)
    mean, square = ([np.zeros(w.shape) for w in weights] for _ in range(2))
    for probe in range(probes):
        for index, probe_diagonal in enumerate(_mean_over_samples(objective, estimate, seed + probe)):
            mean[index] += probe_diagonal / probes
            square[index] += np.square(probe_diagonal) / probes
    variances = [np.maximum(s - np.square(m), 0) / max(probes - 1, 1) for m, s in zip(mean, square, strict=True)]
    return Curvature(tuple(mean), tuple(np.sqrt(s) for s in variances), method, probes)


def _trace_batch_function(objective: Objective, batch_function: Any) -> Any:
    """`batch_function(x, y, seed)` traced as one graph for batches of any size."""
    specs = [tf.nest.map_structure(_any_batch_spec, batch_part) for batch_part in objective.batches[0]]
    return tf.function(batch_function).get_concrete_function(*specs, tf.TensorSpec((2,), tf.int32))


def _any_batch_spec(tensor: Any) -> Any:
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def _mean_over_samples(objective: Objective, batch_function: Any, seed: int) -> list[Array]:
    """The mean of `batch_function` over all samples."""
    weighted_arrays = []
    for number, (x, y, share) in enumerate(objective.weighted_batches()):
        batch_tensors = batch_function(x, y, tf.constant([seed, number]))
        weighted_arrays.append([share * tensor.numpy().astype(np.float64) for tensor in batch_tensors])
    return [np.sum(tensor_terms, axis=0) for tensor_terms in zip(*weighted_arrays, strict=True)]


def _exact_diagonal(objective: Objective, weights: list[Any]) -> Any:
    """One Hessian-vector product with each unit vector: the derivative of a gradient's entry by its own weight."""

    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        return [diagonal(x, y, weight) for weight in weights]

    def diagonal(x: Any, y: Any, weight: Any) -> Any:
        def entry(index: Any) -> Any:
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    loss = objective.loss(y, objective.outputs(x))
                slope = tf.reshape(inner.gradient(loss, weight, unconnected_gradients="zero"), [-1])[index]
            return tf.reshape(outer.gradient(slope, weight, unconnected_gradients="zero"), [-1])[index]

        return tf.reshape(tf.map_fn(entry, tf.range(tf.size(weight)), fn_output_signature=weight.dtype), weight.shape)

    return batch_function


def _hutchinson(objective: Objective, weights: list[Any]) -> Any:
    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        signs = [
            _random_signs(tf.shape(w), w.dtype, seed + tf.constant([0, 7919 * index]))
            for index, w in enumerate(weights)
        ]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = objective.loss(y, objective.outputs(x))
            slopes = inner.gradient(loss, weights, unconnected_gradients="zero")
            dot_product = tf.add_n([tf.reduce_sum(slope * v) for slope, v in zip(slopes, signs, strict=True)])
        products = outer.gradient(dot_product, weights, unconnected_gradients="zero")
        return [v * product for v, product in zip(signs, products, strict=True)]

    return batch_function


def _gauss_newton(objective: Objective, weights: list[Any]) -> Any:
    def batch_function(x: Any, y: Any, seed: Any) -> list[Any]:
        assert objective.hessian_root is not None, "`estimate_curvature` refuses losses without"
        with tf.GradientTape() as tape:
            outputs = objective.outputs(x)
            direction = objective.hessian_root(outputs, _random_signs(tf.shape(outputs), outputs.dtype, seed))
            dot_product = tf.reduce_sum(outputs * tf.stop_gradient(direction))
        slopes = tape.gradient(dot_product, weights, unconnected_gradients="zero")
        # signs of different samples are independent: the mixed terms of the square vanish in the mean
        return [tf.square(slope) / tf.cast(tf.shape(outputs)[0], slope.dtype) for slope in slopes]

    return batch_function


_ESTIMATORS = {"exact": _exact_diagonal, "hutchinson": _hutchinson, "gauss_newton": _gauss_newton}


def _random_signs(shape: Any, dtype: Any, seed: Any) -> Any:
    return 2 * tf.cast(tf.random.stateless_uniform(shape, seed, 0, 2, tf.int32), dtype) - 1
