"""The `task:` of a pipeline, read and checked without importing anything heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from edgepipe.core import references
from edgepipe.core.config import Document, Options, Path_, describe, validate
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import Dimension

Kind = Literal["classification", "regression", "reconstruction", "custom"]
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


HIGHER = MeasureInfo(Dimension.FRACTION, higher_is_better=True)
LOWER = MeasureInfo(Dimension.PLAIN, higher_is_better=False)
MEASURES: dict[str, dict[str, MeasureInfo]] = {
    "one": {"accuracy": HIGHER, "balanced_accuracy": HIGHER, "f1_macro": HIGHER, "top5_accuracy": HIGHER},
    "many": {"f1_macro": HIGHER, "exact_match": HIGHER, "label_accuracy": HIGHER},
    "regression": {"mae": LOWER, "rmse": LOWER, "r2": MeasureInfo(Dimension.PLAIN, higher_is_better=True)},
    "reconstruction": {"roc_auc": HIGHER, "mse": LOWER},
    "custom": {},
}


class OptimizerOptions(Options):
    """The optimizer of every training stage, unless the stage says otherwise."""

    name: Literal["adam", "adamw", "nadam", "rmsprop", "sgd", "adagrad"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, description="step size; a stage's own learning_rate goes first")


class MeasureOptions(Options):
    """A quality metric of the user's own: `function(y_true, outputs) -> float`."""

    function: str = Field(description="module:function")
    better: Literal["higher", "lower"] = "higher"
    unit: Literal["fraction", "number"] = "number"

    @field_validator("function")
    @classmethod
    def _reference(cls, value: str) -> str:
        return _must_be_reference(value)


class TaskSpec(Options):
    """Loss, metrics and optimizer; the first metric is the one that validation decides by."""

    kind: Kind = Field(description="what the outputs mean")
    labels: Literal["one", "many"] = Field(default="one", description="classification: one label a sample, or many")
    loss: str | None = Field(default=None, description="a Keras loss or module:function; null for the kind's own")
    metrics: tuple[str, ...] = Field(default=(), description="built-in quality metrics; empty for the kind's own first")
    custom_metrics: dict[str, MeasureOptions] = Field(default_factory=dict, description="name -> module:function")
    decode: str | None = Field(default=None, description="module:function applied to raw outputs before the metrics")
    optimizer: OptimizerOptions = OptimizerOptions()
    function: str | None = Field(default=None, description="module:function that gives an edgepipe.Task instead")

    @field_validator("decode", "function")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        return value if value is None else _must_be_reference(value)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str | None) -> str | None:
        if value is not None and value not in LOSSES and not references.is_reference(value):
            raise ValueError(f"'{value}' is neither a loss nor module:function{did_you_mean(value, LOSSES)}")
        return value

    @property
    def family(self) -> str:
        """The row of `MEASURES` that holds for this task."""
        return self.labels if self.kind == "classification" else self.kind

    @property
    def measures(self) -> dict[str, MeasureInfo]:
        """The quality metrics that will be taken, the deciding one first. Empty if only `function` knows them."""
        known = MEASURES[self.family]
        chosen = {name: known[name] for name in self.metrics}
        for name, own in self.custom_metrics.items():
            unit = Dimension.FRACTION if own.unit == "fraction" else Dimension.PLAIN
            chosen[name] = MeasureInfo(unit, own.better == "higher")
        return chosen or dict(list(known.items())[:1])

    @property
    def references(self) -> list[str]:
        """Every `module:function` that this task names."""
        return list(self.places.values())

    @property
    def places(self) -> dict[Path_, str]:
        """Every `module:function` that this task names, by its path in the task."""
        named: dict[Path_, str | None] = {("loss",): self.loss, ("decode",): self.decode, ("function",): self.function}
        named |= {("custom_metrics", name, "function"): own.function for name, own in self.custom_metrics.items()}
        return {path: text for path, text in named.items() if text is not None and references.is_reference(text)}


def _must_be_reference(value: str) -> str:
    if not references.is_reference(value):
        raise ValueError(f"'{value}' is not of the form module:function")
    return value


def parse(document: Document, path: Path_, value: Any, base: Path) -> TaskSpec | None:
    """The task at `path`: a kind, a `module:function`, or a mapping. Problems are noted in `document`."""
    if isinstance(value, str):
        value = {"kind": "custom", "function": value} if references.is_reference(value) else {"kind": value}
    elif not isinstance(value, dict):
        document.problem(path, f"must be a kind, module:function or a mapping; found {describe(value)}")
        return None
    spec = validate(document, path, value, TaskSpec)
    if spec is None:
        return None
    count = len(document.problems)
    _check(document, path, spec, base)
    return spec if len(document.problems) == count else None


def _check(document: Document, path: Path_, spec: TaskSpec, base: Path) -> None:
    known = MEASURES[spec.family]
    for index, name in enumerate(spec.metrics):
        if name not in known:
            document.problem(
                (*path, "metrics", index), f"no metric '{name}' for {_described(spec)}{did_you_mean(name, known)}"
            )
    if spec.kind == "custom" and spec.function is None and (spec.loss is None or not spec.custom_metrics):
        document.problem(path, "a custom task needs `loss` and `custom_metrics`, or `function`")
    for place, reference in spec.places.items():
        try:
            references.check(reference, base)
        except InputError as error:
            document.problem((*path, *place), str(error))


def _described(spec: TaskSpec) -> str:
    return f"classification with `labels: {spec.labels}`" if spec.kind == "classification" else f"a {spec.kind} task"
