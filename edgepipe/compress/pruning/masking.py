"""Masks that training cannot undo, because they are reapplied after each step."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array


class PruningMasks:
    """Which elements of `weights` are held at zero."""

    def __init__(self, weights: list[Any], zero_masks: list[Array]) -> None:
        self.weights = weights
        self._keep_masks = [
            tf.Variable(tf.cast(~zero_mask, weight.dtype), trainable=False)
            for weight, zero_mask in zip(weights, zero_masks, strict=True)
        ]
        self._apply_traced = tf.function(self._zero_masked_weights)
        self.apply()

    def set_zeros(self, zero_masks: list[Array]) -> None:
        """Hold these elements at zero from now on."""
        for keep_mask, zero_mask in zip(self._keep_masks, zero_masks, strict=True):
            keep_mask.assign(tf.cast(~zero_mask, keep_mask.dtype))
        self.apply()

    def apply(self) -> None:
        """Set the masked elements to zero."""
        self._apply_traced()

    def _zero_masked_weights(self) -> None:
        for weight, keep_mask in zip(self.weights, self._keep_masks, strict=True):
            # not a product: a weight that became NaN must still end as zero, so that the loss reflects the others
            weight.assign(tf.where(keep_mask > 0, weight, tf.zeros_like(weight)))


class MaskCallback(tf_keras.callbacks.Callback):  # type: ignore[misc]
    """Reapplies the masks after every step; at the steps of `updates` it first computes new ones."""

    def __init__(self, pruning_masks: PruningMasks, update_by_step: dict[int, Callable[[], list[Array]]]) -> None:
        super().__init__()
        self.pruning_masks, self.update_by_step, self.step_index = pruning_masks, update_by_step, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Update the masks if this step is in `updates`."""
        update = self.update_by_step.get(self.step_index)
        if update is not None:
            self.pruning_masks.set_zeros(update())
        self.step_index += 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Reapply the masks: the optimizer has moved every weight."""
        self.pruning_masks.apply()
