"""What the lowering rules work with: the layer call to lower, and the context that builds the lowered graph."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgepipe.core.arrays import Array
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.keras_operators import encode_argument
from edgepipe.models.keras_types import KerasTensor, TensorTree, TfKerasLayer

Mask = KerasTensor | Array  # which elements count: bool, a tensor of the lowered model or a constant
LayerRule = Callable[["LoweringContext", "LoweringCall"], TensorTree]  # lowers one call; returns its output


@dataclass(frozen=True)
class LoweringCall:
    """One call of one original layer: the layer, the lowered tensors and the options it is called with."""

    layer: TfKerasLayer
    inputs: TensorTree  # a tensor, or a list of tensors
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_only_call: bool  # whether the layer is called just once
    mask_by_input_id: Mapping[int, KerasTensor] = field(default_factory=dict)  # by the id of a lowered tensor
    output_mask: KerasTensor | None = None  # of the first output, as Keras attaches it

    @property
    def x(self) -> KerasTensor:
        """The only, or the first, input tensor."""
        return self.inputs[0] if isinstance(self.inputs, (list, tuple)) else self.inputs

    @property
    def mask_argument(self) -> TensorTree:
        """The argument `mask` if the call has one, or else the masks of the inputs, in their structure; None for none.

        An explicit `mask=None` is kept in `kwargs`.
        """
        if "mask" in self.kwargs:
            return self.kwargs["mask"]
        return tf.nest.map_structure(lambda tensor: self.mask_by_input_id.get(id(tensor)), self.inputs)


class CallArguments(list[Any]):
    """Positional arguments of a call; a plain list would be a single argument, a list of tensors."""


@dataclass(frozen=True)
class LayerOrigin:
    """The original layer that a lowered layer implements, and why fake-quant cannot reach inside it, if so."""

    layer: TfKerasLayer
    opaque_reason: str = ""  # empty for a layer that was decomposed or is a single operator anyway


@dataclass
class LoweringContext:
    """State of one lowering. Rules add layers through `apply` and `op`, which track names, weights and origins."""

    taken_names: set[str] = field(default_factory=set)
    origin_by_name: dict[str, LayerOrigin] = field(default_factory=dict)
    output_name_by_layer_id: dict[int, tuple[TfKerasLayer, str]] = field(
        default_factory=dict
    )  # by id of an original layer
    lowered_layer_by_key: dict[tuple[int, str], TfKerasLayer] = field(default_factory=dict)
    # id of a reshaped tensor -> (that tensor, the tensor before the reshape)
    reshape_source_by_id: dict[int, tuple[KerasTensor, KerasTensor]] = field(default_factory=dict)
    read_once_ids: set[int] = field(default_factory=set)  # ids of lowered tensors with a single reader in the original
    relu_output_by_key: dict[tuple[int, float | None], KerasTensor] = field(
        default_factory=dict
    )  # by tensor and maximum
    current_layer: TfKerasLayer = None

    def apply(
        self,
        layer: TfKerasLayer,
        x: TensorTree,
        weights: list[Array] | None = None,
        opaque_reason: str = "",
        **call_kwargs: Any,
    ) -> TensorTree:
        """Call `layer` on `x`. A second call of the same original layer reuses the lowered layer of the first.

        Args:
            layer: The lowered layer; its name is made unique.
            x: A tensor, a list of tensors, or `CallArguments`.
            weights: Weights to set, in the order of `layer.weights`, each reshaped to fit; None keeps the initial ones.
            opaque_reason: Why fake-quant cannot reach inside `layer`; empty if it can.
            **call_kwargs: Keyword arguments of the call.
        """
        key = (id(self.current_layer), layer.name)
        lowered_layer = self.lowered_layer_by_key.get(key)
        if lowered_layer is None:
            lowered_layer = self.lowered_layer_by_key[key] = self._make_name_unique(layer)
            self.origin_by_name[lowered_layer.name] = LayerOrigin(self.current_layer, opaque_reason)
        output = lowered_layer(*x, **call_kwargs) if isinstance(x, CallArguments) else lowered_layer(x, **call_kwargs)
        if weights and layer is lowered_layer:
            lowered_layer.set_weights(
                [np.asarray(array).reshape(w.shape) for array, w in zip(weights, lowered_layer.weights, strict=True)]
            )
        return output

    def relu(self, x: KerasTensor, max_value: float | None, name: str) -> KerasTensor:
        """A ReLU with maximum `max_value`; shared by all readers of the same tensor, as the converter merges them."""
        key = (id(x), max_value)
        if key not in self.relu_output_by_key:
            self.relu_output_by_key[key] = self.apply(tf_keras.layers.ReLU(max_value, name=name), x)
        return self.relu_output_by_key[key]

    def record_output(self, output: TensorTree) -> None:
        """Record which lowered layer computes the output of the current original layer."""
        first_output = tf.nest.flatten(output)[0]
        # all readers may bypass a reshape of the output
        _, source_tensor = self.reshape_source_by_id.get(id(first_output), (first_output, first_output))
        self.output_name_by_layer_id.setdefault(
            id(self.current_layer), (self.current_layer, source_tensor._keras_history.layer.name)
        )

    def _make_name_unique(self, layer: TfKerasLayer) -> TfKerasLayer:
        wanted_name, number = layer.name, 2
        while layer.name in self.taken_names:
            layer._name = f"{wanted_name}_{number}"
            number += 1
        self.taken_names.add(layer.name)
        return layer

    def op(self, operator: str, x: TensorTree, suffix: str, /, *constants: Any, **options: Any) -> KerasTensor:
        """Apply the `keras.ops` operator to one tensor, or a list of tensors, followed by constants."""
        tensors = x if isinstance(x, list) else [x]
        args = [
            *({"tensor": index} for index in range(len(tensors))),
            *(encode_argument(constant, []) for constant in constants),
        ]
        operator_call = {"args": args, "kwargs": {key: encode_argument(option, []) for key, option in options.items()}}
        layer = OperatorLayer(operator, json.dumps(operator_call), name=f"{self.current_layer.name}_{suffix}")
        return self.apply(layer, x)

    def reshape(self, x: KerasTensor, shape: tuple[int, ...], suffix: str) -> KerasTensor:
        """Reshape `x` to `shape` (without the batch axis); returns `x` itself if it has that shape already."""
        if tuple(x.shape[1:]) == shape:
            return x
        # one original layer may reshape several tensors to different shapes: the shape is part of the name
        name = f"{self.current_layer.name}_{suffix}_{'x'.join(map(str, shape))}"
        return self.apply(tf_keras.layers.Reshape(shape, name=name), x)

    def to_nhwc(self, x: KerasTensor) -> tuple[KerasTensor, Callable[[KerasTensor], KerasTensor]]:
        """`x` as (batch, height, width, channels), and a function that restores the leading shape of `x`.

        If `x` is itself a restored tensor, the tensor before that reshape is returned, so that consecutive
        convolutions have no reshape in between.
        """
        reshape_source = self.reshape_source_by_id.get(id(x))
        nhwc = reshape_source[1] if reshape_source is not None else self._reshape_to_nhwc(x)
        self._copy_read_once(x, nhwc)
        lead_shape = tuple(x.shape[1:-1])

        def restore_shape(output: KerasTensor) -> KerasTensor:
            if len(lead_shape) == 2:
                return output
            # a one-dimensional convolution changes the second axis of (1, length, channels)
            restored_output = self.reshape(
                output, (*(output.shape[2:3] if len(lead_shape) == 1 else lead_shape), output.shape[-1]), "shape"
            )
            self.reshape_source_by_id[id(restored_output)] = (restored_output, output)
            return restored_output

        return nhwc, restore_shape

    def to_nhwc_or_vector(self, x: KerasTensor) -> tuple[KerasTensor, Callable[[KerasTensor], KerasTensor]]:
        """`to_nhwc`, but (batch, channels) stays as it is: for what TFLite also fuses into a dense layer."""
        return self.to_nhwc(x) if len(x.shape) > 2 else (x, lambda output: output)

    def _reshape_to_nhwc(self, x: KerasTensor) -> KerasTensor:
        shape = tuple(x.shape[1:])
        if len(shape) == 3:
            return x
        return self.reshape(x, (1, int(np.prod(shape[:-1])), shape[-1]), "square")

    def _copy_read_once(self, x: KerasTensor, nhwc: KerasTensor) -> None:
        if id(x) in self.read_once_ids:
            self.read_once_ids.add(id(nhwc))

    def affine(self, x: KerasTensor, scale: Array, offset: Array, suffix: str, trainable: bool = True) -> KerasTensor:
        """`x * scale + offset` per channel, as a 1 x 1 depthwise convolution: one int8 operator with exact weights.

        Args:
            x: The input, with channels last.
            scale: One factor per channel, or a single one for all.
            offset: One summand per channel, or a single one for all.
            suffix: Appended to the name of the current layer; may be empty.
            trainable: Whether the two are trained.
        """
        nhwc, restore_shape = self.to_nhwc(x)
        channels = nhwc.shape[-1]
        name = f"{self.current_layer.name}_{suffix}".rstrip("_")
        layer = tf_keras.layers.DepthwiseConv2D(1, name=name, trainable=trainable)
        kernel, bias = (
            np.broadcast_to(np.asarray(parameter, np.float32).ravel(), (channels,)) for parameter in (scale, offset)
        )
        return restore_shape(self.apply(layer, nhwc, [kernel.reshape(1, 1, channels, 1), bias]))
