"""Distillation losses: how far a student is from its teacher, one loss per sample.

The functions take TensorFlow tensors, which both Keras versions compute with.
"""

import math
from typing import Any

import tensorflow as tf

EPSILON = 1e-30  # lower limit of probabilities before the logarithm
SIGMOID_MARGIN = 1e-7  # sigmoid outputs are clipped this far from 0 and 1


def class_scores(outputs: Any, are_logits: bool, is_binary: bool) -> Any:
    """Class scores z of `outputs` (n, classes): logits as they are, or log probabilities (binary: log odds)."""
    if are_logits:
        return outputs
    if is_binary:
        p = tf.clip_by_value(outputs, SIGMOID_MARGIN, 1 - SIGMOID_MARGIN)
        return tf.math.log(p) - tf.math.log(1 - p)
    return tf.math.log(tf.maximum(outputs, EPSILON))  # equals the logits up to a constant, which softmax cancels


def soften_scores(z: Any, temperature: float, is_binary: bool) -> Any:
    """Probabilities at `temperature`."""
    return tf.sigmoid(z / temperature) if is_binary else tf.nn.softmax(z / temperature)


def kl_divergence(p: Any, z: Any, temperature: float, is_binary: bool) -> Any:
    """T^2 KL(p || softened z), (n,).

    Args:
        p: the teacher's probabilities at `temperature`, (n, classes).
        z: the student's class scores, (n, classes).
        temperature: T.
        is_binary: whether outputs are independent yes-or-no ones; the mean over them.
    """
    if not is_binary:
        log_q = tf.nn.log_softmax(z / temperature)
        return temperature**2 * tf.reduce_sum(tf.math.xlogy(p, p) - p * log_q, axis=-1)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=p, logits=z / temperature)
    entropy = -tf.math.xlogy(p, p) - tf.math.xlogy(1 - p, 1 - p)
    return temperature**2 * tf.reduce_mean(cross_entropy - entropy, axis=-1)


def squared_difference(target_tensor: Any, student_tensor: Any) -> Any:
    """The mean squared difference over all values of a sample, (n,)."""
    return tf.reduce_mean(tf.square(student_tensor - target_tensor), axis=list(range(1, len(student_tensor.shape))))


def attention_map(features: Any) -> Any:
    """Attention map of features (n, ..., channels): the sum of squares over channels, flat, L2-normalized, (n, m)."""
    energy = tf.reduce_sum(tf.square(features), axis=-1)
    return tf.math.l2_normalize(flatten_samples(energy), axis=1)


def flatten_samples(tensor: Any) -> Any:
    """(n, ...) as (n, values)."""
    flat_tensor = tf.reshape(tensor, (tf.shape(tensor)[0], -1))
    if tensor.shape[1:].is_fully_defined():  # tf_keras does not know the shapes of a generator's batches
        flat_tensor.set_shape((None, math.prod(tensor.shape[1:])))
    return flat_tensor


def attention_distance(target_map: Any, student_map: Any) -> Any:
    """Half the squared distance of two attention maps, (n,)."""
    return tf.reduce_sum(tf.square(student_map - target_map), axis=1) / 2


def pairwise_distances(embedding: Any) -> Any:
    """Euclidean distances of all pairs of (n, d), divided by the mean of the nonzero ones, (n, n)."""
    squared_distances = tf.reduce_sum(tf.square(embedding[:, None] - embedding[None]), axis=2)
    is_nonzero = squared_distances > 0
    # the root has no derivative at zero, so zeros are masked out
    distances = tf.where(
        is_nonzero,
        tf.sqrt(tf.where(is_nonzero, squared_distances, tf.ones_like(squared_distances))),
        tf.zeros_like(squared_distances),
    )
    mean_distance = tf.reduce_sum(distances) / tf.maximum(tf.reduce_sum(tf.cast(is_nonzero, distances.dtype)), 1)
    return distances / tf.maximum(mean_distance, EPSILON)


def triple_angles(embedding: Any) -> Any:
    """The cosine of the angle at j between i and k, for all triples of (n, d), (n, n, n)."""
    differences = embedding[None] - embedding[:, None]
    unit_vectors = tf.math.l2_normalize(differences, axis=2)
    return tf.matmul(unit_vectors, unit_vectors, transpose_b=True)


def relation_loss(target_embedding: Any, student_embedding: Any, relation_fn: Any) -> Any:
    """The Huber loss of `relation_fn` (`pairwise_distances` or `triple_angles`) of two embeddings, (n,).

    Embeddings are (n, d) and (n, e). The value is the mean over the batch, repeated for each sample.
    """
    error = relation_fn(student_embedding) - relation_fn(target_embedding)
    huber_losses = tf.where(tf.abs(error) < 1, tf.square(error) / 2, tf.abs(error) - 0.5)
    return tf.reduce_mean(huber_losses) * tf.ones(tf.shape(student_embedding)[0], student_embedding.dtype)
