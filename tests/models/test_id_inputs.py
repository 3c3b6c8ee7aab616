"""Random inputs for comparisons: valid ids wherever a model looks something up, whatever the type of its input."""

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers, ops

from edgepipe.models.bridge import bridge, random_inputs
from edgepipe.models.id_inputs import find_id_limits, find_tf_keras_id_limits
from edgepipe.models.keras3_export import to_keras
from edgepipe.models.keras3_graph import build_graph
from edgepipe.models.subclassed import to_functional


def _functional() -> keras.Model:
    inputs = keras.Input((4,), name="ids")
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Embedding(50, 3)(inputs))))


def _sequential() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Embedding(50, 3), layers.Flatten(), layers.Dense(2)])


def _nested() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(3)(_sequential()(layers.Reshape((4,))(inputs))))


class _Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = layers.Embedding(50, 3), layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(ops.mean(self.embedding(x), axis=1))


def _subclassed() -> keras.Model:
    model = _Subclassed()
    model(np.zeros((1, 4), "float32"))
    return to_functional(model)


def _columns() -> keras.Model:
    inputs = keras.Input((3,))
    parts = [layers.Embedding(size, 2)(ops.cast(inputs[:, i], "int32")) for i, size in enumerate((90, 50, 70))]
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()(parts)))


def _one_hot() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(ops.one_hot(ops.cast(inputs, "int32"), 50))))


def _category_encoding() -> keras.Model:
    inputs = keras.Input((1,))
    return keras.Model(inputs, layers.Dense(2)(layers.CategoryEncoding(50, output_mode="one_hot")(inputs)))


MODELS = [_functional, _sequential, _nested, _subclassed, _columns, _one_hot, _category_encoding]


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_ids_in_floats_are_valid(build: Any) -> None:
    model = build()
    graph = build_graph(model)
    assert find_id_limits(graph) == [50]
    (ids,) = (np.asarray(tensor) for tensor in random_inputs(graph, 0))
    assert ids.dtype == np.float32
    assert ((ids == np.rint(ids)) & (ids >= 0) & (ids < 50)).all()
    assert bridge(model).difference.worst_difference.relative_error < 1e-5


def test_each_input_has_its_own_limit() -> None:
    words, tag, numbers = keras.Input((4,)), keras.Input((1,), dtype="int64"), keras.Input((2,))
    parts = [layers.Flatten()(layers.Embedding(size, 2)(x)) for x, size in ((words, 30), (tag, 5))]
    model = keras.Model([words, tag, numbers], layers.Concatenate()([*parts, layers.Dense(2)(numbers)]))
    assert find_id_limits(build_graph(model)) == [30, 5, None]


def test_offsets_into_a_joint_table_leave_small_ids() -> None:
    inputs = keras.Input((3,))
    ids = ops.cast(inputs, "int32") + np.array([0, 5, 17], "int32")
    model = keras.Model(inputs, layers.Flatten()(layers.Embedding(20, 2)(ids)))
    assert find_id_limits(build_graph(model)) == [2]


def test_numbers_are_no_ids_because_something_is_looked_up_later() -> None:
    inputs = keras.Input((3,))
    winner = ops.argmax(layers.Dense(4)(inputs), axis=-1)
    model = keras.Model(inputs, layers.Embedding(4, 2)(winner))
    assert find_id_limits(build_graph(model)) == [None]


def test_tf_keras_models() -> None:
    inputs = tf_keras.Input((4,))
    inner = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Embedding(50, 3), tf_keras.layers.Flatten()])
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(2)(inner(tf_keras.layers.Reshape((4,))(inputs))))
    assert find_tf_keras_id_limits(model) == [50]
    assert find_tf_keras_id_limits(bridge(_one_hot()).model) == [50]
    assert to_keras(bridge(_functional()).model).count_params() == 50 * 3 + 12 * 2 + 2
