"""The inputs of a Keras 3 or tf_keras model: their names and shapes, and whether the model is built at all."""

from collections.abc import Iterable, Mapping

from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import plural
from edgepipe.models.keras_types import AnyKerasModel, KerasTensor

OPEN_SHAPE_REMEDY = "`input_shape` (--input-shape 224x224x3), or rebuild the model with a full Input(shape=...)"


def input_name(tensor: KerasTensor) -> str:
    """The name of the input layer of the symbolic `tensor` (the name of a new Keras 3 tensor itself is a counter)."""
    layer = tensor._keras_history[0]  # Keras 3 calls it operation, tf_keras layer
    return str(layer.name)


def input_names(model: AnyKerasModel) -> list[str]:
    """The names of the model's inputs, in the order of its signature."""
    return [input_name(tensor) for tensor in model.inputs]


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


def match_input_shapes(
    model: AnyKerasModel, shape_by_input: Mapping[str, tuple[int, ...]]
) -> list[tuple[int | None, ...]]:
    """The shape of each input, with its batch: as given, else as the model has it.

    Raises:
        InputError: an input that the model does not have, or sizes that contradict the model's.
    """
    names = input_names(model)
    if "" in shape_by_input and len(names) > 1:
        raise InputError(
            f"'{model.name}' has {len(names)} inputs; give an input shape by name, such as "
            f"{names[0]}={'x'.join(map(str, shape_by_input['']))} (inputs: {', '.join(names)})"
        )
    for name in shape_by_input:
        if name and name not in names:
            raise InputError(f"input shape of '{name}': '{model.name}' has no such input{did_you_mean(name, names)}")
    return [
        _match_shape(name, tuple(tensor.shape), shape_by_input.get(name, shape_by_input.get("")))
        for name, tensor in zip(names, model.inputs, strict=True)
    ]


def _match_shape(
    name: str, model_shape: tuple[int | None, ...], sizes: tuple[int, ...] | None
) -> tuple[int | None, ...]:
    if sizes is None:
        return model_shape
    fits = len(sizes) == len(model_shape) - 1 and all(
        own in (None, given) for own, given in zip(model_shape[1:], sizes, strict=True)
    )
    if not fits:
        raise InputError(
            f"input shape {'x'.join(map(str, sizes))} does not fit input '{name}' of the shape {model_shape}: it takes "
            f"{plural(len(model_shape) - 1, 'size')} without the batch, and only open ones (None) can be chosen"
        )
    return (model_shape[0], *sizes)


def _missing_inputs_message(model: AnyKerasModel) -> str:
    if type(model).__name__ == "Sequential":
        return f"'{model.name}' is not built (no input shape, no weights); put an Input(shape=...) first"
    return (
        f"'{model.name}' is a subclassed model ({type(model).__name__}) without a graph of layers; wrap it: "
        "keras.Model(inputs, layers called on inputs)"
    )
