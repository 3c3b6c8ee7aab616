"""Magnitude pruning by tfmot, which does the whole job where kernels are pruned weight by weight, each to a share of
its own, along a schedule.

What it does not do is edgepipe's own: other saliencies, one ranking over all layers, rounds, blocks in convolutions
(tfmot prunes those weight by weight without a word), attention and recurrent layers, channels.
"""

from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from edgepipe.compress.pruning.granularity import Weight
from edgepipe.compress.pruning.saliency import Settings
from edgepipe.compress.pruning.sparsity_schedule import Schedule
from edgepipe.compress.pruning.weight_pool import Pool
from edgepipe.core.errors import InputError

K = tf_keras.layers
TAKES = (K.Conv1D, K.Conv2D, K.Conv2DTranspose, K.Conv3D, K.Dense)


def serves(model: Any, pool: Pool, settings: Settings, schedule: Schedule) -> bool:
    """Whether tfmot does all that is asked for."""
    layers = [kernel.layer for kernel in pool.kernels]
    return (
        settings.kind == "magnitude"
        and schedule.name in ("constant", "polynomial", "cubic")
        and pool.distribution != "global"
        and isinstance(pool.granularity, Weight)
        and all(type(layer) in TAKES and any(layer is own for own in model.layers) for layer in layers)
    )


def wrap(model: Any, pool: Pool, share: float, schedule: Schedule, steps: int) -> Any:
    """`model` with pruning wrappers around the layers of `pool`; `steps` is the length of the training.

    Raises:
        InputError: a layer that tfmot cannot wrap.
    """
    shares = {kernel.layer.name: own for kernel, own in zip(pool.kernels, pool.shares(share), strict=True)}

    def clone(layer: Any) -> Any:
        if layer.name not in shares:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, _schedule(schedule, shares[layer.name], steps))

    try:
        return tf_keras.models.clone_model(model, clone_function=clone)
    except ValueError as error:
        raise InputError(f"tfmot cannot prune '{model.name}': {error}") from error


def _schedule(schedule: Schedule, share: float, steps: int) -> Any:
    ramp_steps = max(1, round(steps * schedule.ramp))
    frequency = max(1, ramp_steps // 50)
    if schedule.name == "constant":
        return tfmot.sparsity.keras.ConstantSparsity(share, begin_step=0, end_step=-1, frequency=frequency)
    end = max(1, ramp_steps // frequency) * frequency  # tfmot updates masks at multiples of the frequency only
    return tfmot.sparsity.keras.PolynomialDecay(
        share * schedule.start, share, begin_step=0, end_step=end, power=schedule.exponent, frequency=frequency
    )


def callbacks() -> list[Any]:
    """What the training loop must call for the masks to grow."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip(model: Any) -> Any:
    """The pruned model without its wrappers; the zeros stay."""
    return tfmot.sparsity.keras.strip_pruning(model)
