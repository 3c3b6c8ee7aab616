"""Quality computed from outputs, the same way for the Keras model and the int8 model: in numpy, without Keras."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgepipe.core import references
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.units import Dimension
from edgepipe.tasks.task_spec import (
    ERROR_MEASURE,
    MEASURES_BY_FAMILY,
    SCORE_MEASURE,
    MeasureInfo,
    OptimizerOptions,
    TaskSpec,
)

__all__ = [
    "ERROR_MEASURE",
    "SCORE_MEASURE",
    "Measure",
    "Task",
    "build_task",
    "compute_quality",
    "decode_outputs",
    "is_builtin_measure",
]


@dataclass(frozen=True)
class Measure:
    """A quality metric: `function(y_true, outputs) -> float`, which way is better, and its unit."""

    function: Callable[[Any, Any], float]
    higher_is_better: bool = True
    unit: Dimension = Dimension.NUMBER


@dataclass(frozen=True)
class Task:
    """A task with its functions loaded. A user's `task: module:function` returns one of these.

    `loss` is a Keras loss name or a function `(y_true, y_pred) -> tensor`, or one for each output by name, as the
    labels are then. `decode` maps raw outputs (floats, dequantized for an integer model; one array, or several by name)
    to what the measures take. The first measure is the primary one.
    """

    loss: str | Callable[[Any, Any], Any] | Mapping[str, str | Callable[[Any, Any], Any]]
    measures: Mapping[str, Measure]
    kind: str = "custom"
    labels: str = "one"
    decode: Callable[[Any], Any] | None = None
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)

    @property
    def primary_measure(self) -> str:
        """The name of the measure that decisions on the validation split use."""
        return next(iter(self.measures))


def build_task(spec: TaskSpec, base_folder: Path) -> Task:
    """Load everything that `spec` names.

    Raises:
        InputError: a `module:function` cannot be loaded, or returns no `Task`.
    """
    if spec.function is not None:
        task = _call_user_function(f"'{spec.function}'", references.load(spec.function, base_folder))
        if not isinstance(task, Task) or not task.measures:
            raise InputError(
                f"'{spec.function}' must return an edgepipe.Task with at least one measure, found {task!r}"
            )
        return task
    decode = references.load(spec.decode, base_folder) if spec.decode else None
    measures = {
        name: _load_measure(spec, name, measure_info, base_folder) for name, measure_info in spec.measures.items()
    }
    return Task(_load_loss(spec, base_folder), measures, spec.kind, spec.labels, decode, spec.optimizer)


def _load_loss(spec: TaskSpec, base_folder: Path) -> str | Callable[[Any, Any], Any]:
    if spec.loss is not None:
        return references.load(spec.loss, base_folder) if references.is_reference(spec.loss) else spec.loss
    return "auto" if spec.kind == "classification" else "mse"


def _load_measure(spec: TaskSpec, name: str, measure_info: MeasureInfo, base_folder: Path) -> Measure:
    custom_metric = spec.custom_metrics.get(name)
    function = (
        references.load(custom_metric.function, base_folder)
        if custom_metric
        else _MEASURE_FUNCTIONS[spec.measure_family][name]
    )
    return Measure(function, measure_info.higher_is_better, measure_info.unit)


def compute_quality(task: Task, x: Arrays, y: Arrays | None, outputs: Arrays, *, is_logits: bool) -> dict[str, float]:
    """Every measure of `task`, by name; the truth of a reconstruction is `x`.

    Args:
        task: decodes outputs and has the measures.
        x: inputs; the first axis counts samples.
        y: labels, one array or one for each output; None if the data has none.
        outputs: raw outputs of the model, as floats; the first axis counts samples.
        is_logits: whether class outputs are not yet probabilities.

    Raises:
        InputError: outputs that do not fit the task, or a measure that is not finite.
    """
    truth, decoded_outputs = decode_outputs(task, x, y, outputs, is_logits)
    if task.kind == "classification" and task.decode is None:
        _check_scores(task, y, decoded_outputs)
    return {name: _compute_measure(name, measure, truth, decoded_outputs) for name, measure in task.measures.items()}


def class_scores(task: Task, outputs: Arrays, *, is_logits: bool) -> Array | None:
    """Scores of each class, (n, classes); None for a task that does not give each sample one class.

    Args:
        task: what the outputs are for.
        outputs: raw outputs of the model, as floats; the first axis counts samples.
        is_logits: whether they are not yet probabilities.
    """
    if task.kind != "classification" or task.labels != "one" or task.decode is not None or isinstance(outputs, dict):
        return None
    return _class_probabilities(outputs, task.labels, is_logits)


def single_labels(task: Task, y: Arrays) -> Array:
    """The labels of a task that takes one array of them.

    Raises:
        InputError: there is an array for each output.
    """
    if isinstance(y, dict):
        raise InputError(
            f"a {task.kind} task takes one array of labels, the data gives {', '.join(y)}; for several outputs write a "
            "custom task"
        )
    return y


def is_builtin_measure(task: Task, name: str) -> bool:
    """Whether the measure `name` of `task` is one of edgepipe's, not a function of the user's."""
    family = task.labels if task.kind == "classification" else task.kind
    return task.measures[name].function is _MEASURE_FUNCTIONS.get(family, {}).get(name)


def decode_outputs(task: Task, x: Arrays, y: Arrays | None, outputs: Arrays, is_logits: bool) -> tuple[Any, Any]:
    """Labels and outputs as the measures of `task` take them; arguments as of `compute_quality`."""
    if task.decode is not None:
        return (x if y is None else y), _call_user_function("the task's decode function", task.decode, outputs)
    if task.kind == "custom":
        return (x if y is None else y), outputs
    if isinstance(outputs, dict) or (isinstance(x, dict) and task.kind == "reconstruction"):
        raise InputError(f"a {task.kind} task takes one output; for several write a custom task with `decode`")
    if task.kind == "reconstruction":
        return (np.asarray(x), None if y is None else single_labels(task, y)), outputs
    if y is None:
        raise InputError(f"a {task.kind} task needs labels, and the data has none")
    y = single_labels(task, y)
    if task.kind == "classification":
        return y, _class_probabilities(outputs, task.labels, is_logits)
    if np.size(y) != np.size(outputs):
        raise InputError(f"labels of shape {np.shape(y)} do not fit outputs of shape {np.shape(outputs)}")
    return np.reshape(y, outputs.shape), outputs


def _check_scores(task: Task, y: Any, scores: Array) -> None:
    """Refuse labels and scores that would give a wrong number: NaN sorts too."""
    expected_shape = scores.shape if task.labels == "many" else (len(scores),)
    if np.size(y) != np.prod(expected_shape) or len(np.asarray(y)) != len(scores):
        raise InputError(f"labels have the shape {np.shape(y)}, `labels: {task.labels}` takes {expected_shape}")
    if np.isnan(scores).any():
        nan_count = int(np.isnan(scores).any(axis=1).sum())
        raise InputError(f"{nan_count} of {len(scores)} outputs of the model hold NaN; did its training diverge?")


def _call_user_function(subject: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except EdgepipeError:
        raise
    except Exception as error:
        raise InputError(f"{subject} failed: {type(error).__name__}: {error}") from error


def _class_probabilities(outputs: Array, label_mode: str, is_logits: bool) -> Array:
    scores = outputs.reshape(len(outputs), -1).astype(np.float64)
    if label_mode == "many":
        return _sigmoid(scores) if is_logits else scores
    if scores.shape[1] > 1:
        return scores  # only their order counts
    positive_scores = _sigmoid(scores) if is_logits else scores
    return np.concatenate([1 - positive_scores, positive_scores], axis=1)


def _sigmoid(scores: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -60, 60))))


def _compute_measure(name: str, measure: Measure, truth: Any, decoded_outputs: Any) -> float:
    value: float = _call_user_function(
        f"the quality metric '{name}'", lambda: float(measure.function(truth, decoded_outputs))
    )
    if not np.isfinite(value):
        raise InputError(f"the quality metric '{name}' is {value}; is the model's output finite?")
    return value


def _accuracy(y: Array, scores: Array) -> float:
    return float(np.mean(scores.argmax(axis=1) == np.ravel(y)))


def _balanced_accuracy(y: Array, scores: Array) -> float:
    labels = np.ravel(y)
    return float(np.mean([np.mean(scores[labels == c].argmax(axis=1) == c) for c in np.unique(labels)]))


def _f1_macro(y: Array, scores: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(np.ravel(y), scores.argmax(axis=1), average="macro", zero_division=0))


def _top5_accuracy(y: Array, scores: Array) -> float:
    top_classes = np.argsort(scores, axis=1)[:, -5:]
    return float(np.mean((top_classes == np.reshape(y, (-1, 1))).any(axis=1)))


def _multilabel_f1_macro(y: Array, scores: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(y, scores > 0.5, average="macro", zero_division=0))


def _reconstruction_errors(x: Array, outputs: Array) -> Array:
    return np.asarray(np.mean(np.square(x.reshape(len(x), -1) - outputs.reshape(len(x), -1)), axis=1))


def _roc_auc(truth: tuple[Array, Array | None], outputs: Array) -> float:
    from sklearn.metrics import roc_auc_score

    x, y = truth
    if y is None or len(np.unique(y)) != 2:
        raise ValueError("ROC AUC needs labels with 0 for normal and 1 for anomalous samples, and some of both")
    return float(roc_auc_score(y, _reconstruction_errors(x, outputs)))


def _reconstruction_mse(truth: tuple[Array, Array | None], outputs: Array) -> float:
    x, y = truth
    sample_errors = _reconstruction_errors(x, outputs)
    if y is not None and not (np.ravel(y) == 0).any():
        raise ValueError("no sample is labelled 0, normal")
    return float(np.mean(sample_errors if y is None else sample_errors[np.ravel(y) == 0]))


def _r2(y: Array, outputs: Array) -> float:
    if np.ptp(y) == 0:
        raise ValueError("all labels are equal, so there is no variance to explain")
    return float(1 - np.sum(np.square(y - outputs)) / np.sum(np.square(y - np.mean(y, axis=0))))


_MEASURE_FUNCTIONS: dict[str, dict[str, Callable[[Any, Any], float]]] = {
    "one": {
        "accuracy": _accuracy,
        "balanced_accuracy": _balanced_accuracy,
        "f1_macro": _f1_macro,
        "top5_accuracy": _top5_accuracy,
    },
    "many": {
        "f1_macro": _multilabel_f1_macro,
        "exact_match": lambda y, scores: float(np.mean(((scores > 0.5) == (y > 0.5)).all(axis=1))),
        "label_accuracy": lambda y, scores: float(np.mean((scores > 0.5) == (y > 0.5))),
    },
    "regression": {
        "mae": lambda y, outputs: float(np.mean(np.abs(y - outputs))),
        "rmse": lambda y, outputs: float(np.sqrt(np.mean(np.square(y - outputs)))),
        "r2": _r2,
    },
    "reconstruction": {"roc_auc": _roc_auc, "mse": _reconstruction_mse},
    "custom": {},
}
assert {family: list(row) for family, row in _MEASURE_FUNCTIONS.items()} == {
    f: list(row) for f, row in MEASURES_BY_FAMILY.items()
}
