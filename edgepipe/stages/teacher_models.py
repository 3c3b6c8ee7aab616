"""Where the teachers of a training stage come from: an earlier stage, a model file, or a function."""

from typing import TYPE_CHECKING, Any

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, ArtifactKind, content_digest
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.units import show
from edgepipe.models.file_kind import detect_kind
from edgepipe.training.distillation.teacher_options import Teacher

if TYPE_CHECKING:
    from edgepipe.stages.context import PipelineInfo, StageContext
    from edgepipe.training.distillation.distiller import Distiller

TEACH = (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.QAT)


def check(document: Document, path: KeyPath, teacher: Teacher, pipeline: "PipelineInfo", needed: bool = True) -> None:
    """Note in `document` what is wrong with who teaches, or with what is to be learned for this task."""
    if teacher.model is None and needed:
        document.add_problem(path, "names no teacher: `model:` is an earlier stage, a model file or module:function")
    names = teacher.model or []
    for name in sorted({name for name in names if names.count(name) > 1}):
        document.add_problem(path, f"'{name}' stands twice")
    for name in dict.fromkeys(names):
        try:
            _check_one(name, pipeline)
        except InputError as error:
            document.add_problem(path, str(error))
    family = pipeline.task.family if pipeline.task is not None else "one"
    if teacher.logits is not None and family not in ("one", "many", "custom"):
        document.add_problem(path, f"`logits` teaches classes apart, and the task is {family}; use `outputs`")


def _check_one(name: str, pipeline: "PipelineInfo") -> None:
    if name in pipeline.keras_stages:
        return
    if name in pipeline.earlier_stages:
        able = ", ".join(pipeline.keras_stages) or "none"
        raise InputError(f"'{name}' gives no Keras model that could teach; allowed: {able}")
    if references.is_reference(name):
        references.check(name, pipeline.base_folder)
        return
    if not (pipeline.base_folder / name).exists():
        raise InputError(
            f"no earlier stage, file or module:function '{name}'{did_you_mean(name, pipeline.keras_stages)}"
        )
    kind = detect_kind(pipeline.base_folder / name)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{name}: a {kind} cannot teach; a .keras or .h5 file can")


def identity(teacher: Teacher, pipeline: "PipelineInfo") -> list[str]:
    """Of each teacher that is no earlier stage: the digest of its file, or of its function's source."""
    return [
        references.source_digest(name.partition(":")[0], pipeline.base_folder)
        if references.is_reference(name)
        else content_digest(pipeline.base_folder / name)
        for name in teacher.model or []
        if name not in pipeline.keras_stages
    ]


def teaching(teacher: Teacher, batch_size: int, context: "StageContext", usual: str | None = None) -> "Distiller":
    """The teachers, loaded; `usual` is the earlier stage that teaches if none is named.

    Raises:
        InputError: one cannot be loaded, or takes other samples than the data has.
    """
    from edgepipe.tasks.task_spec import TaskSpec
    from edgepipe.training import loss_and_optimizer
    from edgepipe.training.distillation.distiller import Distiller

    names = teacher.model or ([usual] if usual is not None else [])
    models = {name: _load(name, context) for name in names}
    notes = []
    for name, model in models.items():
        try:
            loss_and_optimizer.check_shapes(model, context.task, context.data.train.x, context.data.train.y)
            notes.append(_quality(name, model, context))
        except InputError as error:
            raise InputError(f"teacher '{name}': {error}") from None
    family = (context.pipeline.task or TaskSpec(kind="custom")).family
    return Distiller(teacher.with_task_default(family), models, context.task, batch_size, notes)


def _load(name: str, context: "StageContext") -> Any:
    from edgepipe.compress.source_model import open_model
    from edgepipe.models.model_function import build_model

    if name not in context.pipeline.keras_stages and references.is_reference(name):
        return build_model(name, {}, context.base_folder, context.splits)
    artifact = context.earlier_artifacts.get(name) or Artifact.from_path(
        detect_kind(context.base_folder / name), context.base_folder / name
    )
    return open_model(artifact.path, artifact.kind, allow_code=context.allow_code)


def _quality(name: str, model: Any, context: "StageContext") -> str:
    """How good the teacher itself is, measured on what decides."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_loop import evaluate

    goal, validation = context.task, context.data.validation
    value = show(evaluate(model, goal, validation)[goal.primary_measure], goal.measures[goal.primary_measure].unit)
    return f"teacher '{name}' itself: {goal.primary_measure} {value} on the {count_samples(validation.x)} validation samples"
