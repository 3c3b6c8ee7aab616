"""Keras 3 -> tf_keras, layer by layer, checked against the original on perturbed weights.

The compression toolkit (tfmot) takes tf_keras models only, and users' models are Keras 3. The bridge walks the graph of
the original, calls a twin of each layer, flattens nested models and copies the weights. It then verifies its own
result: with *every* weight perturbed, the outputs and every intermediate tensor of both models are compared on random
inputs, and the first layer that differs is reported.
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError, ListedError
from edgepipe.core.units import plural
from edgepipe.models.bridge_layers import Keras3Layer, OperatorLayer, WeightLayer
from edgepipe.models.id_inputs import SMALLEST_TABLE, find_id_limits
from edgepipe.models.input_shapes import check_input_shapes, input_name
from edgepipe.models.keras3_graph import (
    ContentFn,
    GraphCall,
    Keras3Graph,
    build_function_graph,
    build_graph,
    evaluate_graph,
    implicit_mask,
    iter_calls,
)
from edgepipe.models.keras_operators import Constant, encode_argument, is_tensor
from edgepipe.models.keras_types import (
    AnyKerasVariable,
    KerasLayer,
    KerasModel,
    KerasOperation,
    KerasTensor,
    Tensor,
    TensorTree,
    TfKerasModel,
)
from edgepipe.models.layer_names import LayerNames, legal_name
from edgepipe.models.layer_trace import trace_mask
from edgepipe.models.perturb import perturbed_weights, refresh_normalization
from edgepipe.models.port_names import input_names, output_names
from edgepipe.models.subclassed import to_functional
from edgepipe.models.translate import (
    LayerChain,
    UnsupportedLayerError,
    summarize_error,
    translate_layer,
    translate_operator,
)
from edgepipe.models.twin_masks import TwinMasks

TOLERANCE = 1e-4  # relative to the largest value of the tensor; float32 rounding alone stays below 1e-5
RANDOM_BATCH_SIZE = 2


@dataclass(frozen=True)
class TensorDifference:
    """The largest difference of one tensor from the original's, relative to the original's largest value."""

    layer_name: str
    relative_error: float


@dataclass(frozen=True)
class ModelDifference:
    """A bridged model compared with the original: every intermediate tensor in order, then the outputs."""

    tensor_differences: tuple[TensorDifference, ...]
    output_differences: tuple[TensorDifference, ...]

    @property
    def worst_difference(self) -> TensorDifference:
        """The tensor that differs most."""
        return max(
            (*self.tensor_differences, *self.output_differences), key=lambda difference: difference.relative_error
        )

    def first_difference_above(self, tolerance: float) -> TensorDifference | None:
        """The first tensor, in the order of computation, that differs by more than `tolerance`."""
        return next(
            (
                difference
                for difference in (*self.tensor_differences, *self.output_differences)
                if not difference.relative_error <= tolerance
            ),
            None,
        )

    def text(self) -> str:
        """One line for a report."""
        worst_difference = self.worst_difference
        return (
            f"bridged to tf_keras: {plural(len(self.tensor_differences), 'tensor')} and "
            f"{plural(len(self.output_differences), 'output')} "
            "compared under perturbed weights, largest relative difference "
            f"{worst_difference.relative_error:.1e} ('{worst_difference.layer_name}')"
        )


@dataclass(frozen=True)
class BridgedModel:
    """The tf_keras model, and the proof that it computes the same as the original."""

    model: TfKerasModel
    difference: ModelDifference
    keras3_notes: tuple[str, ...] = ()  # layers that stay Keras 3 layers inside the twin, and why
    input_notes: tuple[str, ...] = ()  # inputs whose name TensorFlow refuses in a scope
    weight_notes: tuple[str, ...] = ()  # weights of layers of which the twin holds copies

    @property
    def notes(self) -> list[str]:
        """Notes on the bridge for a report."""
        return [self.difference.text(), *self.keras3_notes, *self.weight_notes, *self.input_notes]


@dataclass(frozen=True)
class TwinModel:
    """A bridged model before verification: the model, all its tensors in order, and the pairs of weights."""

    model: TfKerasModel
    graph: Keras3Graph  # the original's
    named_tensors: tuple[tuple[str, KerasTensor], ...]  # (name of the original layer, symbolic tf_keras tensor)
    weight_pairs: tuple[tuple[AnyKerasVariable, AnyKerasVariable], ...]  # (Keras 3 variable, tf_keras variable)
    keras3_notes: tuple[str, ...] = ()
    weight_notes: tuple[str, ...] = ()


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
    wrong_difference = difference.first_difference_above(TOLERANCE)
    if wrong_difference is not None:
        _check_repeatable(twin.graph, wrong_difference.layer_name)
        raise InputError(
            f"the bridge of '{model.name}' to tf_keras is wrong from layer '{wrong_difference.layer_name}' on: "
            f"its output differs by {wrong_difference.relative_error:.1e} of its largest value "
            f"(allowed {TOLERANCE:.0e}); leave that layer out, or convert without compression, and please report it"
        )
    input_notes = _renamed_input_notes(model, twin.model)
    return BridgedModel(twin.model, difference, twin.keras3_notes, input_notes, twin.weight_notes)


def _check_repeatable(graph: Keras3Graph, layer_name: str) -> None:
    """Raise an `InputError` if a layer of the original gives other outputs for the same inputs."""
    samples = random_inputs(graph, 0)
    tensors, repeated_tensors = (_original_tensors(graph, samples) for _ in range(2))
    if any(map(relative_difference, tensors, repeated_tensors)):
        raise InputError(
            f"layer '{layer_name}' of '{graph.name}' is random at inference: its outputs differ between two runs on "
            "the same inputs; draw random numbers in training only (`if training:`), or cut the model before it"
        )


def _renamed_input_notes(model: KerasModel, twin: TfKerasModel) -> tuple[str, ...]:
    return tuple(
        f"input '{name}' is called '{new_name}' from here on: TensorFlow refuses some of its characters"
        for name, new_name in zip(input_names(model), input_names(twin), strict=True)
        if name != new_name
    )


def build_twin(model: KerasModel) -> TwinModel:
    """The twin of `model`, its weights not copied yet."""
    check_input_shapes(model)
    graph = build_graph(model)
    twin_layers = _TwinLayers(graph)
    inputs = [_build_input(tensor, name) for tensor, name in zip(graph.inputs, input_names(model), strict=True)]
    named_tensors: list[tuple[str, KerasTensor]] = []

    def record_tensors(name: str, layer_outputs: TensorTree) -> TensorTree:
        named_tensors.extend((name, tensor) for tensor in tf.nest.flatten(layer_outputs))
        return layer_outputs

    outputs = evaluate_graph(
        graph,
        inputs,
        lambda operation, args, kwargs: record_tensors(operation.name, twin_layers.call(operation, args, kwargs)),
        lambda call, args, kwargs, evaluate_content: record_tensors(
            call.operation.name, twin_layers.hand_on_masks(call, args, kwargs, evaluate_content)
        ),
    )
    twin = tf_keras.Model(_unwrap_single(inputs), _unwrap_single(outputs), name=legal_name(model.name))
    twin.output_names = output_names(model)
    weight_pairs, weight_notes = tuple(twin_layers.weight_pairs()), twin_layers.tied_weight_notes()
    return TwinModel(twin, graph, tuple(named_tensors), weight_pairs, twin_layers.keras3_notes(), weight_notes)


def copy_weights(twin: TwinModel) -> None:
    """Copy the current weights of the original to the twin."""
    for keras3_variable, twin_variable in twin.weight_pairs:
        twin_variable.assign(np.asarray(keras3_variable))
    refresh_normalization(twin.model)


def compare(model: KerasModel, twin: TwinModel, seed: int = 0) -> ModelDifference:
    """Run `model` and `twin`, each with its current weights, on the same random inputs; compare every tensor."""
    samples = random_inputs(twin.graph, seed)
    original_tensors = _original_tensors(twin.graph, samples)
    probe_model = tf_keras.Model(twin.model.inputs, [tensor for _, tensor in twin.named_tensors])
    bridged_tensors = _flatten(probe_model(_unwrap_single(samples), training=False))
    named_tensor_pairs = zip((name for name, _ in twin.named_tensors), original_tensors, bridged_tensors, strict=True)
    # the models' own calls too: the walk above takes the same graph for both, they do not
    named_output_pairs = zip(
        twin.model.output_names,
        _flatten(_call_model(model, samples)),
        _flatten(twin.model(_unwrap_single(samples), training=False)),
        strict=True,
    )
    return ModelDifference(
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in named_tensor_pairs),
        tuple(TensorDifference(name, relative_difference(a, b)) for name, a, b in named_output_pairs),
    )


def _original_tensors(graph: Keras3Graph, samples: list[Tensor]) -> list[Tensor]:
    tensors: list[Tensor] = []

    def run_and_record(keras_operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        outputs = _flatten(_run_inference(keras_operation, args, kwargs))
        tensors.extend(outputs)
        return outputs

    def run_traced_layer(
        call: GraphCall, args: tuple[Any, ...], kwargs: dict[str, Any], evaluate_content: ContentFn
    ) -> list[Tensor]:
        evaluate_content(implicit_mask)
        return run_and_record(call.operation, args, kwargs)  # so that an incomplete trace is reported at that layer

    evaluate_graph(graph, samples, run_and_record, run_traced_layer)
    return tensors


def unsaturate(graph: Keras3Graph) -> None:
    """Scale down the kernels of layers that end in softmax or sigmoid, so that their inputs have unit deviation.

    Random kernels in a deep network give logits of a hundred, of which only the largest survives a softmax: a missing
    bias would go unnoticed.
    """

    def run_unsaturated(keras_operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
        activation = getattr(keras_operation, "activation", None)
        if activation in (keras.activations.softmax, keras.activations.sigmoid) and hasattr(keras_operation, "kernel"):
            keras_operation.activation = keras.activations.linear
            deviation = float(np.std(np.asarray(_run_inference(keras_operation, args, kwargs))))
            keras_operation.activation = activation
            keras_operation.kernel.assign(keras_operation.kernel / max(deviation, 1.0))
        return _run_inference(keras_operation, args, kwargs)

    evaluate_graph(
        graph, random_inputs(graph, 0), run_unsaturated, lambda call, args, kwargs, content: content(implicit_mask)
    )


def _run_inference(keras_operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
    # the default of augmentation layers is training=True
    if isinstance(keras_operation, keras.Layer) and "training" in inspect.signature(keras_operation.call).parameters:
        return keras_operation(*args, **kwargs, training=False)
    return keras_operation(*args, **kwargs)


def _call_model(model: KerasModel, samples: list[Tensor]) -> TensorTree:
    functional_model = model._functional if isinstance(model, keras.Sequential) else model
    return functional_model(keras.tree.pack_sequence_as(functional_model._inputs_struct, samples), training=False)


def relative_difference(original: Tensor, candidate: Tensor) -> float:
    """max |a - b| / max |a|; infinite if shapes differ, non-finite values differ, or no value is finite."""
    a, b = (np.asarray(tensor).astype(np.float64) for tensor in (original, candidate))
    finite_mask = np.isfinite(a)
    if a.shape != b.shape or not np.array_equal(finite_mask, np.isfinite(b)) or (a.size and not finite_mask.any()):
        return float("inf")
    difference = np.abs(a[finite_mask] - b[finite_mask]).max(initial=0.0)
    largest_magnitude = np.abs(a[finite_mask]).max(initial=0.0)
    return float(difference / largest_magnitude) if largest_magnitude else float(difference)


def random_inputs(graph: Keras3Graph, seed: int) -> list[Tensor]:
    """A small batch for each input of `graph`: normal floats, or ids, in floats too, that every look-up accepts.

    Raises:
        InputError: an input takes text.
    """
    input_specs = [(tuple(tensor.shape), str(tensor.dtype), input_name(tensor)) for tensor in graph.inputs]
    return random_batch(input_specs, find_id_limits(graph), seed)


def random_batch(
    input_specs: list[tuple[tuple[int | None, ...], str, str]], id_limits: Sequence[int | None], seed: int
) -> list[Tensor]:
    """A small batch for each input (shape, dtype, name): ids below its limit if it has one, else normal floats, or
    zeros and ones for integers."""
    generator = np.random.default_rng(seed)
    return [
        tf.constant(_random_array(*spec, generator, id_limit))
        for spec, id_limit in zip(input_specs, id_limits, strict=True)
    ]


def _random_array(
    shape: tuple[int | None, ...], dtype: str, name: str, generator: np.random.Generator, id_limit: int | None
) -> Array:
    batch_shape = (shape[0] or RANDOM_BATCH_SIZE, *(size or 1 for size in shape[1:]))
    if dtype == "string":
        raise InputError(
            f"input '{name}' takes text, which no device runs; look it up before the model and feed numbers"
        )
    if id_limit is None and dtype.startswith(("float", "bfloat")):
        return generator.normal(0, 1, batch_shape).astype(dtype)
    return generator.integers(0, id_limit or SMALLEST_TABLE, batch_shape).astype(dtype)


class _TwinLayers:
    """The twins of all operations of a graph: first names, then layers, then calls."""

    def __init__(self, graph: Keras3Graph) -> None:
        self.layer_names = LayerNames(graph)
        self.chain_by_id: dict[int, LayerChain] = {}
        self.operation_by_id: dict[int, KerasOperation] = {}
        # own weights of traced layers: (variable, its layer)
        self.weight_and_layer_by_id: dict[int, tuple[AnyKerasVariable, WeightLayer]] = {}
        self.masks = TwinMasks(self.layer_names)
        self._add_calls(graph)

    def _add_calls(self, graph: Keras3Graph) -> None:
        """Translate all operations of `graph`.

        Raises:
            InputError: some cannot be carried over.
        """
        self.layer_names.add(graph)
        layers_by_problem: dict[str, dict[str, None]] = {}
        for _, call in iter_calls(graph):
            try:
                self._translate(call)
            except UnsupportedLayerError as unsupported_error:
                layers_by_problem.setdefault(f"{type(call.operation).__name__}: {unsupported_error}", {})[
                    f"'{call.operation.name}'"
                ] = None
        if layers_by_problem:
            problem_lines = [f"{', '.join(names)}, of class {reason}" for reason, names in layers_by_problem.items()]
            raise ListedError(f"layers of '{graph.name}' that cannot be carried over to tf_keras:", problem_lines)

    def _translate(self, call: GraphCall) -> None:
        keras_operation = call.operation
        if id(keras_operation) in self.chain_by_id:
            return
        name = self.layer_names.name_by_id[id(keras_operation)]
        if isinstance(keras_operation, keras.layers.Layer):
            self.chain_by_id[id(keras_operation)] = translate_layer(keras_operation, name, self.layer_names.make_unique)
        else:
            operand_tensors, arguments_json = _encode_arguments(call)
            self.chain_by_id[id(keras_operation)] = translate_operator(
                keras_operation, operand_tensors, arguments_json, name
            )
            self._add_weights(operand_tensors)
        self.operation_by_id[id(keras_operation)] = keras_operation

    def _add_weights(self, operand_tensors: list[KerasTensor]) -> None:
        for variable in operand_tensors:
            if isinstance(variable, keras.Variable) and id(variable) not in self.weight_and_layer_by_id:
                name = self.layer_names.make_unique(variable.path.replace("/", "_"))
                layer = WeightLayer(variable.shape, name=name, dtype=variable.dtype, trainable=variable.trainable)
                self.weight_and_layer_by_id[id(variable)] = (variable, layer)

    def call(self, keras_operation: KerasOperation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TensorTree:
        """Call the twin of `operation` on symbolic tf_keras tensors."""
        if isinstance(keras_operation, Constant) and isinstance(args[1], keras.Variable):
            return self._read_weight(args[1], args[0])
        layer_chain = self.chain_by_id[id(keras_operation)]
        args, kwargs = keras.tree.map_structure(self.masks.read_after_attention, (args, kwargs))
        try:
            return self._call_layers(keras_operation, layer_chain, args, kwargs)
        except Exception as error:
            is_layer = isinstance(keras_operation, keras.layers.Layer)
            kind = "layer" if is_layer else "operator"
            raise InputError(
                f"{kind} '{keras_operation.name}', of class {type(keras_operation).__name__}, does not run in "
                f"tf_keras: {summarize_error(error)}; replace it, or convert without compression"
            ) from error

    def _call_layers(
        self, keras_operation: KerasOperation, layer_chain: LayerChain, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TensorTree:
        first_layer = layer_chain.layers[0]
        if not isinstance(keras_operation, keras.layers.Layer):
            operands = self._collect_operands(args, kwargs)
            ends_masks = not isinstance(first_layer, OperatorLayer)  # which has none anyway
            return first_layer(_unwrap_single(self.masks.without_masks(operands) if ends_masks else operands))
        if isinstance(keras_operation, keras.layers.Add.__base__) and isinstance(args[0], (list, tuple)):
            args = (self.masks.merge_operands(keras_operation, list(args[0])), *args[1:])
        if isinstance(keras_operation, keras.layers.MultiHeadAttention):
            kwargs = self.masks.prepare_attention(args, kwargs)
        takes_mask = isinstance(first_layer, Keras3Layer) or "mask" in inspect.signature(first_layer.call).parameters
        call_kwargs = {key: argument for key, argument in kwargs.items() if key != "mask" or takes_mask}
        outputs = first_layer(*args, **call_kwargs)
        for layer in layer_chain.layers[1:]:
            outputs = layer(outputs)
        return outputs

    def _collect_operands(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[KerasTensor]:
        """The tensors of an operator call, numbered as in its encoded arguments."""
        operands: list[KerasTensor] = []
        for argument in (*args, *kwargs.values()):
            encode_argument(argument, operands)
        anchor_tensor = next(operand for operand in operands if not isinstance(operand, keras.Variable))
        return [
            self._read_weight(operand, anchor_tensor) if isinstance(operand, keras.Variable) else operand
            for operand in operands
        ]

    def _read_weight(self, variable: AnyKerasVariable, anchor_tensor: KerasTensor) -> KerasTensor:
        return self.weight_and_layer_by_id[id(variable)][1](anchor_tensor)

    def hand_on_masks(
        self, call: GraphCall, args: tuple[Any, ...], kwargs: dict[str, Any], evaluate_content: ContentFn
    ) -> list[KerasTensor]:
        """The outputs of a traced layer, with the masks that it hands on, as `keras.Layer.__call__` attaches them."""
        layer, first_argument = call.operation, next(iter((*args, *kwargs.values())))
        needs_masks = layer.supports_masking and kwargs.get("mask") is None
        previous_masks = self.masks.read(first_argument) if needs_masks else kwargs.get("mask")
        outputs = evaluate_content(self.masks.read_or_ones)
        if not layer.supports_masking or all(map(self.masks.has_mask, outputs)):
            return outputs
        output_masks = self._compute_masks(layer, first_argument, previous_masks)
        return [
            tensor if mask is None or self.masks.has_mask(tensor) else self.masks.attach(tensor, mask, layer.name)
            for tensor, mask in zip_longest(outputs, output_masks[: len(outputs)])
        ]

    def _compute_masks(self, layer: KerasLayer, inputs: TensorTree, masks: TensorTree) -> list[KerasTensor | None]:
        """The result of the layer's `compute_mask`, one mask or None for each output."""
        if type(layer).compute_mask is keras.Layer.compute_mask:
            return _flatten(masks)
        mask_trace = trace_mask(layer, inputs, masks)
        if mask_trace is None:
            raise InputError(
                f"layer '{layer.name}', of class {type(layer).__name__}, computes a mask of its own (compute_mask) "
                "that cannot be traced with symbolic tensors; write it with keras.ops, or convert without compression"
            )
        function, are_present = mask_trace
        if function is None:
            return []
        graph = build_function_graph(f"{layer.name}_mask", function)
        tensors = [leaf for leaf in keras.tree.flatten((inputs, masks)) if is_tensor(leaf)]
        self._add_calls(graph)
        present_masks = iter(
            evaluate_graph(graph, tensors, self.call, lambda _, args, kwargs, content: content(self.masks.read_or_ones))
        )
        return [next(present_masks) if is_present else None for is_present in are_present]

    def tied_weight_notes(self) -> tuple[str, ...]:
        """Which weights of layers operators use too: in the twin, these are copies."""
        layer_by_weight_id = {
            id(weight): operation
            for operation in self.operation_by_id.values()
            if isinstance(operation, keras.layers.Layer)
            for weight in operation.weights
        }
        return tuple(
            f"weight '{variable.path}' of layer '{layer_by_weight_id[weight_id].name}' is used outside the layer too: "
            "the twin has a copy of it there, and training changes the two apart"
            for weight_id, (variable, _) in self.weight_and_layer_by_id.items()
            if weight_id in layer_by_weight_id
        )

    def keras3_notes(self) -> tuple[str, ...]:
        """Which layers stay Keras 3 layers, and why."""
        return tuple(
            f"layer '{operation.name}' ({type(operation).__name__}) stays a Keras 3 layer inside the twin, trained and "
            f"converted but not compressed: {self.chain_by_id[operation_id].keras3_reason}"
            for operation_id, operation in self.operation_by_id.items()
            if self.chain_by_id[operation_id].keras3_reason
        )

    def weight_pairs(self) -> Iterator[tuple[AnyKerasVariable, AnyKerasVariable]]:
        """Each weight of the original with its counterpart; both layers list their weights in the same order."""
        yield from ((variable, layer.value) for variable, layer in self.weight_and_layer_by_id.values())
        for operation_id, keras_operation in self.operation_by_id.items():
            original_weights = keras_operation.weights if isinstance(keras_operation, keras.layers.Layer) else []
            twin_weights = self.chain_by_id[operation_id].weights
            weight_shapes = [
                [tuple(weight.shape) for weight in weights] for weights in (original_weights, twin_weights)
            ]
            if weight_shapes[0] != weight_shapes[1]:
                raise InputError(
                    f"layer '{keras_operation.name}' has weights of shapes {weight_shapes[0]}, "
                    f"its tf_keras twin {weight_shapes[1]}"
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
    operand_tensors: list[KerasTensor] = []
    try:
        encoded_call = {
            "args": [encode_argument(arg, operand_tensors) for arg in call.args],
            "kwargs": {key: encode_argument(arg, operand_tensors) for key, arg in {**call.kwargs, **options}.items()},
        }
    except TypeError as error:
        raise UnsupportedLayerError(f"{error}; make it a layer with a weight of its own") from None
    return operand_tensors, json.dumps(encoded_call)


def _build_input(tensor: KerasTensor, name: str) -> KerasTensor:
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=tensor.dtype, name=legal_name(name))


def _unwrap_single(tensors: list[Tensor]) -> TensorTree:
    return tensors[0] if len(tensors) == 1 else tensors


def _flatten(structure: TensorTree) -> list[Tensor]:
    return list(keras.tree.flatten(structure))
