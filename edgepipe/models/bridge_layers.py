"""The few layers that the bridge needs and tf_keras lacks; all are serializable by their registered name."""

import inspect
import json
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from edgepipe.models import custom_objects
from edgepipe.models.keras3_activations import REGISTRATION_PACKAGE
from edgepipe.models.keras_operators import OPERATOR_NAMES, apply_operator, run_encoded_call
from edgepipe.models.keras_types import AnyKerasVariable, KerasLayer, Tensor, TensorTree


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE, name="Operator")
class OperatorLayer(tf_keras.layers.Layer):  # type: ignore[misc]
    """One node of `keras.ops` (`x * 2`, `keras.ops.mean(x, axis=1)`) as a layer, evaluated by keras.ops itself.

    `operator` is the name of the Operation class; `arguments` is JSON of `args` and `kwargs` from `encode_argument`, in
    which `{"tensor": i}` is the i-th input of the layer. Inputs: one tensor or a list of tensors.
    """

    def __init__(self, operator: str, arguments: str, **common: Any) -> None:
        if operator not in OPERATOR_NAMES:
            raise ValueError(f"operator '{operator}' is not one of: {', '.join(sorted(OPERATOR_NAMES))}")
        super().__init__(**common)
        # as text: tf_keras wraps lists and dicts that are set on a layer, and the wrappers do not serialize
        self.operator, self.arguments = operator, arguments

    def call(self, inputs: TensorTree) -> TensorTree:
        """Apply the operator to the inputs and the stored constants."""
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        return apply_operator(self.operator, json.loads(self.arguments), tensors)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "operator": self.operator, "arguments": self.arguments}


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)
class LayerScale(tf_keras.layers.Layer):  # type: ignore[misc]
    """x * gamma, one learned factor per channel (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, init_values: float, projection_dim: int, **common: Any) -> None:
        super().__init__(**common)
        self.init_values, self.projection_dim = init_values, projection_dim

    def build(self, input_shape: Any) -> None:
        """Create `gamma`, of shape (projection_dim,)."""
        gamma_initializer = tf_keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=gamma_initializer)
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        """Scale every channel."""
        return inputs * self.gamma

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "init_values": self.init_values, "projection_dim": self.projection_dim}


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE, name="Weight")
class WeightLayer(tf_keras.layers.Layer):  # type: ignore[misc]
    """A weight owned by a custom layer itself, as a layer: called on any tensor of the graph, it returns the weight.

    Needed where a custom layer was traced into its operators and one of them uses the layer's own weight.
    """

    def __init__(self, shape: Sequence[int], **common: Any) -> None:
        super().__init__(**common)
        self.shape = tuple(shape)
        self.value = self.add_weight(name="value", shape=self.shape, initializer="zeros", trainable=self.trainable)

    def call(self, inputs: TensorTree) -> Tensor:
        """The weight, whatever the inputs."""
        return tf.convert_to_tensor(self.value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "shape": list(self.shape)}


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)
class MaskReader(tf_keras.layers.Layer):  # type: ignore[misc]
    """The implicit mask of a tensor, as a tensor."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor = None) -> Tensor:
        """The mask, (batch, steps), bool."""
        return mask

    def compute_mask(self, inputs: Tensor, mask: Tensor = None) -> None:
        """None: a mask has no mask."""


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)
class MaskAttachment(tf_keras.layers.Layer):  # type: ignore[misc]
    """A tensor with an implicit mask: of the inputs [tensor, mask], the first one with the second as its mask."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.supports_masking = True

    def call(self, inputs: list[Tensor]) -> Tensor:
        """The tensor."""
        return tf.identity(inputs[0])

    def compute_mask(self, inputs: list[Tensor], mask: Any = None) -> Tensor:
        """The mask, (batch, steps), bool."""
        return tf.cast(inputs[1], "bool")


@tf_keras.utils.register_keras_serializable(package=REGISTRATION_PACKAGE)
class Keras3Layer(tf_keras.layers.Layer):  # type: ignore[misc]
    """A built Keras 3 layer that runs inside a tf_keras model, on weights owned by the tf_keras model.

    It trains and converts; no compression technique looks inside. `layer` is the output of
    `keras.saving.serialize_keras_object`; `first_call` (of `encode_call`) is a call that creates the weights of a layer
    whose inner layers are built by their first call.
    """

    def __init__(self, layer: dict[str, Any], first_call: dict[str, Any] | None = None, **common: Any) -> None:
        super().__init__(**common)
        # as text: tf_keras wraps lists and dicts that are set on a layer, and the wrappers do not serialize
        self._layer_json, self._first_call_json = json.dumps(layer), json.dumps(first_call)
        keras3_layer = keras.saving.deserialize_keras_object(
            layer, custom_objects=dict(custom_objects.active_objects())
        )
        if isinstance(keras3_layer, keras.Layer) and not keras3_layer.built and not keras3_layer.weights:
            keras3_layer.built = not keras3_layer.get_build_config()
        if first_call is not None:
            run_encoded_call(keras3_layer, first_call)
        self._untracked_layer = _UntrackedLayer(keras3_layer)
        self.supports_masking = bool(getattr(keras3_layer, "supports_masking", False))
        self.tf_weights = tuple(self._add_tf_weight(variable) for variable in keras3_layer.weights)

    def _add_tf_weight(self, variable: AnyKerasVariable) -> AnyKerasVariable:
        return self.add_weight(
            name=variable.path.replace("/", "_"),
            shape=tuple(variable.shape),
            dtype=variable.dtype,
            initializer="zeros",
            trainable=variable.trainable and self.trainable,
        )

    @property
    def keras3_layer(self) -> KerasLayer:
        """The Keras 3 layer; its own weights are stale."""
        return self._untracked_layer.layer

    def call(
        self, inputs: TensorTree, *more_inputs: Any, training: bool | None = None, **call_kwargs: Any
    ) -> TensorTree:
        """Run the Keras 3 layer with the current weights."""
        layer = self.keras3_layer
        call_parameters = inspect.signature(layer.call).parameters
        if "mask" not in call_parameters:
            call_kwargs.pop("mask", None)
        if "training" in call_parameters:
            call_kwargs["training"] = bool(training)
        tensor_by_id = {
            id(keras3_weight): tf.convert_to_tensor(tf_weight)
            for keras3_weight, tf_weight in zip(layer.weights, self.tf_weights, strict=True)
        }
        trainable_tensors, state_tensors = (
            [tensor_by_id.get(id(variable), variable.value) for variable in variables]
            for variables in (layer.trainable_variables, layer.non_trainable_variables)
        )
        outputs, new_state = layer.stateless_call(trainable_tensors, state_tensors, inputs, *more_inputs, **call_kwargs)
        if training:
            self._assign_state(new_state)
        return outputs

    def _assign_state(self, state_tensors: list[Tensor]) -> None:
        """Store what a training step changed: moving statistics and random-generator state."""
        tf_weight_by_id = {
            id(original): tf_weight
            for original, tf_weight in zip(self.keras3_layer.weights, self.tf_weights, strict=True)
        }
        for variable, new_value in zip(self.keras3_layer.non_trainable_variables, state_tensors, strict=True):
            tf_weight_by_id.get(id(variable), variable).assign(new_value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        layer, first_call = json.loads(self._layer_json), json.loads(self._first_call_json)
        return {**super().get_config(), "layer": layer, **({} if first_call is None else {"first_call": first_call})}

    def compute_mask(self, inputs: TensorTree, mask: TensorTree = None) -> TensorTree:
        """The mask that the Keras 3 layer hands on, if it has one."""
        return self.keras3_layer.compute_mask(inputs, mask) if self.supports_masking else None


class _UntrackedLayer:
    """Hides a layer from the attribute tracking of tf_keras and TensorFlow: its weights are not the model's."""

    def __init__(self, layer: KerasLayer) -> None:
        self.layer = layer
