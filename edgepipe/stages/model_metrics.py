"""The metrics reported by every stage that outputs a Keras model: counts and validation quality."""

from typing import TYPE_CHECKING, Any

from edgepipe.core.arrays import Arrays, count_samples
from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.metric import Evidence, Metric, exact_metric
from edgepipe.core.references import installed_version
from edgepipe.core.units import Dimension
from edgepipe.stages.context import StageContext

if TYPE_CHECKING:
    from edgepipe.tasks.chance import ChanceComparison
    from edgepipe.tasks.quality import Task
    from edgepipe.training.training_setup import LabelledSamples


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


def measure_outputs(
    outputs: Arrays, task: "Task", samples: "LabelledSamples", split_name: str, *, is_logits: bool, runtime_text: str
) -> list[Metric]:
    """Every quality metric of `task`; the primary one says in its details what chance would give.

    Args:
        outputs: of the model for `samples`.
        task: defines the metrics.
        samples: inputs and labels.
        split_name: the split that the samples are from.
        is_logits: whether class outputs are not yet probabilities.
        runtime_text: what ran the model, with its version.
    """
    from edgepipe.tasks.chance import compare_with_chance
    from edgepipe.tasks.quality import compute_quality

    value_by_metric = compute_quality(task, samples.x, samples.y, outputs, is_logits=is_logits)
    sample_count = count_samples(samples.x)
    details: dict[str, float | int | str] = {"split": split_name, "samples": sample_count}
    chance = compare_with_chance(task, samples.x, samples.y, outputs, is_logits=is_logits)
    return [
        Metric(
            name=name,
            value=value,
            unit=task.measures[name].unit,
            evidence=Evidence.MEASURED,
            how=f"{sample_count} samples of the {split_name} split, {runtime_text}",
            details={**details, **(_chance_details(chance) if name == task.primary_measure else {})},
        )
        for name, value in value_by_metric.items()
    ]


def _chance_details(chance: "ChanceComparison | None") -> dict[str, float | int | str]:
    if chance is None:
        return {}
    return {
        "chance": chance.level,
        "chance_probability": chance.probability,
        "chance_probability_if_perfect": chance.perfect_probability,
        "chance_reference": chance.reference,
    }


def keras_metrics(model: Any, artifact: Artifact, context: StageContext) -> list[Metric]:
    """Counts of a Keras model and, where there is data, its quality on the validation split."""
    if context.splits is None or context.task_if_any is None:
        return parameter_metrics(model, artifact)
    runtime_text = keras_runtime_text(artifact)
    validation_metrics = keras_quality(model, context.task, context.data.validation, "validation", runtime_text)
    return [*validation_metrics, *parameter_metrics(model, artifact)]


def keras_runtime_text(artifact: Artifact) -> str:
    """What runs the Keras model in `artifact`, with its version."""
    package_name = "keras" if artifact.kind is ArtifactKind.KERAS else "tf_keras"
    fake_quant_text = " with fake-quant" if artifact.kind is ArtifactKind.QAT else ""
    return f"{package_name} {installed_version(package_name)} in float32{fake_quant_text}"


def keras_quality(
    model: Any, task: "Task", samples: "LabelledSamples", split_name: str, runtime_text: str
) -> list[Metric]:
    """Every quality metric of `task` for a Keras model; arguments as of `measure_outputs`."""
    from edgepipe.training.loss_and_optimizer import gives_logits
    from edgepipe.training.training_loop import predict

    return measure_outputs(
        predict(model, samples.x), task, samples, split_name, is_logits=gives_logits(model), runtime_text=runtime_text
    )
