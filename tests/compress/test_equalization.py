"""Folding, factors, limits and bias correction compared with NumPy, numerical integration and hand-computed values."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tf_keras
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm as normal

from edgepipe.compress.equalization.batch_norm_folding import FoldedModel, fold_batch_norms
from edgepipe.compress.equalization.bias_correction import correct_biases
from edgepipe.compress.equalization.channel_means import Moments, clipped_moments, estimate_input_moments
from edgepipe.compress.equalization.cross_layer import EqualizedModel, equalize_channels
from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.perturb import perturb

K = tf_keras.layers


def _chain(*layers: Any, shape: tuple[int, ...] = (6, 6, 3), batch: int | None = None) -> Any:
    model = tf_keras.Sequential([tf_keras.Input(shape, batch_size=batch, name="x"), *layers], name="user")
    perturb(model)
    return model


def _images(count: int = 40, channels: int = 3) -> Array:
    return np.random.default_rng(5).normal(0, 1, (count, 6, 6, channels)).astype("float32")


def _kernel(model: Any, name: str) -> Array:
    return np.asarray(model.get_layer(name).get_weights()[0], np.float64)


def _bias(model: Any, name: str) -> Array:
    return np.asarray(model.get_layer(name).get_weights()[1], np.float64)


def _largest(kernel: Array, axis: int) -> Array:
    return np.abs(kernel).max(axis=tuple(other_axis for other_axis in range(kernel.ndim) if other_axis != axis))


LAYERS = {  # the layer, and the shape in which a value for each output channel multiplies its kernel
    "conv": (lambda: K.Conv2D(4, 3, name="layer"), (1, 1, 1, 4)),
    "no bias": (lambda: K.Conv2D(4, 3, use_bias=False, name="layer"), (1, 1, 1, 4)),
    "depthwise": (lambda: K.DepthwiseConv2D(3, depth_multiplier=2, name="layer"), (1, 1, 3, 2)),
    "transposed": (lambda: K.Conv2DTranspose(4, 3, name="layer"), (1, 1, 4, 1)),
    "dense": (lambda: K.Dense(4, name="layer"), (1, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_norm_is_folded(name: str) -> None:
    build, shape = LAYERS[name]
    front = [K.Flatten()] if name == "dense" else []
    model = _chain(*front, build(), K.BatchNormalization(name="norm"), K.ReLU())
    layer, norm = model.get_layer("layer"), model.get_layer("norm")
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in norm.get_weights())
    factor = gamma / np.sqrt(variance + norm.epsilon)
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    folded = fold_batch_norms(model)
    assert folded.output_difference < 1e-5
    np.testing.assert_allclose(
        _kernel(folded.model, "layer"), layer.get_weights()[0] * factor.reshape(shape), rtol=1e-5
    )
    np.testing.assert_allclose(_bias(folded.model, "layer"), beta + (bias - mean) * factor, rtol=1e-4, atol=1e-6)
    statistics = folded.statistics["layer"]
    np.testing.assert_allclose(statistics.mean, beta)
    np.testing.assert_allclose(statistics.deviation, np.abs(gamma))
    assert not [each_layer for each_layer in folded.model.layers if isinstance(each_layer, K.BatchNormalization)]


def test_a_batch_norm_behind_a_shared_layer_stays_and_is_named() -> None:
    x, shared_layer = tf_keras.Input((6,), name="x"), K.Dense(6, name="shared")
    y = K.BatchNormalization(name="norm")(shared_layer(K.Dense(6, name="first")(shared_layer(x))))
    folded = fold_batch_norms(tf_keras.Model(x, y))
    assert any("'norm' is not folded" in note for note in folded.notes)


def test_the_factors_of_a_pair_are_those_of_equation_11() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.Conv2D(4, 3, name="b"))
    ranges_a, ranges_b = _largest(_kernel(model, "a"), 3), _largest(_kernel(model, "b"), 2)
    factor = np.sqrt(ranges_a * ranges_b) / ranges_b
    equalized = equalize_channels(fold_batch_norms(model))
    np.testing.assert_allclose(_kernel(equalized.model, "a"), _kernel(model, "a") / factor, rtol=1e-5)
    np.testing.assert_allclose(_bias(equalized.model, "a"), _bias(model, "a") / factor, rtol=1e-5)
    np.testing.assert_allclose(
        _kernel(equalized.model, "b"), _kernel(model, "b") * factor[None, None, :, None], rtol=1e-5
    )
    (group,) = equalized.equalization_groups
    assert (group.producer_names, group.reader_names, group.channel_count) == (("a",), ("b",), 5)
    assert group.spread_before == pytest.approx(ranges_a.max() / np.median(ranges_a))
    assert "converged in 2 rounds" in equalized.notes[0]


def test_a_chain_is_iterated_until_both_sides_of_each_joint_have_one_range() -> None:
    model = _chain(
        K.Conv2D(5, 3, activation="relu", name="a"), K.DepthwiseConv2D(3, activation="relu", name="b"),
        K.MaxPooling2D(1), K.Flatten(), K.Dense(4, name="c"),
    )  # fmt: skip
    equalized = equalize_channels(fold_batch_norms(model))
    a, b, c = (_kernel(equalized.model, name) for name in "abc")
    np.testing.assert_allclose(_largest(a, 3), _largest(b, 2), rtol=5e-3)
    np.testing.assert_allclose(_largest(b, 2), _largest(c.reshape(-1, 5, 4), 1), rtol=5e-3)


def test_on_samples_channels_that_a_depthwise_layer_reads_get_one_range() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.DepthwiseConv2D(3, name="b"))
    equalized = equalize_channels(fold_batch_norms(model), _images())
    tensor = tf_keras.Model(equalized.model.input, equalized.model.get_layer("a_activation").output)
    np.testing.assert_allclose(np.asarray(tensor(_images())).max(axis=(0, 1, 2)), 1.0, rtol=1e-4)
    assert equalized.equalization_groups[0].spread_before > 1.05
    assert equalized.equalization_groups[0].spread_after == pytest.approx(1.0, abs=1e-4)


def test_on_samples_a_channel_is_balanced_against_the_relative_weights_that_read_it() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.Conv2D(4, 3, name="b"))
    equalized = equalize_channels(fold_batch_norms(model), _images())
    tensor = tf_keras.Model(equalized.model.input, equalized.model.get_layer("a_activation").output)
    reach = np.asarray(tensor(_images())).max(axis=(0, 1, 2))
    sizes = np.abs(_kernel(equalized.model, "b")).max(axis=(0, 1))
    np.testing.assert_allclose(reach, (sizes / sizes.max(axis=0)).max(axis=1), rtol=5e-3)


def _pair() -> Any:
    return _chain(
        K.Conv2D(5, 3, activation="relu", name="a"), K.DepthwiseConv2D(3, activation="relu", name="b"),
        K.Conv2D(4, 1, name="c"),
    )  # fmt: skip


FACTORS = st.lists(st.floats(0.02, 50.0), min_size=5, max_size=5)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [None, _images()], ids=["data-free", "samples"])
@settings(max_examples=6, deadline=None)
@drawn(FACTORS, FACTORS)
def test_a_rescaled_model_is_equalized_to_the_same(
    samples: Array | None, factors_a: list[float], factors_b: list[float]
) -> None:
    model, rescaled = _pair(), _pair()
    scales_a, scales_b = np.array(factors_a), np.array(factors_b)
    a, b, c = (rescaled.get_layer(name) for name in "abc")
    a.set_weights([_kernel(rescaled, "a") * scales_a, _bias(rescaled, "a") * scales_a])
    b.set_weights([_kernel(rescaled, "b") * (scales_b / scales_a)[:, None], _bias(rescaled, "b") * scales_b])
    c.set_weights([_kernel(rescaled, "c") / scales_b[:, None], _bias(rescaled, "c")])
    equalized, equalized_rescaled = (
        equalize_channels(fold_batch_norms(each, samples), samples).model for each in (model, rescaled)
    )
    for mine, theirs in zip(equalized.get_weights(), equalized_rescaled.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-2, atol=1e-6)


def test_a_residual_sum_is_scaled_as_one_group() -> None:
    x = tf_keras.Input((6, 6, 3), name="x")
    y = K.Conv2D(4, 3, padding="same", activation="relu", name="stem")(x)
    z = K.Conv2D(4, 3, padding="same", activation="relu", name="branch")(y)
    total = K.ReLU(name="after")(K.Add(name="sum")([y, z]))
    model = tf_keras.Model(x, K.Conv2D(2, 1, name="out")(total))
    perturb(model)
    for samples in (None, _images()):
        equalized = equalize_channels(fold_batch_norms(model), samples)
        (group,) = equalized.equalization_groups
        assert (set(group.producer_names), set(group.reader_names)) == ({"stem", "branch"}, {"branch", "out"})


def test_dead_channels_take_the_mean_factor_and_are_named() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.Conv2D(4, 3, name="b"))
    weights, bias = model.get_layer("a").get_weights()
    weights[..., 2] = 0
    model.get_layer("a").set_weights([weights, bias])
    equalized = equalize_channels(fold_batch_norms(model))
    assert "a: 1 of 5 channels are dead; they take the mean factor" in equalized.notes
    assert np.isfinite(equalized.model.get_weights()[1]).all()


def test_factors_are_held_within_ten_thousand_of_the_middle_one() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.Conv2D(4, 3, name="b"))
    weights, bias = model.get_layer("a").get_weights()
    weights[..., 2] *= 1e-12
    model.get_layer("a").set_weights([weights, bias])
    assert (
        "a: 1 of 5 factors limited to 10000 times the mean factor" in equalize_channels(fold_batch_norms(model)).notes
    )


def test_biases_beyond_int32_are_named() -> None:
    model = _chain(K.Conv2D(2, 1, name="a"), K.Flatten(), K.Dense(3, name="b"))
    kernel, bias = model.get_layer("b").get_weights()
    model.get_layer("b").set_weights([kernel * 1e-9, bias + 5])
    notes = equalize_channels(fold_batch_norms(model), _images()).notes
    assert "b: 3 of 3 biases overflow int32 with int8 scales" in notes


def _limited_model(scale: float) -> Any:
    model = _chain(
        K.Conv2D(5, 3, name="a"), K.BatchNormalization(name="norm"), K.ReLU(6.0, name="six"), K.Conv2D(4, 3, name="b")
    )
    norm = model.get_layer("norm")
    weights = norm.get_weights()
    norm.set_weights([weights[0] * scale, weights[1] * scale, *weights[2:]])
    return model


@pytest.mark.parametrize("samples", [None, _images()], ids=["data-free", "samples"])
@pytest.mark.parametrize(("scale", "is_removed"), [(0.3, True), (30.0, False)])
def test_a_limit_goes_only_where_it_does_nothing(samples: Array | None, scale: float, is_removed: bool) -> None:
    equalized = equalize_channels(fold_batch_norms(_limited_model(scale), samples), samples)
    assert len(equalized.equalization_groups) == is_removed
    word = "became a ReLU without limit" if is_removed else "stays"
    basis = "within 6 deviations of the batch norm" if samples is None else "on the samples"
    assert any(f"'six' {word}: the largest value {basis} is" in note for note in equalized.notes)
    assert any("read by 'six', which clips at 6" in why for why in equalized.exclusion_notes) == (not is_removed)


def test_the_observed_value_is_that_before_the_limit() -> None:
    model = _limited_model(30.0)
    submodel = tf_keras.Model(model.input, model.get_layer("norm").output)
    observed_max = float(np.asarray(submodel(_images())).max())
    assert any(
        f"is {observed_max:.3g} of 6" in note for note in equalize_channels(fold_batch_norms(model), _images()).notes
    )


@pytest.mark.parametrize("limit", [None, 6.0, 1.0])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.5, 0.5), (-3.0, 2.0), (5.9, 4.0), (0.3, 1e-6)])
def test_the_moments_of_a_clipped_normal_are_those_of_integration(
    mean: float, deviation: float, limit: float | None
) -> None:
    def moment(power: int) -> float:
        top = np.inf if limit is None else limit
        edges = [mean - 10 * deviation, *(edge for edge in (0.0, top) if abs(edge - mean) < 10 * deviation)]
        edges.append(mean + 10 * deviation)
        density = normal(mean, deviation).pdf
        integrals = [quad(lambda v: min(max(v, 0.0), top) ** power * density(v), *pair)[0]
                 for pair in pairwise(edges)]  # fmt: skip
        return float(sum(integrals))

    clipped_mean, spread = clipped_moments(np.array([mean]), np.array([deviation]), limit)
    assert clipped_mean[0] == pytest.approx(moment(1), abs=1e-7)
    assert spread[0] ** 2 == pytest.approx(moment(2) - moment(1) ** 2, abs=1e-6)


def _eight_bits(kernel: Array) -> Array:
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)), keepdims=True) / 127
    return np.asarray(np.rint(kernel / scale) * scale)


def test_on_samples_the_mean_error_of_a_linear_layer_is_taken_off() -> None:
    model = _chain(K.Dense(4, use_bias=False, name="a"), shape=(7,))
    x = np.random.default_rng(2).normal(1, 1, (50, 7)).astype("float32")
    kernel = _kernel(model, "a")
    expected = -x.mean(axis=0) @ (_eight_bits(kernel) - kernel)
    corrected_model = correct_biases(fold_batch_norms(model), x)
    np.testing.assert_allclose(_bias(corrected_model.model, "a"), expected, atol=1e-6)
    np.testing.assert_array_equal(_kernel(corrected_model.model, "a"), kernel)
    (entry,) = corrected_model.corrections
    assert entry.largest_shift == pytest.approx(np.abs(expected).max(), abs=1e-6)
    assert entry.relative_shift == pytest.approx(np.abs(expected).mean() / (x @ kernel).std(axis=0).mean(), rel=1e-3)


def test_data_free_the_mean_error_comes_from_the_batch_norm_before() -> None:
    model = _chain(
        K.Conv2D(5, 3, name="a"), K.BatchNormalization(name="norm"), K.ReLU(6.0), K.Conv2D(4, 3, name="b")
    )  # fmt: skip
    gamma, beta, *_ = (np.asarray(array, np.float64) for array in model.get_layer("norm").get_weights())
    top = [quad(lambda v, m=m, s=s: min(max(v, 0), 6) * normal(m, s).pdf(v), m - 9 * s, m + 9 * s, points=[0, 6])[0]
           for m, s in zip(beta, np.abs(gamma), strict=True)]  # fmt: skip
    kernel = _kernel(model, "b")
    expected = -np.einsum("hwio,i->o", _eight_bits(kernel) - kernel, top)
    corrected_model = correct_biases(fold_batch_norms(model))
    np.testing.assert_allclose(_bias(corrected_model.model, "b") - _bias(model, "b"), expected, atol=1e-6)
    assert "a: the mean of the input 'x' is not known" in corrected_model.exclusion_notes


def test_on_samples_a_layer_is_corrected_for_what_earlier_layers_leave() -> None:
    """With int8 weights in every layer, each output has the same mean as in float."""
    model = _chain(
        K.Conv2D(5, 3, activation="relu", name="a"), K.DepthwiseConv2D(3, name="b"), K.Flatten(), K.Dense(4, name="c")
    )
    corrected_model = correct_biases(fold_batch_norms(model), _images())
    for name in "abc":
        kernel, bias = corrected_model.model.get_layer(name).get_weights()
        rounded_kernel = _by_channel(kernel) if name == "b" else _eight_bits(kernel)
        corrected_model.model.get_layer(name).set_weights([rounded_kernel, bias])
    for exact, corrected in zip(
        model(_images()).numpy().mean(0), corrected_model.model(_images()).numpy().mean(0), strict=True
    ):
        assert corrected == pytest.approx(exact, abs=1e-5)


def _by_channel(kernel: Array) -> Array:
    scale = np.abs(kernel).max(axis=(0, 1)) / 127
    return np.asarray(np.rint(kernel / scale) * scale)


BAD_SAMPLES = {
    "no sample": (_images(0), "there are no representative samples"),
    "another name": ({"y": _images()}, "the samples are named y, the model's inputs x"),
    "another shape": (_images()[:, :5], r"samples of 'x' have the shape \(5, 6, 3\), it takes \(6, 6, 3\)"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
@pytest.mark.parametrize("function", [equalize_channels, correct_biases])
def test_samples_that_do_not_fit_are_refused(function: Any, name: str) -> None:
    samples, message = BAD_SAMPLES[name]
    with pytest.raises(InputError, match=message):
        function(fold_batch_norms(_pair()), samples)


def test_more_samples_than_are_held_are_told() -> None:
    assert (
        equalize_channels(fold_batch_norms(_pair()), _images(300)).notes[0].startswith("the first 256 of 300 samples")
    )
    assert correct_biases(fold_batch_norms(_pair()), _images(300)).notes == ("the first 256 of 300 samples",)


def test_a_model_of_a_fixed_batch_of_one() -> None:
    model = _chain(K.Conv2D(5, 3, activation="relu", name="a"), K.Flatten(), K.Dense(4, name="b"), batch=1)
    equalized: EqualizedModel = equalize_channels(fold_batch_norms(model, _images()), _images())
    assert correct_biases(equalized.folded_model, _images()).model.inputs[0].shape[0] == 1
    folded_model: FoldedModel = fold_batch_norms(model)
    assert folded_model.output_difference < 1e-5


def test_a_constant_that_is_added_stops_a_factor_one_that_multiplies_does_not() -> None:
    def through(operator: str) -> EqualizedModel:
        call = json.dumps({"args": [{"tensor": 0}, 2.0], "kwargs": {}})
        model = _chain(K.Conv2D(5, 3, name="a"), OperatorLayer(operator, call, name="op"), K.Conv2D(4, 3, name="b"))
        return equalize_channels(fold_batch_norms(model))

    assert len(through("Multiply").equalization_groups) == 1
    assert "a: read by 'op', a Add, which does not commute with a factor" in through("Add").exclusion_notes


LAYERS_BETWEEN: dict[str, list[Any]] = {
    "relu6": [lambda: K.ReLU(6.0)],
    "leaky": [lambda: K.LeakyReLU(0.3)],
    "prelu": [lambda: K.PReLU(shared_axes=[1, 2])],
    "average": [lambda: K.ReLU(), lambda: K.AveragePooling2D(2)],
}


@pytest.mark.parametrize("name", LAYERS_BETWEEN)
def test_a_mean_is_followed_as_samples_show_it(name: str) -> None:
    """A dense layer after it reads each channel at four positions; compared with the mean of 80,000 normal values."""
    layers_between = [build() for build in LAYERS_BETWEEN[name]]
    model = _chain(
        K.Conv2D(5, 1, strides=2, padding="same", name="a"),
        K.BatchNormalization(name="norm"), *layers_between, K.Flatten(),
        K.Dense(3, name="b"), shape=(4, 4, 3) if name != "average" else (8, 8, 3),
    )  # fmt: skip
    folded = fold_batch_norms(model)
    moments = estimate_input_moments(folded)["b"]
    statistics = folded.statistics["a"]
    shape = (20_000, *folded.model.get_layer("a").output_shape[1:])
    array = np.random.default_rng(0).normal(statistics.mean, statistics.deviation, shape).astype("float32")
    for layer in layers_between:
        array = np.asarray(layer(array))
    assert isinstance(moments, Moments)
    np.testing.assert_allclose(moments.mean, np.tile(array.mean(axis=(0, 1, 2)), 4), atol=0.01)


def test_a_sum_adds_means_and_variances() -> None:
    x = tf_keras.Input((6, 6, 3), name="x")
    branch_a, branch_b = (K.BatchNormalization()(K.Conv2D(4, 3, name=name)(x)) for name in "ab")
    model = tf_keras.Model(x, K.Conv2D(2, 1, name="c")(K.ReLU()(K.Add()([branch_a, branch_b]))))
    perturb(model)
    folded = fold_batch_norms(model)
    a, b = (folded.statistics[name] for name in "ab")
    moments = estimate_input_moments(folded)["c"]
    assert isinstance(moments, Moments)
    expected = clipped_moments(a.mean + b.mean, np.hypot(a.deviation, b.deviation), None)[0]
    np.testing.assert_allclose(moments.mean, expected)


def test_a_mean_that_is_not_known_is_named_with_the_reason() -> None:
    model = _chain(
        K.Conv2D(4, 1, name="a"), K.BatchNormalization(), K.ReLU(name="r"), K.MaxPooling2D(name="pool"),
        K.Conv2D(4, 1, name="b"), K.BatchNormalization(), K.Conv2D(4, 1, activation="relu", name="c"),
        K.Conv2D(4, 1, name="d"),
    )  # fmt: skip
    assert correct_biases(fold_batch_norms(model)).exclusion_notes == (
        "a: the mean of the input 'x' is not known",
        "b: the mean behind 'pool' (MaxPooling2D) is not known",
        "d: 'c_activation' needs a deviation, which is known only after a batch norm",
    )
