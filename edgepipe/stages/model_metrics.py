"""The metrics that every stage which makes a Keras model reports: counts and validation quality."""

from typing import Any

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import Evidence, Metric, exact_metric
from edgepipe.core.references import installed_version
from edgepipe.core.units import Dimension
from edgepipe.stages.context import StageContext
from edgepipe.tasks.quality import Task


def count_parameters(model: Any, artifact: Artifact) -> list[Metric]:
    """Parameters, those that are not zero, and the bytes of the file: all counted."""
    import numpy as np

    arrays = [np.asarray(weight) for weight in model.weights]
    total, nonzero = sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays)
    return [
        exact_metric("parameters", total, Dimension.COUNT, "elements of all weights of the Keras model"),
        exact_metric(
            "nonzero_parameters", nonzero, Dimension.COUNT, "elements of all weights that are not exactly zero"
        ),
        exact_metric("size", artifact.bytes, Dimension.BYTES, f"bytes of the {artifact.kind} artifact on disk"),
    ]


def quality_metrics(values: dict[str, float], task: Task, split: str, samples: int, ran_on: str) -> list[Metric]:
    """Quality metrics as measured on samples of a split.

    Args:
        values: the metrics of `task` by name.
        task: gives the unit of each.
        split: where the samples are from.
        samples: how many.
        ran_on: what ran the model, with its version.
    """
    return [
        Metric(
            name=name,
            value=value,
            unit=task.measures[name].unit,
            evidence=Evidence.MEASURED,
            how=f"{samples} samples of the {split} split, {ran_on}",
            details={"split": split, "samples": samples},
        )
        for name, value in values.items()
    ]


def keras_metrics(model: Any, artifact: Artifact, context: StageContext) -> list[Metric]:
    """Counts of a Keras model and, where there is data, its quality on the validation split."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_loop import evaluate

    if context.splits is None or context.task_if_any is None:
        return count_parameters(model, artifact)
    validation = context.data.validation
    package = "keras" if artifact.kind is ArtifactKind.KERAS else "tf_keras"
    values = evaluate(model, context.task, validation)
    ran_on = f"{package} {installed_version(package)} in float32" + (
        " with fake-quant" if artifact.kind is ArtifactKind.QAT else ""
    )
    quality = quality_metrics(values, context.task, "validation", count_samples(validation.x), ran_on)
    return [*quality, *count_parameters(model, artifact)]
