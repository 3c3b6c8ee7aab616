"""The few layers that the bridge needs and tf_keras lacks; all are serializable by name."""

import inspect
import json
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from edgepipe.models import custom_objects
from edgepipe.models.keras3_activations import PACKAGE
from edgepipe.models.keras_operators import OPERATORS, apply_operator


@tf_keras.utils.register_keras_serializable(package=PACKAGE)
class Operator(tf_keras.layers.Layer):  # type: ignore[misc]
    """One node of `keras.ops` (`x * 2`, `keras.ops.mean(x, axis=1)`) as a layer, evaluated by keras.ops itself.

    `operator` is the name of the Operation class; `arguments` is JSON of `args` and `kwargs` as `encode` gives them, in
    which `{"tensor": i}` stands for the i-th input of the layer. Inputs: one tensor or a list of tensors.
    """

    def __init__(self, operator: str, arguments: str, **common: Any) -> None:
        if operator not in OPERATORS:
            raise ValueError(f"operator '{operator}' is not one of: {', '.join(sorted(OPERATORS))}")
        super().__init__(**common)
        # as text: tf_keras wraps lists and dicts that are set on a layer, and the wrappers do not serialize
        self.operator, self.arguments = operator, arguments

    def call(self, inputs: Any) -> Any:
        """Apply the operator to the inputs and the stored constants."""
        tensors = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        return apply_operator(self.operator, json.loads(self.arguments), tensors)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "operator": self.operator, "arguments": self.arguments}


@tf_keras.utils.register_keras_serializable(package=PACKAGE)
class LayerScale(tf_keras.layers.Layer):  # type: ignore[misc]
    """x * gamma, one learned factor for each channel (Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, init_values: float, projection_dim: int, **common: Any) -> None:
        super().__init__(**common)
        self.init_values, self.projection_dim = init_values, projection_dim

    def build(self, input_shape: Any) -> None:
        """Create `gamma`, of the shape (projection_dim,)."""
        gamma_initializer = tf_keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=gamma_initializer)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Scale every channel."""
        return inputs * self.gamma

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "init_values": self.init_values, "projection_dim": self.projection_dim}


@tf_keras.utils.register_keras_serializable(package=PACKAGE)
class Weight(tf_keras.layers.Layer):  # type: ignore[misc]
    """A weight that a custom layer had of its own; called on any tensor of the graph, it gives the weight.

    The graph needs it where a custom layer was opened up and an operator in it uses the layer's weight.
    """

    def __init__(self, shape: Any, **common: Any) -> None:
        super().__init__(**common)
        self.shape = tuple(shape)
        self.value = self.add_weight(name="value", shape=self.shape, initializer="zeros", trainable=self.trainable)

    def call(self, inputs: Any) -> Any:
        """The weight, whatever the inputs."""
        return tf.convert_to_tensor(self.value)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "shape": list(self.shape)}


@tf_keras.utils.register_keras_serializable(package=PACKAGE)
class Keras3Layer(tf_keras.layers.Layer):  # type: ignore[misc]
    """A built Keras 3 layer that runs as it is inside a tf_keras model, on weights that belong to the tf_keras model.

    It trains and converts; no technique looks inside. `layer` is what `keras.saving.serialize_keras_object` gives.
    """

    def __init__(self, layer: dict[str, Any], **common: Any) -> None:
        super().__init__(**common)
        # as text: tf_keras wraps lists and dicts that are set on a layer, and the wrappers do not serialize
        self._config = json.dumps(layer)
        original = keras.saving.deserialize_keras_object(layer, custom_objects=dict(custom_objects.active_objects()))
        if isinstance(original, keras.Layer) and not original.built and not original.weights:
            original.built = not original.get_build_config()
        self._original = _UntrackedLayer(original)
        self.supports_masking = bool(getattr(original, "supports_masking", False))
        self.tf_weights = tuple(self._add_tf_weight(variable) for variable in original.weights)

    def _add_tf_weight(self, variable: Any) -> Any:
        return self.add_weight(
            name=variable.path.replace("/", "_"),
            shape=tuple(variable.shape),
            dtype=variable.dtype,
            initializer="zeros",
            trainable=variable.trainable and self.trainable,
        )

    @property
    def original(self) -> Any:
        """The Keras 3 layer; its weights are not the current ones."""
        return self._original.layer

    def call(self, inputs: Any, *more_inputs: Any, training: Any = None, **named: Any) -> Any:
        """What the Keras 3 layer gives with the current weights."""
        layer = self.original
        parameters = inspect.signature(layer.call).parameters
        if "mask" not in parameters:
            named.pop("mask", None)
        if "training" in parameters:
            named["training"] = bool(training)
        tensor_by_id = {
            id(original): tf.convert_to_tensor(tf_weight)
            for original, tf_weight in zip(layer.weights, self.tf_weights, strict=True)
        }
        trainable_tensors, state_tensors = (
            [tensor_by_id.get(id(variable), variable.value) for variable in group]
            for group in (layer.trainable_variables, layer.non_trainable_variables)
        )
        outputs, new_state = layer.stateless_call(trainable_tensors, state_tensors, inputs, *more_inputs, **named)
        if training:
            self._assign_state(new_state)
        return outputs

    def _assign_state(self, state: list[Any]) -> None:
        """Keep what a training step changed: moving statistics, and the state of random numbers."""
        tf_weight_by_id = {
            id(original): tf_weight for original, tf_weight in zip(self.original.weights, self.tf_weights, strict=True)
        }
        for variable, new_value in zip(self.original.non_trainable_variables, state, strict=True):
            tf_weight_by_id.get(id(variable), variable).assign(new_value)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "layer": json.loads(self._config)}


class _UntrackedLayer:
    """Holds a layer where neither tf_keras nor TensorFlow finds it: its weights are not the model's."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
