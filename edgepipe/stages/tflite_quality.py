"""Quality metrics of a .tflite, run by LiteRT or TFLite Micro."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.core.metric import Metric
from edgepipe.stages import model_metrics
from edgepipe.tasks.quality import Task
from edgepipe.tflite.interpreter import ModelOutputs, Runtime, predict
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.training.training_setup import LabelledSamples


def has_logits(path: Path) -> bool:
    """Whether the model outputs class scores before softmax or sigmoid."""
    model = read(path)
    operator = model.find_source_operator(model.outputs[0])
    return operator is None or operator.name not in {"SOFTMAX", "LOGISTIC"}


def measure_quality(path: Path, task: Task, samples: "LabelledSamples", split: str, runtime: Runtime) -> list[Metric]:
    """Every quality metric of `task` for the .tflite at `path` on `samples`.

    Args:
        path: the .tflite.
        task: defines the metrics.
        samples: inputs and labels.
        split: the name of the split that `samples` are from, for the metrics' provenance.
        runtime: runs the model.
    """
    return score_outputs(path, task, samples, split, predict(path, samples.x, runtime))


def score_outputs(
    path: Path, task: Task, samples: "LabelledSamples", split: str, outputs: ModelOutputs
) -> list[Metric]:
    """Every quality metric of `task`, from outputs that the model has already given.

    Args:
        path: the .tflite.
        task: defines the metrics.
        samples: inputs and labels.
        split: the name of the split that `samples` are from.
        outputs: of the model for `samples`.
    """
    return model_metrics.measure_outputs(
        outputs.real_values, task, samples, split, is_logits=has_logits(path), runtime_text=outputs.provenance
    )
