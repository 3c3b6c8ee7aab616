"""The metrics reported by every stage that outputs a Keras model: counts and validation quality."""

from typing import Any

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import Evidence, Metric, exact_metric
from edgepipe.core.references import installed_version
from edgepipe.core.units import Dimension
from edgepipe.stages.context import StageContext
from edgepipe.tasks.quality import Task


def parameter_metrics(model: Any, artifact: Artifact) -> list[Metric]:
    """Number of parameters, of non-zero parameters, and bytes of the artifact, all counted."""
    import numpy as np

    arrays = [np.asarray(weight) for weight in model.weights]
    parameter_count, nonzero_count = sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays)
    return [
        exact_metric("parameters", parameter_count, Dimension.COUNT, "elements of all weights of the Keras model"),
        exact_metric(
            "nonzero_parameters", nonzero_count, Dimension.COUNT, "elements of all weights that are not exactly zero"
        ),
        exact_metric("size", artifact.bytes, Dimension.BYTES, f"bytes of the {artifact.kind} artifact on disk"),
    ]


def quality_metrics(
    value_by_metric: dict[str, float], task: Task, split_name: str, sample_count: int, runtime_text: str
) -> list[Metric]:
    """Quality metrics as measured on samples of a split.

    Args:
        value_by_metric: the metrics of `task`, each in its base unit.
        task: has the unit of each metric.
        split_name: the split that the samples are from.
        sample_count: number of samples.
        runtime_text: what ran the model, with its version.
    """
    return [
        Metric(
            name=name,
            value=value,
            unit=task.measures[name].unit,
            evidence=Evidence.MEASURED,
            how=f"{sample_count} samples of the {split_name} split, {runtime_text}",
            details={"split": split_name, "samples": sample_count},
        )
        for name, value in value_by_metric.items()
    ]


def keras_metrics(model: Any, artifact: Artifact, context: StageContext) -> list[Metric]:
    """Counts of a Keras model and, where there is data, its quality on the validation split."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_loop import evaluate

    if context.splits is None or context.task_if_any is None:
        return parameter_metrics(model, artifact)
    validation_data = context.data.validation
    package_name = "keras" if artifact.kind is ArtifactKind.KERAS else "tf_keras"
    value_by_metric = evaluate(model, context.task, validation_data)
    runtime_text = f"{package_name} {installed_version(package_name)} in float32" + (
        " with fake-quant" if artifact.kind is ArtifactKind.QAT else ""
    )
    validation_metrics = quality_metrics(
        value_by_metric, context.task, "validation", count_samples(validation_data.x), runtime_text
    )
    return [*validation_metrics, *parameter_metrics(model, artifact)]
