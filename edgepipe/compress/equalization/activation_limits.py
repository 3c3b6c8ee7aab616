"""Activations with an upper limit, through which no factor passes, replaced by ReLU where the limit is not reached."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tf_keras

from edgepipe.compress.equalization.batch_norm_folding import Folded, rebuilt
from edgepipe.compress.equalization.observed_ranges import largest
from edgepipe.compress.equalization.weighted_layers import weighted
from edgepipe.compress.qat.lowering.lower import nodes
from edgepipe.core.arrays import Array

K = tf_keras.layers
DEVIATIONS = 6  # of a normal distribution, which fewer than one value in a billion exceeds
MARGIN = 0.8  # of the limit: samples that nobody has seen may give larger values


@dataclass(frozen=True)
class Limit:
    """A ReLU with an upper limit, and the largest value known to reach it: None where nothing is known."""

    name: str
    limit: float
    observed: float | None
    how: str

    @property
    def idle(self) -> bool:
        """Whether the limit does nothing, with a margin."""
        share = MARGIN if self.how == "on the samples" else 1.0
        return self.observed is not None and self.observed <= share * self.limit

    @property
    def text(self) -> str:
        """For a report."""
        if self.observed is None:
            return f"'{self.name}' clips at {self.limit:g}, and nothing is known of what reaches it: it stays"
        seen = f"the largest value {self.how} is {self.observed:.3g} of {self.limit:g}"
        return f"'{self.name}' became a ReLU without limit: {seen}" if self.idle else f"'{self.name}' stays: {seen}"


def released(folded: Folded, fed: list[Array] | None) -> tuple[Folded, tuple[Limit, ...]]:
    """`folded` with the limits gone that do nothing, and what was found of each (arXiv 1906.04721, section 5.1).

    On samples: the largest value before the activation is at most 0.8 of the limit. Without: mean + 6 standard
    deviations of the batch norm before it are below the limit.
    """
    sources = _sources(folded.model)
    found = _from_norms(folded, sources) if fed is None else _on_samples(folded, sources, fed)
    relus = {limit.name: K.ReLU(name=limit.name) for limit in found if limit.idle}
    return replace(folded, model=rebuilt(folded.model, relus, {})) if relus else folded, tuple(found)


def _sources(model: Any) -> dict[str, list[Any]]:
    """The tensors that each limited ReLU behind weighted layers is called on."""
    found: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(model):
        if type(node.layer) is K.ReLU and node.layer.max_value is not None:
            found[node.layer.name].extend(node.keras_inputs)
    return {name: tensors for name, tensors in found.items() if all(weighted(_maker(one)) for one in tensors)}


def _maker(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _limit(model: Any, name: str) -> float:
    return float(model.get_layer(name).max_value)


def _on_samples(folded: Folded, sources: dict[str, list[Any]], fed: list[Array]) -> list[Limit]:
    tensors = [one for given in sources.values() for one in given]
    seen = largest(folded.model, tensors, [-1] * len(tensors), fed, of=lambda values: values)
    highest = {id(tensor): float(values.max()) for tensor, values in zip(tensors, seen, strict=True)}
    return [Limit(name, _limit(folded.model, name), max(highest[id(one)] for one in given), "on the samples")
            for name, given in sources.items()]  # fmt: skip


def _from_norms(folded: Folded, sources: dict[str, list[Any]]) -> list[Limit]:
    how = f"within {DEVIATIONS} deviations of the batch norm"
    return [Limit(name, _limit(folded.model, name), _reach(folded, given), how) for name, given in sources.items()]


def _reach(folded: Folded, tensors: list[Any]) -> float | None:
    """mean + 6 deviations, of the channel where it is largest; None if a norm's statistics are missing."""
    known = [folded.statistics.get(_maker(one).name) for one in tensors]
    reaches = [float(np.max(one.mean + DEVIATIONS * one.deviation)) for one in known if one is not None]
    return max(reaches) if len(reaches) == len(known) else None
