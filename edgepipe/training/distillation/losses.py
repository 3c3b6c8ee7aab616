"""Distillation losses: how far a student is from its teacher, one loss per sample.

The functions take TensorFlow tensors, which both Keras versions compute with.
"""

import math
from typing import Any

import tensorflow as tf

EPSILON = 1e-30  # lower limit of probabilities before the logarithm
SIGMOID_MARGIN = 1e-7  # sigmoid outputs are clipped this far from 0 and 1


def scores(outputs: Any, logits: bool, binary: bool) -> Any:
    """Class scores z of `outputs` (n, classes): logits as they are, or log probabilities (binary: log odds)."""
    if logits:
        return outputs
    if binary:
        p = tf.clip_by_value(outputs, SIGMOID_MARGIN, 1 - SIGMOID_MARGIN)
        return tf.math.log(p) - tf.math.log(1 - p)
    return tf.math.log(tf.maximum(outputs, EPSILON))  # equals the logits up to a constant, which softmax cancels


def soften(z: Any, temperature: float, binary: bool) -> Any:
    """Probabilities at `temperature`."""
    return tf.sigmoid(z / temperature) if binary else tf.nn.softmax(z / temperature)


def divergence(p: Any, z: Any, temperature: float, binary: bool) -> Any:
    """T^2 KL(p || softened z), (n,).

    Args:
        p: the teacher's probabilities at `temperature`, (n, classes).
        z: the student's class scores, (n, classes).
        temperature: T.
        binary: whether outputs are independent yes-or-no ones; the mean over them.
    """
    if not binary:
        log_q = tf.nn.log_softmax(z / temperature)
        return temperature**2 * tf.reduce_sum(tf.math.xlogy(p, p) - p * log_q, axis=-1)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=z / temperature)
    entropy = -tf.math.xlogy(p, p) - tf.math.xlogy(1 - p, 1 - p)
    return temperature**2 * tf.reduce_mean(cross_entropy - entropy, axis=-1)


def squared_difference(target: Any, student: Any) -> Any:
    """The mean squared difference over all values of a sample, (n,)."""
    return tf.reduce_mean(tf.square(student - target), axis=list(range(1, len(student.shape))))


def activity_map(features: Any) -> Any:
    """Attention map of features (n, ..., channels): the sum of squares over channels, flat, L2-normalized, (n, m)."""
    energy = tf.reduce_sum(tf.square(features), axis=-1)
    return tf.math.l2_normalize(flatten(energy), axis=1)


def flatten(tensor: Any) -> Any:
    """(n, ...) as (n, values)."""
    flat_tensor = tf.reshape(tensor, (tf.shape(tensor)[0], -1))
    if tensor.shape[1:].is_fully_defined():  # tf_keras does not know the shapes of a generator's batches
        flat_tensor.set_shape((None, math.prod(tensor.shape[1:])))
    return flat_tensor


def attention_distance(target: Any, student: Any) -> Any:
    """Half the squared distance of two attention maps, (n,)."""
    return tf.reduce_sum(tf.square(student - target), axis=1) / 2


def pairwise_distances(embedding: Any) -> Any:
    """Euclidean distances of all pairs of (n, d), divided by the mean of the nonzero ones, (n, n)."""
    squared_distances = tf.reduce_sum(tf.square(embedding[:, None] - embedding[None]), axis=2)
    is_nonzero = squared_distances > 0
    # the root has no derivative at zero, so zeros are masked out
    root = tf.where(
        is_nonzero,
        tf.sqrt(tf.where(is_nonzero, squared_distances, tf.ones_like(squared_distances))),
        tf.zeros_like(squared_distances),
    )
    mean = tf.reduce_sum(root) / tf.maximum(tf.reduce_sum(tf.cast(is_nonzero, root.dtype)), 1)
    return root / tf.maximum(mean, EPSILON)


def triple_angles(embedding: Any) -> Any:
    """The cosine of the angle at j between i and k, for all triples of (n, d), (n, n, n)."""
    differences = embedding[None] - embedding[:, None]
    unit = tf.math.l2_normalize(differences, axis=2)
    return tf.matmul(unit, unit, transpose_b=True)


def relation_loss(target: Any, student: Any, relation_fn: Any) -> Any:
    """The Huber loss of `relation_fn` (`pairwise_distances` or `triple_angles`) of two embeddings, (n,).

    Embeddings are (n, d) and (n, e). The value is the mean over the batch, repeated for each sample.
    """
    error = relation_fn(student) - relation_fn(target)
    huber = tf.where(tf.abs(error) < 1, tf.square(error) / 2, tf.abs(error) - 0.5)
    return tf.reduce_mean(huber) * tf.ones(tf.shape(student)[0], student.dtype)
