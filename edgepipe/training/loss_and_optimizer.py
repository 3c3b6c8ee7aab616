"""Loss and optimizer of a task for one model: Keras 3 or tf_keras, probabilities or logits."""

from collections.abc import Mapping
from typing import Any

import keras
import tf_keras

from edgepipe.core.errors import InputError
from edgepipe.core.units import plural
from edgepipe.tasks.quality import Task
from edgepipe.training.named_outputs import arrange_by_output

PROBABILITY_ACTIVATIONS = {"softmax", "sigmoid", "hard_sigmoid", "Softmax", "Sigmoid"}


def keras_module_of(model: Any) -> Any:
    """The Keras module that `model` belongs to: `keras` (3) or `tf_keras`."""
    return tf_keras if isinstance(model, tf_keras.Model) else keras


def gives_logits(model: Any) -> bool:
    """Whether the model's outputs are logits, judging by the activation of the last layer."""
    layer = last_layer(model)
    name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
    return name not in PROBABILITY_ACTIVATIONS


def last_layer(model: Any) -> Any:
    """The layer that computes the output, inside nested models and wrappers."""
    layer = model.layers[-1] if model.layers else model
    while getattr(layer, "layers", None):
        layer = layer.layers[-1]
    while type(layer).__name__ == "QuantizeLayer":  # tfmot's fake-quant after the output layer
        layer = layer._inbound_nodes[0].inbound_layers
    return getattr(layer, "layer", layer)  # inside a wrapper of tfmot


def build_loss(task: Task, model: Any, from_logits: bool | None = None, soft_labels: bool = False) -> Any:
    """The loss function of `task` for the outputs of `model`.

    Args:
        task: has the loss, or "auto" for that of its kind.
        model: the model that computes the outputs.
        from_logits: whether the outputs are logits; None infers it from the model.
        soft_labels: labels are class probabilities (n, classes), as mixing samples creates them.

    Raises:
        InputError: soft labels with a user-defined loss.
    """
    keras_module = keras_module_of(model)
    if task.loss != "auto":
        if soft_labels:
            raise InputError("mixing samples (mixup, cutmix) needs the classification loss of edgepipe, not `loss:`")
        if isinstance(task.loss, Mapping):
            losses = {name: keras_module.losses.get(loss) for name, loss in task.loss.items()}
            return arrange_by_output(model, "losses of the task", losses)
        return keras_module.losses.get(task.loss) if isinstance(task.loss, str) else task.loss
    from_logits = gives_logits(model) if from_logits is None else from_logits
    if is_binary(task, model):
        return keras_module.losses.BinaryCrossentropy(from_logits=from_logits)
    loss_class = (
        keras_module.losses.CategoricalCrossentropy
        if soft_labels
        else keras_module.losses.SparseCategoricalCrossentropy
    )
    return loss_class(from_logits=from_logits)


def is_binary(task: Task, model: Any) -> bool:
    """Whether each output of a classifier is an independent yes or no."""
    has_several_outputs = isinstance(model.output_shape, (list, dict))
    return task.labels == "many" or (not has_several_outputs and bool(model.output_shape[-1] == 1))


def build_optimizer(task: Task, model: Any, learning_rate: Any) -> Any:
    """The optimizer of `task`; `learning_rate` is a float or a schedule of the model's own Keras."""
    class_name_by_option = {
        "adam": "Adam",
        "adamw": "AdamW",
        "nadam": "Nadam",
        "rmsprop": "RMSprop",
        "sgd": "SGD",
        "adagrad": "Adagrad",
    }
    return getattr(keras_module_of(model).optimizers, class_name_by_option[task.optimizer.name])(
        learning_rate=learning_rate
    )


def check_data_shapes(model: Any, task: Task, x: Any, y: Any) -> None:
    """Check that the model's input and output shapes fit the data and the task.

    Args:
        model: Keras 3 or tf_keras.
        task: what the outputs are for.
        x: samples (n, ...), or one array per named input.
        y: labels (n, ...), or None.

    Raises:
        InputError: they do not fit.
    """
    if not isinstance(x, dict) and len(model.inputs) > 1:
        raise InputError(f"the model '{model.name}' takes {len(model.inputs)} inputs, the samples are one array")
    if isinstance(x, dict) or isinstance(model.input_shape, (list, dict)):
        return  # Keras matches named inputs itself, and names a missing one
    input_shape, sample_shape = tuple(model.input_shape[1:]), tuple(x.shape[1:])
    if len(input_shape) != len(sample_shape) or any(
        model_size not in (None, size) for model_size, size in zip(input_shape, sample_shape, strict=True)
    ):
        raise InputError(f"the model '{model.name}' takes samples of shape {input_shape}, the data has {sample_shape}")
    if (
        task.kind != "classification"
        or task.labels != "one"
        or isinstance(model.output_shape, (list, dict))
        or y is None
    ):
        return
    output_count, class_count = model.output_shape[-1], int(y.max()) + 1
    if output_count is not None and class_count > max(output_count, 2):
        raise InputError(
            f"the model '{model.name}' has {plural(output_count, 'output')}, the data has {class_count} classes"
        )
