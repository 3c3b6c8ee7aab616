"""Quality of a .tflite as the runtimes give it, and how far they agree."""

from pathlib import Path

from edgepipe.core.arrays import count_samples
from edgepipe.core.metric import Metric
from edgepipe.stages import model_metrics
from edgepipe.tasks.quality import Task, compute_quality
from edgepipe.tflite.interpreter import ModelOutputs, Runtime, predict
from edgepipe.tflite.reader import read
from edgepipe.training.training_setup import LabelledSamples

PASSING = {"QUANTIZE", "DEQUANTIZE", "RESHAPE"}


def gives_logits(path: Path) -> bool:
    """Whether the outputs of the model are class scores that no softmax or sigmoid has made probabilities."""
    model = read(path)
    made_by = {t.index: op for op in model.operators if op.subgraph == 0 for t in op.outputs if t is not None}
    operator = made_by.get(model.outputs[0].index)
    while operator is not None and operator.name in PASSING and operator.inputs[0] is not None:
        operator = made_by.get(operator.inputs[0].index)
    return operator is None or operator.name not in {"SOFTMAX", "LOGISTIC"}


def lite_quality(path: Path, task: Task, data: LabelledSamples, split: str, runtime: Runtime) -> list[Metric]:
    """Every quality metric of `task` for the model at `path` on `data`, run by `runtime`."""
    return scored(path, task, data, split, predict(path, data.x, runtime))


def scored(path: Path, task: Task, data: LabelledSamples, split: str, outputs: ModelOutputs) -> list[Metric]:
    """Quality metrics of outputs that were already taken."""
    values = compute_quality(task, data.x, data.y, outputs.real_values, logits=gives_logits(path))
    return model_metrics.quality_metrics(values, task, split, count_samples(data.x), outputs.provenance)
