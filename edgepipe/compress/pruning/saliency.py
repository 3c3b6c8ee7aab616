"""Saliency: the cost of removing a weight, by which pruning ranks weights (Menghani 2021, section 3.1).

- `magnitude`: |w|; for several weights the root mean square. No data needed.
- `taylor`: first order, |g w| with g = dL/dw; for several weights |sum g w| (Molchanov et al. 2017).
- `obd`: Optimal Brain Damage, h w^2 / 2 with h the diagonal of the Hessian (LeCun, Denker, Solla 1990), which assumes
  that the model is at a minimum, where g is zero.
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
Reduction = Callable[[Array], Array]  # (..., weights that are removed together) -> (...), their score
MAX_EXACT_WEIGHTS = 4096  # one Hessian-vector product for each takes seconds


@dataclass(frozen=True)
class SaliencySettings:
    """The kind of saliency, and how its second derivatives are estimated."""

    kind: SaliencyKind = "magnitude"
    hessian_method: HessianMethod | Literal["auto"] = "auto"
    probe_count: int = 32
    sample_count: int = 1024

    @property
    def needs_data(self) -> bool:
        """Whether the saliency depends on the loss."""
        return self.kind in ("taylor", "obd", "taylor2")


@dataclass(frozen=True)
class Saliency:
    """The saliency of each weight of each tensor, and how those of several weights combine into one score."""

    saliencies: tuple[Array, ...]
    reduction: Reduction
    curvature: Curvature | None = None
    is_magnitude: bool = False  # whether saliencies are squared weights, which are not comparable across tensors


def compute_saliency(
    settings: SaliencySettings, weights: list[Any], objective: Objective | None, seed: int
) -> Saliency:
    """The saliency of every weight of `weights`.

    Args:
        settings: kind of saliency and of its second derivatives.
        weights: variables.
        objective: the loss; None for magnitude and random.
        seed: of random saliencies and probes.
    """
    if settings.kind == "random":
        generator = np.random.default_rng(seed)
        return Saliency(tuple(generator.random(w.shape) for w in weights), _mean_saliency)
    weight_arrays = [np.asarray(w, np.float64) for w in weights]
    if settings.kind == "magnitude":
        return Saliency(tuple(np.square(v) for v in weight_arrays), _root_mean_square, is_magnitude=True)
    assert objective is not None, "needs_data says so"
    first_order_terms = [-g * v for g, v in zip(compute_gradient(objective, weights), weight_arrays, strict=True)]
    if settings.kind == "taylor":
        return Saliency(tuple(first_order_terms), _absolute_sum)
    curvature = estimate_curvature(
        objective, weights, choose_method(settings, weights, objective), settings.probe_count, seed
    )
    second_order_terms = [h * np.square(v) / 2 for h, v in zip(curvature.diagonals, weight_arrays, strict=True)]
    total_terms = [a + b for a, b in zip(first_order_terms, second_order_terms, strict=True)]
    return Saliency(tuple(second_order_terms if settings.kind == "obd" else total_terms), _sum_saliency, curvature)


def choose_method(settings: SaliencySettings, weights: list[Any], objective: Objective) -> HessianMethod:
    """The method for second derivatives; resolves `hessian: auto`."""
    if settings.hessian_method != "auto":
        return settings.hessian_method
    if sum(int(np.prod(w.shape)) for w in weights) <= MAX_EXACT_WEIGHTS:
        return "exact"
    return "hutchinson" if objective.hessian_root is None else "gauss_newton"


def _mean_saliency(saliencies: Array) -> Array:
    return np.asarray(saliencies.mean(-1))


def _root_mean_square(squares: Array) -> Array:
    return np.asarray(np.sqrt(squares.mean(-1)))


def _absolute_sum(saliencies: Array) -> Array:
    return np.asarray(np.abs(saliencies.sum(-1)))


def _sum_saliency(saliencies: Array) -> Array:
    return np.asarray(saliencies.sum(-1))
