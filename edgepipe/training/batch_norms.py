"""The moving statistics of batch norms: frozen, or re-estimated.

Training for a few hundred steps, or removing weights, leaves moving averages of an earlier model: with tf_keras's
momentum of 0.99, half of their weight is on steps more than 69 ago. Averages over samples with the final weights are
exact (Wu and Johnson 2021, "Rethinking Batch in BatchNorm", arXiv 2105.07576, section 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tf_keras

from edgepipe.core.arrays import Arrays, count_samples, take_samples

REFRESH_SAMPLES = 1024
REFRESH_BATCH_SIZE = 64
DROPOUT_LAYERS = (tf_keras.layers.Dropout, tf_keras.layers.GaussianDropout, tf_keras.layers.AlphaDropout)


@contextmanager
def frozen_statistics(model: Any) -> Iterator[None]:
    """Inside the block, a pass in training mode updates no statistics and drops nothing."""
    layers = list(model._flatten_layers(include_self=False))
    frozen_settings = [
        (layer, "momentum", 1.0) for layer in layers if isinstance(layer, tf_keras.layers.BatchNormalization)
    ]
    frozen_settings += [(layer, "rate", 0.0) for layer in layers if isinstance(layer, DROPOUT_LAYERS)]
    saved_settings = [getattr(layer, name) for layer, name, _ in frozen_settings]
    for layer, name, frozen_value in frozen_settings:
        setattr(layer, name, frozen_value)
    try:
        yield
    finally:
        for (layer, name, _), saved_value in zip(frozen_settings, saved_settings, strict=True):
            setattr(layer, name, saved_value)


def trainable_batch_norms(model: Any) -> list[Any]:
    """The batch norms of `model` that training updates."""
    norm_classes = (tf_keras.layers.BatchNormalization,)
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, norm_classes) and layer.trainable
    ]


def refresh_batch_norms(model: Any, x: Arrays, seed: int) -> None:
    """Re-estimate the statistics of each trainable batch norm as averages over up to 1024 samples of `x`."""
    batch_norms = trainable_batch_norms(model)
    indices = np.random.RandomState(seed).permutation(count_samples(x))[:REFRESH_SAMPLES]
    with frozen_statistics(model):
        for batch_number, batch_indices in enumerate(
            np.array_split(indices, -(-len(indices) // REFRESH_BATCH_SIZE)) if batch_norms else ()
        ):
            for layer in batch_norms:
                layer.momentum = batch_number / (batch_number + 1)  # the mean of all batches so far
            model(take_samples(x, batch_indices), training=True)
