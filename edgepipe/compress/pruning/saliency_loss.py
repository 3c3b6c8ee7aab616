"""The loss that saliency asks about: of the model as it is deployed, on a sample of the training split.

Batch norms compute with their moving statistics, dropout is off, and regularizers are left out: what is asked is how
the error on data changes when a weight goes (LeCun, Denker, Solla 1990).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array, Arrays, count, each, take
from edgepipe.tasks.quality import Task
from edgepipe.training import loss_and_optimizer
from edgepipe.training.training_setup import Data, targets

BATCH = 256

# For raw outputs z of shape (n, ...) and random signs of that shape: S u, where S S' is the Hessian of the loss by z.
Root = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Objective:
    """A mean loss over batches of samples. `outputs` gives logits wherever the loss can take them."""

    outputs: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]  # (targets, outputs) -> scalar, the mean over the batch
    batches: tuple[tuple[Any, Any], ...]
    root: Root | None  # None: the loss is none of those whose output Hessian is known

    @property
    def samples(self) -> int:
        """How many there are in all batches."""
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch."""
        return [int(tf.nest.flatten(x)[0].shape[0]) for x, _ in self.batches]

    def weighted(self) -> Iterator[tuple[Any, Any, float]]:
        """Each batch with its share of all samples."""
        for (x, y), size in zip(self.batches, self.sizes, strict=True):
            yield x, y, size / self.samples

    def value(self) -> float:
        """The mean loss over all samples."""
        return float(sum(share * float(self.loss(y, self.outputs(x))) for x, y, share in self.weighted()))


def objective_of(model: Any, task: Task, data: Data, samples: int, seed: int) -> Objective:
    """The loss of the tf_keras `model` on at most `samples` samples of `data`, drawn with `seed`."""
    x, y = targets(task, data)
    chosen = np.sort(np.random.default_rng(seed).permutation(count(x))[:samples])
    batches = tuple(_batches(take(x, chosen), take(y, chosen)))
    outputs, logits = _outputs(model, task)
    return Objective(outputs, _loss(task, model, logits), batches, _root(task, model, logits))


def _batches(x: Arrays, y: Any) -> Iterator[tuple[Any, Any]]:
    parts = -(-count(x) // BATCH)
    for part in np.array_split(np.arange(count(x)), parts):
        yield tuple(each(lambda array: tf.convert_to_tensor(_floats(array)), take(v, part)) for v in (x, y))  # type: ignore[misc]


def _floats(array: Array) -> Array:
    return array.astype(tf_keras.backend.floatx()) if array.dtype.kind == "f" else array


def _outputs(model: Any, task: Task) -> tuple[Callable[[Any], Any], bool]:
    """What gives the raw outputs, and whether these are logits: the last softmax or sigmoid is left out.

    Only cross-entropy of edgepipe's choice can take logits; any other loss is of the outputs as they are.
    """
    last = loss_and_optimizer.last_layer(model)
    plain = len(model.outputs) > 1 or loss_and_optimizer.gives_logits(model) or len(last._inbound_nodes) != 1
    plain = plain or task.loss != "auto"
    if plain or model.outputs[0] is not last.output:
        return lambda x: model(x, training=False), loss_and_optimizer.gives_logits(model)
    trunk = tf_keras.Model(model.inputs, last.input)
    if not last.weights:
        return lambda x: trunk(x, training=False), True

    def logits(x: Any) -> Any:
        with _linear(last):
            return last(trunk(x, training=False))

    return logits, True


@contextmanager
def _linear(layer: Any) -> Iterator[None]:
    activation, layer.activation = layer.activation, tf_keras.activations.linear
    try:
        yield
    finally:
        layer.activation = activation


def _loss(task: Task, model: Any, logits: bool) -> Callable[[Any, Any], Any]:
    if len(model.outputs) > 1:
        model.compile(loss=loss_and_optimizer.loss(task, model))
        return lambda y, outputs: model.compiled_loss(y, outputs)
    chosen = loss_and_optimizer.loss(task, model, logits=logits)
    return lambda y, outputs: tf.reduce_mean(chosen(y, outputs))


def _root(task: Task, model: Any, logits: bool) -> Root | None:
    """Nothing for a loss of the user's own, for probabilities, and for several outputs."""
    if len(model.outputs) > 1 or (task.loss == "auto" and not logits):
        return None
    if task.loss == "mse":
        return lambda z, u: u * tf.sqrt(2 / _each(z))
    if task.loss != "auto":
        return None
    return _sigmoid_root if loss_and_optimizer.is_binary(task, model) else _softmax_root


def _each(z: Any) -> Any:
    """Outputs of one sample, over which these losses are means."""
    return tf.cast(tf.size(z) / tf.shape(z)[0], z.dtype)


def _softmax_root(z: Any, u: Any) -> Any:
    # diag(p) - p p' = S S' with S = diag(sqrt p) - p sqrt(p)'
    p = tf.nn.softmax(z)
    root = tf.sqrt(p)
    places = _each(z) / tf.cast(tf.shape(z)[-1], z.dtype)
    return (root * u - p * tf.reduce_sum(root * u, axis=-1, keepdims=True)) / tf.sqrt(places)


def _sigmoid_root(z: Any, u: Any) -> Any:
    p = tf.sigmoid(z)
    return u * tf.sqrt(p * (1 - p) / _each(z))
