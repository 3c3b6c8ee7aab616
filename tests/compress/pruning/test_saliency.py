"""Saliency compared with what it predicts: the change of the loss when each weight is removed."""

from typing import Any

import numpy as np
import pytest
import tf_keras
from scipy.stats import spearmanr
from small_networks import NETWORKS, flat, train_network

from edgepipe.compress.pruning.saliency import SaliencySettings, choose_method, compute_saliency
from edgepipe.core.arrays import Array


def _deletion_loss_changes(objective: Any, weights: list[Any]) -> Array:
    """The change of the loss when each weight alone is set to zero."""
    import tensorflow as tf

    batches = list(objective.weighted_batches())
    loss = tf.function(
        lambda: sum(share * objective.compute_loss(y, objective.compute_outputs(x)) for x, y, share in batches)
    )
    original_loss, loss_changes = float(loss()), []
    for weight in weights:
        original_array = weight.numpy()
        for index in np.ndindex(*original_array.shape):
            pruned_array = original_array.copy()
            pruned_array[index] = 0
            weight.assign(pruned_array)
            loss_changes.append(float(loss()) - original_loss)
        weight.assign(original_array)
    return np.array(loss_changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_ranking_is_that_of_deleting_each_weight(name: str) -> None:
    _, objective, weights = train_network(name)
    loss_changes = _deletion_loss_changes(objective, weights)
    ranks = {}
    for kind in ("magnitude", "obd", "taylor2"):
        saliency = compute_saliency(SaliencySettings(kind), weights, objective, 0)
        scores = [saliency.reduction(array[..., None]) for array in saliency.saliencies]
        ranks[kind] = float(spearmanr(flat(scores), loss_changes)[0])
    print(name, ranks)
    assert ranks["taylor2"] >= 0.99
    assert ranks["obd"] > ranks["magnitude"]


@pytest.mark.slow
def test_the_kinds_are_what_they_say() -> None:
    _, objective, weights = train_network("relu", epochs=1)
    from edgepipe.compress.pruning.derivatives import compute_gradient, estimate_curvature

    slopes = compute_gradient(objective, weights)
    diagonal = estimate_curvature(objective, weights, "exact", 0, 0).diagonals
    kinds: tuple[Any, ...] = ("magnitude", "taylor", "obd", "taylor2")
    by_kind = {kind: compute_saliency(SaliencySettings(kind), weights, objective, 0) for kind in kinds}
    for index, weight in enumerate(weights):
        w, g, h = weight.numpy().astype(np.float64), slopes[index], diagonal[index]
        expected_scores = {
            "magnitude": np.abs(w),
            "taylor": np.abs(g * w),
            "obd": h * w**2 / 2,
            "taylor2": -g * w + h * w**2 / 2,
        }
        for kind, saliency in by_kind.items():
            scores = saliency.reduction(saliency.saliencies[index][..., None])
            assert np.allclose(scores, expected_scores[kind], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("size", "loss", "chosen"), [
    (10, "auto", "exact"), (5000, "auto", "gauss_newton"), (5000, "mae", "hutchinson")])  # fmt: skip
def test_auto_is_exact_while_that_is_a_matter_of_seconds(size: int, loss: str, chosen: str) -> None:
    from small_networks import TASK, K, network, samples

    from edgepipe.compress.pruning.saliency_loss import build_objective
    from edgepipe.tasks.quality import Task

    task = TASK if loss == "auto" else Task(loss, TASK.measures, "custom")
    objective = build_objective(network(K.Flatten()), task, samples(8), 8, 0)
    assert choose_method(SaliencySettings("obd"), [tf_keras.backend.variable(np.zeros(size))], objective) == chosen


def test_random_follows_the_seed_alone() -> None:
    weights = [tf_keras.backend.variable(np.ones((3, 4)))]
    seed_1, seed_1_again, seed_2 = (
        compute_saliency(SaliencySettings("random"), weights, None, seed).saliencies[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(seed_1, seed_1_again)
    assert not np.array_equal(seed_1, seed_2)
