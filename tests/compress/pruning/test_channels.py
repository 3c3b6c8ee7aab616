"""Channel pruning: the shrunk model computes the same as the masked one, and channels that must stay do."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

from edgepipe.compress.keras_to_tflite import convert
from edgepipe.compress.overrides import Overrides
from edgepipe.compress.pruning.channels.channel_groups import ChannelGroups, find_channel_groups
from edgepipe.compress.pruning.channels.channel_pool import ChannelPool, UnreachableCost
from edgepipe.compress.pruning.channels.shrink import shrink_model
from edgepipe.compress.pruning.saliency import Saliency, SaliencySettings, compute_saliency
from edgepipe.core.errors import InputError
from edgepipe.models.bridge import bridge, relative_difference
from edgepipe.models.bridge_layers import LayerScale, OperatorLayer
from edgepipe.tflite.reader import read
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers


def _model(build: Callable[[Any], Any], shape: tuple[int, ...] = (8, 8, 4)) -> Any:
    """The graph of `build`, with random weights everywhere, biases and batch norms included."""
    set_seeds(0)
    x = tf_keras.Input(shape, name="x")
    return _randomize_weights(tf_keras.Model(x, build(x), name="user"))


def _randomize_weights(model: Any) -> Any:
    random = np.random.default_rng(0)
    for weight in model.weights:
        positive = "variance" in weight.name or "gamma" in weight.name
        weight.assign(random.uniform(0.5, 1.5, weight.shape) if positive else random.normal(0, 0.3, weight.shape))
    return model


def _conv(filters: int, name: str, **options: Any) -> Any:
    return K.Conv2D(filters, 3, padding="same", name=name, **options)


def _end(x: Any) -> Any:
    return K.Dense(3, name="end")(K.GlobalAveragePooling2D()(x))


def _chain(x: Any) -> Any:
    x = K.ReLU()(K.BatchNormalization()(_conv(6, "first", use_bias=False)(x)))
    return _end(_conv(5, "second", activation="relu")(K.MaxPooling2D()(x)))


def _flatten(x: Any) -> Any:
    x = K.Flatten()(K.AveragePooling2D()(_conv(6, "first", activation="relu")(x)))
    return K.Dense(3, name="end")(K.Dense(7, "relu", name="hidden")(x))


def _residual(x: Any) -> Any:
    x = _conv(6, "stem")(x)
    y = K.ReLU()(K.BatchNormalization()(_conv(6, "inner")(K.ReLU()(x))))
    return _end(K.ReLU()(K.Add()([x, y])))


def _before_activation(x: Any) -> Any:
    """Batch norms after a sum and a concatenation, with a different beta for each channel."""
    x = _conv(6, "stem")(x)
    y = _conv(4, "grow", use_bias=False)(K.ReLU()(K.BatchNormalization(name="bn1")(x)))
    x = K.Concatenate()([x, y])
    return _end(_conv(5, "last")(K.ReLU()(K.BatchNormalization(name="bn2")(x))))


def _depthwise(x: Any) -> Any:
    x = K.ReLU(6.0)(_conv(6, "expand")(x))
    x = K.ReLU(6.0)(K.BatchNormalization()(K.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)))
    return _end(K.Conv2D(5, 1, name="project")(x))


def _separable(x: Any) -> Any:
    return _end(K.SeparableConv2D(6, 3, depth_multiplier=2, name="apart")(_conv(5, "first", activation="relu")(x)))


def _squeeze_excite(x: Any) -> Any:
    x = _conv(6, "first", activation="swish")(x)
    y = K.Reshape((1, 1, 6))(K.GlobalAveragePooling2D()(x))
    y = K.Conv2D(6, 1, activation="sigmoid", name="excite")(K.Conv2D(3, 1, activation="swish", name="squeeze")(y))
    return _end(K.Multiply()([x, y]))


def _gated_dense(x: Any) -> Any:
    """sigmoid(0) is 0.5, but a removed channel is read as 0."""
    return _end(_conv(5, "second")(_conv(6, "first", activation="sigmoid")(x)))


def _shared_layer(x: Any) -> Any:
    shared = _conv(6, "shared")
    return _end(K.ReLU()(shared(K.ReLU()(shared(_conv(4, "first")(x))))) if x.shape[-1] == 6 else K.Add()([
        shared(x), shared(_conv(4, "first")(x))]))  # fmt: skip


def _nested_model(x: Any) -> Any:
    inner = tf_keras.Sequential([tf_keras.Input((8, 8, 6)), _conv(5, "deep"), K.BatchNormalization()], name="inner")
    return _end(K.PReLU(shared_axes=(1, 2))(inner(_conv(6, "outer")(x))))


def _branches(x: Any) -> Any:
    x = _conv(6, "stem", activation="relu")(x)
    one, other = _conv(4, "one")(x), K.Conv2DTranspose(5, 3, padding="same", name="other")(x)
    x = K.Concatenate()([one, K.UpSampling2D()(K.MaxPooling2D()(other))])
    return _end(K.ZeroPadding2D()(LayerScale(0.5, 9, name="scale")(x)))


def _one_slope(x: Any) -> Any:
    x = K.PReLU(shared_axes=(3,), name="places")(_conv(6, "first")(x))
    return _end(K.PReLU(shared_axes=(1, 2, 3), name="one")(_conv(5, "second")(x)))


def _hard_swish(x: Any) -> Any:
    """keras.ops, with a division by a constant."""
    x = _conv(6, "first")(x)
    y = OperatorLayer("Add", json.dumps({"args": [{"tensor": 0}, 3], "kwargs": {}}), name="plus")(x)
    y = OperatorLayer("TrueDivide", json.dumps({"args": [{"tensor": 0}, 6], "kwargs": {}}), name="by6")(K.ReLU(6.0)(y))
    return _end(K.Multiply()([x, y]))


def _twice(x: Any) -> Any:
    """A dense layer that is called once on channels and once on another axis."""
    x, dense = _conv(8, "first")(_conv(6, "outer")(x)), K.Dense(6, name="twice")
    return _end(K.Add()([dense(x), dense(K.Permute((1, 3, 2))(x))]))


def _twice_turned(x: Any) -> Any:
    x, dense = _conv(8, "first")(_conv(6, "outer")(x)), K.Dense(6, name="twice")
    return _end(K.Add()([dense(K.Permute((1, 3, 2))(x)), dense(x)]))


def _grouped_convolution(x: Any) -> Any:
    """As many groups as channels: equivalent to a depthwise convolution."""
    return _end(K.Conv2D(12, 3, groups=6, name="grouped")(_conv(6, "first", activation="relu")(x)))


def _permuted_axes(x: Any) -> Any:
    x = K.Permute((3, 1, 2))(_conv(6, "first", activation="relu")(x))
    return K.Dense(3, name="end")(K.Flatten()(x))


def _one_dimensional(x: Any) -> Any:
    x = K.Conv1D(6, 3, activation="relu", name="first")(K.Reshape((32, 8))(x))
    return K.Dense(3, name="end")(K.GlobalMaxPooling1D()(K.Conv1D(5, 3, name="second")(x)))


GRAPHS = {
    build.__name__.strip("_"): build
    for build in (_chain, _flatten, _residual, _before_activation, _depthwise, _separable, _squeeze_excite,
                  _gated_dense, _shared_layer, _nested_model, _branches, _grouped_convolution, _permuted_axes,
                  _one_dimensional, _one_slope, _hard_swish, _twice, _twice_turned)
}  # fmt: skip


def _masked_outputs(model: Any, groups: ChannelGroups, removed_groups: Any, produced_only: bool) -> Any:
    """Outputs with removed channels at zero: their filters, biases and batch norms, and the weights that read them."""
    original_arrays = [cut.weight.numpy() for cut in groups.labeled_weights]
    zeros = groups.zero_masks(removed_groups)
    if produced_only:
        zeros = [_produced_elements(groups, index, removed_groups) for index in range(len(zeros))]
    for cut, array, zero in zip(groups.labeled_weights, original_arrays, zeros, strict=True):
        cut.weight.assign(np.where(zero, 0, array))
    outputs = model(_inputs(model), training=False).numpy()
    for cut, array in zip(groups.labeled_weights, original_arrays, strict=True):
        cut.weight.assign(array)
    return outputs


def _produced_elements(groups: ChannelGroups, index: int, removed_groups: Any) -> Any:
    """The elements of a weight that produce removed channels, without those that read them."""
    cut, mask = groups.labeled_weights[index], np.zeros(groups.labeled_weights[index].weight.shape, bool)
    for axis, positions in groups.group_positions_by_axis[index]:
        if axis != cut.input_axis:
            removed_indices = np.where(positions >= 0, removed_groups[positions], False)
            mask |= np.expand_dims(
                removed_indices, [other_axis for other_axis in range(mask.ndim) if other_axis != axis]
            )
    return mask


def _inputs(model: Any) -> Any:
    return np.random.default_rng(1).normal(0, 1, (3, *model.input_shape[1:])).astype("float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_the_shrunk_model_is_the_masked_one(name: str) -> None:
    """MACs are compared with the .tflite of the shrunk model, which is independent of labels."""
    model = _model(GRAPHS[name])
    groups = find_channel_groups(model, Overrides())
    removed_groups = _random_removal(groups, 0.5)
    smaller = shrink_model(model, groups, removed_groups)
    outputs = smaller(_inputs(model), training=False).numpy()
    assert relative_difference(_masked_outputs(model, groups, removed_groups, produced_only=False), outputs) < 1e-5
    if name != "gated_dense":  # a sigmoid of nothing is not nothing
        assert relative_difference(_masked_outputs(model, groups, removed_groups, produced_only=True), outputs) < 1e-5
    assert relative_difference(model(_inputs(model)).numpy(), outputs) > 1e-3
    assert smaller.count_params() == groups.count_parameters(removed_groups) < model.count_params()
    untracked_macs = 64 * 8 * 6 if "twice" in name else 0  # of the call of a dense layer on what is no channels
    assert groups.count_macs(removed_groups) + untracked_macs == _macs(convert(smaller, scheme="float32"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_with_nothing_removed_the_macs_are_those_of_the_model(name: str) -> None:
    model = _model(GRAPHS[name])
    groups = find_channel_groups(model, Overrides())
    assert groups.count_macs(groups.empty_removal_mask) == _macs(convert(model, scheme="float32"))


def _random_removal(groups: ChannelGroups, share: float) -> Any:
    """A random removal that leaves every layer at least one channel."""
    pool = ChannelPool(groups, lambda removed_groups: float(1 - removed_groups.mean()), ("global",))
    saliency = Saliency(tuple(np.random.default_rng(3).random(w.shape) for w in pool.weights), lambda v: v.mean(-1))
    return pool.candidate_masks(saliency, ("global",), 1 - share, 1.0, pool.initial_removal_mask())["global"]


def _macs(blob: bytes) -> int:
    with TemporaryDirectory() as folder:
        (Path(folder) / "m.tflite").write_bytes(blob)
        return read(Path(folder) / "m.tflite").macs


@pytest.mark.slow
@pytest.mark.parametrize(("build", "layer", "reason"), [
    (_chain, "end", "'end' is an output of the model"),
    (lambda x: _end(K.LayerNormalization(name="norm")(_conv(6, "first")(x))), "first",
     "read by 'norm', which takes mean and variance over all channels"),
    (lambda x: K.Softmax(name="soft")(_end(x)), "end", "read by 'soft', which divides by the sum over all channels"),
    (lambda x: _end(K.Conv2D(6, 3, groups=2, name="grouped")(_conv(6, "first")(x))), "first",
     "read by 'grouped', whose 2 groups must keep their sizes"),
    (lambda x: K.Add(name="sum")([x, _conv(4, "first")(x)]), "first", "'x' is an input of the model"),
    (lambda x: _end(K.Multiply(name="mask")([x, _conv(1, "first")(x)])), "first",
     "broadcast over 4 channels by 'mask'"),
    (lambda x: _end(K.Lambda(lambda t: t[..., ::-1], name="own")(_conv(6, "first")(x))), "first",
     "read by 'own', a Lambda, through which channels are not followed"),
    (lambda x: K.Dense(2, name="end")(K.LSTM(3, name="lstm")(K.Reshape((8, 48))(_conv(6, "first")(x)))), "first",
     "read by 'lstm', a LSTM, through which channels are not followed"),
    (lambda x: K.Dense(2, name="end")(K.LSTM(3, name="lstm")(K.Reshape((8, 48))(_conv(6, "first")(x)))), "lstm",
     "one a LSTM, through which channels are not followed"),
    (lambda x: _end(K.Conv2D(6, 3, groups=2, name="grouped")(_conv(6, "first")(x))), "grouped",
     "one whose 2 groups must keep their sizes"),
    (lambda x: _end(_divided_by_channels(x)), "below", "read by 'by', which divides by channels"),
    (lambda x: _end(OperatorLayer("Sqrt", _FIRST_INPUT, name="root")(_conv(6, "first")(x))), "first",
     "an operator Sqrt"),
    (_twice, "twice", "whose channels are on axis 2"),
])  # fmt: skip
def test_what_cannot_be_pruned_is_named_with_the_reason(build: Any, layer: str, reason: str) -> None:
    model = _model(lambda x: build(_conv(4, "before")(_conv(4, "free")(x))) if layer != "first" or "input" not in reason
                   else [build(x), _end(_conv(5, "free")(x))])  # fmt: skip
    reasons = {entry.name: entry.freeze_reason for entry in find_channel_groups(model, Overrides()).channel_layers}
    assert reason in reasons[layer]


_FIRST_INPUT = json.dumps({"args": [{"tensor": 0}], "kwargs": {}})


def _divided_by_channels(x: Any) -> Any:
    both = json.dumps({"args": [{"tensor": 0}, {"tensor": 1}], "kwargs": {}})
    return OperatorLayer("Divide", both, name="by")([_conv(6, "above")(x), _conv(6, "below")(x)])


def test_two_layers_of_one_name_are_refused() -> None:
    def inner(name: str, channels: int) -> Any:
        return tf_keras.Sequential([tf_keras.Input((8, 8, channels)), _conv(5, "deep")], name=name)

    with pytest.raises(InputError, match="two layers of 'user' are called 'deep', in different nested models"):
        find_channel_groups(_model(lambda x: _end(inner("b", 5)(inner("a", 4)(x)))), Overrides())


def test_nothing_to_remove_is_said() -> None:
    model = _model(lambda x: K.Conv2D(3, 1, name="only")(x))
    with pytest.raises(InputError, match="no channel of 'user' can be removed: only: 'only' is an output of the model"):
        find_channel_groups(model, Overrides())


def test_a_layer_that_the_pipeline_leaves_alone_keeps_its_channels() -> None:
    model = _model(lambda x: _residual(_conv(4, "free", activation="relu")(x)))
    reasons = {
        layer.name: layer.freeze_reason
        for layer in find_channel_groups(model, Overrides({}, {"stem": None})).channel_layers
    }
    assert reasons["stem"] == reasons["inner"] == "excluded by the pipeline"
    assert reasons["free"] == ""


def _pool(model: Any, **options: Any) -> ChannelPool:
    groups = find_channel_groups(model, Overrides())
    return ChannelPool(groups, groups.count_macs, ("uniform", "global", "per_mac"), **options)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("name", ["chain", "residual", "depthwise", "before_activation"])
def test_a_target_is_met_from_above_with_as_little_as_possible(name: str, share: float) -> None:
    pool = _pool(_model(GRAPHS[name]))
    max_cost = pool.channel_groups.count_macs(pool.initial_removal_mask()) * share
    saliency = compute_saliency(SaliencySettings(), pool.weights, None, 0)
    for removed_groups in pool.candidate_masks(
        saliency, pool.removal_orders, max_cost, 1.0, pool.initial_removal_mask()
    ).values():
        assert pool.channel_groups.count_macs(removed_groups) <= max_cost
        # any one group more would be too many
        smaller_removals = [
            removed_groups & (np.arange(len(removed_groups)) != position) for position in np.flatnonzero(removed_groups)
        ]
        assert max(pool.channel_groups.count_macs(removal) for removal in smaller_removals) > max_cost


def test_an_unreachable_target_reports_the_lowest_cost() -> None:
    pool = _pool(_model(_chain))
    with pytest.raises(UnreachableCost) as least:
        pool.candidate_masks(
            compute_saliency(SaliencySettings(), pool.weights, None, 0),
            pool.removal_orders,
            10,
            1.0,
            pool.initial_removal_mask(),
        )
    assert least.value.lowest_cost == pool.channel_groups.count_macs(_all_but_one(pool))


def _all_but_one(pool: ChannelPool) -> Any:
    removed_groups = np.ones(len(pool.channel_groups.removable_roots), bool)
    for positions in pool.channel_groups.dependency_sets:
        removed_groups[positions[0]] = False
    return removed_groups


@pytest.mark.slow
@pytest.mark.parametrize("multiple", [2, 4])
def test_layers_keep_a_multiple(multiple: int) -> None:
    model = _model(lambda x: _end(_conv(10, "second")(K.ReLU()(_conv(16, "first")(x)))))
    pool = _pool(model, channel_multiple=multiple)
    saliency = compute_saliency(SaliencySettings(), pool.weights, None, 0)
    max_cost = pool.channel_groups.count_macs(pool.initial_removal_mask()) * 0.5
    for removed_groups in pool.candidate_masks(
        saliency, pool.removal_orders, max_cost, 1.0, pool.initial_removal_mask()
    ).values():
        channels_left = [
            len(positions) - int(removed_groups[positions].sum()) for positions in pool.channel_groups.dependency_sets
        ]
        assert all(number % multiple == 0 or number == 10 for number in channels_left)
        assert pool.channel_groups.count_macs(removed_groups) <= max_cost


def test_a_layers_own_share_is_kept_to() -> None:
    pool = _pool(_model(_chain), share_by_layer={"second": 0.4})
    saliency = compute_saliency(SaliencySettings(), pool.weights, None, 0)
    for removed_groups in pool.candidate_masks(
        saliency, pool.removal_orders, math.inf, 1.0, pool.initial_removal_mask()
    ).values():
        assert [int(removed_groups[positions].sum()) for positions in pool.channel_groups.dependency_sets] == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize(("multiple", "share", "channels_left"), [(1, 0.4, 5), (4, 0.4, 4), (4, 0.2, 4), (8, 0.4, 8)])
def test_a_layers_own_share_comes_to_a_multiple(multiple: int, share: float, channels_left: int) -> None:
    model = _model(lambda x: _end(_conv(10, "second")(K.ReLU()(_conv(8, "first")(x)))))
    pool = _pool(model, share_by_layer={"first": share}, channel_multiple=multiple)
    saliency = compute_saliency(SaliencySettings(), pool.weights, None, 0)
    for removed_groups in pool.candidate_masks(
        saliency, pool.removal_orders, math.inf, 1.0, pool.initial_removal_mask()
    ).values():
        assert 8 - int(removed_groups[pool.channel_groups.dependency_sets[0]].sum()) == channels_left


def test_each_layer_of_a_sum_with_a_concatenation_keeps_a_multiple() -> None:
    def build(x: Any) -> Any:
        branch_a, branch_b = _conv(8, "one")(x), _conv(8, "other")(x)
        return _end(K.Add()([K.Concatenate()([branch_a, branch_b]), _conv(16, "both")(x)]))

    pool = _pool(_model(build), channel_multiple=4)
    saliency = compute_saliency(SaliencySettings(), pool.weights, None, 0)
    max_cost = pool.channel_groups.count_macs(pool.initial_removal_mask()) * 0.6
    for removed_groups in pool.candidate_masks(
        saliency, pool.removal_orders, max_cost, 1.0, pool.initial_removal_mask()
    ).values():
        removed_roots = pool.channel_groups.removable_roots[removed_groups]
        assert all(
            np.sum(~np.isin(layer.root_labels, removed_roots)) % 4 == 0
            for layer in pool.channel_groups.channel_layers
            if not layer.freeze_reason
        )
        assert pool.channel_groups.count_macs(removed_groups) <= max_cost


def test_the_loss_of_a_channel_is_that_of_what_reads_it() -> None:
    model = _model(_flatten)
    groups = find_channel_groups(model, Overrides())
    saliencies = [np.random.default_rng(0).random(cut.weight.shape) for cut in groups.labeled_weights]
    scores = groups.loss_scores(saliencies, lambda array: array.sum(-1))
    kernel = next(
        saliency
        for cut, saliency in zip(groups.labeled_weights, saliencies, strict=True)
        if cut.layer_name == "hidden" and saliency.ndim == 2
    )
    expected_scores = kernel.reshape(4, 4, 6, 7).sum(
        (0, 1, 3)
    )  # after the pooling 4 x 4 places of 6 channels are flattened
    assert np.allclose(scores[:6], expected_scores)


OPTIONS: dict[str, Any] = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}


def _small_resnet(version: int) -> Any:
    """A block and one more in each of two stages; the depths of the public ones are fixed."""
    from keras.src.applications import resnet

    stack = resnet.stack_residual_blocks_v2 if version == 2 else resnet.stack_residual_blocks_v1

    def stages(x: Any) -> Any:
        return stack(stack(x, 16, 2, stride1=1, name="conv2"), 24, 2, name="conv3")

    return resnet.ResNet(stages, preact=version == 2, use_bias=True, **OPTIONS)


def _small_densenet() -> Any:
    from keras.src.applications.densenet import DenseNet

    return DenseNet([2, 2, 2, 2], **OPTIONS)


def _small_efficientnet() -> Any:
    from keras.src.applications.efficientnet import EfficientNet

    return EfficientNet(0.5, 0.3, 32, **OPTIONS)


# the blocks of published networks; MobileNetV2 as published
FAMILIES: dict[str, Callable[[], Any]] = {
    "MobileNetV2": lambda: keras.applications.MobileNetV2(**OPTIONS, alpha=0.35),
    "ResNet": lambda: _small_resnet(1),
    "ResNetV2": lambda: _small_resnet(2),
    "DenseNet": _small_densenet,
    "EfficientNet": _small_efficientnet,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_real_graphs_shrink_to_the_masked_model(name: str) -> None:
    set_seeds(0)
    original = FAMILIES[name]()
    model = _perturb_weights(bridge(original).model)
    groups = find_channel_groups(model, Overrides())
    removed_groups = _random_removal(groups, 0.4)
    model.layers[-1].activation = tf_keras.activations.linear  # nothing small shows through a softmax
    smaller = shrink_model(model, groups, removed_groups)
    outputs = smaller(_inputs(model), training=False).numpy()
    assert relative_difference(_masked_outputs(model, groups, removed_groups, produced_only=True), outputs) < 1e-5
    assert relative_difference(model(_inputs(model)).numpy(), outputs) > 1e-3
    assert [layer.name for layer in groups.channel_layers if layer.freeze_reason] == ["predictions"]


def _perturb_weights(model: Any) -> Any:
    """All weights perturbed, but so little that a hundred layers neither vanish nor overflow."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        positive = "variance" in weight.name or "gamma" in weight.name
        noise = random.uniform(0.8, 1.2, weight.shape) if positive else random.normal(0, 0.05, weight.shape)
        weight.assign(weight * noise if positive else weight + noise)
    return model
