"""Single operators of keras.ops between dense layers: choices, slices, sums, divisions, roots, norms, order."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from .corpus_model import corpus_model
from .samples import images, positive_table, series, table


def between_layers(operation: Callable[[Any], Any], features: int = 12) -> keras.Model:
    """A dense layer, the operation on it, and a dense layer."""
    inputs = keras.Input((8,))
    x = operation(layers.Dense(features)(inputs))
    return keras.Model(inputs, layers.Dense(4)(x))


@corpus_model(table(), kinds="A")
def where_comparison() -> keras.Model:
    """A choice between two branches of different range by a comparison."""
    inputs = keras.Input((8,))
    first, second = layers.Dense(12)(inputs), 5.0 * layers.Dense(12)(inputs)
    chosen = ops.where(first > second, first, 0.1 * second)
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()([chosen, first])))


@corpus_model(table(), kinds="E")
def boolean_to_float() -> keras.Model:
    """Comparisons cast to float, as features."""
    return between_layers(lambda x: ops.cast(x > 0.3, "float32") + 0.5 * ops.cast(ops.less_equal(x, -0.2), "float32"))


@corpus_model(table(), kinds="E")
def logical_operators() -> keras.Model:
    """and, or and not of comparisons, cast to float."""

    def combined(x: Any) -> Any:
        either = ops.logical_or(ops.logical_and(x > 0.0, x < 1.0), ops.logical_not(x > -1.0))
        return x * ops.cast(either, "float32")

    return between_layers(combined)


@corpus_model(images(), kinds="A", in_ci=True)
def clip_strided_slice() -> keras.Model:
    """A clip that only a slice reads, beside another reader of the whole range."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs) * 4.0
    clipped = ops.clip(x, -0.5, 0.5)[:, ::2, ::2]
    whole = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    return keras.Model(inputs, layers.Conv2D(4, 1)(layers.Add()([10.0 * clipped, whole])))


@corpus_model(table(), kinds="A")
def clip_of_features() -> keras.Model:
    """Features clipped to [-1, 1]."""
    return between_layers(lambda x: ops.clip(2.0 * x, -1.0, 1.0))


@corpus_model(table(), kinds="A")
def split_concat() -> keras.Model:
    """A split in three; the parts are scaled differently and joined in another order."""

    def rearranged(x: Any) -> Any:
        first, second, third = ops.split(x, 3, axis=-1)
        return ops.concatenate([0.05 * third, first, 4.0 * second], axis=-1)

    return between_layers(rearranged)


@corpus_model(table(), kinds="A")
def concat_of_different_ranges() -> keras.Model:
    """Parts in [0, 1] joined with parts in the hundreds, both read before too."""
    inputs = keras.Input((8,))
    small, large = layers.Dense(8, activation="sigmoid")(inputs), layers.Dense(8)(inputs) * 40.0
    own = layers.Add()([layers.Dense(4)(small), layers.Dense(4)(large * 0.01)])
    return keras.Model(inputs, [own, layers.Dense(4)(layers.Concatenate()([small, large]))])


@corpus_model(series(12, 8), kinds="A")
def stack_and_unstack() -> keras.Model:
    """Steps unstacked, some combined, and stacked again."""
    inputs = keras.Input((12, 8))
    steps = ops.unstack(layers.Dense(10)(inputs), 12, axis=1)
    pairs = [first + 0.5 * second for first, second in zip(steps[::2], steps[1::2], strict=True)]
    return keras.Model(inputs, layers.Dense(3)(ops.stack(pairs, axis=1)))


@corpus_model(series(12, 8), kinds="A")
def gather_steps() -> keras.Model:
    """Chosen steps in a chosen order."""
    inputs = keras.Input((12, 8))
    x = layers.Conv1D(10, 3, padding="same")(inputs)
    chosen = ops.take(x, np.array([0, 11, 3, 3, 7]), axis=1)
    joined = [layers.Flatten()(ops.tanh(chosen)), layers.GlobalAveragePooling1D()(x)]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(joined)))


@corpus_model(series(12, 8), kinds="A")
def reverse_steps() -> keras.Model:
    """The series backwards, joined with itself."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(10)(inputs)
    joined = layers.Concatenate()([ops.flip(x, axis=1), ops.tanh(x)])
    return keras.Model(inputs, layers.Dense(4)(layers.Conv1D(8, 3, activation="relu")(joined)))


@corpus_model(images(), kinds="A")
def mirrored_average() -> keras.Model:
    """Test-time augmentation inside the model: the average over an image and its mirror image."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(10, 3, strides=2, activation="relu")
    scores = layers.Dense(5)
    both = [scores(layers.Flatten()(x(image))) for image in (inputs, ops.flip(inputs, axis=2))]
    return keras.Model(inputs, layers.Average()(both))


@corpus_model(table())
def tile_and_repeat() -> keras.Model:
    """A vector tiled over a grid and joined with constant coordinates, as in a spatial broadcast decoder."""
    inputs = keras.Input((8,))
    code = layers.Reshape((1, 1, 8))(layers.Dense(8)(inputs))
    rows, columns = np.meshgrid(np.linspace(-1, 1, 6), np.linspace(-1, 1, 6))
    grid = np.stack([rows, columns], axis=-1)[None].astype("float32")
    x = layers.Conv2D(8, 1)(ops.tile(code, (1, 6, 6, 1))) + layers.Conv2D(8, 1)(ops.convert_to_tensor(grid))
    return keras.Model(inputs, layers.Conv2D(2, 3)(ops.relu(x)))


@corpus_model(table(), kinds="A")
def maximum_minimum() -> keras.Model:
    """The larger and the smaller of two tensors of different range, joined."""
    inputs = keras.Input((8,))
    first, second = layers.Dense(12)(inputs), layers.Dense(12)(inputs) * 6.0
    joined = [ops.maximum(first, second), ops.minimum(first, second), first]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(joined)))


@corpus_model(series(12, 8), kinds="A")
def reduce_kinds() -> keras.Model:
    """Maximum, minimum, mean and sum over the steps, joined."""
    inputs = keras.Input((12, 8))
    x = layers.Dense(10)(inputs)
    reduced = [reduction(x, axis=1) for reduction in (ops.max, ops.min, ops.mean, ops.sum)]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(reduced)))


@corpus_model(series(12, 6))
def cumulative_sum() -> keras.Model:
    """A cumulative sum over the steps."""
    inputs = keras.Input((12, 6))
    x = ops.cumsum(layers.Dense(8)(inputs), axis=1)
    return keras.Model(inputs, layers.Dense(3)(ops.tanh(0.3 * x)))


@corpus_model(table(), kinds="A")
def top_k() -> keras.Model:
    """The largest values in order, before a dense layer."""
    return between_layers(lambda x: ops.top_k(x, 5)[0], features=20)


@corpus_model(table(), kinds="AHK")
def top_k_output() -> keras.Model:
    """The three best classes: probabilities and indices as outputs."""
    inputs = keras.Input((8,))
    probabilities = layers.Dense(10, activation="softmax")(layers.Dense(24, activation="relu")(inputs))
    values, indices = ops.top_k(probabilities, 3)
    return keras.Model(inputs, {"values": values, "indices": indices})


@corpus_model(positive_table())
def division() -> keras.Model:
    """One positive branch divided by another."""
    inputs = keras.Input((8,))
    first, second = layers.Dense(12)(inputs), layers.Dense(12, activation="sigmoid")(inputs)
    return keras.Model(inputs, layers.Dense(4)(first / (second + 0.1)))


@corpus_model(positive_table())
def reciprocal() -> keras.Model:
    """One divided by features of two decades."""
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(4)(ops.reciprocal(inputs)))


@corpus_model(positive_table())
def square_root() -> keras.Model:
    """Square roots of positive features."""
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(4)(layers.Dense(12, activation="relu")(ops.sqrt(inputs))))


@corpus_model(positive_table())
def reciprocal_square_root() -> keras.Model:
    """rsqrt of positive features of two decades."""
    inputs = keras.Input((8,))
    return keras.Model(inputs, layers.Dense(4)(ops.rsqrt(inputs) * layers.Dense(8)(inputs)))


@corpus_model(positive_table())
def powers() -> keras.Model:
    """Squares, cubes and a fractional power."""
    inputs = keras.Input((8,))
    joined = [ops.square(inputs), ops.power(inputs, 3.0), ops.power(inputs, 0.4)]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(joined)))


@corpus_model(table())
def polynomial() -> keras.Model:
    """A polynomial by Horner's rule: products and sums of a tensor with itself."""
    return between_layers(lambda x: ((0.1 * x - 0.3) * x + 0.5) * x + 1.0)


@corpus_model(table())
def euclidean_norm() -> keras.Model:
    """Features divided by their length, and the length."""

    def normalized(x: Any) -> Any:
        length = ops.norm(x, axis=-1, keepdims=True)
        return ops.concatenate([x / (length + 1e-3), length], axis=-1)

    return between_layers(normalized)


@corpus_model(table())
def manhattan_norm() -> keras.Model:
    """Features divided by the sum of their magnitudes."""
    return between_layers(lambda x: x / (ops.sum(ops.absolute(x), axis=-1, keepdims=True) + 0.1))


@corpus_model(table())
def cosine_similarity() -> keras.Model:
    """The cosines between an embedding and constant prototypes."""
    inputs = keras.Input((8,))
    embedding = ops.normalize(layers.Dense(12)(inputs), axis=-1)
    prototypes = np.random.default_rng(5).normal(size=(12, 6))
    prototypes /= np.linalg.norm(prototypes, axis=0)
    return keras.Model(inputs, ops.matmul(embedding, ops.convert_to_tensor(prototypes.astype("float32"))))


@corpus_model(table())
def squared_distances() -> keras.Model:
    """A radial basis network: exponentials of squared distances to constant centres."""
    inputs = keras.Input((8,))
    centres = np.random.default_rng(6).normal(size=(1, 10, 6)).astype("float32")
    x = ops.expand_dims(layers.Dense(6)(inputs), 1)
    return keras.Model(inputs, layers.Dense(3)(ops.exp(-0.25 * ops.sum(ops.square(x - centres), axis=-1))))


@corpus_model(table(), kinds="D")
def log1p_expm1() -> keras.Model:
    """Signed logarithm: the sign times log1p of the magnitude, and back by expm1 of a dense layer."""
    inputs = keras.Input((8,))
    x = ops.sign(inputs) * ops.log1p(ops.absolute(inputs))
    return keras.Model(inputs, ops.expm1(layers.Dense(4)(layers.Dense(16, activation="tanh")(x))))


@corpus_model(table(), kinds="D")
def softmax_temperature() -> keras.Model:
    """A softmax written by hand, with a temperature and without taking the maximum off."""
    inputs = keras.Input((8,))
    exponentials = ops.exp(2.0 * layers.Dense(6)(inputs))
    return keras.Model(inputs, exponentials / ops.sum(exponentials, axis=-1, keepdims=True))


@corpus_model(table(), kinds="D")
def log_of_probabilities() -> keras.Model:
    """The logarithm of a softmax plus a small number, and the entropy."""
    inputs = keras.Input((8,))
    probabilities = layers.Dense(8, activation="softmax")(layers.Dense(12, activation="relu")(inputs))
    logs = ops.log(probabilities + 1e-6)
    return keras.Model(inputs, [logs, -ops.sum(probabilities * logs, axis=-1, keepdims=True)])


@corpus_model(table())
def rounding() -> keras.Model:
    """Floor, round and the fraction of features."""
    inputs = keras.Input((8,))
    x = 2.0 * inputs
    joined = [ops.floor(x), x - ops.floor(x), ops.round(x)]
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()(joined)))


@corpus_model(table(), kinds="K")
def slice_update() -> keras.Model:
    """Two features of a vector replaced by others, with keras.ops.slice_update."""
    inputs = keras.Input((8,))
    x = layers.Dense(12)(inputs)
    replaced = ops.slice_update(x, (0, 4), layers.Dense(2, activation="tanh")(inputs))
    return keras.Model(inputs, layers.Dense(4)(replaced))


@corpus_model(series(12, 8))
def einsum_projection() -> keras.Model:
    """EinsumDense per head and an einsum over steps."""
    inputs = keras.Input((12, 8))
    heads = layers.EinsumDense("abc,cde->abde", output_shape=(12, 2, 6), bias_axes="de")(inputs)
    grams = ops.einsum("abde,acde->adbc", heads, heads) / 6.0
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(grams)))


@corpus_model(series(12, 8))
def standardized_steps() -> keras.Model:
    """Mean and variance over the steps by ops.moments, taken off and divided by."""
    inputs = keras.Input((12, 8))
    mean, variance = ops.moments(inputs, axes=[1], keepdims=True)
    x = (inputs - mean) * ops.rsqrt(variance + 0.01)
    return keras.Model(inputs, layers.Dense(3)(layers.Conv1D(10, 3, activation="relu")(x)))


@corpus_model(series(12, 8))
def differences_of_steps() -> keras.Model:
    """First and second differences over time, joined with the series."""
    inputs = keras.Input((12, 8))
    first = inputs[:, 1:] - inputs[:, :-1]
    second = first[:, 1:] - first[:, :-1]
    joined = layers.Concatenate()([inputs[:, 2:], first[:, 1:], second])
    return keras.Model(inputs, layers.Dense(3)(layers.Conv1D(10, 3, activation="relu")(joined)))


@corpus_model(table(), kinds="A")
def constants_joined() -> keras.Model:
    """A bias feature of ones and a constant vector joined with the features."""

    def joined(x: Any) -> Any:
        constants = ops.broadcast_to(np.array([[1.0, -20.0, 0.01]], "float32"), (1, 3)) + 0.0 * x[:, :3]
        return ops.concatenate([x, constants], axis=-1)

    return between_layers(joined)


@corpus_model(table())
def shared_dense_layer() -> keras.Model:
    """One dense layer called three times, on ranges that shrink: its outputs have one scale each."""
    inputs = keras.Input((8,))
    shared = layers.Dense(8, activation="tanh")
    x = shared(4.0 * inputs)
    return keras.Model(inputs, layers.Dense(3)(shared(0.2 * shared(x)) + x))


@corpus_model(table())
def dead_branch_with_zero() -> keras.Model:
    """A branch that is zero for every sample, and one that is constant, beside a live one."""
    inputs = keras.Input((8,))
    zero, constant = ops.relu(-ops.square(inputs) - 1.0), ops.minimum(ops.square(inputs) + 5.0, 5.0)
    return keras.Model(inputs, layers.Dense(4)(layers.Concatenate()([inputs, zero, constant])))
