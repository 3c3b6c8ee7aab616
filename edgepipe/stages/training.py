"""What the stages that train have in common: options, data, teachers."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgepipe.core.config import Document, KeyPath
from edgepipe.data.splits import FITTING_SPLITS
from edgepipe.stages import teacher_models
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.training.distillation.teacher_options import TeacherOption

if TYPE_CHECKING:
    from edgepipe.training.distillation.distiller import Distiller
    from edgepipe.training.training_loop import History, TrainingSchedule
    from edgepipe.training.training_setup import TrainingSetup


class TrainingStage(Stage):
    """Base of the stages that train, with the options they share."""

    splits: ClassVar = FITTING_SPLITS
    needs_data: ClassVar = True
    trains: ClassVar = True

    epochs: int = Field(default=10, ge=1, description="passes over the training split")
    batch_size: int = Field(default=32, ge=1, description="samples per optimizer step")
    learning_rate: float | None = Field(default=None, gt=0, description="step size; null takes the task's")
    decay: Literal["constant", "cosine"] = Field(
        default="constant", description="learning-rate schedule: constant, or down to zero along a cosine"
    )
    teacher: TeacherOption = Field(
        default=None, description="an earlier stage, a model file or module:function to learn from besides the labels"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """Teachers exist and can teach."""
        if self.teacher is not None:
            teacher_models.check(document, (*path, "teacher"), self.teacher, pipeline)

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of teachers outside of the pipeline."""
        return {"teacher": teacher_models.identity(self.teacher, pipeline)} if self.teacher is not None else {}

    def training_setup(self, context: StageContext) -> "TrainingSetup":
        """The data of this stage, its augmentation, and its teachers."""
        teaching = None if self.teacher is None else teacher_models.teaching(self.teacher, self.batch_size, context)
        return build_training_setup(context, teaching)

    def fit_schedule(self, context: StageContext, patience: int | None = None) -> "TrainingSchedule":
        """How long and how fast this stage trains."""
        from edgepipe.training.training_loop import TrainingSchedule

        rate = self.learning_rate or context.task.optimizer.learning_rate
        return TrainingSchedule(self.epochs, self.batch_size, rate, self.decay, patience)


def build_training_setup(context: StageContext, teaching: "Distiller | None") -> "TrainingSetup":
    """The data of a stage, augmented as `data:` says, with its teachers.

    Raises:
        InputError: samples that cannot be augmented so.
    """
    from edgepipe.training.augmentation import augmenter_for
    from edgepipe.training.training_setup import TrainingSetup

    data, task = context.data, context.task
    one_label = task.kind == "classification" and task.labels == "one"
    augment = augmenter_for(data, data.class_count if one_label else None)
    return TrainingSetup(task, data.train, data.validation, augment, teaching, context.seed)


def early_stopping_notes(history: "History", patience: int | None) -> tuple[str, ...]:
    """A note on early stopping, where it was asked for."""
    return (f"stopped after epoch {len(history.epochs)}, kept epoch {history.kept_epoch}",) if patience else ()
