"""The inputs of a Keras 3 or tf_keras model: their names and shapes, and whether the model is built at all."""

from collections.abc import Iterable

from edgepipe.core.errors import InputError
from edgepipe.models.keras_types import AnyKerasModel, KerasTensor

OPEN_SHAPE_REMEDY = "`input_shape` (--input-shape 224x224x3), or rebuild the model with a full Input(shape=...)"


def input_name(tensor: KerasTensor) -> str:
    """The name of the input layer of the symbolic `tensor` (the name of a new Keras 3 tensor itself is a counter)."""
    layer = tensor._keras_history[0]  # Keras 3 calls it operation, tf_keras layer
    return str(layer.name)


def check_is_graph(model: AnyKerasModel) -> None:
    """Raise an `InputError` unless `model` is built and is a graph of layers."""
    if not getattr(model, "inputs", None):
        raise InputError(_missing_inputs_message(model))


def check_input_shapes(model: AnyKerasModel) -> None:
    """Raise an `InputError` unless `model` is built, is a graph of layers, and only its batch dimension may vary."""
    check_is_graph(model)
    for tensor in model.inputs:
        if None in tuple(tensor.shape)[1:]:
            raise InputError(
                f"input '{input_name(tensor)}' of '{model.name}' has the shape {tuple(tensor.shape)}; all but the "
                f"first dimension must be fixed for a device: give {OPEN_SHAPE_REMEDY}"
            )


def parse_input_shapes(texts: str | Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Sizes by input: `224x224x3` for a model of one input (key ""), `photo=224x224x3,age=1`, or several such texts.

    Raises:
        InputError: a text that is no shape, or two for one input.
    """
    shape_by_input: dict[str, tuple[int, ...]] = {}
    if not texts:
        return shape_by_input
    for text in (texts if isinstance(texts, str) else ",".join(texts)).split(","):
        name, _, sizes_text = text.strip().rpartition("=")
        sizes = sizes_text.split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise InputError(
                f"input shape '{text}' is not of the form 224x224x3, or name=224x224x3 for one of several inputs: "
                "sizes greater than 0 without the batch"
            )
        if name in shape_by_input:
            raise InputError(f"input shape '{text}': input '{name}' has one already")
        shape_by_input[name] = tuple(int(size) for size in sizes)
    return shape_by_input


def _missing_inputs_message(model: AnyKerasModel) -> str:
    if type(model).__name__ == "Sequential":
        return f"'{model.name}' is not built (no input shape, no weights); put an Input(shape=...) first"
    return (
        f"'{model.name}' is a subclassed model ({type(model).__name__}) without a graph of layers; wrap it: "
        "keras.Model(inputs, layers called on inputs)"
    )
