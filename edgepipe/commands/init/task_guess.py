"""Guesses the task of a model from its last activation, its shapes and its labels, with the reason."""

from dataclasses import dataclass
from typing import Any

from edgepipe.commands.init.data_source import LabelKind
from edgepipe.commands.init.model_info import ARGUMENTS_FROM_DATA, ModelFunction, ModelInfo
from edgepipe.models.model_description import Shape

_CUSTOM_TASK_HINT = "write a task of your own, see docs/tasks.md"


@dataclass(frozen=True)
class TaskGuess:
    """A task and the reason for it. `options` is the value of `task:`; None if no built-in task fits."""

    name: str
    options: str | dict[str, Any] | None
    reason: str
    primary_metric: str = ""  # the primary quality metric
    in_points: bool = True  # the metric is a fraction, so drops are in points


def guess_task(model: ModelInfo, labels: LabelKind) -> TaskGuess:
    """The most likely task of `model`; `labels` is the kind of labels in the data."""
    if model.function is not None:
        return _guess_by_source(model.function, labels)
    if len(model.outputs) > 1:
        return _no_task(f"{len(model.outputs)} outputs; {_CUSTOM_TASK_HINT}")
    if not model.outputs:
        return _guess_by_labels(labels, "the model's file does not describe its outputs")
    return _guess_by_output(model, model.outputs[0].shape, labels)


def _guess_by_output(model: ModelInfo, shape: Shape, labels: LabelKind) -> TaskGuess:
    is_reconstruction = any(_is_same_shape(shape, port.shape) for port in model.inputs[:1])
    if labels == "none" and not is_reconstruction:
        return _no_task("the data has no labels to compare its outputs with; add an array y")
    if len(shape) > 2 and model.activation in ("softmax", "sigmoid") and not is_reconstruction:
        return _no_task(
            f"{model.activation} at every position of an output with {len(shape) - 1} dimensions; {_CUSTOM_TASK_HINT}"
        )
    return _guess_by_activation(model, shape, labels, is_reconstruction)


def _guess_by_activation(model: ModelInfo, shape: Shape, labels: LabelKind, is_reconstruction: bool) -> TaskGuess:
    size = shape[-1] if len(shape) > 1 else None
    if model.activation == "softmax" and size != 1:
        return _classification(f"the model ends in a softmax over {size or 'its'} outputs")
    if model.activation == "sigmoid" and size == 1:
        return _classification("the model ends in one sigmoid: two classes, 0 and 1")
    if is_reconstruction:
        return _reconstruction(f"the model's output has the shape of its input, {shape[1:]}", labels)
    if model.activation == "sigmoid":
        return _multilabel(f"the model ends in a sigmoid over {size or 'its'} outputs: independent labels")
    if labels == "classes" and size != 1:
        return _classification(
            f"the labels are integers, one per sample, and {size or 'its'} outputs are class scores (logits)"
        )
    return _regression(f"the model ends in {model.activation}; if its outputs are class scores, write `classification`")


def _guess_by_labels(labels: LabelKind, default_reason: str) -> TaskGuess:
    if labels == "classes":
        return _classification("the labels are integers, one per sample")
    return _no_task(f"{default_reason}; write `task: classification`, regression or reconstruction")


def _guess_by_source(function: ModelFunction, labels: LabelKind) -> TaskGuess:
    if "classes" in function.parameters:
        return _classification(f"'{function.name}' takes `classes`")
    if "autoencoder" in function.name.lower():
        return _reconstruction(f"the name '{function.name}'", labels)
    if "softmax" in function.body_texts:
        return _classification(f"the source of '{function.name}' uses softmax")
    if labels == "classes":
        return _classification("the labels are integers, one per sample")
    if "sigmoid" in function.body_texts:
        return _classification(
            f"the source of '{function.name}' uses sigmoid; for several labels per sample: `labels: many`"
        )
    model_note = "" if set(function.parameters) <= set(ARGUMENTS_FROM_DATA) else ", and it has arguments of its own"
    return _regression(f"nothing in '{function.name}' suggests classes{model_note}")


def _is_same_shape(output_shape: Shape, input_shape: Shape) -> bool:
    """Whether all known sizes are equal, the last one is known, and there is more than one element."""
    pairs = list(zip(output_shape[1:], input_shape[1:], strict=False))
    sizes_agree = all(a == b or None in (a, b) for a, b in pairs)
    has_many_elements = any((b or 2) > 1 for _, b in pairs)
    return (
        len(output_shape) == len(input_shape) > 1
        and output_shape[-1] == input_shape[-1] is not None
        and sizes_agree
        and has_many_elements
    )


def _classification(reason: str) -> TaskGuess:
    return TaskGuess("classification", "classification", reason, "accuracy")


def _multilabel(reason: str) -> TaskGuess:
    return TaskGuess(
        "classification with many labels", {"kind": "classification", "labels": "many"}, reason, "f1_macro"
    )


def _reconstruction(reason: str, labels: LabelKind) -> TaskGuess:
    if labels in ("classes", "values"):
        return TaskGuess("reconstruction", "reconstruction", reason, "roc_auc")
    # ROC AUC needs labels
    return TaskGuess("reconstruction", {"kind": "reconstruction", "metrics": ["mse"]}, reason, "mse", in_points=False)


def _regression(reason: str) -> TaskGuess:
    return TaskGuess("regression", "regression", reason, "mae", in_points=False)


def _no_task(reason: str) -> TaskGuess:
    return TaskGuess("", None, reason)
