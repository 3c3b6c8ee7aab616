"""The inputs of a Keras 3 or tf_keras model: their names and shapes, and whether the model is built at all."""

from edgepipe.core.errors import InputError
from edgepipe.models.keras_types import AnyKerasModel, KerasTensor


def input_name(tensor: KerasTensor) -> str:
    """The name of the input layer of the symbolic `tensor` (the name of a new Keras 3 tensor itself is a counter)."""
    layer = tensor._keras_history[0]  # Keras 3 calls it operation, tf_keras layer
    return str(layer.name)


def check_input_shapes(model: AnyKerasModel) -> None:
    """Raise an `InputError` unless `model` is built, is a graph of layers, and only its batch dimension may vary."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise InputError(_missing_inputs_message(model))
    for tensor in inputs:
        if None in tuple(tensor.shape)[1:]:
            raise InputError(
                f"input '{input_name(tensor)}' of '{model.name}' has the shape {tuple(tensor.shape)}; all but the "
                "first dimension must be fixed for a device: rebuild the model with a full Input(shape=...)"
            )


def _missing_inputs_message(model: AnyKerasModel) -> str:
    if type(model).__name__ == "Sequential":
        return f"'{model.name}' is not built (no input shape, no weights); put an Input(shape=...) first"
    return (
        f"'{model.name}' is a subclassed model ({type(model).__name__}) without a graph of layers; wrap it: "
        "keras.Model(inputs, layers called on inputs)"
    )
