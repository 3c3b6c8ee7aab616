"""The numbers every model-making stage reports, and opening the model it works on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.metric import Evidence, Metric
from edgepipe.core.metric import exact as exact  # for the stages too
from edgepipe.core.references import version
from edgepipe.core.units import Dimension
from edgepipe.stages.base import Work
from edgepipe.tasks.quality import Task

if TYPE_CHECKING:
    from edgepipe.training.training_loop import History


def counted(model: Any, artifact: Artifact) -> list[Metric]:
    """Parameters, those that are not zero, and the bytes of the file: all counted."""
    import numpy as np

    arrays = [np.asarray(weight) for weight in model.weights]
    total, nonzero = sum(a.size for a in arrays), sum(int(np.count_nonzero(a)) for a in arrays)
    return [
        exact("parameters", total, Dimension.COUNT, "elements of all weights of the Keras model"),
        exact("nonzero_parameters", nonzero, Dimension.COUNT, "elements of all weights that are not exactly zero"),
        exact("size", artifact.bytes, Dimension.BYTES, f"bytes of the {artifact.kind} artifact on disk"),
    ]


def qualities(values: dict[str, float], task: Task, split: str, samples: int, ran_on: str) -> list[Metric]:
    """Quality metrics as measured on `samples` samples of `split`."""
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


def keras_evidence(model: Any, artifact: Artifact, work: Work) -> list[Metric]:
    """Counts of a Keras model and, where there is data, its quality on the validation split."""
    from edgepipe.core.arrays import count
    from edgepipe.training.training_loop import evaluate

    if work.splits is None or work.task is None:
        return counted(model, artifact)
    validation = work.data.validation
    package = "keras" if artifact.kind is Kind.KERAS else "tf_keras"
    values = evaluate(model, work.task, validation)
    ran_on = f"{package} {version(package)} in float32" + (" with fake-quant" if artifact.kind is Kind.QAT else "")
    return [*qualities(values, work.task, "validation", count(validation.x), ran_on), *counted(model, artifact)]


def stopped(history: "History", patience: int | None) -> tuple[str, ...]:
    """A note on early stopping, where it was asked for."""
    return (f"stopped after epoch {len(history.epochs)}, kept epoch {history.kept}",) if patience else ()


def open_float(work: Work) -> tuple[Any, list[str]]:
    """The stage's input as a tf_keras model: read, or bridged from Keras 3; with what is worth noting about that."""
    from edgepipe.models.bridge import bridge
    from edgepipe.models.model_files import load

    model = load(work.input.path, work.input.kind, allow_code=work.allow_code)
    if work.input.kind is Kind.FLOAT:
        return model, []
    bridged = bridge(model)
    return bridged.model, bridged.notes


def open_any(path: Path, kind: Kind, *, allow_code: bool) -> Any:
    """The Keras, tf_keras or fake-quant model at `path`; a SavedModel, which is only converted, gives its path."""
    if kind is Kind.QAT:
        from edgepipe.compress.qat.qat_store import restore

        return restore(path)
    if kind is Kind.SAVED_MODEL:
        return path
    from edgepipe.models.model_files import load

    return load(path, kind, allow_code=allow_code)


def write_keras(model: Any, folder: Path) -> Artifact:
    """Store a Keras 3 model as the artifact of a stage."""
    from edgepipe.models.model_files import save_keras

    save_keras(model, folder / "model.keras")
    return Artifact.of(Kind.KERAS, folder / "model.keras")


def write_float(model: Any, folder: Path) -> Artifact:
    """Store a tf_keras model as the artifact of a stage."""
    from edgepipe.models.model_files import save_float

    save_float(model, folder / "model.keras")
    return Artifact.of(Kind.FLOAT, folder / "model.keras")
