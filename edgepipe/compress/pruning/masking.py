"""Zeros that last: masks that a training cannot undo, because they are put back after each of its steps."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array


class Masks:
    """Which elements of `weights` are held at zero."""

    def __init__(self, weights: list[Any], zeros: list[Array]) -> None:
        self.weights = weights
        self._keep = [tf.Variable(tf.cast(~zero, weight.dtype), trainable=False)
                      for weight, zero in zip(weights, zeros, strict=True)]  # fmt: skip
        self._apply = tf.function(self._multiply)
        self.apply()

    def set(self, zeros: list[Array]) -> None:
        """Hold these from now on."""
        for keep, zero in zip(self._keep, zeros, strict=True):
            keep.assign(tf.cast(~zero, keep.dtype))
        self.apply()

    def apply(self) -> None:
        """Zero what must be zero."""
        self._apply()

    def _multiply(self) -> None:
        for weight, keep in zip(self.weights, self._keep, strict=True):
            # not a product: what has become NaN must still end as zero, for the loss to tell of the rest
            weight.assign(tf.where(keep > 0, weight, tf.zeros_like(weight)))


class Holding(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Puts the zeros back after every step; at the steps of `updates` it first asks for new masks."""

    def __init__(self, masks: Masks, updates: dict[int, Callable[[], list[Array]]]) -> None:
        super().__init__()
        self.masks, self.updates, self.step = masks, updates, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """New masks where one is due."""
        update = self.updates.get(self.step)
        if update is not None:
            self.masks.set(update())
        self.step += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The optimizer has moved every weight."""
        self.masks.apply()
