"""The kernels of a model as units that can be removed, and which of them go at a given share."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepipe.compress.pruning.distribution import Distribution, erk, lowest, lowest_of_all, number_of
from edgepipe.compress.pruning.granularity import Granularity
from edgepipe.compress.pruning.prunable_kernels import Found, Kernel, kernels
from edgepipe.compress.pruning.saliency import Saliency
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError


@dataclass(frozen=True)
class Removal:
    """What is gone from each kernel: units, and the weights that are zero with them."""

    units: tuple[Array, ...]
    zeros: tuple[Array, ...]


@dataclass(frozen=True)
class Pool:
    """The kernels that share one target; `own` holds the shares of kernels that have one of their own."""

    kernels: tuple[Kernel, ...]
    granularity: Granularity
    distribution: Distribution
    own: dict[str, float]

    @property
    def weights(self) -> list[Any]:
        """The variables, in order."""
        return [kernel.weight for kernel in self.kernels]

    @property
    def size(self) -> int:
        """Weights of all kernels without a share of their own."""
        return sum(kernel.size for kernel in self.kernels if kernel.name not in self.own)

    def start(self) -> Removal:
        """Before the first weight goes; zeros that are there already stay zeros."""
        zeros = tuple(np.asarray(kernel.weight) == 0 for kernel in self.kernels)
        shapes = [self.granularity.units(k, z, z, _any).shape for k, z in zip(self.kernels, zeros, strict=True)]
        return Removal(tuple(np.zeros(shape, bool) for shape in shapes), zeros)

    def remove(self, saliency: Saliency, share: float, progress: float, before: Removal) -> Removal:
        """What is gone when `share` of the units are, `before` among them.

        Args:
            share: of the kernels without a share of their own.
            progress: from 0 to 1, how much of its own share any other kernel is to have.
        """
        values = [np.where(z, 0, v) for v, z in zip(saliency.values, before.zeros, strict=True)]
        scores = [np.where(z, -np.inf, saliency.reduction(v[..., None]))
                  for v, z in zip(values, before.zeros, strict=True)]  # fmt: skip
        ranked = [self.granularity.units(k, v, s, saliency.reduction)
                  for k, v, s in zip(self.kernels, values, scores, strict=True)]  # fmt: skip
        units = self._spread(ranked, share, progress, before)
        zeros = [self.granularity.removed(k, s, u) | z
                 for k, s, u, z in zip(self.kernels, scores, units, before.zeros, strict=True)]  # fmt: skip
        return Removal(tuple(units), tuple(zeros))

    def shares(self, share: float, progress: float = 1.0) -> list[float]:
        """The share of each kernel when all without one of their own together are to have `share`; not for global."""
        own = [self.own[kernel.name] * progress if kernel.name in self.own else None for kernel in self.kernels]
        free = [kernel.shape for kernel, one in zip(self.kernels, own, strict=True) if one is None]
        spread = iter(erk(free, share) if self.distribution == "erk" else [share] * len(free))
        return [next(spread) if one is None else one for one in own]

    def left(self, share: float) -> int:
        """How many weights of all kernels stay when `share` of the units without a share of their own go."""
        shares = zip(self.kernels, self.shares(share), strict=True)
        if self.distribution != "global":
            return sum(kernel.size - self._going(kernel, one) for kernel, one in shares)
        own = sum(self._going(kernel, one) for kernel, one in shares if kernel.name in self.own)
        free = [kernel for kernel in self.kernels if kernel.name not in self.own]
        units = sum(kernel.size // self.granularity.weights(kernel) for kernel in free)
        spared = units - self.granularity.least * len(free)
        going = min(number_of(units, share, self.granularity.least), spared)
        return sum(kernel.size for kernel in self.kernels) - own - going * self.granularity.weights(self.kernels[0])

    def _going(self, kernel: Kernel, share: float) -> int:
        each = self.granularity.weights(kernel)
        return number_of(kernel.size // each, share, self.granularity.least) * each

    def _spread(self, ranked: list[Array], share: float, progress: float, before: Removal) -> list[Array]:
        least = self.granularity.least
        shares = self.shares(share, progress)
        units = [lowest(r, b, s, least) for r, b, s in zip(ranked, before.units, shares, strict=True)]
        if self.distribution == "global":
            free = [index for index, kernel in enumerate(self.kernels) if kernel.name not in self.own]
            parts = lowest_of_all([ranked[i] for i in free], [before.units[i] for i in free], share, least)
            for index, part in zip(free, parts, strict=True):
                units[index] = part
        return units


def _any(values: Array) -> Array:
    return np.asarray(values.any(-1))


@dataclass(frozen=True)
class LayerSparsity:
    """The share of a kernel that is exactly zero, and why it was left alone if it was."""

    name: str
    kind: str
    elements: int
    zeros: int
    left_alone: str = ""


def measure(model: Any, found: Found) -> list[LayerSparsity]:
    """The zeros of every kernel of `model`, with the reason behind those that were left alone."""
    return [_measured(kernel, found.left_alone.get(kernel.name, "")) for kernel in kernels(model)]


def _measured(kernel: Kernel, left_alone: str) -> LayerSparsity:
    zeros = kernel.size - int(np.count_nonzero(np.asarray(kernel.weight)))
    return LayerSparsity(kernel.name, kernel.cls, kernel.size, zeros, left_alone)


def check_reached(layers: list[LayerSparsity], pool: Pool, share: float) -> None:
    """Raise unless the pruned kernels hold their share of zeros, each to within one unit; for global all together."""
    pruned = {layer.name: layer for layer in layers if not layer.left_alone}
    left = sum(layer.elements - layer.zeros for layer in pruned.values())
    if pool.distribution == "global" and left > pool.left(share):
        raise InputError(
            f"{left} weights of the pruned kernels are not zero, {pool.left(share)} should be left; the training was "
            "too short for the schedule: raise epochs or lower ramp"
        )
    for kernel, wanted in zip(pool.kernels, pool.shares(share), strict=True):
        layer, unit = pruned[kernel.name], pool.granularity.weights(kernel)
        needed = wanted * pool.granularity.most(kernel)
        if pool.distribution != "global" and layer.zeros + unit < needed:
            raise InputError(
                f"layer '{layer.name}' holds {layer.zeros} zeros of {layer.elements}, under the target {wanted:.0%}; "
                "the training was too short for the schedule: raise epochs or lower ramp"
            )
