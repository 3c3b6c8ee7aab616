"""The bridge: every supported construct against the original under perturbed weights, and what it refuses."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.models.bridge import (
    TOLERANCE,
    bridge,
    build_twin,
    compare,
    copy_weights,
    random_inputs,
    relative_difference,
)
from edgepipe.models.keras3_graph import build_graph
from edgepipe.models.perturb import perturb, perturbed_weights

K = keras.layers
STRICT = 1e-5


def _cnn() -> Any:
    return keras.Sequential([
        keras.Input((12, 12, 2), name="pixels"),
        K.Rescaling(1 / 3, offset=-0.5, name="scale"),
        K.Conv2D(4, 3, activation="relu6", name="conv"),
        K.BatchNormalization(name="bn"),
        K.SeparableConv2D(6, 3, depth_multiplier=2, strides=2, padding="same", activation="hard_silu", name="sep"),
        K.DepthwiseConv2D(3, depth_multiplier=2, activation="swish", name="dw"),
        K.LeakyReLU(0.1, name="leaky"),
        K.PReLU(shared_axes=[1, 2], name="prelu"),
        K.Dropout(0.3, name="drop"),
        K.GlobalAveragePooling2D(name="pool"),
        K.Dense(5, activation="hard_sigmoid", name="dense"),
        K.LayerNormalization(name="ln"),
        K.Dense(3, activation="softmax", name="out"),
    ], name="cnn")  # fmt: skip


def _operators() -> Any:
    x, y = keras.Input((6,), name="x"), keras.Input((6,), name="y")
    z = (x + y) * 2.0 - x / 3.0
    z = keras.ops.maximum(1.0 - z, keras.ops.mean(y, axis=1, keepdims=True))
    z = keras.ops.concatenate([z, keras.ops.hard_silu(keras.ops.square(x))], axis=-1)
    z = keras.ops.transpose(keras.ops.reshape(z, (-1, 3, 4)), (0, 2, 1))[:, 1:, ::2]
    z = keras.ops.matmul(z, keras.ops.transpose(z, (0, 2, 1)))
    z = z * np.arange(3, dtype="float32") + keras.ops.clip(z, -1, 1)
    return keras.Model([x, y], [K.Dense(2, name="a")(K.Flatten()(z)), keras.ops.softmax(z)], name="operators")


def _shared_and_nested() -> Any:
    tower = keras.Sequential(
        [keras.Input((4,)), K.Dense(3, activation="tanh", name="d"), K.BatchNormalization(name="n")], name="tower"
    )
    inner = keras.Input((3,), name="inner")
    head = keras.Model(inner, [K.Dense(3, name="f")(inner), tower.layers[0](K.Dense(4, name="e")(inner))], name="head")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    outer_first, second = head(tower(a))
    shared = K.Dense(3, name="d")
    merged = K.Concatenate(name="merge")([shared(a), shared(b), tower(b), outer_first, second])
    return keras.Model({"a": a, "b": b}, [merged, outer_first], name="two_towers")


def _sequence() -> Any:
    ids, wave = keras.Input((7,), dtype="int32", name="ids"), keras.Input((7, 3), name="wave")
    x = K.Embedding(11, 4, mask_zero=True, name="emb")(ids)
    x = K.Bidirectional(K.LSTM(3, recurrent_activation="hard_sigmoid"), name="bi")(x)
    y = K.GRU(3, return_sequences=True, name="gru")(
        K.Conv1D(4, 3, padding="causal", activation="gelu", name="c1")(wave)
    )
    y = K.TimeDistributed(K.Dense(2, activation="elu"), name="td")(y)
    y = K.MultiHeadAttention(2, 3, name="mha")(y, y)
    y = K.SeparableConv1D(3, 2, name="s1")(y)
    return keras.Model([ids, wave], K.Concatenate(name="all")([x, K.GlobalMaxPooling1D()(y)]), name="sequence")


def _normalized() -> Any:
    adapted_norm = K.Normalization(name="learned")
    adapted_norm.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)))
    x = keras.Input((4,), name="x")
    fixed_norm = K.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16], name="given")
    return keras.Model(x, K.Add(name="sum")([adapted_norm(x), fixed_norm(x)]), name="normalized")


def _upsampling() -> Any:
    x = keras.Input((4, 4, 2), name="x")
    y = K.Conv2DTranspose(3, 3, strides=2, padding="same", activation="leaky_relu", name="up")(x)
    y = K.Cropping2D(1)(K.ZeroPadding2D((1, 2))(K.UpSampling2D(2, interpolation="bilinear")(y)))
    y = K.GroupNormalization(3, name="gn")(y)
    y = K.Permute((2, 1, 3))(K.AveragePooling2D(2)(K.ELU(0.5)(y)))
    return keras.Model(x, K.Activation("log_softmax", name="end")(y), name="upsampling")


MODELS = [_cnn, _operators, _shared_and_nested, _sequence, _normalized, _upsampling]


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS)
def test_bridged_models_agree(make: Callable[[], Any]) -> None:
    model = make()
    weights_before = [np.asarray(weight).copy() for weight in model.weights]
    bridged = bridge(model)
    assert bridged.difference.worst_difference.relative_error < STRICT, bridged.difference.text()
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(weights_before, model.weights, strict=True))
    assert sum(w.shape.num_elements() for w in bridged.model.weights) == sum(a.size for a in weights_before)
    samples = random_inputs(build_graph(model), 5)
    inputs = samples[0] if len(samples) == 1 else samples
    ours = bridged.model(inputs, training=False)
    theirs = model(
        keras.tree.pack_sequence_as(model._inputs_struct, samples) if hasattr(model, "_inputs_struct") else inputs
    )
    for a, b in zip(keras.tree.flatten(theirs), keras.tree.flatten(ours), strict=True):
        assert relative_difference(a, b) < STRICT


def test_names_are_the_original_ones() -> None:
    names = [layer.name for layer in bridge(_cnn()).model.layers]
    assert names == [
        "pixels", "scale", "conv", "conv_activation", "bn", "sep_depthwise", "sep_pointwise",
        "sep_pointwise_activation", "dw", "leaky", "prelu", "drop", "pool", "dense", "dense_activation", "ln", "out",
    ]  # fmt: skip
    nested = bridge(_shared_and_nested()).model
    assert {layer.name for layer in nested.layers} == {"a", "b", "d", "tower_d", "tower_n", "head_e", "head_f", "merge"}


def test_weights_are_bit_identical_and_layers_shared_once() -> None:
    model = _shared_and_nested()
    perturb(model, 3)
    twin = build_twin(model)
    copy_weights(twin)
    assert len(twin.weight_pairs) == len(model.weights)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in twin.weight_pairs)


def _narrow_resnet50() -> Any:
    """ResNet50 with an eighth of its channels."""
    from keras.src.applications import resnet

    def stages(x: Any) -> Any:
        for number, blocks in enumerate((3, 4, 6, 3)):
            stride = 2 if number else 1
            x = resnet.stack_residual_blocks_v1(x, 8 * 2**number, blocks, stride1=stride, name=f"conv{number + 2}")
        return x

    return resnet.ResNet(stages, preact=False, use_bias=True, weights=None, input_shape=(32, 32, 3), classes=10)


NETWORKS: dict[str, Callable[[], Any]] = {
    "mobilenet_v2": lambda: keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10),
    "mobilenet_v3": lambda: keras.applications.MobileNetV3Small((32, 32, 3), weights=None, classes=10),
    "resnet50": _narrow_resnet50,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_and_one_wrong_weight_is_found(name: str) -> None:
    """The wrong weight in one of them; test_bridge_graphs.py injects faults into MobileNets."""
    model = NETWORKS[name]()
    difference = bridge(model).difference
    assert len(difference.tensor_differences) > 100
    assert difference.worst_difference.relative_error < STRICT, difference.text()
    with perturbed_weights(model):
        twin = build_twin(model)
        copy_weights(twin)
        assert compare(model, twin).first_difference_above(STRICT) is None
        if name == "resnet50":
            _tamper(model, twin)
        outputs = keras.Model(model.inputs, model.layers[-1].input)(
            random_inputs(build_graph(model), 1)[0], training=False
        )
        # if activations vanished or saturated on the way, equal outputs would prove nothing
        assert np.abs(np.diff(outputs, axis=0)).mean() > 1e-5 * np.abs(outputs).mean()


def _tamper(model: Any, twin: Any) -> None:
    """Drop one weight of each role in turn, deep in the network: each time exactly that layer is reported."""
    for role in ("kernel", "gamma", "beta", "moving_mean", "moving_variance"):
        matching = [(source, target) for source, target in twin.weight_pairs if source.name == role]
        source, target = matching[len(matching) // 2]
        target.assign(np.full(target.shape, 1.0 if role in ("gamma", "moving_variance") else 0.0))
        wrong_tensor = compare(model, twin).first_difference_above(TOLERANCE)
        assert wrong_tensor is not None, role
        assert wrong_tensor.layer_name == source.path.split("/")[-2]
        target.assign(np.asarray(source))
    assert compare(model, twin).first_difference_above(STRICT) is None


def test_a_dropped_or_swapped_weight_is_found() -> None:
    x = keras.Input((5,), name="x")
    model = keras.Model(x, K.Dense(5, name="two")(K.BatchNormalization(name="bn")(K.Dense(5, name="one")(x))))
    perturb(model)
    twin = build_twin(model)
    copy_weights(twin)
    assert compare(model, twin).first_difference_above(STRICT) is None
    first_layer, second_layer = twin.model.get_layer("one"), twin.model.get_layer("two")
    original_weights = first_layer.get_weights()
    first_layer.kernel.assign(second_layer.kernel)
    assert _first_wrong_layer(model, twin) == "one"
    first_layer.set_weights(original_weights)
    for weight in twin.model.get_layer("bn").weights:
        original_weight = weight.numpy()
        weight.assign(np.ones(5) if weight.name in ("bn/gamma:0", "bn/moving_variance:0") else np.zeros(5))
        assert _first_wrong_layer(model, twin) == "bn", weight.name
        weight.assign(original_weight)


def _first_wrong_layer(model: Any, twin: Any) -> str:
    entry = compare(model, twin).first_difference_above(TOLERANCE)
    assert entry is not None
    return entry.layer_name


def test_fresh_batch_normalization_proves_nothing_and_perturbing_does() -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, K.BatchNormalization(name="bn")(x))
    twin = build_twin(model)
    assert compare(model, twin).first_difference_above(STRICT) is None  # no weight was ever copied
    with perturbed_weights(model):
        assert _first_wrong_layer(model, twin) == "bn"


class UntraceableLayer(keras.layers.Layer):  # type: ignore[misc]
    """Calls TensorFlow, so it cannot be traced; its get_config() is incomplete, so it cannot be rebuilt."""

    def __init__(self, by: Any = None, **common: Any) -> None:
        super().__init__(**common)
        self.by = np.array([2.0]) if by is None else by

    def call(self, x: Any) -> Any:
        return tf.multiply(x, self.by)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "unknown": 1}


def _single(layer: Any, shape: tuple[int | None, ...] = (4,), dtype: str = "float32") -> Any:
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, layer(x), name="single")


UNSUPPORTED_MODELS = [
    (
        lambda: _single(UntraceableLayer(name="mine")),
        r"'mine', of class UntraceableLayer: its `call` cannot be traced into .*get_config",
    ),
    (
        lambda: _single(K.Lambda(tf.square, output_shape=(4,), name="code")),
        r"'code', of class Lambda: a Lambda holds Python code that needs values",
    ),
    (lambda: _single(K.Dense(2, activation=lambda x: x, name="d")), r"'d', of class Dense: its activation is a lambda"),
    (lambda: _single(K.Dense(2, activation="threshold", name="d")), r"'d', of class Dense, does not run in tf_keras"),
    (lambda: _single(K.Dense(2, dtype="mixed_float16", name="d")), r"'d'.*dtype policy is 'mixed_float16'; rebuild"),
    (lambda: _single(lambda x: keras.ops.unique(x, size=3)), r"the operator Unique is not carried over"),
    (lambda: _single(lambda x: keras.ops.map(lambda row: row * 2, x)), r"of class Map: a function among its arguments"),
    (lambda: _single(K.StringLookup(vocabulary=["a"]), (1,), "string"), r"input 'x' takes text, which no device runs"),
    (lambda: _single(K.Dense(2), (None, 4)), r"input 'x' of 'single' has the shape \(None, None, 4\)"),
    (lambda: keras.Sequential([K.Dense(2)], name="s"), r"'s' is not built"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED_MODELS)
def test_refuses_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bridge(make())


def test_refuses_all_at_once() -> None:
    x = keras.Input((4,), name="x")
    y = UntraceableLayer(name="second")(
        K.Dense(3, dtype="mixed_float16", name="half")(UntraceableLayer(name="first")(x))
    )
    with pytest.raises(InputError) as raised:
        bridge(keras.Model(x, y, name="bad"))
    assert "'first', 'second', of class UntraceableLayer" in str(raised.value)
    assert "'half', of class Dense" in str(raised.value)


class Mine(keras.Model):  # type: ignore[misc]
    """A subclassed model whose code needs values, and which has no get_config()."""

    def __init__(self, units: int) -> None:
        super().__init__(name="mine")
        self.dense = K.Dense(units)

    def call(self, x: Any) -> Any:
        return tf.nn.relu(self.dense(x))


def test_a_subclassed_model_that_cannot_be_traced_is_named() -> None:
    model = Mine(2)
    with pytest.raises(InputError, match=r"'mine' is a subclassed model \(Mine\) whose input shape is not known"):
        bridge(model)
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(InputError, match=r"\(Mine\) whose `call` cannot be traced.* get_config.*write `call` with"):
        bridge(model)


def test_perturb_is_deterministic_sane_and_undone() -> None:
    model = _cnn()
    weights_before = [np.asarray(weight).copy() for weight in model.weights]
    with perturbed_weights(model, seed=1):
        perturbed = [np.asarray(weight).copy() for weight in model.weights]
        assert not any(np.array_equal(a, b) for a, b in zip(weights_before, perturbed, strict=True))
        assert all((np.asarray(w) > 0).all() for w in model.weights if "variance" in w.name)
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(weights_before, model.weights, strict=True))
    twin = tf_keras.models.clone_model(bridge(model).model)
    perturb(twin, 1)
    perturb(model, 1)
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(perturbed, model.weights, strict=True))
