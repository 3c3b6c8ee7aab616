"""Clips kernels in place."""

import numpy as np


def clip_kernels(model, limit: float) -> int:
    """Clip the weights of every kernel to [-limit, limit]; how many that changed."""
    changed = 0
    for weight in model.trainable_weights:
        values = weight.numpy()
        if values.ndim > 1:
            clipped = np.clip(values, -limit, limit)
            changed += int((clipped != values).sum())
            weight.assign(clipped)
    return changed
