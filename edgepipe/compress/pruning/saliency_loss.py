"""The loss that saliency is computed from: of the model in inference mode, on a sample of the training split.

Batch norms use their moving statistics, dropout is off, and regularizers are left out: saliency is the change of the
error on data when a weight is removed (LeCun, Denker, Solla 1990).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array, Arrays, count_samples, map_arrays, take_samples
from edgepipe.tasks.quality import Task
from edgepipe.training import loss_and_optimizer
from edgepipe.training.training_setup import LabelledSamples, samples_and_targets

BATCH_SIZE = 256

# For raw outputs z of shape (n, ...) and random signs of that shape: S u, where S S' is the Hessian of the loss by z.
HessianRoot = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Objective:
    """A mean loss over batches of samples. `outputs` computes logits wherever the loss accepts them."""

    compute_outputs: Callable[[Any], Any]
    compute_loss: Callable[[Any, Any], Any]  # (targets, outputs) -> scalar, the mean over the batch
    batches: tuple[tuple[Any, Any], ...]
    hessian_root: HessianRoot | None  # None: the Hessian of this loss by the outputs is not implemented

    @property
    def sample_count(self) -> int:
        """The number of samples in all batches."""
        return sum(self.batch_sizes)

    @property
    def batch_sizes(self) -> list[int]:
        """The number of samples in each batch."""
        return [int(tf.nest.flatten(x)[0].shape[0]) for x, _ in self.batches]

    def weighted_batches(self) -> Iterator[tuple[Any, Any, float]]:
        """Each batch with its share of all samples."""
        for (x, y), size in zip(self.batches, self.batch_sizes, strict=True):
            yield x, y, size / self.sample_count

    def mean_loss(self) -> float:
        """The mean loss over all samples."""
        return float(
            sum(share * float(self.compute_loss(y, self.compute_outputs(x))) for x, y, share in self.weighted_batches())
        )


def build_objective(model: Any, task: Task, data: LabelledSamples, max_samples: int, seed: int) -> Objective:
    """The loss of the tf_keras `model` on randomly drawn samples.

    Args:
        model: a tf_keras model.
        task: determines targets and loss.
        data: labelled samples.
        max_samples: at most so many are drawn.
        seed: of the draw.
    """
    x, y = samples_and_targets(task, data)
    chosen_indices = np.sort(np.random.default_rng(seed).permutation(count_samples(x))[:max_samples])
    batches = tuple(_split_batches(take_samples(x, chosen_indices), take_samples(y, chosen_indices)))
    compute_outputs, gives_logits = _build_outputs(model, task)
    return Objective(
        compute_outputs, _build_loss(task, model, gives_logits), batches, _build_hessian_root(task, model, gives_logits)
    )


def _split_batches(x: Arrays, y: Any) -> Iterator[tuple[Any, Any]]:
    batch_count = -(-count_samples(x) // BATCH_SIZE)
    for indices in np.array_split(np.arange(count_samples(x)), batch_count):
        yield tuple(
            map_arrays(lambda array: tf.convert_to_tensor(_cast_floats(array)), take_samples(v, indices))
            for v in (x, y)
        )  # type: ignore[misc]


def _cast_floats(array: Array) -> Array:
    return array.astype(tf_keras.backend.floatx()) if array.dtype.kind == "f" else array


def _build_outputs(model: Any, task: Task) -> tuple[Callable[[Any], Any], bool]:
    """A function that computes the raw outputs, and whether these are logits, without the final softmax or sigmoid.

    Only edgepipe's own cross-entropy accepts logits; any other loss takes the model's outputs.
    """
    last_layer = loss_and_optimizer.last_layer(model)
    keeps_activation = (
        len(model.outputs) > 1 or loss_and_optimizer.gives_logits(model) or len(last_layer._inbound_nodes) != 1
    )
    keeps_activation = keeps_activation or task.loss != "auto"
    if keeps_activation or model.outputs[0] is not last_layer.output:
        return lambda x: model(x, training=False), loss_and_optimizer.gives_logits(model)
    trunk = tf_keras.Model(model.inputs, last_layer.input)
    if not last_layer.weights:
        return lambda x: trunk(x, training=False), True

    def compute_logits(x: Any) -> Any:
        with _linear_activation(last_layer):
            return last_layer(trunk(x, training=False))

    return compute_logits, True


@contextmanager
def _linear_activation(layer: Any) -> Iterator[None]:
    activation, layer.activation = layer.activation, tf_keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _build_loss(task: Task, model: Any, gives_logits: bool) -> Callable[[Any, Any], Any]:
    if len(model.outputs) > 1:
        model.compile(loss=loss_and_optimizer.build_loss(task, model))
        return lambda y, outputs: model.compiled_loss(y, outputs)
    loss_function = loss_and_optimizer.build_loss(task, model, from_logits=gives_logits)
    return lambda y, outputs: tf.reduce_mean(loss_function(y, outputs))


def _build_hessian_root(task: Task, model: Any, gives_logits: bool) -> HessianRoot | None:
    """None for custom losses, probabilities and several outputs."""
    if len(model.outputs) > 1 or (task.loss == "auto" and not gives_logits):
        return None
    if task.loss == "mse":
        return lambda z, u: u * tf.sqrt(2 / _outputs_per_sample(z))
    if task.loss != "auto":
        return None
    return _sigmoid_hessian_root if loss_and_optimizer.is_binary(task, model) else _softmax_hessian_root


def _outputs_per_sample(z: Any) -> Any:
    """The number of outputs of one sample, over which these losses average."""
    return tf.cast(tf.size(z) / tf.shape(z)[0], z.dtype)


def _softmax_hessian_root(z: Any, u: Any) -> Any:
    # diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)'
    p = tf.nn.softmax(z)
    sqrt_probabilities = tf.sqrt(p)
    position_count = _outputs_per_sample(z) / tf.cast(tf.shape(z)[-1], z.dtype)
    return (sqrt_probabilities * u - p * tf.reduce_sum(sqrt_probabilities * u, axis=-1, keepdims=True)) / tf.sqrt(
        position_count
    )


def _sigmoid_hessian_root(z: Any, u: Any) -> Any:
    p = tf.sigmoid(z)
    return u * tf.sqrt(p * (1 - p) / _outputs_per_sample(z))
