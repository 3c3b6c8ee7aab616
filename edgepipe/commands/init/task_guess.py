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

    task_name: str
    options: str | dict[str, Any] | None
    reason: str
    primary_metric: str = ""  # the primary quality metric
    in_points: bool = True  # the metric is a fraction, so drops are in points


def guess_task(model_info: ModelInfo, label_kind: LabelKind) -> TaskGuess:
    """The most likely task of `model_info`; `label_kind` is the kind of labels in the data."""
    if model_info.function is not None:
        return _guess_by_source(model_info.function, label_kind)
    if len(model_info.outputs) > 1:
        return _guess_no_task(f"{len(model_info.outputs)} outputs; {_CUSTOM_TASK_HINT}")
    if not model_info.outputs:
        return _guess_by_labels(label_kind, "the model's file does not describe its outputs")
    return _guess_by_output(model_info, model_info.outputs[0].shape, label_kind)


def _guess_by_output(model_info: ModelInfo, output_shape: Shape, label_kind: LabelKind) -> TaskGuess:
    is_reconstruction = any(_is_same_shape(output_shape, port.shape) for port in model_info.inputs[:1])
    if label_kind == "none" and not is_reconstruction:
        return _guess_no_task("the data has no labels to compare its outputs with; add an array y")
    if len(output_shape) > 2 and model_info.activation in ("softmax", "sigmoid") and not is_reconstruction:
        return _guess_no_task(
            f"{model_info.activation} at every position of an output with {len(output_shape) - 1} dimensions; "
            f"{_CUSTOM_TASK_HINT}"
        )
    return _guess_by_activation(model_info, output_shape, label_kind, is_reconstruction)


def _guess_by_activation(
    model_info: ModelInfo, output_shape: Shape, label_kind: LabelKind, is_reconstruction: bool
) -> TaskGuess:
    output_size = output_shape[-1] if len(output_shape) > 1 else None
    if model_info.activation == "softmax" and output_size != 1:
        return _guess_classification(f"the model ends in a softmax over {output_size or 'its'} outputs")
    if model_info.activation == "sigmoid" and output_size == 1:
        return _guess_classification("the model ends in one sigmoid: two classes, 0 and 1")
    if is_reconstruction:
        return _guess_reconstruction(f"the model's output has the shape of its input, {output_shape[1:]}", label_kind)
    if model_info.activation == "sigmoid":
        return _guess_multilabel(f"the model ends in a sigmoid over {output_size or 'its'} outputs: independent labels")
    if label_kind == "classes" and output_size != 1:
        return _guess_classification(
            f"the labels are integers, one per sample, and {output_size or 'its'} outputs are class scores (logits)"
        )
    return _guess_regression(
        f"the model ends in {model_info.activation}; if its outputs are class scores, write `classification`"
    )


def _guess_by_labels(label_kind: LabelKind, default_reason: str) -> TaskGuess:
    if label_kind == "classes":
        return _guess_classification("the labels are integers, one per sample")
    return _guess_no_task(f"{default_reason}; write `task: classification`, regression or reconstruction")


def _guess_by_source(model_function: ModelFunction, label_kind: LabelKind) -> TaskGuess:
    if "classes" in model_function.parameter_names:
        return _guess_classification(f"'{model_function.name}' takes `classes`")
    if "autoencoder" in model_function.name.lower():
        return _guess_reconstruction(f"the name '{model_function.name}'", label_kind)
    if "softmax" in model_function.string_constants:
        return _guess_classification(f"the source of '{model_function.name}' uses softmax")
    if label_kind == "classes":
        return _guess_classification("the labels are integers, one per sample")
    if "sigmoid" in model_function.string_constants:
        return _guess_classification(
            f"the source of '{model_function.name}' uses sigmoid; for several labels per sample: `labels: many`"
        )
    model_note = (
        "" if set(model_function.parameter_names) <= set(ARGUMENTS_FROM_DATA) else ", and it has arguments of its own"
    )
    return _guess_regression(f"nothing in '{model_function.name}' suggests classes{model_note}")


def _is_same_shape(output_shape: Shape, input_shape: Shape) -> bool:
    """Whether all known sizes are equal, the last one is known, and there is more than one element."""
    size_pairs = list(zip(output_shape[1:], input_shape[1:], strict=False))
    sizes_agree = all(a == b or None in (a, b) for a, b in size_pairs)
    has_many_elements = any((b or 2) > 1 for _, b in size_pairs)
    return (
        len(output_shape) == len(input_shape) > 1
        and output_shape[-1] == input_shape[-1] is not None
        and sizes_agree
        and has_many_elements
    )


def _guess_classification(reason: str) -> TaskGuess:
    return TaskGuess("classification", "classification", reason, "accuracy")


def _guess_multilabel(reason: str) -> TaskGuess:
    return TaskGuess(
        "classification with many labels", {"kind": "classification", "labels": "many"}, reason, "f1_macro"
    )


def _guess_reconstruction(reason: str, label_kind: LabelKind) -> TaskGuess:
    if label_kind in ("classes", "values"):
        return TaskGuess("reconstruction", "reconstruction", reason, "roc_auc")
    # ROC AUC needs labels
    return TaskGuess("reconstruction", {"kind": "reconstruction", "metrics": ["mse"]}, reason, "mse", in_points=False)


def _guess_regression(reason: str) -> TaskGuess:
    return TaskGuess("regression", "regression", reason, "mae", in_points=False)


def _guess_no_task(reason: str) -> TaskGuess:
    return TaskGuess("", None, reason)
