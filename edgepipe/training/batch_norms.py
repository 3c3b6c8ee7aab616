"""The moving statistics of batch norms: held still, or taken anew.

A training of a few hundred steps, or one that removes weights, leaves moving averages behind that belong to a model of
before: with tf_keras's momentum of 0.99 half of what they hold is older than 69 steps. Averages over samples with the
final weights are exact (Wu and Johnson 2021, "Rethinking Batch in BatchNorm", arXiv 2105.07576, section 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tf_keras

from edgepipe.core.arrays import Arrays, count, take

SAMPLES = 1024
BATCH = 64
DROPPING = (tf_keras.layers.Dropout, tf_keras.layers.GaussianDropout, tf_keras.layers.AlphaDropout)


@contextmanager
def steady(model: Any) -> Iterator[None]:
    """Inside the block a pass in training mode neither moves statistics nor drops anything."""
    layers = list(model._flatten_layers(include_self=False))
    settings = [(layer, "momentum", 1.0) for layer in layers if isinstance(layer, tf_keras.layers.BatchNormalization)]
    settings += [(layer, "rate", 0.0) for layer in layers if isinstance(layer, DROPPING)]
    kept = [getattr(layer, name) for layer, name, _ in settings]
    for layer, name, still in settings:
        setattr(layer, name, still)
    try:
        yield
    finally:
        for (layer, name, _), value in zip(settings, kept, strict=True):
            setattr(layer, name, value)


def trained_norms(model: Any) -> list[Any]:
    """The batch norms of `model` that training moves."""
    norms = (tf_keras.layers.BatchNormalization,)
    return [
        layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, norms) and layer.trainable
    ]


def refresh(model: Any, x: Arrays, seed: int) -> None:
    """Set the statistics of each batch norm that trains to their averages over up to 1024 samples of `x`."""
    norms = trained_norms(model)
    chosen = np.random.RandomState(seed).permutation(count(x))[:SAMPLES]
    with steady(model):
        for number, part in enumerate(np.array_split(chosen, -(-len(chosen) // BATCH)) if norms else ()):
            for layer in norms:
                layer.momentum = number / (number + 1)  # the mean of all batches so far
            model(take(x, part), training=True)
