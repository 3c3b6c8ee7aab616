"""Keras 3 -> tf_keras, layer by layer, checked against the original on perturbed weights.

The compression toolkit (tfmot) takes tf_keras models only, and every user's model is Keras 3. The bridge walks the
graph of the original, calls a twin of each layer, flattens nested models and copies the weights. It then proves its
own result: with *every* weight perturbed, the outputs and every intermediate tensor of both models are compared on
random inputs, and the first layer where they part is named.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.arrays import Array
from edgepipe.errors import InputError
from edgepipe.models.layers import encode
from edgepipe.models.perturb import perturbed, settle
from edgepipe.models.shapes import check_shapes, input_name
from edgepipe.models.translate import Chain, Uncarried, operator_chain, translate

TOLERANCE = 1e-4  # relative to the largest value of the tensor; float32 rounding alone stays below 1e-5
SAMPLES = 2
Step = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


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


@dataclass(frozen=True)
class Twin:
    """A built bridge, before it is checked: the model, all its tensors in order, and which weight is whose."""

    model: Any
    tensors: tuple[tuple[str, Any], ...]  # (name of the original layer, symbolic tf_keras tensor)
    weights: tuple[tuple[Any, Any], ...]  # (Keras 3 variable, tf_keras variable)


def bridge(model: Any) -> Bridged:
    """The tf_keras twin of a Keras 3 Sequential or functional `model`, with its weights, bit for bit.

    The model's weights are perturbed for the comparison and put back before this returns, even on an error.

    Raises:
        InputError: layers that cannot be carried over, all at once, each with its class and the reason; or a bridged
            layer that computes something else.
    """
    twin = build(model)
    with perturbed(model):
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
    return Bridged(twin.model, difference)


def build(model: Any) -> Twin:
    """The twin of `model`; its weights are still fresh."""
    check_shapes(model)
    chains = _Translations(_graph(model))
    inputs = [_input(tensor) for tensor in model.inputs]
    tensors: list[tuple[str, Any]] = []

    def step(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = chains.call(operation, args, kwargs)
        tensors.extend((operation.name, tensor) for tensor in tf.nest.flatten(result))
        return result

    outputs = walk(_graph(model), inputs, step)
    twin = tf_keras.Model(_one(inputs), _one(outputs), name=legal(model.name))
    return Twin(twin, tuple(tensors), tuple(chains.weight_pairs()))


def copy_weights(twin: Twin) -> None:
    """Give the twin the weights that the original has now."""
    for source, target in twin.weights:
        target.assign(np.asarray(source))
    settle(twin.model)


def compare(model: Any, twin: Twin, seed: int = 0) -> Difference:
    """Run `model` and `twin` with the weights each of them has on the same random inputs; compare every tensor."""
    samples = random_inputs(model, seed)
    original = _original_tensors(model, samples)
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


def _original_tensors(model: Any, samples: list[Any]) -> list[Any]:
    values: list[Any] = []

    def step(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        values.extend(keras.tree.flatten(result))
        return result

    walk(_graph(model), samples, step)
    return values


def _call(model: Any, samples: list[Any]) -> Any:
    graph = _graph(model)
    return graph(keras.tree.pack_sequence_as(graph._inputs_struct, samples), training=False)


def relative_difference(original: Any, other: Any) -> float:
    """max |a - b| / max |a|; infinite where shapes differ or where only one of the two is not finite."""
    a, b = (np.asarray(value).astype(np.float64) for value in (original, other))
    finite = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    difference = np.abs(a[finite] - b[finite]).max(initial=0.0)
    scale = np.abs(a[finite]).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def random_inputs(model: Any, seed: int) -> list[Any]:
    """A small batch for each input of `model`: normal floats, or integers that every Embedding accepts."""
    generator = np.random.default_rng(seed)
    sizes = [op.input_dim for op in operations(_graph(model)) if type(op).__name__ == "Embedding"]
    return [tf.constant(_random(tensor, generator, min(sizes, default=2))) for tensor in model.inputs]


def _random(tensor: Any, generator: np.random.Generator, below: int) -> Array:
    shape = (tensor.shape[0] or SAMPLES, *tensor.shape[1:])
    if tensor.dtype.startswith("float"):
        return generator.normal(0, 1, shape).astype(tensor.dtype)
    return generator.integers(0, below, shape).astype(tensor.dtype)


def walk(graph: Any, inputs: list[Any], step: Step) -> list[Any]:
    """Call `step(operation, args, kwargs)` for every node of a functional `graph` in order, nested models opened up.

    `inputs` are the values, symbolic or not, of the graph's inputs; gives the values of its outputs.
    """
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}

    def known(part: Any) -> Any:
        return values.get(id(part), part)

    for node in _nodes(graph):
        args, kwargs = (keras.tree.map_structure(known, part) for part in (node.arguments.args, node.arguments.kwargs))
        if is_model(node.operation):
            result: Any = walk(_graph(node.operation), keras.tree.flatten(args), step)
        else:
            result = step(node.operation, args, _given(kwargs))
        for tensor, value in zip(node.output_tensors, keras.tree.flatten(result), strict=True):
            values[id(tensor)] = value
    return [values[id(tensor)] for tensor in graph.outputs]


def _nodes(graph: Any) -> Iterator[Any]:
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _given(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Keras 3 notes `training` in the graph but a call of the model overrides it, whatever it says.
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def is_model(operation: Any) -> bool:
    """Whether a node of a graph is a model with a graph of its own."""
    return isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")


def _graph(model: Any) -> Any:
    return model._functional if isinstance(model, keras.Sequential) else model


def operations(graph: Any) -> Iterator[Any]:
    """Every layer and operator of a graph, those of nested models included; shared ones once for each use."""
    for node in _nodes(graph):
        if is_model(node.operation):
            yield from operations(_graph(node.operation))
        else:
            yield node.operation


class _Translations:
    """The twins of all operations of a graph: names first, then layers, then calls."""

    def __init__(self, graph: Any) -> None:
        self.names = _Names(graph)
        self.chains: dict[int, Chain] = {}
        self.sources: dict[int, Any] = {}
        problems: dict[str, dict[str, None]] = {}
        for node in _deep_nodes(graph):
            try:
                self._translate(node)
            except Uncarried as reason:
                problems.setdefault(f"{type(node.operation).__name__}: {reason}", {})[f"'{node.operation.name}'"] = None
        if problems:
            told = [f"  {', '.join(names)}, of class {reason}" for reason, names in problems.items()]
            raise InputError("\n".join([f"layers of '{graph.name}' that cannot be carried over to tf_keras:", *told]))

    def _translate(self, node: Any) -> None:
        operation = node.operation
        if id(operation) in self.chains:
            return
        name = self.names.of[id(operation)]
        if isinstance(operation, keras.layers.Layer):
            self.chains[id(operation)] = translate(operation, name, self.names.fresh)
        else:
            tensors, arguments = _arguments(operation, node.arguments.args, node.arguments.kwargs)
            self.chains[id(operation)] = operator_chain(operation, tensors, arguments, name)
        self.sources[id(operation)] = operation

    def call(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the twin of `operation` gives for symbolic tf_keras tensors."""
        chain = self.chains[id(operation)]
        if not isinstance(operation, keras.layers.Layer):
            return chain.layers[0](_one(_tensors((args, kwargs))))
        accepted = inspect.signature(chain.layers[0].call).parameters
        result = chain.layers[0](
            *args, **{key: value for key, value in kwargs.items() if key != "mask" or key in accepted}
        )
        for layer in chain.layers[1:]:
            result = layer(result)
        return result

    def weight_pairs(self) -> Iterator[tuple[Any, Any]]:
        """Each weight of the original with the twin's; both are in the order of the layer's own weights."""
        for key, operation in self.sources.items():
            theirs = operation.weights if isinstance(operation, keras.layers.Layer) else []
            mine = self.chains[key].weights
            shapes = [[tuple(weight.shape) for weight in weights] for weights in (theirs, mine)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"layer '{operation.name}' has weights of shapes {shapes[0]}, its tf_keras twin {shapes[1]}"
                )
            yield from zip(theirs, mine, strict=True)


def _deep_nodes(graph: Any) -> Iterator[Any]:
    for node in _nodes(graph):
        if is_model(node.operation):
            yield from _deep_nodes(_graph(node.operation))
        else:
            yield node


def _arguments(operation: Any, args: Any, kwargs: Any) -> tuple[list[Any], str]:
    options = {key: value for key, value in operation.get_config().items() if key not in ("name", "dtype")}
    tensors: list[Any] = []
    try:
        call = {
            "args": [encode(value, tensors) for value in args],
            "kwargs": {key: encode(value, tensors) for key, value in {**kwargs, **options}.items()},
        }
    except TypeError as error:
        raise Uncarried(f"{error}; make it a layer with a weight of its own") from None
    return tensors, json.dumps(call)


def _tensors(value: Any) -> list[Any]:
    return [part for part in keras.tree.flatten(value) if hasattr(part, "_keras_history")]


class _Names:
    """Names for the twin's layers: the top's are kept, nested models' get the model's name in front."""

    def __init__(self, graph: Any) -> None:
        self.taken = {legal(input_name(tensor)) for tensor in graph.inputs}
        self.of: dict[int, str] = {}
        for prefix, operation in sorted(_prefixed(graph, ""), key=lambda pair: bool(pair[0])):
            if id(operation) not in self.of:
                self.of[id(operation)] = self.fresh(f"{prefix}{operation.name}")

    def fresh(self, wanted: str) -> str:
        """`wanted`, made legal, with a number behind it if it is taken."""
        name, number = legal(wanted), 2
        while name in self.taken:
            name, number = f"{legal(wanted)}_{number}", number + 1
        self.taken.add(name)
        return name


def _prefixed(graph: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for node in _nodes(graph):
        if is_model(node.operation):
            yield from _prefixed(_graph(node.operation), f"{prefix}{node.operation.name}_")
        else:
            yield prefix, node.operation


def legal(name: str) -> str:
    """`name` with what TensorFlow's scopes forbid replaced."""
    clean = re.sub(r"[^A-Za-z0-9_.\-]", "_", name)
    return clean if re.match(r"[A-Za-z0-9.]", clean) else f"layer{clean}"


def _input(tensor: Any) -> Any:
    return tf_keras.Input(
        tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=legal(input_name(tensor))
    )


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _flat(value: Any) -> list[Any]:
    return list(keras.tree.flatten(value))
