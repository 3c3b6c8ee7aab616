"""Quality of a .tflite as the runtimes give it, and how far they agree."""

from pathlib import Path

from edgepipe.core.arrays import count
from edgepipe.core.metric import Metric
from edgepipe.stages import model_metrics
from edgepipe.tasks.quality import Task, quality
from edgepipe.tflite.interpreter import Outputs, Runtime, predict
from edgepipe.tflite.reader import read
from edgepipe.training.training_setup import Data

PASSING = {"QUANTIZE", "DEQUANTIZE", "RESHAPE"}


def gives_logits(path: Path) -> bool:
    """Whether the outputs of the model are class scores that no softmax or sigmoid has made probabilities."""
    model = read(path)
    made_by = {t.index: op for op in model.operators if op.subgraph == 0 for t in op.outputs if t is not None}
    operator = made_by.get(model.outputs[0].index)
    while operator is not None and operator.name in PASSING and operator.inputs[0] is not None:
        operator = made_by.get(operator.inputs[0].index)
    return operator is None or operator.name not in {"SOFTMAX", "LOGISTIC"}


def lite_quality(path: Path, task: Task, data: Data, split: str, runtime: Runtime) -> list[Metric]:
    """Every quality metric of `task` for the model at `path` on `data`, run by `runtime`."""
    return scored(path, task, data, split, predict(path, data.x, runtime))


def scored(path: Path, task: Task, data: Data, split: str, outputs: Outputs) -> list[Metric]:
    """Quality metrics of outputs that were already taken."""
    values = quality(task, data.x, data.y, outputs.values, logits=gives_logits(path))
    return model_metrics.quality_metrics(values, task, split, count(data.x), outputs.how)
