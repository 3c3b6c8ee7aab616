"""Saliency: what deleting a weight would cost, by which pruning chooses (Menghani 2021, section 3.1).

- `magnitude`: |w|; of several weights together the root of the mean square. No data needed.
- `taylor`: first order, |g w| with g = dL/dw; of several weights |sum g w| (Molchanov et al. 2017).
- `obd`: Optimal Brain Damage, h w^2 / 2 with h the diagonal of the Hessian (LeCun, Denker, Solla 1990), which takes the
  model to be at a minimum, where g is zero.
- `taylor2`: both, -g w + h w^2 / 2: the change of the loss to second order, for models that are not at a minimum.
- `random`: the baseline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgepipe.compress.pruning.derivatives import Curvature, HessianMethod, compute_gradient, estimate_curvature
from edgepipe.compress.pruning.saliency_loss import Objective
from edgepipe.core.arrays import Array

SaliencyKind = Literal["magnitude", "taylor", "obd", "taylor2", "random"]
Reduction = Callable[[Array], Array]  # (..., weights that go together) -> (...), their score
MAX_EXACT_WEIGHTS = 4096  # weights: one Hessian-vector product each is a matter of seconds


@dataclass(frozen=True)
class SaliencySettings:
    """Which saliency, and how its second derivatives are taken."""

    kind: SaliencyKind = "magnitude"
    hessian: HessianMethod | Literal["auto"] = "auto"
    probes: int = 32
    samples: int = 1024

    @property
    def needs_data(self) -> bool:
        """Whether it asks about the loss."""
        return self.kind in ("taylor", "obd", "taylor2")


@dataclass(frozen=True)
class Saliency:
    """For each tensor a value for each weight, and how the values of several weights make one score."""

    saliencies: tuple[Array, ...]
    reduction: Reduction
    curvature: Curvature | None = None
    is_magnitude: bool = False  # whether values are squares of the weights, which mean nothing across tensors


def compute_saliency(
    settings: SaliencySettings, weights: list[Any], objective: Objective | None, seed: int
) -> Saliency:
    """The saliency of every entry of `weights`.

    Args:
        objective: the loss; needed unless the kind is magnitude or random.
    """
    if settings.kind == "random":
        generator = np.random.default_rng(seed)
        return Saliency(tuple(generator.random(w.shape) for w in weights), _mean)
    arrays = [np.asarray(w, np.float64) for w in weights]
    if settings.kind == "magnitude":
        return Saliency(tuple(np.square(v) for v in arrays), _root_mean, is_magnitude=True)
    assert objective is not None, "needs_data says so"
    first_order = [-g * v for g, v in zip(compute_gradient(objective, weights), arrays, strict=True)]
    if settings.kind == "taylor":
        return Saliency(tuple(first_order), _absolute_sum)
    curvature = estimate_curvature(
        objective, weights, choose_method(settings, weights, objective), settings.probes, seed
    )
    second_order = [h * np.square(v) / 2 for h, v in zip(curvature.diagonal, arrays, strict=True)]
    both_orders = [a + b for a, b in zip(first_order, second_order, strict=True)]
    return Saliency(tuple(second_order if settings.kind == "obd" else both_orders), _sum, curvature)


def choose_method(settings: SaliencySettings, weights: list[Any], objective: Objective) -> HessianMethod:
    """How the second derivatives are taken where `hessian: auto` leaves it open."""
    if settings.hessian != "auto":
        return settings.hessian
    if sum(int(np.prod(w.shape)) for w in weights) <= MAX_EXACT_WEIGHTS:
        return "exact"
    return "hutchinson" if objective.hessian_root is None else "gauss_newton"


def _mean(saliencies: Array) -> Array:
    return np.asarray(saliencies.mean(-1))


def _root_mean(squares: Array) -> Array:
    return np.asarray(np.sqrt(squares.mean(-1)))


def _absolute_sum(saliencies: Array) -> Array:
    return np.asarray(np.abs(saliencies.sum(-1)))


def _sum(saliencies: Array) -> Array:
    return np.asarray(saliencies.sum(-1))
