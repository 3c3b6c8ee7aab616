"""Loss and optimizer of a task, made for one model: Keras 3 or tf_keras, probabilities or logits."""

from typing import Any

import keras
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.tasks.quality import Task

PROBABILITY_ACTIVATIONS = {"softmax", "sigmoid", "hard_sigmoid", "Softmax", "Sigmoid"}


def keras_of(model: Any) -> Any:
    """The Keras that `model` belongs to: the module `keras` (3) or `tf_keras`."""
    return tf_keras if isinstance(model, tf_keras.Model) else keras


def gives_logits(model: Any) -> bool:
    """Whether the model's last layer leaves class scores as they are, by its activation."""
    layer = last_layer(model)
    name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
    return name not in PROBABILITY_ACTIVATIONS


def last_layer(model: Any) -> Any:
    """The layer that gives the output, inside nested models and wrappers."""
    layer = model.layers[-1] if model.layers else model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    while type(layer).__name__ == "QuantizeLayer":  # tfmot's fake-quant stands behind what gives the output
        layer = layer._inbound_nodes[0].inbound_layers
    return getattr(layer, "layer", layer)  # inside a wrapper of tfmot


def loss(task: Task, model: Any, logits: bool | None = None, soft_labels: bool = False) -> Any:
    """The loss function of `task` for the outputs of `model`.

    Args:
        task: names the loss, or leaves it to its kind.
        model: whose outputs they are.
        logits: whether these are taken before its softmax; None looks at the model.
        soft: labels are shares of classes, (n, classes), as mixing samples makes them.

    Raises:
        InputError: soft labels with a loss of the user's own.
    """
    library = keras_of(model)
    if task.loss != "auto":
        if soft_labels:
            raise InputError("mixing samples (mixup, cutmix) needs the classification loss of edgepipe, not `loss:`")
        return library.losses.get(task.loss) if isinstance(task.loss, str) else task.loss
    logits = gives_logits(model) if logits is None else logits
    if is_binary(task, model):
        return library.losses.BinaryCrossentropy(from_logits=logits)
    kind = library.losses.CategoricalCrossentropy if soft_labels else library.losses.SparseCategoricalCrossentropy
    return kind(from_logits=logits)


def is_binary(task: Task, model: Any) -> bool:
    """Whether each output of a classifier is a yes or no of its own."""
    return task.labels == "many" or bool(model.output_shape[-1] == 1)


def optimizer(task: Task, model: Any, learning_rate: Any) -> Any:
    """The optimizer of `task`; `learning_rate` is a float or a schedule of the model's own Keras."""
    class_by_name = {
        "adam": "Adam",
        "adamw": "AdamW",
        "nadam": "Nadam",
        "rmsprop": "RMSprop",
        "sgd": "SGD",
        "adagrad": "Adagrad",
    }
    return getattr(keras_of(model).optimizers, class_by_name[task.optimizer.name])(learning_rate=learning_rate)


def check_shapes(model: Any, task: Task, x: Any, y: Any) -> None:
    """Raise an `InputError` unless the model's input and output shapes fit the data and the task."""
    if not isinstance(x, dict) and len(model.inputs) > 1:
        raise InputError(f"the model '{model.name}' takes {len(model.inputs)} inputs, the samples are one array")
    if isinstance(x, dict) or isinstance(model.input_shape, (list, dict)):
        return  # Keras itself matches named inputs, and says which one is missing
    input_shape, sample_shape = tuple(model.input_shape[1:]), tuple(x.shape[1:])
    if len(input_shape) != len(sample_shape) or any(
        w not in (None, f) for w, f in zip(input_shape, sample_shape, strict=True)
    ):
        raise InputError(f"the model '{model.name}' takes samples of shape {input_shape}, the data has {sample_shape}")
    if task.kind != "classification" or task.labels != "one" or isinstance(model.output_shape, list) or y is None:
        return
    output_count, class_count = model.output_shape[-1], int(y.max()) + 1
    if output_count is not None and class_count > max(output_count, 2):
        raise InputError(f"the model '{model.name}' tells {output_count} classes apart, the data has {class_count}")
