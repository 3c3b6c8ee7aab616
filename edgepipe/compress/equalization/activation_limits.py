"""Activations with an upper limit, which block scaling, replaced by ReLU where the limit is never reached."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel, rebuild_model
from edgepipe.compress.equalization.observed_ranges import measure_maxima
from edgepipe.compress.equalization.weighted_layers import is_weighted_layer
from edgepipe.compress.qat.lowering.lower import iter_nodes
from edgepipe.core.arrays import Array

K = tf_keras.layers
DEVIATION_COUNT = 6  # standard deviations of a normal distribution; fewer than one value in a billion exceeds them
LIMIT_MARGIN = 0.8  # share of the limit: other samples may reach larger values


@dataclass(frozen=True)
class ActivationLimit:
    """A ReLU with an upper limit, and the largest known value of its input; None if unknown."""

    name: str
    limit: float
    observed_max: float | None
    observation_basis: str

    @property
    def is_idle(self) -> bool:
        """Whether the limit has no effect, with a margin."""
        limit_share = LIMIT_MARGIN if self.observation_basis == "on the samples" else 1.0
        return self.observed_max is not None and self.observed_max <= limit_share * self.limit

    @property
    def text(self) -> str:
        """For a report."""
        if self.observed_max is None:
            return f"'{self.name}' clips at {self.limit:g}, and the range of its input is not known: it stays"
        observation_text = f"the largest value {self.observation_basis} is {self.observed_max:.3g} of {self.limit:g}"
        return (
            f"'{self.name}' became a ReLU without limit: {observation_text}"
            if self.is_idle
            else f"'{self.name}' stays: {observation_text}"
        )


def remove_idle_limits(
    folded_model: FoldedModel, input_arrays: list[Array] | None
) -> tuple[FoldedModel, tuple[ActivationLimit, ...]]:
    """Remove the limits of `folded_model` that have no effect; and all limits found (arXiv 1906.04721, section 5.1).

    With samples, the largest value before the activation must be at most 0.8 of the limit. Without, mean + 6 standard
    deviations of the preceding batch norm must be below the limit.
    """
    inputs_by_relu = _find_relu_inputs(folded_model.model)
    activation_limits = (
        _limits_from_norms(folded_model, inputs_by_relu)
        if input_arrays is None
        else _limits_on_samples(folded_model, inputs_by_relu, input_arrays)
    )
    relu_by_name = {limit.name: K.ReLU(name=limit.name) for limit in activation_limits if limit.is_idle}
    return replace(
        folded_model, model=rebuild_model(folded_model.model, relu_by_name, {})
    ) if relu_by_name else folded_model, tuple(activation_limits)


def _find_relu_inputs(model: Any) -> dict[str, list[Any]]:
    """The input tensors of each limited ReLU that follows weighted layers only."""
    inputs_by_relu: dict[str, list[Any]] = defaultdict(list)
    for node in iter_nodes(model):
        if type(node.layer) is K.ReLU and node.layer.max_value is not None:
            inputs_by_relu[node.layer.name].extend(node.keras_inputs)
    return {
        name: tensors
        for name, tensors in inputs_by_relu.items()
        if all(is_weighted_layer(_producing_layer(tensor)) for tensor in tensors)
    }


def _producing_layer(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _read_relu_limit(model: Any, name: str) -> float:
    return float(model.get_layer(name).max_value)


def _limits_on_samples(
    folded_model: FoldedModel, inputs_by_relu: dict[str, list[Any]], input_arrays: list[Array]
) -> list[ActivationLimit]:
    relu_inputs = [tensor for inputs in inputs_by_relu.values() for tensor in inputs]
    channel_maxima = measure_maxima(
        folded_model.model, relu_inputs, [-1] * len(relu_inputs), input_arrays, transform=lambda array: array
    )
    max_by_tensor_id = {
        id(tensor): float(maxima.max()) for tensor, maxima in zip(relu_inputs, channel_maxima, strict=True)
    }
    observed_max_by_relu = {
        name: max(max_by_tensor_id[id(tensor)] for tensor in inputs) for name, inputs in inputs_by_relu.items()
    }
    return [
        ActivationLimit(name, _read_relu_limit(folded_model.model, name), observed_max, "on the samples")
        for name, observed_max in observed_max_by_relu.items()
    ]


def _limits_from_norms(folded_model: FoldedModel, inputs_by_relu: dict[str, list[Any]]) -> list[ActivationLimit]:
    basis_text = f"within {DEVIATION_COUNT} deviations of the batch norm"
    return [
        ActivationLimit(
            name, _read_relu_limit(folded_model.model, name), _max_input_from_norms(folded_model, inputs), basis_text
        )
        for name, inputs in inputs_by_relu.items()
    ]


def _max_input_from_norms(folded_model: FoldedModel, tensors: list[Any]) -> float | None:
    """The largest mean + 6 deviations of all channels; None if a batch norm's statistics are missing."""
    producer_statistics = [folded_model.statistics.get(_producing_layer(tensor).name) for tensor in tensors]
    reachable_maxima = [
        float(np.max(moments.mean + DEVIATION_COUNT * moments.deviation))
        for moments in producer_statistics
        if moments is not None
    ]
    return max(reachable_maxima) if len(reachable_maxima) == len(producer_statistics) else None
