"""The base class of the stages that train: their options, data and teachers."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgepipe.core.config import Document, KeyPath
from edgepipe.data.split_names import FITTING_SPLITS
from edgepipe.stages import teacher_models
from edgepipe.stages.base import Stage
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.training.distillation.teacher_options import TeacherOption

if TYPE_CHECKING:
    from edgepipe.training.distillation.distiller import Distiller
    from edgepipe.training.training_loop import TrainingHistory, TrainingSchedule
    from edgepipe.training.training_setup import TrainingSetup


class TrainingStage(Stage):
    """Base of the stages that train, with the options they share."""

    splits: ClassVar = FITTING_SPLITS
    needs_data: ClassVar = True
    trains: ClassVar = True

    epochs: int = Field(default=10, ge=1, description="passes over the training split")
    batch_size: int = Field(default=32, ge=1, description="samples per optimizer step")
    learning_rate: float | None = Field(default=None, gt=0, description="step size; null uses the task's")
    decay: Literal["constant", "cosine"] = Field(
        default="constant", description="learning-rate schedule: constant, or down to zero along a cosine"
    )
    teacher: TeacherOption = Field(
        default=None, description="an earlier stage, a model file or module:function to learn from besides the labels"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The teachers exist and have a Keras model."""
        if self.teacher is not None:
            teacher_models.check(document, (*path, "teacher"), self.teacher, pipeline)

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of teachers from outside the pipeline."""
        return {"teacher": teacher_models.teacher_digests(self.teacher, pipeline)} if self.teacher is not None else {}

    def training_setup(self, context: StageContext) -> "TrainingSetup":
        """What this stage trains with: data, augmentation and teachers."""
        distiller = (
            None if self.teacher is None else teacher_models.load_distiller(self.teacher, self.batch_size, context)
        )
        return build_training_setup(context, distiller)

    def fit_schedule(self, context: StageContext, patience: int | None = None) -> "TrainingSchedule":
        """The epochs, batch size and learning rates of this stage."""
        from edgepipe.training.training_loop import TrainingSchedule

        learning_rate = self.learning_rate or context.task.optimizer.learning_rate
        return TrainingSchedule(self.epochs, self.batch_size, learning_rate, self.decay, patience)


def build_training_setup(context: StageContext, distiller: "Distiller | None") -> "TrainingSetup":
    """What a stage trains with: its data, augmented as `data:` says, and its teachers.

    Raises:
        InputError: the samples cannot be augmented as `data:` says.
    """
    from edgepipe.training.augmentation import build_split_augmenter
    from edgepipe.training.training_setup import TrainingSetup

    splits, task = context.data, context.task
    has_one_label = task.kind == "classification" and task.labels == "one"
    augmenter = build_split_augmenter(splits, splits.class_count if has_one_label else None)
    return TrainingSetup(task, splits.train, splits.validation, augmenter, distiller, context.seed)


def early_stopping_notes(history: "TrainingHistory", patience: int | None) -> tuple[str, ...]:
    """A note on early stopping, if `patience` is set."""
    return (f"stopped after epoch {len(history.epoch_metrics)}, kept epoch {history.kept_epoch}",) if patience else ()
