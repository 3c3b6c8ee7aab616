"""The `task:` of a pipeline, read and checked without importing anything heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from edgepipe.core import references
from edgepipe.core.config import Document, KeyPath, Options, describe_value, validate
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import Dimension

TaskKind = Literal["classification", "regression", "reconstruction", "custom"]
OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "adagrad")
LOSSES = (
    "sparse_categorical_crossentropy", "binary_crossentropy", "categorical_crossentropy", "mse", "mae", "huber",
    "log_cosh", "mape", "cosine_similarity", "poisson", "hinge",
)  # fmt: skip


@dataclass(frozen=True)
class MeasureInfo:
    """What is known of a quality metric without loading it."""

    unit: Dimension
    higher_is_better: bool


SCORE_MEASURE = MeasureInfo(Dimension.FRACTION, higher_is_better=True)
ERROR_MEASURE = MeasureInfo(Dimension.NUMBER, higher_is_better=False)
MEASURES_BY_FAMILY: dict[str, dict[str, MeasureInfo]] = {
    "one": {
        "accuracy": SCORE_MEASURE,
        "balanced_accuracy": SCORE_MEASURE,
        "f1_macro": SCORE_MEASURE,
        "top5_accuracy": SCORE_MEASURE,
    },
    "many": {"f1_macro": SCORE_MEASURE, "exact_match": SCORE_MEASURE, "label_accuracy": SCORE_MEASURE},
    "regression": {
        "mae": ERROR_MEASURE,
        "rmse": ERROR_MEASURE,
        "r2": MeasureInfo(Dimension.NUMBER, higher_is_better=True),
    },
    "reconstruction": {"roc_auc": SCORE_MEASURE, "mse": ERROR_MEASURE},
    "custom": {},
}


class OptimizerOptions(Options):
    """The optimizer of every training stage, unless the stage says otherwise."""

    name: Literal["adam", "adamw", "nadam", "rmsprop", "sgd", "adagrad"] = "adam"
    learning_rate: float = Field(
        default=1e-3, gt=0, description="step size; a stage's own learning_rate takes precedence"
    )


class MeasureOptions(Options):
    """A user-defined quality metric: `function(y_true, outputs) -> float`."""

    function: str = Field(description="module:function")
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["fraction", "number"] = "number"

    @field_validator("function")
    @classmethod
    def _check_reference(cls, value: str) -> str:
        return _require_reference(value)


class TaskSpec(Options):
    """Loss, metrics and optimizer; the first metric is the primary one."""

    kind: TaskKind = Field(description="what the outputs mean")
    labels: Literal["one", "many"] = Field(default="one", description="classification: one label a sample, or many")
    loss: str | None = Field(default=None, description="a Keras loss or module:function; null for the kind's default")
    metrics: tuple[str, ...] = Field(default=(), description="built-in quality metrics; empty for the kind's default")
    custom_metrics: dict[str, MeasureOptions] = Field(default_factory=dict, description="name -> module:function")
    decode: str | None = Field(default=None, description="module:function applied to raw outputs before the metrics")
    optimizer: OptimizerOptions = OptimizerOptions()
    function: str | None = Field(default=None, description="module:function that returns an edgepipe.Task instead")

    @field_validator("decode", "function")
    @classmethod
    def _check_reference(cls, value: str | None) -> str | None:
        return value if value is None else _require_reference(value)

    @field_validator("loss")
    @classmethod
    def _check_loss(cls, value: str | None) -> str | None:
        if value is not None and value not in LOSSES and not references.is_reference(value):
            raise ValueError(f"'{value}' is neither a loss nor module:function{did_you_mean(value, LOSSES)}")
        return value

    @property
    def measure_family(self) -> str:
        """The row of `MEASURES` for this task."""
        return self.labels if self.kind == "classification" else self.kind

    @property
    def measures(self) -> dict[str, MeasureInfo]:
        """The quality metrics to compute, the primary one first. Empty if only `function` knows them."""
        family_measures = MEASURES_BY_FAMILY[self.measure_family]
        selected_measures = {name: family_measures[name] for name in self.metrics}
        for name, custom_metric in self.custom_metrics.items():
            unit = Dimension.FRACTION if custom_metric.unit == "fraction" else Dimension.NUMBER
            selected_measures[name] = MeasureInfo(unit, custom_metric.better == "higher")
        return selected_measures or dict(list(family_measures.items())[:1])

    @property
    def code_references(self) -> list[str]:
        """Every `module:function` that this task names."""
        return list(self.reference_by_path.values())

    @property
    def reference_by_path(self) -> dict[KeyPath, str]:
        """Every `module:function` that this task names, by its path in the task."""
        text_by_path: dict[KeyPath, str | None] = {
            ("loss",): self.loss,
            ("decode",): self.decode,
            ("function",): self.function,
        }
        text_by_path |= {
            ("custom_metrics", name, "function"): custom_metric.function
            for name, custom_metric in self.custom_metrics.items()
        }
        return {path: text for path, text in text_by_path.items() if text is not None and references.is_reference(text)}


def _require_reference(value: str) -> str:
    if not references.is_reference(value):
        raise ValueError(f"'{value}' is not of the form module:function")
    return value


def parse_task(document: Document, path: KeyPath, raw_task: Any, base_folder: Path) -> TaskSpec | None:
    """Read and check the task at `path`; None if there is any problem.

    Args:
        document: the pipeline; collects the problems.
        path: where the task is in `document`.
        raw_task: the YAML value at `path`: a kind, a `module:function`, or a mapping.
        base_folder: the folder of the pipeline, for its modules.
    """
    if isinstance(raw_task, str):
        raw_task = {"kind": "custom", "function": raw_task} if references.is_reference(raw_task) else {"kind": raw_task}
    elif not isinstance(raw_task, dict):
        document.add_problem(path, f"must be a kind, module:function or a mapping; found {describe_value(raw_task)}")
        return None
    spec = validate(document, path, raw_task, TaskSpec)
    if spec is None:
        return None
    problem_count = len(document.problems)
    _check_spec(document, path, spec, base_folder)
    return spec if len(document.problems) == problem_count else None


def _check_spec(document: Document, path: KeyPath, spec: TaskSpec, base_folder: Path) -> None:
    family_measures = MEASURES_BY_FAMILY[spec.measure_family]
    for index, name in enumerate(spec.metrics):
        if name not in family_measures:
            document.add_problem(
                (*path, "metrics", index),
                f"no metric '{name}' for {_describe_task(spec)}{did_you_mean(name, family_measures)}",
            )
    if spec.kind == "custom" and spec.function is None and (spec.loss is None or not spec.custom_metrics):
        document.add_problem(path, "a custom task needs `loss` and `custom_metrics`, or `function`")
    for reference_path, reference in spec.reference_by_path.items():
        try:
            references.check(reference, base_folder)
        except InputError as error:
            document.add_problem((*path, *reference_path), str(error))


def _describe_task(spec: TaskSpec) -> str:
    return f"classification with `labels: {spec.labels}`" if spec.kind == "classification" else f"a {spec.kind} task"
