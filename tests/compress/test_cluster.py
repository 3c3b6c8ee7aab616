"""Weight clustering: distinct values, preserved zeros, excluded layers with reasons, and tfmot's pitfalls."""

from typing import Any

import numpy as np
import pytest
import tf_keras

from edgepipe.compress import clustering
from edgepipe.compress.clustering import ClusteringPlan, ClusterSelection
from edgepipe.compress.overrides import Overrides
from edgepipe.core.errors import InputError
from edgepipe.training.training_loop import set_seeds

K = tf_keras.layers
X = np.random.RandomState(0).rand(48, 8, 8, 3).astype(np.float32)


def _model(sparsity: float = 0.0, wrong: Any = None) -> tf_keras.Model:
    set_seeds(0)
    inputs = tf_keras.Input((8, 8, 3), name="image")
    x = K.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = K.ReLU(name="relu")(K.BatchNormalization(name="norm")(x))
    x = K.DepthwiseConv2D(3, name="depthwise")(x)
    x = K.Dense(12, activation="relu", name="hidden")(K.Flatten(name="flat")(x))
    model = tf_keras.Model(inputs, K.Dense(3, activation="softmax", name="last")(x), name="small")
    for name in ("conv", "hidden", "last"):
        kernel = model.get_layer(name).weights[0]
        kernel.assign(_prune_kernel(np.asarray(kernel), sparsity))
    return model


def _prune_kernel(kernel: Any, sparsity: float) -> Any:
    return np.where(np.abs(kernel) < np.quantile(np.abs(kernel), sparsity), 0, kernel)


def _train_clustered(
    model: tf_keras.Model, plan: ClusteringPlan, epochs: int = 2
) -> tuple[tf_keras.Model, ClusterSelection]:
    selection = clustering.select_layers(model, plan)
    wrapped_model = clustering.wrap(model, selection, plan.init)
    if epochs:
        wrapped_model.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        held = clustering.build_callbacks(model, selection, plan.preserve_sparsity)
        classes = model.output_shape[-1]
        wrapped_model.fit(X, np.arange(len(X)) % classes, batch_size=16, epochs=epochs, verbose=0, callbacks=held)
    stripped_model = clustering.strip(wrapped_model)
    assert np.allclose(stripped_model(X, training=False), wrapped_model(X, training=False), atol=1e-5)
    return stripped_model, selection


def _kernel(model: tf_keras.Model, name: str) -> Any:
    return np.asarray(model.get_layer(name).weights[0])


@pytest.mark.slow
@pytest.mark.parametrize(("init", "epochs"), [("density", 0), ("linear", 2), ("kmeans++", 0), ("random", 0)])
def test_each_clustered_layer_has_few_values_and_all_its_zeros(init: Any, epochs: int) -> None:
    """Where the centroids start is a matter of wrapping; training is the same for all."""
    model, plan = _model(sparsity=0.7), ClusteringPlan(cluster_count=8, init=init)
    original = {name: _kernel(model, name) for name in ("conv", "hidden")}
    clustered, selection = _train_clustered(model, plan, epochs)
    layers = {layer.name: layer for layer in clustering.check_clusters(clustered, selection, plan)}
    assert set(selection.target_by_path) == {"conv", "hidden"}
    for name, kernel in original.items():
        now = _kernel(clustered, name)
        assert 3 < np.unique(now).size <= 8
        assert not now[kernel == 0].any()
        assert np.mean(np.abs(now - kernel)) > 0
        assert (layers[name].nonzero_distinct_count, layers[name].zeros) == (
            np.unique(now[now != 0]).size,
            int((now == 0).sum()),
        )
        assert layers[name].revived_zero_count == 0


@pytest.mark.slow
def test_a_dense_kernel_gets_no_zeros_for_nothing() -> None:
    clustered, selection = _train_clustered(_model(), ClusteringPlan(cluster_count=8))
    assert not selection.target_by_path["conv"].keeps_zeros
    assert np.all(_kernel(clustered, "conv") != 0)


@pytest.mark.slow
def test_zeros_may_be_given_up() -> None:
    model, plan = _model(sparsity=0.7), ClusteringPlan(cluster_count=8, preserve_sparsity=False)
    zero = _kernel(model, "conv") == 0
    clustered, selection = _train_clustered(model, plan)
    clustering.check_clusters(clustered, selection, plan)
    assert _kernel(clustered, "conv")[zero].any()


@pytest.mark.slow
def test_what_is_left_alone_is_named_and_keeps_its_zeros_and_clusters() -> None:
    model = _model(sparsity=0.5)
    hidden = _kernel(model, "hidden")
    model.get_layer("hidden").weights[0].assign(np.sign(hidden) * 0.125)
    plan = ClusteringPlan(cluster_count=8)
    clustered, selection = _train_clustered(model, plan)
    assert selection.exclusion_reasons == {
        "depthwise": "DepthwiseConv2D is not clustered: few weights, each used at many positions",
        "hidden": "it already holds 3 distinct values",
        "last": "the last layer is excluded (exclude_last: true)",
    }
    assert {
        layer.name: layer.exclusion_reason
        for layer in clustering.check_clusters(clustered, selection, plan)
        if layer.exclusion_reason
    }
    for name in ("hidden", "last"):
        assert np.array_equal(_kernel(clustered, name) == 0, _kernel(_model(sparsity=0.5), name) == 0)
    assert np.unique(_kernel(clustered, "hidden")).size == 3
    assert not np.array_equal(np.unique(_kernel(clustered, "hidden")), [-0.125, 0, 0.125])  # and they did learn


REASONS: list[tuple[str, ClusteringPlan, str, str]] = [
    (
        "too few weights",
        ClusteringPlan(cluster_count=128),
        "conv",
        "too few weights: 216 that are not zero, for 128 clusters (at least 2 each",
    ),
    ("by class", ClusteringPlan(8, overrides=Overrides({"Conv2D": None})), "conv", "excluded by the pipeline"),
    (
        "by name",
        ClusteringPlan(8, overrides=Overrides({"Conv2D": 4}, {"co.*": None})),
        "conv",
        "excluded by the pipeline",
    ),
    ("the last", ClusteringPlan(8, overrides=Overrides({"Dense": 4})), "last", "the last layer is excluded"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "layer", "reason"), [case[1:] for case in REASONS], ids=[case[0] for case in REASONS])
def test_reasons(plan: ClusteringPlan, layer: str, reason: str) -> None:
    assert clustering.select_layers(_model(), plan).exclusion_reasons[layer].startswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "expected"), [
    (Overrides({}, {}), {"conv": 8, "hidden": 8}),
    (Overrides({"Dense": 16}, {}), {"conv": 8, "hidden": 16}),
    (Overrides({"Dense": 16}, {"hid.*": 4, "last": 5}), {"conv": 8, "hidden": 4, "last": 5}),
    (Overrides({"Conv2D": None}, {"conv": 4}), {"conv": 4, "hidden": 8}),
], ids=["none", "class", "name", "name over null"])  # fmt: skip
def test_overrides(overrides: Overrides[int], expected: dict[str, int]) -> None:
    targets = clustering.select_layers(_model(), ClusteringPlan(cluster_count=8, overrides=overrides)).target_by_path
    assert {name: target.cluster_count for name, target in targets.items()} == expected


@pytest.mark.slow
def test_per_channel_reaches_a_convolution_without_bias() -> None:
    # tfmot.clustering.keras.cluster_weights passes it over with a warning
    plan = ClusteringPlan(cluster_count=4, per_channel=True)
    clustered, selection = _train_clustered(_model(sparsity=0.3), plan)
    kernel = _kernel(clustered, "conv")
    assert all(np.unique(kernel[..., channel]).size <= 4 for channel in range(8))
    assert np.unique(kernel).size > 4
    assert selection.target_by_path["hidden"].per_tensor_reason == "per channel is for Conv2D only, not Dense"
    assert {layer.name: layer.distinct_count for layer in clustering.check_clusters(clustered, selection, plan)}[
        "conv"
    ] <= 4


@pytest.mark.slow
def test_a_channel_of_zeros_is_clustered_with_the_rest() -> None:
    # tfmot stops with InvalidArgumentError when it clusters such a kernel by channel
    model = _model()
    kernel = _kernel(model, "conv").copy()
    kernel[..., 2] = 0
    model.get_layer("conv").weights[0].assign(kernel)
    clustered, selection = _train_clustered(model, ClusteringPlan(cluster_count=4, per_channel=True))
    target = selection.target_by_path["conv"]
    assert (target.per_channel, target.per_tensor_reason) == (False, "a channel has 0 nonzero weights")
    assert not _kernel(clustered, "conv")[..., 2].any()


def test_a_frozen_layer_is_named() -> None:
    # tfmot leaves it as it is and says nothing
    model = _model()
    model.get_layer("conv").trainable = False
    assert (
        clustering.select_layers(model, ClusteringPlan(cluster_count=8)).exclusion_reasons["conv"]
        == "it is frozen (trainable: false), and clustering trains"
    )


def test_a_depthwise_convolution_by_its_groups_is_named() -> None:
    image = tf_keras.Input((8, 8, 16))
    x = K.Conv2D(16, 3, groups=16, name="grouped")(K.Conv2D(16, 3, groups=4, name="four")(image))
    model = tf_keras.Model(image, K.Dense(3, name="last")(K.Flatten(name="flat")(x)))
    selection = clustering.select_layers(model, ClusteringPlan(cluster_count=8))
    assert set(selection.target_by_path) == {"four"}
    assert selection.exclusion_reasons["grouped"].startswith("Conv2D with one channel per group is not clustered")


@pytest.mark.slow
def test_nested_shared_and_custom_layers() -> None:
    from edgepipe.models.bridge_layers import LayerScale, OperatorLayer

    set_seeds(0)
    image = tf_keras.Input((8, 8, 3))
    inner = tf_keras.Sequential([K.Conv2D(4, 3, name="conv"), K.Conv2D(6, 3, name="second")], name="inner")
    x = inner(image)
    shared = K.Dense(6, name="conv")  # the name of a layer inside
    x = OperatorLayer("Add", '{"args": [{"tensor": 0}, {"tensor": 1}], "kwargs": {}}', name="sum")(
        [shared(x), shared(x * 2.0)]
    )
    x = LayerScale(0.5, 6, name="scale")(x)
    x = K.EinsumDense("...a,ab->...b", output_shape=(4, 4, 5), name="einsum")(x)
    model = tf_keras.Model(image, K.Dense(3, activation="softmax", name="last")(K.Flatten(name="flat")(x)))
    plan = ClusteringPlan(cluster_count=4)
    clustered, selection = _train_clustered(model, plan)
    assert set(selection.target_by_path) == {"inner/conv", "inner/second", "conv"}
    assert (
        selection.exclusion_reasons["einsum"] == "EinsumDense is not clustered: only convolutions and dense layers are"
    )
    assert [
        layer.distinct_count for layer in clustering.check_clusters(clustered, selection, plan) if layer.target
    ] == [
        4,
        4,
        4,
    ]


@pytest.mark.slow
def test_masks_pass() -> None:
    set_seeds(0)
    words = tf_keras.Input((5,), dtype="int32")
    x = K.Dense(8, name="dense")(K.Embedding(9, 8, mask_zero=True, name="table")(words))
    model = tf_keras.Model(words, K.Dense(2, name="last")(K.LSTM(4, name="lstm")(x)))
    selection = clustering.select_layers(model, ClusteringPlan(cluster_count=4))
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])
    wrapped_model = clustering.wrap(model, selection, "linear")
    assert np.allclose(clustering.strip(wrapped_model)(x, training=False), wrapped_model(x, training=False), atol=1e-6)
    assert "LSTM is not clustered" in selection.exclusion_reasons["lstm"]


def test_nothing_to_cluster_is_said() -> None:
    inputs = tf_keras.Input((4,), name="x")
    only = tf_keras.Model(inputs, K.Dense(20, name="only")(inputs), name="one_layer")
    with pytest.raises(InputError, match="nothing to cluster in 'one_layer': only: the last layer is excluded"):
        clustering.select_layers(only, ClusteringPlan(cluster_count=4))


def test_a_name_that_no_layer_has() -> None:
    with pytest.raises(InputError, match="no layer is called 'cnv'"):
        clustering.select_layers(_model(), ClusteringPlan(cluster_count=4, overrides=Overrides({}, {"cnv": 4})))


def _tamper_weights(new_weight: float, find_indices: Any) -> tuple[tf_keras.Model, ClusterSelection, ClusteringPlan]:
    model, plan = _model(sparsity=0.7), ClusteringPlan(cluster_count=8)
    selection = clustering.select_layers(model, plan)
    stripped_model = clustering.strip(clustering.wrap(model, selection, plan.init))
    kernel = _kernel(stripped_model, "conv").copy()
    kernel[find_indices(selection.original_kernel_by_path["conv"])] = new_weight
    stripped_model.get_layer("conv").weights[0].assign(kernel)
    return stripped_model, selection, plan


@pytest.mark.slow
def test_the_check_can_fail() -> None:
    for new_weight, find_indices, message in [
        (np.linspace(0.1, 1, 9), lambda original: np.unravel_index(np.flatnonzero(original)[:9], original.shape),
         r"layer 'conv': the kernel holds \d+ distinct values after clustering, more than the 8 requested"),
        (0.0625, lambda original: np.unravel_index(np.flatnonzero(original == 0)[:1], original.shape), "layer 'conv'"),
        (np.nan, lambda original: (0, 0, 0, 0), "layer 'conv' holds NaN or infinity after clustering"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            clustering.check_clusters(*_tamper_weights(new_weight, find_indices))


def test_a_revived_zero_is_an_error() -> None:
    model, selection, plan = _tamper_weights(0.0, lambda original: np.where(original == 0))
    kernel = _kernel(model, "conv").copy()
    kernel[tuple(np.argwhere(selection.original_kernel_by_path["conv"] == 0)[0])] = (
        kernel.max()
    )  # no value more, but a zero less
    model.get_layer("conv").weights[0].assign(kernel)
    with pytest.raises(InputError, match="layer 'conv': 1 zero weight became nonzero in clustering"):
        clustering.check_clusters(model, selection, plan)
