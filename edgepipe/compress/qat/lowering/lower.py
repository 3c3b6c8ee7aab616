"""A tf_keras model rewritten so that each layer is one TFLite operator, which is what fake-quant can be placed on.

Separable convolutions are split, normalizations and attention written out, activations taken out of the layers that
hold them, one-dimensional and higher-dimensional layers expressed as two-dimensional ones, nested models opened up.
The rewritten model computes what the original does; `edgepipe.compress.qat.activation_placement` then says where fake-quant goes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array
from edgepipe.core.errors import InputError
from edgepipe.models.bridge_layers import Operator
from edgepipe.models.keras_operators import encode_argument

LayerRule = Callable[["Lowering", "LoweringCall"], Any]
TOLERANCE = 1e-4  # relative to the largest value of an output, as for the bridge


@dataclass(frozen=True)
class LoweringCall:
    """One call of one layer of the original: the layer, the lowered tensors and options it is called with."""

    layer: Any
    inputs: Any  # a tensor, or a list of them
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_only_call: bool  # whether this is the layer's only call

    @property
    def x(self) -> Any:
        """The only, or the first, tensor."""
        return self.inputs[0] if isinstance(self.inputs, (list, tuple)) else self.inputs


class CallArguments(list[Any]):
    """The positional arguments of a call, where a plain list would be one argument that is a list of tensors."""


@dataclass(frozen=True)
class LayerOrigin:
    """Which layer of the original a lowered layer stands for, and why fake-quant cannot reach into it, if so."""

    layer: Any
    opaque_reason: str = ""  # the reason; empty for a layer that was written out or is one operator anyway


@dataclass(frozen=True)
class LoweredModel:
    """The rewritten model and where each of its layers comes from, by name.

    `ends` has every layer of the original, in the order of computation, with the lowered layer that gives its output:
    one of another origin if nothing was left to do, as for a ReLU that was merged into one before it.
    """

    model: Any
    origins: dict[str, LayerOrigin]
    layer_outputs: list[tuple[Any, str]]


@dataclass
class Lowering:
    """What handlers work with: they call layers through `apply` and `op`, which keep names, weights and origins."""

    taken_names: set[str] = field(default_factory=set)
    origins: dict[str, LayerOrigin] = field(default_factory=dict)
    output_by_layer: dict[int, tuple[Any, str]] = field(default_factory=dict)  # by id of a layer of the original
    layer_by_key: dict[tuple[int, str], Any] = field(default_factory=dict)
    reshape_sources: dict[int, tuple[Any, Any]] = field(
        default_factory=dict
    )  # id of a reshaped tensor -> (it, before reshape)
    read_once: set[int] = field(default_factory=set)  # ids of lowered tensors that a single layer of the original reads
    relu_outputs: dict[tuple[int, float | None], Any] = field(default_factory=dict)  # by tensor and upper limit
    current_layer: Any = None

    def apply(
        self, layer: Any, x: Any, weights: list[Array] | None = None, opaque_reason: str = "", **call_kwargs: Any
    ) -> Any:
        """Call `layer` on `x`, give it `weights`; a second call of the same original layer reuses the first's layer."""
        key = (id(self.current_layer), layer.name)
        lowered_layer = self.layer_by_key.get(key)
        if lowered_layer is None:
            lowered_layer = self.layer_by_key[key] = self._make_name_unique(layer)
            self.origins[lowered_layer.name] = LayerOrigin(self.current_layer, opaque_reason)
        output = lowered_layer(*x, **call_kwargs) if isinstance(x, CallArguments) else lowered_layer(x, **call_kwargs)
        if weights and layer is lowered_layer:
            lowered_layer.set_weights(
                [np.asarray(array).reshape(w.shape) for array, w in zip(weights, lowered_layer.weights, strict=True)]
            )
        return output

    def relu(self, x: Any, max_value: float | None, name: str) -> Any:
        """A ReLU up to `most`; one for all that read the same tensor, because the converter merges them too."""
        key = (id(x), max_value)
        if key not in self.relu_outputs:
            self.relu_outputs[key] = self.apply(tf_keras.layers.ReLU(max_value, name=name), x)
        return self.relu_outputs[key]

    def record_output(self, output: Any) -> None:
        """Note which lowered layer gives the output of the current layer of the original."""
        first_output = tf.nest.flatten(output)[0]
        # a reshape behind it may be passed over by all who read it
        _, source_tensor = self.reshape_sources.get(id(first_output), (first_output, first_output))
        self.output_by_layer.setdefault(
            id(self.current_layer), (self.current_layer, source_tensor._keras_history.layer.name)
        )

    def _make_name_unique(self, layer: Any) -> Any:
        wanted_name, number = layer.name, 2
        while layer.name in self.taken_names:
            layer._name = f"{wanted_name}_{number}"
            number += 1
        self.taken_names.add(layer.name)
        return layer

    def op(self, operator: str, x: Any, suffix: str, /, *constants: Any, **options: Any) -> Any:
        """Apply the `keras.ops` operator to one tensor, or to two and more given as a list, and constants."""
        tensors = x if isinstance(x, list) else [x]
        args = [
            *({"tensor": index} for index in range(len(tensors))),
            *(encode_argument(constant, []) for constant in constants),
        ]
        operator_call = {"args": args, "kwargs": {key: encode_argument(value, []) for key, value in options.items()}}
        return self.apply(Operator(operator, json.dumps(operator_call), name=f"{self.current_layer.name}_{suffix}"), x)

    def reshape(self, x: Any, shape: tuple[int, ...], suffix: str) -> Any:
        """`x` in another shape (without the batch); nothing if it has that already."""
        if tuple(x.shape[1:]) == shape:
            return x
        # one layer of the original may reshape several tensors, each its own way: the shape is part of the name
        name = f"{self.current_layer.name}_{suffix}_{'x'.join(map(str, shape))}"
        return self.apply(tf_keras.layers.Reshape(shape, name=name), x)

    def to_nhwc(self, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        """`x` as (batch, height, width, channels), and what gives a result of that form the leading shape of `x`.

        A tensor that came out of such a result is taken as it was before, so that what follows a convolution follows
        it without a reshape between.
        """
        reshape_source = self.reshape_sources.get(id(x))
        nhwc = reshape_source[1] if reshape_source is not None else self._reshape_to_nhwc(x)
        self._inherit_read_once(x, nhwc)
        lead_shape = tuple(x.shape[1:-1])

        def restore_shape(output: Any) -> Any:
            if len(lead_shape) == 2:
                return output
            # a one-dimensional convolution changes the second axis of (1, length, channels)
            restored_output = self.reshape(
                output, (*(output.shape[2:3] if len(lead_shape) == 1 else lead_shape), output.shape[-1]), "shape"
            )
            self.reshape_sources[id(restored_output)] = (restored_output, output)
            return restored_output

        return nhwc, restore_shape

    def to_nhwc_or_vector(self, x: Any) -> tuple[Any, Callable[[Any], Any]]:
        """`flat`, but (batch, channels) stays as it is: for what TFLite fuses into a dense layer too."""
        return self.to_nhwc(x) if len(x.shape) > 2 else (x, lambda output: output)

    def _reshape_to_nhwc(self, x: Any) -> Any:
        shape = tuple(x.shape[1:])
        if len(shape) == 3:
            return x
        return self.reshape(x, (1, int(np.prod(shape[:-1])), shape[-1]), "square")

    def _inherit_read_once(self, x: Any, nhwc: Any) -> None:
        if id(x) in self.read_once:
            self.read_once.add(id(nhwc))

    def affine(self, x: Any, scale: Array, offset: Array, suffix: str, trainable: bool = True) -> Any:
        """`x * scale + offset` by channel, as a 1 x 1 depthwise convolution: one int8 operator with exact weights."""
        nhwc, restore_shape = self.to_nhwc(x)
        channels = nhwc.shape[-1]
        layer = tf_keras.layers.DepthwiseConv2D(
            1, name=f"{self.current_layer.name}_{suffix}".rstrip("_"), trainable=trainable
        )
        channel_arrays = [
            np.broadcast_to(np.asarray(parameter, np.float32).ravel(), (channels,)) for parameter in (scale, offset)
        ]
        return restore_shape(self.apply(layer, nhwc, [channel_arrays[0].reshape(1, 1, channels, 1), channel_arrays[1]]))


def lower_model(model: Any, is_excluded: Callable[[Any], bool]) -> LoweredModel:
    """`model` rewritten; layers that `left_alone` says so of are kept as they are."""
    from edgepipe.compress.qat.lowering.layer_rules import find_rule

    low = Lowering(taken_names={tensor._keras_history.layer.name for tensor in model.inputs})
    readers_by_name = find_readers(model)
    inputs = [_build_input(tensor, readers_by_name) for tensor in model.inputs]

    def lower_call(call: LoweringCall) -> Any:
        low.current_layer = call.layer
        output = find_rule(call.layer, is_excluded(call.layer))(low, call)
        low.record_output(output)
        return output

    outputs = _walk_calls(model, inputs, lower_call, low)
    rewritten_model = tf_keras.Model(
        pack_inputs(model, inputs), outputs if len(outputs) > 1 else outputs[0], name=model.name
    )
    rewritten_model.output_names = list(model.output_names)
    return LoweredModel(rewritten_model, low.origins, list(low.output_by_layer.values()))


def pack_inputs(model: Any, inputs: list[Any]) -> Any:
    nested_inputs = getattr(model, "_nested_inputs", None)
    return (
        inputs[0]
        if len(inputs) == 1 and not isinstance(nested_inputs, dict)
        else tf.nest.pack_sequence_as(nested_inputs, inputs)
    )


def _build_input(tensor: Any, readers_by_name: dict[str, list[Any]]) -> Any:
    name = tensor._keras_history.layer.name
    # Keras takes indices as floats too; eight bits of a float are no index
    is_index = bool(readers_by_name[name]) and all(
        isinstance(layer, tf_keras.layers.Embedding) for layer in readers_by_name[name]
    )
    dtype = "int32" if is_index else tensor.dtype
    return tf_keras.Input(tensor.shape[1:], batch_size=tensor.shape[0], dtype=dtype, name=name)


def _walk_calls(model: Any, inputs: list[Any], lower_call: Callable[[LoweringCall], Any], low: Lowering) -> list[Any]:
    """Call `step` for every layer call of `model` in order, nested models opened up; gives the outputs."""
    tensor_by_id = dict(zip((str(id(tensor)) for tensor in model.inputs), inputs, strict=True))
    read_counts, call_counts = _read_counts(model), Counter(id(node.layer) for node in nodes(model))
    for node in nodes(model):
        args, kwargs = resolve_arguments(node, tensor_by_id)
        layer = node.layer
        if isinstance(layer, tf_keras.Model):
            outputs: Any = _walk_calls(layer, tf.nest.flatten(args), lower_call, low)
        else:
            outputs = lower_call(
                LoweringCall(
                    layer, args[0] if args else None, args[1:], _drop_unset(kwargs), call_counts[id(layer)] == 1
                )
            )
        for tensor, output in zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True):
            tensor_by_id[str(id(tensor))] = output
            (low.read_once.add if read_counts[str(id(tensor))] == 1 else low.read_once.discard)(id(output))
    return [tensor_by_id[str(id(tensor))] for tensor in model.outputs]


def nodes(model: Any) -> Iterator[Any]:
    """The layer calls of a functional tf_keras model, in the order of computation."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def resolve_arguments(node: Any, tensor_by_id: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer call was given, with `values` in place of its symbolic tensors."""
    stacks = {
        key: [tensor_by_id[key]] * node.flat_input_ids.count(key) for key in node.flat_input_ids
    }  # Keras pops them
    call_arguments: tuple[tuple[Any, ...], dict[str, Any]] = node.map_arguments(stacks)
    return call_arguments


def find_readers(model: Any) -> dict[str, list[Any]]:
    """The layers that read the output of each layer, by its name; one that reads it twice stands there twice."""
    readers_by_name: dict[str, list[Any]] = defaultdict(list)
    for node in nodes(model):
        for tensor in tf.nest.flatten(node.keras_inputs):
            readers_by_name[tensor._keras_history.layer.name].append(node.layer)
    return readers_by_name


def _read_counts(model: Any) -> Counter[str]:
    """How often each tensor is read, by id; being an output counts."""
    read = [key for node in nodes(model) for key in node.flat_input_ids]
    return Counter([*read, *(str(id(tensor)) for tensor in model.outputs)])


def _drop_unset(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if value is not None and key != "training"}


def check_equal(model: Any, lowered_model: Any, samples: Any) -> float:
    """The largest difference between the outputs of both on `samples`, relative to the largest output.

    Raises:
        InputError: it is above 1e-4.
    """
    worst_difference = 0.0
    for a, b in zip(
        *(map(np.asarray, tf.nest.flatten(m(samples, training=False))) for m in (model, lowered_model)), strict=True
    ):
        worst_difference = max(worst_difference, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12)))
    if not worst_difference <= TOLERANCE:
        raise InputError(
            f"the form of '{model.name}' that is quantized differs from it by {worst_difference:.1e} of its largest output "
            f"(allowed {TOLERANCE:.0e}); please report it"
        )
    return worst_difference
