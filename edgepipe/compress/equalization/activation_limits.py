"""Activations with an upper limit, which block scaling, replaced by ReLU where the limit is never reached."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel, rebuild_model
from edgepipe.compress.equalization.observed_ranges import measure_maxima
from edgepipe.compress.equalization.weighted_layers import is_weighted_layer
from edgepipe.compress.qat.lowering.lower import nodes
from edgepipe.core.arrays import Array

K = tf_keras.layers
DEVIATIONS = 6  # standard deviations of a normal distribution; fewer than one value in a billion exceeds them
MARGIN = 0.8  # share of the limit: other samples may reach larger values


@dataclass(frozen=True)
class ActivationLimit:
    """A ReLU with an upper limit, and the largest known value of its input; None if unknown."""

    name: str
    limit: float
    observed_max: float | None
    basis: str

    @property
    def is_idle(self) -> bool:
        """Whether the limit has no effect, with a margin."""
        share = MARGIN if self.basis == "on the samples" else 1.0
        return self.observed_max is not None and self.observed_max <= share * self.limit

    @property
    def text(self) -> str:
        """For a report."""
        if self.observed_max is None:
            return f"'{self.name}' clips at {self.limit:g}, and the range of its input is not known: it stays"
        observation = f"the largest value {self.basis} is {self.observed_max:.3g} of {self.limit:g}"
        return (
            f"'{self.name}' became a ReLU without limit: {observation}"
            if self.is_idle
            else f"'{self.name}' stays: {observation}"
        )


def remove_idle_limits(
    folded_model: FoldedModel, input_arrays: list[Array] | None
) -> tuple[FoldedModel, tuple[ActivationLimit, ...]]:
    """Remove the limits of `folded_model` that have no effect; and all limits found (arXiv 1906.04721, section 5.1).

    With samples, the largest value before the activation must be at most 0.8 of the limit. Without, mean + 6 standard
    deviations of the preceding batch norm must be below the limit.
    """
    sources = _find_sources(folded_model.model)
    limits = (
        _limits_from_norms(folded_model, sources)
        if input_arrays is None
        else _limits_on_samples(folded_model, sources, input_arrays)
    )
    relus = {limit.name: K.ReLU(name=limit.name) for limit in limits if limit.is_idle}
    return replace(folded_model, model=rebuild_model(folded_model.model, relus, {})) if relus else folded_model, tuple(
        limits
    )


def _find_sources(model: Any) -> dict[str, list[Any]]:
    """The input tensors of each limited ReLU that follows weighted layers only."""
    tensors_by_name: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(model):
        if type(node.layer) is K.ReLU and node.layer.max_value is not None:
            tensors_by_name[node.layer.name].extend(node.keras_inputs)
    return {
        name: tensors
        for name, tensors in tensors_by_name.items()
        if all(is_weighted_layer(_producing_layer(tensor)) for tensor in tensors)
    }


def _producing_layer(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _read_limit(model: Any, name: str) -> float:
    return float(model.get_layer(name).max_value)


def _limits_on_samples(
    folded_model: FoldedModel, sources: dict[str, list[Any]], input_arrays: list[Array]
) -> list[ActivationLimit]:
    tensors = [tensor for inputs in sources.values() for tensor in inputs]
    channel_maxima = measure_maxima(
        folded_model.model, tensors, [-1] * len(tensors), input_arrays, transform=lambda array: array
    )
    max_by_id = {id(tensor): float(maxima.max()) for tensor, maxima in zip(tensors, channel_maxima, strict=True)}
    observed_maxima = {name: max(max_by_id[id(tensor)] for tensor in inputs) for name, inputs in sources.items()}
    return [
        ActivationLimit(name, _read_limit(folded_model.model, name), observed_max, "on the samples")
        for name, observed_max in observed_maxima.items()
    ]


def _limits_from_norms(folded_model: FoldedModel, sources: dict[str, list[Any]]) -> list[ActivationLimit]:
    basis = f"within {DEVIATIONS} deviations of the batch norm"
    return [
        ActivationLimit(name, _read_limit(folded_model.model, name), _max_reach(folded_model, inputs), basis)
        for name, inputs in sources.items()
    ]


def _max_reach(folded_model: FoldedModel, tensors: list[Any]) -> float | None:
    """The largest mean + 6 deviations of all channels; None if a batch norm's statistics are missing."""
    statistics = [folded_model.statistics.get(_producing_layer(tensor).name) for tensor in tensors]
    reaches = [
        float(np.max(moments.mean + DEVIATIONS * moments.deviation)) for moments in statistics if moments is not None
    ]
    return max(reaches) if len(reaches) == len(statistics) else None
