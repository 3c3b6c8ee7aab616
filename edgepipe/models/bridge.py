"""Keras 3 -> tf_keras, layer by layer, checked against the original on perturbed weights.

The compression toolkit (tfmot) takes tf_keras models only, and users' models are Keras 3. The bridge walks the graph of
the original, calls a twin of each layer, flattens nested models and copies the weights. It then verifies its own
result: with *every* weight perturbed, the outputs and every intermediate tensor of both models are compared on random
inputs, and the first layer that differs is reported.
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
from edgepipe.core.units import plural
from edgepipe.models.bridge_layers import Keras3Layer, WeightLayer
from edgepipe.models.input_shapes import check_shapes, input_name
from edgepipe.models.keras3_graph import GraphCall, Keras3Graph, build_graph, iter_calls, walk
from edgepipe.models.keras_operators import encode_argument
from edgepipe.models.keras_types import (
    AnyKerasVariable,
    KerasModel,
    KerasOperation,
    KerasTensor,
    Tensor,
    TensorTree,
    TfKerasModel,
)
from edgepipe.models.layer_names import LayerNames, legal_name
from edgepipe.models.perturb import perturbed_weights, refresh_normalization
from edgepipe.models.subclassed import to_functional
from edgepipe.models.translate import (
    LayerChain,
    UnsupportedLayerError,
    summarize_error,
    translate_layer,
    translate_operator,
)

TOLERANCE = 1e-4  # relative to the largest value of the tensor; float32 rounding alone stays below 1e-5
SAMPLES = 2


@dataclass(frozen=True)
class TensorDifference:
    """The largest difference of one tensor from the original's, relative to the original's largest value."""

    layer: str
    relative_error: float


@dataclass(frozen=True)
class ModelDifference:
    """A bridged model compared with the original: every intermediate tensor in order, then the outputs."""

    tensors: tuple[TensorDifference, ...]
    outputs: tuple[TensorDifference, ...]

    @property
    def worst_tensor(self) -> TensorDifference:
        """The tensor that differs most."""
        return max((*self.tensors, *self.outputs), key=lambda tensor: tensor.relative_error)

    def first_tensor_above(self, tolerance: float) -> TensorDifference | None:
        """The first tensor, in the order of computation, that differs by more than `tolerance`."""
        return next(
            (tensor for tensor in (*self.tensors, *self.outputs) if not tensor.relative_error <= tolerance), None
        )

    def text(self) -> str:
        """One line for a report."""
        worst = self.worst_tensor
        return (
            f"bridged to tf_keras: {plural(len(self.tensors), 'tensor')} and {plural(len(self.outputs), 'output')} "
            "compared under perturbed weights, largest relative difference "
            f"{worst.relative_error:.1e} ('{worst.layer}')"
        )


@dataclass(frozen=True)
class BridgedModel:
    """The tf_keras model, and the proof that it computes the same as the original."""

    model: TfKerasModel
    difference: ModelDifference
    keras3_notes: tuple[str, ...] = ()  # layers that stay Keras 3 layers inside the twin, and why

    @property
    def notes(self) -> list[str]:
        """Notes on the bridge for a report."""
        return [self.difference.text(), *self.keras3_notes]


@dataclass(frozen=True)
class TwinModel:
    """A bridged model before verification: the model, all its tensors in order, and the pairs of weights."""

    model: TfKerasModel
    graph: Keras3Graph  # the original's
    tensors: tuple[tuple[str, KerasTensor], ...]  # (name of the original layer, symbolic tf_keras tensor)
    weight_pairs: tuple[tuple[AnyKerasVariable, AnyKerasVariable], ...]  # (Keras 3 variable, tf_keras variable)
    keras3_notes: tuple[str, ...] = ()


def bridge(model: KerasModel) -> BridgedModel:
    """The tf_keras twin of the built Keras 3 `model`, with bit-identical weights.

    The model's weights are perturbed for the comparison and restored before this returns, even on an error.

    Raises:
        InputError: layers cannot be bridged (all are listed, each with its class and the reason), or a bridged layer
            computes something else.
    """
    model = to_functional(model)
    twin = build_twin(model)
    with perturbed_weights(model):
        unsaturate(twin.graph)
        copy_weights(twin)
        difference = compare(model, twin)
    copy_weights(twin)
    wrong_tensor = difference.first_tensor_above(TOLERANCE)
    if wrong_tensor is not None:
        raise InputError(
            f"the bridge of '{model.name}' to tf_keras is wrong from layer '{wrong_tensor.layer}' on: its output "
            f"differs by {wrong_tensor.relative_error:.1e} of its largest value (allowed {TOLERANCE:.0e}); leave that "
            "layer out, or convert without compression, and please report it"
        )
    return BridgedModel(twin.model, difference, twin.keras3_notes)


def build_twin(model: KerasModel) -> TwinModel:
    """The twin of `model`, its weights not copied yet."""
    check_shapes(model)
    graph = build_graph(model)
    twins = _TwinLayers(graph)
    inputs = [_build_input(tensor) for tensor in graph.inputs]
    tensors: list[tuple[str, KerasTensor]] = []

    def record_tensors(name: str, layer_outputs: TensorTree) -> TensorTree:
        tensors.extend((name, tensor) for tensor in tf.nest.flatten(layer_outputs))
        return layer_outputs

    outputs = walk(
        graph,
        inputs,
        lambda operation, args, kwargs: record_tensors(operation.name, twins.call(operation, args, kwargs)),
        lambda call, args, kwargs, layer_outputs: record_tensors(call.operation.name, layer_outputs),
    )
    twin = tf_keras.Model(_unwrap_single(inputs), _unwrap_single(outputs), name=legal_name(model.name))
    return TwinModel(twin, graph, tuple(tensors), tuple(twins.weight_pairs()), twins.keras3_notes())


def copy_weights(twin: TwinModel) -> None:
    """Copy the current weights of the original to the twin."""
    for source, target in twin.weight_pairs:
        target.assign(np.asarray(source))
    refresh_normalization(twin.model)


def compare(model: KerasModel, twin: TwinModel, seed: int = 0) -> ModelDifference:
    """Run `model` and `twin`, each with its current weights, on the same random inputs; compare every tensor."""
    samples = random_inputs(twin.graph, seed)
    original_tensors = _original_tensors(twin.graph, samples)
    probe = tf_keras.Model(twin.model.inputs, [tensor for _, tensor in twin.tensors])
    bridged_tensors = _flatten(probe(_unwrap_single(samples), training=False))
    tensors = zip((name for name, _ in twin.tensors), original_tensors, bridged_tensors, strict=True)
    # the models' own calls too: the walk above takes the same graph for both, they do not
    outputs = zip(
        twin.model.output_names,
        _flatten(_call_model(model, samples)),
        _flatten(twin.model(_unwrap_single(samples), training=False)),
        strict=True,
    )
    return ModelDifference(
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in tensors),
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in outputs),
    )


def _original_tensors(graph: Keras3Graph, samples: list[Tensor]) -> list[Tensor]:
    tensors: list[Tensor] = []

    def run_and_record(operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        outputs = _flatten(_run_inference(operation, args, kwargs))
        tensors.extend(outputs)
        return outputs

    # Call a traced layer itself too, so that an incomplete trace is reported at that layer.
    walk(graph, samples, run_and_record, lambda call, args, kwargs, _: run_and_record(call.operation, args, kwargs))
    return tensors


def unsaturate(graph: Keras3Graph) -> None:
    """Scale down the kernels of layers that end in softmax or sigmoid, so that their inputs have unit deviation.

    Random kernels in a deep network give logits of a hundred, of which only the largest survives a softmax: a missing
    bias would go unnoticed.
    """

    def run_unsaturated(operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
        activation = getattr(operation, "activation", None)
        if activation in (keras.activations.softmax, keras.activations.sigmoid) and hasattr(operation, "kernel"):
            operation.activation = keras.activations.linear
            deviation = float(np.std(np.asarray(_run_inference(operation, args, kwargs))))
            operation.activation = activation
            operation.kernel.assign(operation.kernel / max(deviation, 1.0))
        return _run_inference(operation, args, kwargs)

    walk(graph, random_inputs(graph, 0), run_unsaturated, lambda call, args, kwargs, outputs: outputs)


def _run_inference(operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
    # the default of augmentation layers is training=True
    if isinstance(operation, keras.Layer) and "training" in inspect.signature(operation.call).parameters:
        return operation(*args, **kwargs, training=False)
    return operation(*args, **kwargs)


def _call_model(model: KerasModel, samples: list[Tensor]) -> TensorTree:
    functional_model = model._functional if isinstance(model, keras.Sequential) else model
    return functional_model(keras.tree.pack_sequence_as(functional_model._inputs_struct, samples), training=False)


def relative_difference(original: Tensor, candidate: Tensor) -> float:
    """max |a - b| / max |a|; infinite if shapes differ, non-finite values differ, or no value is finite."""
    a, b = (np.asarray(tensor).astype(np.float64) for tensor in (original, candidate))
    finite = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(finite, np.isfinite(b)) or (a.size and not finite.any()):
        return float("inf")
    difference = np.abs(a[finite] - b[finite]).max(initial=0.0)
    scale = np.abs(a[finite]).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def random_inputs(graph: Keras3Graph, seed: int) -> list[Tensor]:
    """A small batch for each input of `graph`: normal floats, or integers that every Embedding accepts.

    Raises:
        InputError: an input takes text.
    """
    sizes = [
        call.operation.input_dim for _, call in iter_calls(graph) if isinstance(call.operation, keras.layers.Embedding)
    ]
    specs = [(tuple(tensor.shape), str(tensor.dtype), input_name(tensor)) for tensor in graph.inputs]
    return random_batch(specs, min(sizes, default=2), seed)


def random_batch(specs: list[tuple[tuple[int | None, ...], str, str]], integer_limit: int, seed: int) -> list[Tensor]:
    """A small batch for each input (shape, dtype, name): normal floats, or integers less than `integer_limit`."""
    generator = np.random.default_rng(seed)
    return [tf.constant(_random_array(*spec, generator, integer_limit)) for spec in specs]


def _random_array(
    shape: tuple[int | None, ...], dtype: str, name: str, generator: np.random.Generator, integer_limit: int
) -> Array:
    sizes = (shape[0] or SAMPLES, *(size or 1 for size in shape[1:]))
    if dtype.startswith(("float", "bfloat")):
        return generator.normal(0, 1, sizes).astype(dtype)
    if dtype == "string":
        raise InputError(
            f"input '{name}' takes text, which no device runs; look it up before the model and feed numbers"
        )
    return generator.integers(0, integer_limit, sizes).astype(dtype)


class _TwinLayers:
    """The twins of all operations of a graph: first names, then layers, then calls."""

    def __init__(self, graph: Keras3Graph) -> None:
        self.names = LayerNames(graph)
        self.chains: dict[int, LayerChain] = {}
        self.operations: dict[int, KerasOperation] = {}
        # own weights of traced layers: (variable, its layer)
        self.weight_layers: dict[int, tuple[AnyKerasVariable, WeightLayer]] = {}
        problems: dict[str, dict[str, None]] = {}
        for _, call in iter_calls(graph):
            try:
                self._translate(call)
            except UnsupportedLayerError as reason:
                problems.setdefault(f"{type(call.operation).__name__}: {reason}", {})[f"'{call.operation.name}'"] = None
        if problems:
            problem_lines = [f"  {', '.join(names)}, of class {reason}" for reason, names in problems.items()]
            raise InputError(
                "\n".join([f"layers of '{graph.name}' that cannot be carried over to tf_keras:", *problem_lines])
            )

    def _translate(self, call: GraphCall) -> None:
        operation = call.operation
        if id(operation) in self.chains:
            return
        name = self.names.name_by_id[id(operation)]
        if isinstance(operation, keras.layers.Layer):
            self.chains[id(operation)] = translate_layer(operation, name, self.names.make_unique)
        else:
            tensors, arguments = _encode_arguments(call)
            self.chains[id(operation)] = translate_operator(operation, tensors, arguments, name)
            self._add_weights(tensors)
        self.operations[id(operation)] = operation

    def _add_weights(self, tensors: list[KerasTensor]) -> None:
        for variable in tensors:
            if isinstance(variable, keras.Variable) and id(variable) not in self.weight_layers:
                name = self.names.make_unique(variable.path.replace("/", "_"))
                layer = WeightLayer(variable.shape, name=name, dtype=variable.dtype, trainable=variable.trainable)
                self.weight_layers[id(variable)] = (variable, layer)

    def call(self, operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
        """Call the twin of `operation` on symbolic tf_keras tensors."""
        chain = self.chains[id(operation)]
        if not isinstance(operation, keras.layers.Layer):
            return chain.layers[0](_unwrap_single(self._operands(args, kwargs)))
        first_layer = chain.layers[0]
        takes_mask = isinstance(first_layer, Keras3Layer) or "mask" in inspect.signature(first_layer.call).parameters
        call_kwargs = {key: argument for key, argument in kwargs.items() if key != "mask" or takes_mask}
        try:
            outputs = first_layer(*args, **call_kwargs)
            for layer in chain.layers[1:]:
                outputs = layer(outputs)
        except Exception as error:
            cls = type(operation).__name__
            raise InputError(
                f"layer '{operation.name}', of class {cls}, does not run in tf_keras: {summarize_error(error)}; "
                "replace it, or convert without compression"
            ) from error
        return outputs

    def _operands(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[KerasTensor]:
        """The tensors of an operator call, numbered as in its encoded arguments."""
        operands: list[KerasTensor] = []
        for argument in (*args, *kwargs.values()):
            encode_argument(argument, operands)
        anchor = next(operand for operand in operands if not isinstance(operand, keras.Variable))
        return [
            self.weight_layers[id(operand)][1](anchor) if isinstance(operand, keras.Variable) else operand
            for operand in operands
        ]

    def keras3_notes(self) -> tuple[str, ...]:
        """Which layers stay Keras 3 layers, and why."""
        return tuple(
            f"layer '{operation.name}' ({type(operation).__name__}) stays a Keras 3 layer inside the twin, trained and "
            f"converted but not compressed: {self.chains[key].keras3_reason}"
            for key, operation in self.operations.items()
            if self.chains[key].keras3_reason
        )

    def weight_pairs(self) -> Iterator[tuple[AnyKerasVariable, AnyKerasVariable]]:
        """Each weight of the original with its counterpart; both layers list their weights in the same order."""
        yield from ((variable, layer.value) for variable, layer in self.weight_layers.values())
        for key, operation in self.operations.items():
            original_weights = operation.weights if isinstance(operation, keras.layers.Layer) else []
            twin_weights = self.chains[key].weights
            shapes = [[tuple(weight.shape) for weight in weights] for weights in (original_weights, twin_weights)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"layer '{operation.name}' has weights of shapes {shapes[0]}, its tf_keras twin {shapes[1]}"
                )
            yield from zip(original_weights, twin_weights, strict=True)


def _encode_arguments(call: GraphCall) -> tuple[list[KerasTensor], str]:
    # the dtype is an argument of Cast or OneHot; elsewhere it is the policy of the operation
    init_parameters = inspect.signature(type(call.operation).__init__).parameters
    options = {
        key: option
        for key, option in call.operation.get_config().items()
        if key != "name" and (key != "dtype" or ("dtype" in init_parameters and option is not None))
    }
    tensors: list[KerasTensor] = []
    try:
        encoded_call = {
            "args": [encode_argument(arg, tensors) for arg in call.args],
            "kwargs": {key: encode_argument(arg, tensors) for key, arg in {**call.kwargs, **options}.items()},
        }
    except TypeError as error:
        raise UnsupportedLayerError(f"{error}; make it a layer with a weight of its own") from None
    return tensors, json.dumps(encoded_call)


def _build_input(tensor: KerasTensor) -> KerasTensor:
    return tf_keras.Input(
        tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=legal_name(input_name(tensor))
    )


def _unwrap_single(tensors: list[Tensor]) -> TensorTree:
    return tensors[0] if len(tensors) == 1 else tensors


def _flatten(structure: TensorTree) -> list[Tensor]:
    return list(keras.tree.flatten(structure))
