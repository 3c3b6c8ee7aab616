"""Keras 3 -> tf_keras, layer by layer, checked against the original on perturbed weights.

The compression toolkit (tfmot) takes tf_keras models only, and every user's model is Keras 3. The bridge walks the
graph of the original, calls a twin of each layer, flattens nested models and copies the weights. It then proves its
own result: with *every* weight perturbed, the outputs and every intermediate tensor of both models are compared on
random inputs, and the first layer where they part is named.
"""

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import Weight
from edgepipe.models.input_shapes import check_shapes, input_name
from edgepipe.models.keras3_graph import Call, Graph, calls, graph_of, walk
from edgepipe.models.keras_operators import encode
from edgepipe.models.layer_names import Names, legal
from edgepipe.models.perturb import perturbed, settle
from edgepipe.models.subclassed import functional
from edgepipe.models.translate import Chain, Uncarried, operator_chain, told, translate

TOLERANCE = 1e-4  # relative to the largest value of the tensor; float32 rounding alone stays below 1e-5
SAMPLES = 2


@dataclass(frozen=True)
class TensorDifference:
    """How far one tensor of the bridged model is from the original's: largest difference / largest value."""

    layer: str
    relative: float


@dataclass(frozen=True)
class Difference:
    """The comparison of a bridge with its original: every intermediate tensor in order, then the outputs."""

    tensors: tuple[TensorDifference, ...]
    outputs: tuple[TensorDifference, ...]

    @property
    def worst(self) -> TensorDifference:
        """The tensor that differs most."""
        return max((*self.tensors, *self.outputs), key=lambda entry: entry.relative)

    def first_above(self, tolerance: float) -> TensorDifference | None:
        """The first tensor, in the order of computation, that differs by more than `tolerance`."""
        return next((entry for entry in (*self.tensors, *self.outputs) if not entry.relative <= tolerance), None)

    def text(self) -> str:
        """One line for a report."""
        return (
            f"bridged to tf_keras: {len(self.tensors)} tensors and {len(self.outputs)} outputs compared under "
            f"perturbed weights, largest relative difference {self.worst.relative:.1e} ('{self.worst.layer}')"
        )


@dataclass(frozen=True)
class Bridged:
    """The tf_keras model and the proof that it computes what the original does."""

    model: Any
    difference: Difference
    kept: tuple[str, ...] = ()  # layers that run as Keras 3 layers inside the twin, each with its class and the reason

    @property
    def notes(self) -> list[str]:
        """What a report says of the bridge."""
        return [self.difference.text(), *self.kept]


@dataclass(frozen=True)
class Twin:
    """A built bridge, before it is checked: the model, all its tensors in order, and which weight is whose."""

    model: Any
    graph: Graph  # the original's
    tensors: tuple[tuple[str, Any], ...]  # (name of the original layer, symbolic tf_keras tensor)
    weights: tuple[tuple[Any, Any], ...]  # (Keras 3 variable, tf_keras variable)
    kept: tuple[str, ...] = ()


def bridge(model: Any) -> Bridged:
    """The tf_keras twin of the built Keras 3 `model`, with its weights, bit for bit.

    The model's weights are perturbed for the comparison and put back before this returns, even on an error.

    Raises:
        InputError: layers that cannot be carried over, all at once, each with its class and the reason; or a bridged
            layer that computes something else.
    """
    model = functional(model)
    twin = build(model)
    with perturbed(model):
        unsaturate(twin.graph)
        copy_weights(twin)
        difference = compare(model, twin)
    copy_weights(twin)
    parted = difference.first_above(TOLERANCE)
    if parted is not None:
        raise InputError(
            f"the bridge of '{model.name}' to tf_keras is wrong from layer '{parted.layer}' on: its output differs by "
            f"{parted.relative:.1e} of its largest value (allowed {TOLERANCE:.0e}); leave that layer out, or convert "
            "without compression, and please report it"
        )
    return Bridged(twin.model, difference, twin.kept)


def build(model: Any) -> Twin:
    """The twin of `model`; its weights are still fresh."""
    check_shapes(model)
    graph = graph_of(model)
    twins = _Twins(graph)
    inputs = [_input(tensor) for tensor in graph.inputs]
    tensors: list[tuple[str, Any]] = []

    def noted(name: str, result: Any) -> Any:
        tensors.extend((name, tensor) for tensor in tf.nest.flatten(result))
        return result

    outputs = walk(
        graph,
        inputs,
        lambda operation, args, kwargs: noted(operation.name, twins.call(operation, args, kwargs)),
        lambda call, args, kwargs, result: noted(call.operation.name, result),
    )
    twin = tf_keras.Model(_one(inputs), _one(outputs), name=legal(model.name))
    return Twin(twin, graph, tuple(tensors), tuple(twins.weight_pairs()), twins.kept())


def copy_weights(twin: Twin) -> None:
    """Give the twin the weights that the original has now."""
    for source, target in twin.weights:
        target.assign(np.asarray(source))
    settle(twin.model)


def compare(model: Any, twin: Twin, seed: int = 0) -> Difference:
    """Run `model` and `twin` with the weights each of them has on the same random inputs; compare every tensor."""
    samples = random_inputs(twin.graph, seed)
    original = _original_tensors(twin.graph, samples)
    probe = tf_keras.Model(twin.model.inputs, [tensor for _, tensor in twin.tensors])
    bridged = _flat(probe(_one(samples), training=False))
    tensors = zip((name for name, _ in twin.tensors), original, bridged, strict=True)
    # the whole models too: the walk above reads the same graph for both, the models' own calls do not
    whole = zip(
        twin.model.output_names,
        _flat(_call(model, samples)),
        _flat(twin.model(_one(samples), training=False)),
        strict=True,
    )
    return Difference(
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in tensors),
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in whole),
    )


def _original_tensors(graph: Graph, samples: list[Any]) -> list[Any]:
    values: list[Any] = []

    def step(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = _flat(_inferred(operation, args, kwargs))
        values.extend(result)
        return result

    # A traced layer is called itself too, so that a trace that misses something is found where it does.
    walk(graph, samples, step, lambda call, args, kwargs, _: step(call.operation, args, kwargs))
    return values


def unsaturate(graph: Graph) -> None:
    """Shrink the kernels of layers that end in softmax or sigmoid until their sums are of the size of one.

    Random kernels in a deep network give sums of a hundred, of which only the largest survives a softmax: a bias that
    is missing would not show.
    """

    def step(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        activation = getattr(operation, "activation", None)
        if activation in (keras.activations.softmax, keras.activations.sigmoid) and hasattr(operation, "kernel"):
            operation.activation = keras.activations.linear
            size = float(np.std(np.asarray(_inferred(operation, args, kwargs))))
            operation.activation = activation
            operation.kernel.assign(operation.kernel / max(size, 1.0))
        return _inferred(operation, args, kwargs)

    walk(graph, random_inputs(graph, 0), step, lambda call, args, kwargs, result: result)


def _inferred(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # augmentation layers take `training` as true when nobody says otherwise
    if isinstance(operation, keras.Layer) and "training" in inspect.signature(operation.call).parameters:
        return operation(*args, **kwargs, training=False)
    return operation(*args, **kwargs)


def _call(model: Any, samples: list[Any]) -> Any:
    functional = model._functional if isinstance(model, keras.Sequential) else model
    return functional(keras.tree.pack_sequence_as(functional._inputs_struct, samples), training=False)


def relative_difference(original: Any, other: Any) -> float:
    """max |a - b| / max |a|; infinite where shapes differ, only one is finite, or nothing is."""
    a, b = (np.asarray(value).astype(np.float64) for value in (original, other))
    finite = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(finite, np.isfinite(b)) or (a.size and not finite.any()):
        return float("inf")
    difference = np.abs(a[finite] - b[finite]).max(initial=0.0)
    scale = np.abs(a[finite]).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def random_inputs(graph: Graph, seed: int) -> list[Any]:
    """A small batch for each input of `graph`: normal floats, or integers that every Embedding accepts.

    Raises:
        InputError: an input of text.
    """
    sizes = [call.operation.input_dim for _, call in calls(graph) if isinstance(call.operation, keras.layers.Embedding)]
    specs = [(tuple(tensor.shape), str(tensor.dtype), input_name(tensor)) for tensor in graph.inputs]
    return random_values(specs, min(sizes, default=2), seed)


def random_values(specs: list[tuple[tuple[int | None, ...], str, str]], below: int, seed: int) -> list[Any]:
    """A small batch for each input (shape, dtype, name): normal floats, or integers less than `below`."""
    generator = np.random.default_rng(seed)
    return [tf.constant(_random(*spec, generator, below)) for spec in specs]


def _random(shape: tuple[int | None, ...], dtype: str, name: str, generator: np.random.Generator, below: int) -> Array:
    sizes = (shape[0] or SAMPLES, *(size or 1 for size in shape[1:]))
    if dtype.startswith(("float", "bfloat")):
        return generator.normal(0, 1, sizes).astype(dtype)
    if dtype == "string":
        raise InputError(f"input '{name}' takes text, which no device runs; look it up before the model, feed numbers")
    return generator.integers(0, below, sizes).astype(dtype)


class _Twins:
    """The twins of all operations of a graph: names first, then layers, then calls."""

    def __init__(self, graph: Graph) -> None:
        self.names = Names(graph)
        self.chains: dict[int, Chain] = {}
        self.operations: dict[int, Any] = {}
        self.variables: dict[int, tuple[Any, Any]] = {}  # of opened layers' own weights: (variable, Weight layer)
        problems: dict[str, dict[str, None]] = {}
        for _, call in calls(graph):
            try:
                self._translate(call)
            except Uncarried as reason:
                problems.setdefault(f"{type(call.operation).__name__}: {reason}", {})[f"'{call.operation.name}'"] = None
        if problems:
            told = [f"  {', '.join(names)}, of class {reason}" for reason, names in problems.items()]
            raise InputError("\n".join([f"layers of '{graph.name}' that cannot be carried over to tf_keras:", *told]))

    def _translate(self, call: Call) -> None:
        operation = call.operation
        if id(operation) in self.chains:
            return
        name = self.names.of[id(operation)]
        if isinstance(operation, keras.layers.Layer):
            self.chains[id(operation)] = translate(operation, name, self.names.fresh)
        else:
            tensors, arguments = _arguments(call)
            self.chains[id(operation)] = operator_chain(operation, tensors, arguments, name)
            self._add_weights(tensors)
        self.operations[id(operation)] = operation

    def _add_weights(self, tensors: list[Any]) -> None:
        for variable in tensors:
            if isinstance(variable, keras.Variable) and id(variable) not in self.variables:
                name = self.names.fresh(variable.path.replace("/", "_"))
                layer = Weight(variable.shape, name=name, dtype=variable.dtype, trainable=variable.trainable)
                self.variables[id(variable)] = (variable, layer)

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the twin of `operation` gives for symbolic tf_keras tensors."""
        chain = self.chains[id(operation)]
        if not isinstance(operation, keras.layers.Layer):
            return chain.layers[0](_one(self._operands(args, kwargs)))
        accepted = inspect.signature(chain.layers[0].call).parameters
        named = {key: value for key, value in kwargs.items() if key != "mask" or {"mask", "named"} & accepted.keys()}
        try:
            result = chain.layers[0](*args, **named)
            for layer in chain.layers[1:]:
                result = layer(result)
        except Exception as error:
            cls = type(operation).__name__
            raise InputError(
                f"layer '{operation.name}', of class {cls}, does not run in tf_keras: {told(error)}; replace it, or "
                "convert without compression"
            ) from error
        return result

    def _operands(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors of an operator's call, in the order that its arguments number them."""
        found: list[Any] = []
        for value in (*args, *kwargs.values()):
            encode(value, found)
        anchor = next(part for part in found if not isinstance(part, keras.Variable))
        return [self.variables[id(part)][1](anchor) if isinstance(part, keras.Variable) else part for part in found]

    def kept(self) -> tuple[str, ...]:
        """What stays a Keras 3 layer, and why."""
        return tuple(
            f"layer '{operation.name}' ({type(operation).__name__}) stays a Keras 3 layer inside the twin, trained and "
            f"converted but not compressed: {self.chains[key].kept}"
            for key, operation in self.operations.items()
            if self.chains[key].kept
        )

    def weight_pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each weight of the original with the twin's; both are in the order of the layer's own weights."""
        yield from ((variable, layer.value) for variable, layer in self.variables.values())
        for key, operation in self.operations.items():
            theirs = operation.weights if isinstance(operation, keras.layers.Layer) else []
            mine = self.chains[key].weights
            shapes = [[tuple(weight.shape) for weight in weights] for weights in (theirs, mine)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"layer '{operation.name}' has weights of shapes {shapes[0]}, its tf_keras twin {shapes[1]}"
                )
            yield from zip(theirs, mine, strict=True)


def _arguments(call: Call) -> tuple[list[Any], str]:
    # a dtype is part of what Cast or OneHot do; elsewhere it is the policy of the operation
    own = inspect.signature(type(call.operation).__init__).parameters
    options = {
        key: value
        for key, value in call.operation.get_config().items()
        if key != "name" and (key != "dtype" or ("dtype" in own and value is not None))
    }
    tensors: list[Any] = []
    try:
        encoded = {
            "args": [encode(value, tensors) for value in call.args],
            "kwargs": {key: encode(value, tensors) for key, value in {**call.kwargs, **options}.items()},
        }
    except TypeError as error:
        raise Uncarried(f"{error}; make it a layer with a weight of its own") from None
    return tensors, json.dumps(encoded)


def _input(tensor: Any) -> Any:
    return tf_keras.Input(
        tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=legal(input_name(tensor))
    )


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _flat(value: Any) -> list[Any]:
    return list(keras.tree.flatten(value))
