"""The teachers of a training stage: models of earlier stages, model files, or functions that build models."""

from typing import TYPE_CHECKING, Any

from edgepipe.core import module_sources, references
from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.file_memo import active_memo
from edgepipe.core.units import plural, show
from edgepipe.models.dtype_policies import check_not_quantized
from edgepipe.models.file_kind import detect_kind, read_config
from edgepipe.training.distillation.teacher_options import Teacher

if TYPE_CHECKING:
    from edgepipe.models.float32_rebuild import Float32Model
    from edgepipe.stages.context import PipelineInfo, StageContext
    from edgepipe.training.distillation.distiller import Distiller

TEACHER_KINDS = (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.QAT)


def check(
    document: Document, path: KeyPath, teacher: Teacher, pipeline: "PipelineInfo", is_required: bool = True
) -> None:
    """Add what is wrong with the teachers to `document`, or with what to learn from them for this task.

    Args:
        document: collects the problems.
        path: of the option `teacher`.
        teacher: the option's value.
        pipeline: the stages that can be teachers, and the task.
        is_required: whether the stage has no default teacher.
    """
    if teacher.model is None and is_required:
        document.add_problem(path, "names no teacher: `model:` is an earlier stage, a model file or module:function")
    teacher_names = teacher.model or []
    for name in sorted({name for name in teacher_names if teacher_names.count(name) > 1}):
        document.add_problem(path, f"'{name}' is listed twice")
    for name in dict.fromkeys(teacher_names):
        try:
            _check_teacher(name, pipeline)
        except InputError as error:
            document.add_problem(path, str(error))
    task_family = pipeline.task.measure_family if pipeline.task is not None else "one"
    if teacher.logits is not None and task_family not in ("one", "many", "custom"):
        document.add_problem(path, f"`logits` is for classification, and the task is {task_family}; use `outputs`")


def _check_teacher(name: str, pipeline: "PipelineInfo") -> None:
    if name in pipeline.keras_stages:
        return
    if name in pipeline.earlier_stages:
        allowed_names = ", ".join(pipeline.keras_stages) or "none"
        raise InputError(f"'{name}' has no Keras model, so it cannot be a teacher; allowed: {allowed_names}")
    if references.is_reference(name):
        references.check(name, pipeline.base_folder)
        return
    if not (pipeline.base_folder / name).exists():
        raise InputError(
            f"no earlier stage, file or module:function '{name}'{did_you_mean(name, pipeline.keras_stages)}"
        )
    kind = detect_kind(pipeline.base_folder / name)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT):
        raise InputError(f"{name}: a {kind} cannot be a teacher; use a .keras or .h5 file")
    check_not_quantized(name, read_config(pipeline.base_folder / name))


def teacher_digests(teacher: Teacher, pipeline: "PipelineInfo") -> dict[str, str]:
    """For each teacher that is not an earlier stage, the digest of its file or of its function's source."""
    return {
        name: module_sources.source_digest(name.partition(":")[0], pipeline.base_folder)
        if references.is_reference(name)
        else active_memo().content_digest_of(pipeline.base_folder / name)
        for name in teacher.model or []
        if name not in pipeline.keras_stages
    }


def load_distiller(
    teacher: Teacher, batch_size: int, context: "StageContext", default_teacher: str | None = None
) -> "Distiller":
    """Load the teachers.

    Args:
        teacher: the option's value.
        batch_size: of the training.
        context: of the stage.
        default_teacher: the earlier stage that is the teacher if none is named; None if one must be.

    Raises:
        InputError: one cannot be loaded, or its inputs or outputs do not fit the data.
    """
    from edgepipe.tasks.task_spec import TaskSpec
    from edgepipe.training import loss_and_optimizer
    from edgepipe.training.distillation.distiller import Distiller

    teacher_names = teacher.model or ([default_teacher] if default_teacher is not None else [])
    float32_by_teacher = {name: _load_teacher(name, context) for name in teacher_names}
    model_by_teacher = {name: teacher.model for name, teacher in float32_by_teacher.items()}
    notes = [f"teacher '{name}': {note}" for name, teacher in float32_by_teacher.items() for note in teacher.notes]
    for name, model in model_by_teacher.items():
        try:
            loss_and_optimizer.check_data_shapes(model, context.task, context.data.train.x, context.data.train.y)
            notes.append(_quality_note(name, model, context))
        except InputError as error:
            raise InputError(f"teacher '{name}': {error}") from None
    task_family = (context.pipeline.task or TaskSpec(kind="custom")).measure_family
    return Distiller(teacher.with_task_default(task_family), model_by_teacher, context.task, batch_size, notes)


def _load_teacher(name: str, context: "StageContext") -> "Float32Model":
    from edgepipe.compress.source_model import open_in_float32
    from edgepipe.models.model_function import build_model

    if name not in context.pipeline.keras_stages and references.is_reference(name):
        return build_model(name, {}, context.base_folder, context.splits)
    artifact = context.earlier_artifacts.get(name) or Artifact.from_path(
        detect_kind(context.base_folder / name), context.base_folder / name
    )
    return open_in_float32(artifact.path, artifact.kind, allow_code=context.allow_code)


def _quality_note(name: str, model: Any, context: "StageContext") -> str:
    """The teacher's own quality on the validation split, by the primary metric."""
    from edgepipe.core.arrays import count_samples
    from edgepipe.training.training_loop import evaluate

    task, validation_data = context.task, context.data.validation
    measure_name = task.primary_measure
    quality_text = show(evaluate(model, task, validation_data)[measure_name], task.measures[measure_name].unit)
    samples_text = plural(count_samples(validation_data.x), "validation sample")
    return f"teacher '{name}' itself: {measure_name} {quality_text} on the {samples_text}"
