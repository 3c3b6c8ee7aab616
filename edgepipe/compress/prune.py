"""Magnitude pruning with tfmot: masks that grow on a schedule while training goes on, then stripped.

Zhu and Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878): the polynomial schedule. A mask keeps the weights
of largest magnitude of each layer; what it drops stays zero to the end.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

from edgepipe.compress.kernels import kernel
from edgepipe.errors import InputError

K = tf_keras.layers
PRUNABLE = (K.Conv1D, K.Conv2D, K.Conv2DTranspose, K.Conv3D, K.Dense)
DEPTHWISE = (K.DepthwiseConv1D, K.DepthwiseConv2D)


@dataclass(frozen=True)
class LayerSparsity:
    """The share of a layer's kernel that is exactly zero, and why the layer was left alone if it was."""

    name: str
    kind: str
    elements: int
    zeros: int
    left_alone: str = ""


@dataclass(frozen=True)
class Plan:
    """Target share of zeros, and how it is reached over the steps of the training."""

    sparsity: float
    schedule: Literal["constant", "polynomial"]
    initial_sparsity: float
    power: float
    ramp: float
    exclude_last: bool


def left_alone(model: Any, exclude_last: bool) -> dict[str, str]:
    """Name -> reason, for every layer with a kernel that magnitude pruning here does not touch."""
    candidates = [layer for layer in model.layers if type(layer) in PRUNABLE]
    others = [layer for layer in model.layers if kernel(layer) is not None and type(layer) not in PRUNABLE]
    reasons = {layer.name: _reason(layer) for layer in others}
    if exclude_last and candidates:
        reasons[candidates[-1].name] = "the last layer is excluded (exclude_last: true)"
    return reasons


def _reason(layer: Any) -> str:
    if isinstance(layer, DEPTHWISE):
        return f"{type(layer).__name__} is not pruned: few weights, each used at many places"
    return f"{type(layer).__name__} is not pruned: only convolutions and dense layers are"


def wrap(model: Any, plan: Plan, steps: int) -> Any:
    """`model` with pruning wrappers around its Conv2D and Dense layers; `steps` is the length of the training.

    Raises:
        InputError: there is no layer to prune, or a layer that tfmot cannot wrap.
    """
    alone = left_alone(model, plan.exclude_last)
    targets = {layer.name for layer in model.layers if kernel(layer) is not None and layer.name not in alone}
    if not targets:
        named = "; ".join(f"{name}: {reason}" for name, reason in alone.items()) or "no layer has a kernel"
        raise InputError(f"nothing to prune in '{model.name}': {named}")
    schedule = _schedule(plan, steps)

    def clone(layer: Any) -> Any:
        if layer.name not in targets:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule)

    try:
        return tf_keras.models.clone_model(model, clone_function=clone)
    except ValueError as error:
        raise InputError(f"tfmot cannot prune '{model.name}': {error}") from error


def _schedule(plan: Plan, steps: int) -> Any:
    ramp_steps = max(1, round(steps * plan.ramp))
    frequency = max(1, ramp_steps // 50)
    if plan.schedule == "constant":
        return tfmot.sparsity.keras.ConstantSparsity(plan.sparsity, begin_step=0, end_step=-1, frequency=frequency)
    end = max(1, ramp_steps // frequency) * frequency  # tfmot updates masks at multiples of the frequency only
    return tfmot.sparsity.keras.PolynomialDecay(
        plan.initial_sparsity, plan.sparsity, begin_step=0, end_step=end, power=plan.power, frequency=frequency
    )


def callbacks() -> list[Any]:
    """What the training loop must call for the masks to grow."""
    return [tfmot.sparsity.keras.UpdatePruningStep()]


def strip(model: Any) -> Any:
    """The pruned model without its wrappers; the zeros stay."""
    return tfmot.sparsity.keras.strip_pruning(model)


def measure(model: Any, alone: dict[str, str]) -> list[LayerSparsity]:
    """The zeros of every kernel of `model`, with the reason behind those that were left alone."""
    layers = []
    for layer in model.layers:
        weights = kernel(layer)
        if weights is not None:
            values = np.asarray(weights)
            zeros = int(values.size - np.count_nonzero(values))
            layers.append(
                LayerSparsity(layer.name, type(layer).__name__, values.size, zeros, alone.get(layer.name, ""))
            )
    return layers


def check_reached(layers: list[LayerSparsity], target: float) -> None:
    """Raise unless every pruned layer holds the target share of zeros, to within one weight."""
    for layer in layers:
        if not layer.left_alone and layer.zeros + 1 < target * layer.elements:
            raise InputError(
                f"layer '{layer.name}' holds {layer.zeros} zeros of {layer.elements}, under the target {target:.0%}; "
                "the training was too short for the schedule: raise epochs or lower ramp"
            )
