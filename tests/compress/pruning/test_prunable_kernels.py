"""Which kernels are pruned, in which shapes, with which distribution and schedule."""

from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning import granularity
from edgepipe.compress.pruning.distribution import erk_shares
from edgepipe.compress.pruning.granularity import BlockGranularity, Granularity, NofMGranularity, WeightGranularity
from edgepipe.compress.pruning.prunable_kernels import (
    LAST_LAYER_REASON,
    PrunableKernel,
    find_prunable_kernels,
    iterate_kernels,
)
from edgepipe.compress.pruning.saliency import SaliencySettings, compute_saliency
from edgepipe.compress.pruning.sparsity_schedule import SparsitySchedule
from edgepipe.compress.pruning.weight_pool import WeightPool, check_sparsity, measure_sparsity
from edgepipe.core.errors import InputError

K = tf_keras.layers


def _every_class() -> Any:
    x = image = tf_keras.Input((8, 8, 4), name="image")
    x = K.Conv2D(8, 3, padding="same", name="conv")(x)
    x = K.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = K.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = tf_keras.Sequential([tf_keras.Input((8, 8, 8)), K.Conv2DTranspose(6, 2, name="up")], name="inner")(x)
    x = K.Reshape((81, 6), name="rows")(x)
    x = K.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = K.LSTM(5, name="lstm")(x)
    words = tf_keras.Input((3,), dtype="int32", name="words")
    y = K.Flatten(name="flat")(K.Embedding(9, 2, name="table")(words))
    x = K.Dense(3, name="last")(K.Concatenate()([x, y]))
    return tf_keras.Model([image, words], x, name="every")


def test_every_class_is_pruned_or_named() -> None:
    kernels = find_prunable_kernels(_every_class(), Overrides(), exclude_last=True)
    attention = [f"attention/{weight_name}" for weight_name in ("query", "key", "value", "attention_output")]
    lstm = ["lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel"]
    assert [kernel.name for kernel in kernels.kernels] == ["conv", "separable", "up", *attention, *lstm]
    assert kernels.exclusion_reasons == {
        "depthwise": "DepthwiseConv2D is not pruned unless named: few weights, each used at many positions",
        "table": "Embedding is not pruned: only convolutions, dense, attention and recurrent layers are",
        "last": LAST_LAYER_REASON,
    }


def test_rows_are_outputs_positions_inputs() -> None:
    by_name = {kernel.name: kernel for kernel in iterate_kernels(_every_class())}
    shapes = {name: kernel.to_rows(np.zeros(kernel.shape)).shape for name, kernel in by_name.items()}
    assert shapes["conv"] == (8, 9, 4)
    assert shapes["depthwise"] == (8, 9, 1)
    assert shapes["up"] == (6, 4, 8)
    assert shapes["attention/query"] == (8, 1, 6)
    assert shapes["attention/attention_output"] == (6, 1, 8)
    for kernel in by_name.values():
        array = np.random.default_rng(0).random(kernel.shape)
        assert np.array_equal(kernel.from_rows(kernel.to_rows(array)), array)


@pytest.mark.parametrize(("overrides", "is_pruned"), [
    (Overrides({"Conv2D": None}), {"conv": False}),
    (Overrides({}, {"depth.*": object()}), {"depthwise": True}),
    (Overrides({}, {"last": object()}), {"last": True}),
    (Overrides({"LSTM": None}, {"attention": None}), {"lstm/lstm_cell/kernel": False, "attention/key": False}),
])  # fmt: skip
def test_overrides_include_and_exclude(overrides: Overrides[Any], is_pruned: dict[str, bool]) -> None:
    pruned_names = {
        kernel.name for kernel in find_prunable_kernels(_every_class(), overrides, exclude_last=True).kernels
    }
    assert {name: name in pruned_names for name in is_pruned} == is_pruned


def test_nothing_to_prune_is_said() -> None:
    inputs = tf_keras.Input((4,), name="x")
    only = tf_keras.Model(inputs, K.Dense(2, name="only")(inputs), name="one_layer")
    with pytest.raises(InputError, match="nothing to prune in 'one_layer': only: the last layer is excluded"):
        find_prunable_kernels(only, Overrides(), exclude_last=True)


def _kernel(shape: tuple[int, ...]) -> PrunableKernel:
    weight = tf_keras.backend.variable(np.random.default_rng(0).normal(size=shape))
    return PrunableKernel("k", "Conv2D", None, weight, (len(shape) - 2,), (len(shape) - 1,))


@pytest.mark.parametrize("kind", ["magnitude", "random"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (8, 16)])
@pytest.mark.parametrize(
    "cut",
    [
        WeightGranularity(),
        BlockGranularity(4, 1),
        BlockGranularity(1, 4),
        BlockGranularity(2, 2),
        NofMGranularity(2, 4),
        NofMGranularity(1, 2),
    ],
)
def test_zeros_have_the_shape_and_the_share(cut: Granularity, shape: tuple[int, ...], share: float, kind: Any) -> None:
    kernel = _kernel(shape)
    pool = WeightPool((kernel,), cut, "uniform", {})
    saliency = compute_saliency(SaliencySettings(kind), pool.weights, None, 0)
    zero = pool.extend_removal(saliency, share, 1.0, pool.initial_removal()).zero_masks[0]
    assert abs(int(zero.sum()) - share * cut.max_zero_count(kernel)) <= cut.weights_per_unit(kernel)
    if share == 1.0 or not isinstance(cut, NofMGranularity):
        assert cut.count_broken_units(kernel, zero) == 0


@pytest.mark.parametrize("cut", [NofMGranularity(2, 4), NofMGranularity(1, 4), NofMGranularity(4, 8)])
def test_n_of_m_drops_the_smallest_of_each_group(cut: NofMGranularity) -> None:
    kernel = _kernel((3, 3, 8, 4))
    pool = WeightPool((kernel,), cut, "uniform", {})
    zero = pool.extend_removal(
        compute_saliency(SaliencySettings(), pool.weights, None, 0), 1.0, 1.0, pool.initial_removal()
    ).zero_masks[0]
    magnitudes = np.abs(np.asarray(kernel.weight))
    for index in np.ndindex(3, 3, 8 // cut.group_size, 4):
        group = slice(index[2] * cut.group_size, (index[2] + 1) * cut.group_size)
        removed_weights, kept_weights = (magnitudes[index[0], index[1], group, index[3]][mask] for mask in (
            zero[index[0], index[1], group, index[3]], ~zero[index[0], index[1], group, index[3]]))  # fmt: skip
        assert len(kept_weights) == cut.kept_per_group
        assert removed_weights.max() <= kept_weights.min()


def test_removed_weights_stay_removed() -> None:
    kernel = _kernel((3, 3, 8, 16))
    for cut in (WeightGranularity(), BlockGranularity(4, 1), NofMGranularity(2, 4)):
        pool, previous_removal = WeightPool((kernel,), cut, "uniform", {}), None
        for number, share in enumerate((0.2, 0.5, 0.9)):
            state = pool.initial_removal() if previous_removal is None else previous_removal
            removal = pool.extend_removal(
                compute_saliency(SaliencySettings("random"), pool.weights, None, number), share, 1.0, state
            )
            assert previous_removal is None or not (previous_removal.zero_masks[0] & ~removal.zero_masks[0]).any()
            previous_removal = removal


def test_global_ranks_over_all_kernels() -> None:
    small, large = _kernel((8, 16)), _kernel((16, 16))
    small.weight.assign(np.asarray(small.weight) / 100)
    pool = WeightPool((small, large), WeightGranularity(), "global", {})
    zeros = pool.extend_removal(
        compute_saliency(SaliencySettings(), pool.weights, None, 0), 0.5, 1.0, pool.initial_removal()
    ).zero_masks
    assert zeros[0].sum() == small.size - 1  # one weight of each kernel stays
    assert sum(int(zero.sum()) for zero in zeros) == pytest.approx((small.size + large.size) / 2, abs=1)


def test_a_layers_own_share_leaves_the_pool() -> None:
    kernel_a, kernel_b = (
        PrunableKernel(name, "Conv2D", None, _kernel((8, 16)).weight, (0,), (1,)) for name in ("one", "other")
    )
    pool = WeightPool((kernel_a, kernel_b), WeightGranularity(), "uniform", {"one": 0.25})
    zeros = pool.extend_removal(
        compute_saliency(SaliencySettings(), pool.weights, None, 0), 0.75, 1.0, pool.initial_removal()
    ).zero_masks
    assert [zero.mean() for zero in zeros] == [0.25, 0.75]


@pytest.mark.parametrize("share", [0.3, 0.8, 0.95])
def test_erk_gives_the_share_in_all_and_spares_the_small(share: float) -> None:
    shapes = [(3, 3, 1, 8), (3, 3, 64, 128), (1, 1, 128, 64), (256, 10)]
    shares = erk_shares(shapes, share)
    sizes = [int(np.prod(shape)) for shape in shapes]
    assert np.dot(shares, sizes) / sum(sizes) == pytest.approx(share)
    # Evci et al. 2020, appendix: densities are in proportion to (n_in + n_out + w + h) / (n_in n_out w h)
    factors = [(1 - s) * size / sum(shape) for s, size, shape in zip(shares, sizes, shapes, strict=True) if 0 < s < 1]
    assert np.allclose(factors, factors[0])
    assert shares[0] == min(shares)


@pytest.mark.parametrize(("text", "message"), [
    ("blocks", "found 'blocks'; allowed: weight, channel, block MxN"), ("block 1x1", "found 'block 1x1'"),
    ("4:4", "found '4:4'"), ("0:4", "found '0:4'"), ("block 0x4", "found 'block 0x4'"),
])  # fmt: skip
def test_no_such_granularity(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        granularity.parse_granularity(text)


@pytest.mark.parametrize(("cut", "reason"), [
    (NofMGranularity(2, 4), "its 6 input channels are not a multiple of 4"),
    (BlockGranularity(4, 4),
     "its 10 output channels are not a multiple of 4 and its 6 input channels are not a multiple of 4"),
])  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused_with_the_numbers(cut: Granularity, reason: str) -> None:
    assert cut.refusal_reason(_kernel((3, 3, 6, 10))) == reason


def test_the_cubic_schedule_is_that_of_the_paper() -> None:
    """Zhu and Gupta 2017, equation 1: s_f + (s_i - s_f) (1 - t / (n dt))^3."""
    updates = SparsitySchedule("cubic", start_progress=0.2, ramp_share=0.5).progress_by_step(200)
    assert max(updates) == 99
    for step, progress in updates.items():
        assert progress == pytest.approx(1 + (0.2 - 1) * (1 - step / 99) ** 3)
    assert SparsitySchedule("one_shot").progress_by_step(200) == {0: 1.0}
    assert SparsitySchedule("polynomial").progress_by_step(1) == {0: 1.0}


def test_a_missed_target_is_an_error_not_a_smaller_number() -> None:
    model = tf_keras.Sequential([tf_keras.Input((10,)), K.Dense(10, name="hidden"), K.Dense(2, name="last")])
    kernels = find_prunable_kernels(model, Overrides(), exclude_last=True)
    pool = WeightPool(kernels.kernels, WeightGranularity(), "uniform", {})
    with pytest.raises(InputError, match="layer 'hidden' holds 0 zeros of 100, under the target 75%"):
        check_sparsity(measure_sparsity(model, kernels), pool, 0.75)


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("share", [0.0, 0.33, 0.9, 1.0])
def test_what_will_be_left_is_known_before(distribution: Any, share: float) -> None:
    model = tf_keras.Sequential([tf_keras.Input((12,)), K.Dense(20, name="a"), K.Dense(8, name="b"), K.Dense(2)])
    pool = WeightPool(
        find_prunable_kernels(model, Overrides(), exclude_last=True).kernels, BlockGranularity(4, 4), distribution, {}
    )
    removal = pool.extend_removal(
        compute_saliency(SaliencySettings(), pool.weights, None, 0), share, 1.0, pool.initial_removal()
    )
    assert pool.count_remaining_weights(share) == sum(int((~zero).sum()) for zero in removal.zero_masks)


def test_a_missed_target_over_all_kernels_is_an_error() -> None:
    model = tf_keras.Sequential([tf_keras.Input((10,)), K.Dense(10, name="hidden"), K.Dense(2, name="last")])
    kernels = find_prunable_kernels(model, Overrides(), exclude_last=True)
    with pytest.raises(InputError, match="100 weights of the pruned kernels are not zero, 25 should be left"):
        check_sparsity(
            measure_sparsity(model, kernels), WeightPool(kernels.kernels, WeightGranularity(), "global", {}), 0.75
        )


def test_both_directions_of_a_recurrent_layer_have_names_of_their_own() -> None:
    layers = tf_keras.layers
    both = layers.Bidirectional(layers.LSTM(4), name="both")
    model = tf_keras.Sequential([tf_keras.Input((5, 3)), both, layers.Dense(2, name="out")])
    kernels = find_prunable_kernels(model, Overrides(), exclude_last=True)
    cell = both.forward_layer.cell.name
    assert [kernel.name for kernel in kernels.kernels] == [
        f"both/{name}/{tensor}" for name in (cell, f"{cell}_2") for tensor in ("kernel", "recurrent_kernel")
    ]
    assert [kernel.name for kernel in kernels.excluded_kernels] == ["out"]
