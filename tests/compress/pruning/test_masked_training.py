"""Masked training: masks hold and reach the target, tfmot's and edgepipe's agree, rounds stop in time."""

from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning import tfmot_pruning
from edgepipe.compress.pruning.distribution import Distribution
from edgepipe.compress.pruning.granularity import Granularity, NofMGranularity, WeightGranularity
from edgepipe.compress.pruning.masked_training import prune_gradually, prune_iteratively, round_progress
from edgepipe.compress.pruning.prunable_kernels import find_prunable_kernels
from edgepipe.compress.pruning.pruner import KernelPruner
from edgepipe.compress.pruning.saliency import SaliencySettings
from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule
from edgepipe.compress.pruning.weight_pool import WeightPool, check_sparsity, measure_sparsity
from edgepipe.training.training_loop import set_seeds

X = np.random.RandomState(0).rand(60, 8, 8, 1).astype(np.float32)
Y = np.arange(60) % 3
STEPS = 12


def _model() -> Any:
    set_seeds(0)
    inputs = tf_keras.Input((8, 8, 1), name="image")
    x = tf_keras.layers.Conv2D(8, 3, name="conv")(inputs)
    x = tf_keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = tf_keras.layers.Flatten(name="flatten")(x)
    x = tf_keras.layers.Dense(12, activation="relu", name="hidden")(x)
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, activation="softmax", name="last")(x))


def _fit(model: Any, callbacks: list[Any], rate: float = 0.01) -> None:
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=10, epochs=STEPS // 6, verbose=0, callbacks=callbacks)


def _pool(model: Any, granularity: Granularity | None = None, distribution: Distribution = "uniform") -> WeightPool:
    return WeightPool(
        find_prunable_kernels(model, Overrides(), exclude_last=True).kernels,
        granularity or WeightGranularity(),
        distribution,
        {},
    )


def _pruner(model: Any, share: float, **options: Any) -> KernelPruner:
    return KernelPruner.from_settings(_pool(model, **options), share, SaliencySettings(), None, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("one_shot", 0.3), ("constant", 0.9), ("polynomial", 0.3), ("cubic", 0.9)])
def test_every_schedule_reaches_the_target_and_holds_it(name: Any, share: float) -> None:
    model = _model()
    pruner = _pruner(model, share)
    prune_gradually(pruner, SparsitySchedule(name), STEPS, lambda callbacks: _fit(model, callbacks))
    kernels = find_prunable_kernels(model, Overrides(), exclude_last=True)
    check_sparsity(measure_sparsity(model, kernels), pruner.pool, share)
    for kernel, zero in zip(pruner.pool.kernels, pruner.zero_masks, strict=True):
        assert np.array_equal(np.asarray(kernel.weight) == 0, zero)
        assert zero.sum() == kernel.size - round(kernel.size * (1 - share))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "distribution"), [("constant", "uniform"), ("polynomial", "erk"), ("cubic", "uniform")]
)
def test_tfmot_reaches_the_target(name: Any, distribution: Distribution) -> None:
    model = _model()
    pool, schedule = _pool(model, distribution=distribution), SparsitySchedule(name)
    assert tfmot_pruning.supports(model, pool, SaliencySettings(), schedule)
    wrapped_model = tfmot_pruning.wrap(model, pool, 0.75, schedule, STEPS)
    _fit(wrapped_model, tfmot_pruning.callbacks())
    stripped_model = tfmot_pruning.strip(wrapped_model)
    kernels = find_prunable_kernels(stripped_model, Overrides(), exclude_last=True)
    check_sparsity(measure_sparsity(stripped_model, kernels), pool, 0.75)
    assert measure_sparsity(stripped_model, kernels)[-1].zeros == 0


@pytest.mark.slow
def test_edgepipe_and_tfmot_choose_the_same_weights() -> None:
    model = _model()
    pool = _pool(model)
    wrapped_model = tfmot_pruning.wrap(model, pool, 0.6, SparsitySchedule("constant"), STEPS)
    _fit(wrapped_model, tfmot_pruning.callbacks(), rate=1e-9)
    theirs = [np.asarray(kernel.weight) == 0 for kernel in _pool(tfmot_pruning.strip(wrapped_model)).kernels]
    ours = _pruner(_model(), 0.6).advance(1.0)
    assert all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "granularity", "distribution", "schedule"), [
    (SaliencySettings("taylor"), WeightGranularity(), "uniform", "polynomial"),
    (SaliencySettings(), NofMGranularity(2, 4), "uniform", "polynomial"),
    (SaliencySettings(), WeightGranularity(), "global", "polynomial"),
    (SaliencySettings(), WeightGranularity(), "uniform", "one_shot"),
])  # fmt: skip
def test_what_tfmot_does_not_do_is_edgepipes(
    settings: SaliencySettings, granularity: Granularity, distribution: Distribution, schedule: Any
) -> None:
    model = _model()
    assert not tfmot_pruning.supports(
        model, _pool(model, granularity, distribution), settings, SparsitySchedule(schedule)
    )


@pytest.mark.slow
def test_zeros_that_were_there_stay() -> None:
    model = _model()
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.where(np.arange(12) % 2, 0, hidden.numpy()))
    pruner = _pruner(model, 0.2)
    prune_gradually(pruner, SparsitySchedule("one_shot"), STEPS, lambda callbacks: _fit(model, callbacks))
    assert (hidden.numpy()[:, 1::2] == 0).all()


def _rounds(quality: list[float], number: int) -> tuple[Any, KernelPruner, list[Any], list[Any]]:
    """Iterative pruning with the given qualities, and the weights after each round."""
    model = _model()
    pruner, weights_by_round, qualities = _pruner(model, 0.8), [model.get_weights()], iter(quality)

    def fit(callbacks: list[Any]) -> None:
        _fit(model, callbacks)
        weights_by_round.append(model.get_weights())

    rounds = prune_iteratively(
        pruner, number, fit, lambda: next(qualities), lambda threshold_quality: threshold_quality >= 0.9, model
    )
    return model, pruner, rounds, weights_by_round


def _equal(a: list[Any], b: list[Any]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "number", "kept_rounds"), [
    ([0.95, 0.94, 0.93], 3, 3), ([0.95, 0.89], 4, 1), ([0.5], 4, 0), ([0.95, 0.5], 2, 1),
])  # fmt: skip
def test_rounds_end_with_the_last_good_model(quality: list[float], number: int, kept_rounds: int) -> None:
    """Each round removes a like share of what is left."""
    model, pruner, rounds, weights_by_round = _rounds(quality, number)
    assert [round_.is_acceptable for round_ in rounds] == [value >= 0.9 for value in quality]
    remaining_shares = [1 - round_.progress * pruner.final_share for round_ in rounds]
    assert remaining_shares == pytest.approx([0.2 ** ((index + 1) / number) for index in range(len(rounds))])
    assert _equal(model.get_weights(), weights_by_round[kept_rounds])
    zero_share = sum(int(zero.sum()) for zero in pruner.zero_masks) / sum(zero.size for zero in pruner.zero_masks)
    assert zero_share == pytest.approx(1 - 0.2 ** (kept_rounds / number), abs=0.01)
    for kernel, zero in zip(pruner.pool.kernels, pruner.zero_masks, strict=True):
        assert (np.asarray(kernel.weight)[zero] == 0).all()


def test_where_nothing_is_to_be_left_each_round_removes_a_like_share() -> None:
    """As for 2:4, where all units are removed in the end."""
    assert [round_progress(1.0, number / 4) for number in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
