"""SavedModels as exporters of several TensorFlow versions write them: what converts, and what is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import edgepipe
from edgepipe.core.errors import InputError
from edgepipe.tflite.interpreter import predict

v1 = tf.compat.v1
WEIGHT = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
X = np.random.default_rng(2).normal(size=(4, 6)).astype("float32")
FLOATS = tf.TensorSpec((None, 6), tf.float32)


class Module(tf.Module):  # type: ignore[misc]
    """Functions as people save them without Keras."""

    def __init__(self) -> None:
        self.weight, self.bias = tf.Variable(WEIGHT), tf.Variable(0.5, trainable=False)
        self.count = tf.Variable(0.0)
        keys = tf.lookup.KeyValueTensorInitializer([1, 2], [10.0, 20.0], tf.int32, tf.float32)
        self.table = tf.lookup.StaticHashTable(keys, -1.0)

    @tf.function(input_signature=[FLOATS])  # type: ignore[untyped-decorator]
    def single(self, x: Any) -> Any:
        """One input."""
        return tf.matmul(x, self.weight) + self.bias

    @tf.function(input_signature=[FLOATS, FLOATS])  # type: ignore[untyped-decorator]
    def ordered(self, second: Any, first: Any) -> Any:
        """Two inputs of one shape, which must not be mixed up."""
        return tf.matmul(second - 2.0 * first, self.weight)

    @tf.function(input_signature=[tf.TensorSpec((None, 6), tf.int32)])  # type: ignore[untyped-decorator]
    def lookup(self, ids: Any) -> Any:
        """A table, and constants that the function captures."""
        return tf.matmul(self.table.lookup(ids), self.weight)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])  # type: ignore[untyped-decorator]
    def text(self, words: Any) -> Any:
        """Text."""
        return tf.strings.length(words)

    @tf.function(input_signature=[FLOATS])  # type: ignore[untyped-decorator]
    def stateful(self, x: Any) -> Any:
        """A state."""
        return x + self.count.assign_add(1.0)

    @tf.function(input_signature=[])  # type: ignore[untyped-decorator]
    def constant(self) -> Any:
        """No input."""
        return self.weight + 0.0


def save(path: Path, function_name: str) -> Path:
    """A SavedModel with one of the functions as its signature."""
    module = Module()
    tf.saved_model.save(module, str(path), signatures=getattr(module, function_name))
    return path


def drop_argument_names(path: Path) -> Path:
    """The SavedModel as exporters before TensorFlow 2.16 wrote it: arguments have no names of their own."""
    file = path / "saved_model.pb"
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph_def = saved_model.meta_graphs[0].graph_def
    attributes = [node.attr for node in graph_def.node]
    for function in graph_def.library.function:
        attributes += [argument.attr for argument in function.arg_attr.values()]
        attributes += [node.attr for node in function.node_def]
    stored = [attribute for attribute in attributes if "_user_specified_name" in attribute]
    for attribute in stored:
        del attribute["_user_specified_name"]
    assert stored
    file.write_bytes(saved_model.SerializeToString())
    return path


def save_v1(path: Path, use_resource: bool) -> Path:
    """A SavedModel of TensorFlow 1."""
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, (None, 6), name="inputs")
        weight = v1.get_variable("weight", initializer=WEIGHT, use_resource=use_resource)
        scores = tf.identity(tf.matmul(x, weight) + 0.5, name="scores")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(path), {"x": x}, {"scores": scores})
    return path


def outputs(model: Path, x: Any, folder: Path) -> Any:
    """What the float .tflite of the SavedModel computes."""
    edgepipe.convert(model, scheme="float32", allow_code=True, out=folder / "o.tflite")
    return predict(folder / "o.tflite", x).real_values


@pytest.mark.parametrize(
    "build",
    [
        lambda path: save(path, "single"),
        lambda path: drop_argument_names(save(path, "single")),
        lambda path: save_v1(path, use_resource=True),
    ],
    ids=["current", "before 2.16", "TensorFlow 1"],
)
def test_one_input(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    assert np.allclose(outputs(build(tmp_path / "model"), X, tmp_path), X @ WEIGHT + 0.5, atol=1e-5)


@pytest.mark.parametrize("is_old", [False, True])
def test_inputs_of_one_shape_are_not_mixed_up(tmp_path: Path, is_old: bool) -> None:
    path = save(tmp_path / "model", "ordered")
    if is_old:
        drop_argument_names(path)
    samples = {"first": X, "second": X + 1.0}
    assert np.allclose(outputs(path, samples, tmp_path), (1.0 - X) @ WEIGHT, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: drop_argument_names(save(path, "lookup")),
         r"model: looks values up in a table \(LookupTableFindV2 '.*'\), which no device runs; save a signature"),
        (lambda path: save(path, "text"), r"model: input 'words' takes text, which no device runs; save a signature"),
        (lambda path: save(path, "stateful"), r"model: keeps a state: it assigns a variable \('.*'\) when it runs"),
        (lambda path: save(path, "constant"), r"model: its signature has no inputs; save it with"),
        (lambda path: save_v1(path, use_resource=False),
         r"model: the variable 'weight' cannot be frozen to a constant; save the model again with TensorFlow 2"),
    ],
)  # fmt: skip
def test_what_no_device_runs_is_refused(tmp_path: Path, build: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edgepipe.convert(build(tmp_path / "model"), scheme="float32", allow_code=True, out=tmp_path / "o.tflite")
