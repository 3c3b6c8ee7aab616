"""Magnitude pruning by tfmot, for kernels that are pruned weight by weight, each to its own share, along a schedule.

edgepipe implements what tfmot lacks: other saliencies, one ranking over all layers, rounds, blocks in convolutions
(which tfmot silently prunes weight by weight), attention and recurrent layers, channels.
"""

from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras

from edgepipe.compress.pruning.granularity import WeightGranularity
from edgepipe.compress.pruning.saliency import SaliencySettings
from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule
from edgepipe.compress.pruning.weight_pool import WeightPool
from edgepipe.core.errors import InputError
from edgepipe.models.port_names import output_names

K = tf_keras.layers
SUPPORTED_LAYERS = (K.Conv1D, K.Conv2D, K.Conv2DTranspose, K.Conv3D, K.Dense)


def supports(model: Any, pool: WeightPool, settings: SaliencySettings, schedule: SparsitySchedule) -> bool:
    """Whether tfmot supports everything that is requested.

    Args:
        model: the tf_keras model.
        pool: its kernels, granularity and distribution.
        settings: of the saliency.
        schedule: of the sparsity.
    """
    layers = [kernel.layer for kernel in pool.kernels]
    return (
        settings.kind == "magnitude"
        and schedule.name in ("constant", "polynomial", "cubic")
        and pool.distribution != "global"
        and isinstance(pool.granularity, WeightGranularity)
        and all(
            type(layer) in SUPPORTED_LAYERS and any(layer is model_layer for model_layer in model.layers)
            for layer in layers
        )
    )


def wrap(model: Any, pool: WeightPool, share: float, schedule: SparsitySchedule, steps: int) -> Any:
    """`model` with pruning wrappers around the layers of `pool`.

    Args:
        model: the tf_keras model.
        pool: the kernels to prune.
        share: of zeros at the target, 0 to 1.
        schedule: constant, polynomial or cubic.
        steps: optimizer steps of the training.

    Raises:
        InputError: a layer that tfmot cannot wrap.
    """
    share_by_layer = {
        kernel.layer.name: layer_share
        for kernel, layer_share in zip(pool.kernels, pool.kernel_shares(share), strict=True)
    }

    def clone_layer(layer: Any) -> Any:
        if layer.name not in share_by_layer:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer, _tfmot_schedule(schedule, share_by_layer[layer.name], steps)
        )

    try:
        wrapped_model = tf_keras.models.clone_model(model, clone_function=clone_layer)
    except ValueError as error:
        raise InputError(f"tfmot cannot prune '{model.name}': {error}") from error
    wrapped_model.output_names = output_names(model)
    return wrapped_model


def _tfmot_schedule(schedule: SparsitySchedule, share: float, steps: int) -> Any:
    ramp_steps = max(1, round(steps * schedule.ramp_share))
    frequency = max(1, ramp_steps // 50)
    if schedule.name == "constant":
        return tfmot.sparsity.keras.ConstantSparsity(share, begin_step=0, end_step=-1, frequency=frequency)
    end_step = max(1, ramp_steps // frequency) * frequency  # tfmot updates masks at multiples of the frequency only
    return tfmot.sparsity.keras.PolynomialDecay(
        share * schedule.start_progress,
        share,
        begin_step=0,
        end_step=end_step,
        power=schedule.exponent,
        frequency=frequency,
    )


def callbacks() -> list[Any]:
    """The training callbacks that update the masks."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip(model: Any) -> Any:
    """The pruned model without its wrappers; the zeros stay."""
    stripped_model = tfmot.sparsity.keras.strip_pruning(model)
    stripped_model.output_names = output_names(model)
    return stripped_model
