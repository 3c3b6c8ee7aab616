"""`distill`: train a new, smaller model to do what the one before it does."""

from typing import Annotated, Any, ClassVar, final

from pydantic import BeforeValidator, Field

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.outcome import Outcome
from edgepipe.stages import model_io, model_metrics, teacher_models
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.stages.model_source import Source, problem
from edgepipe.stages.training import TrainingStage, build_training_setup, early_stopping_notes
from edgepipe.training.distillation.teacher_options import Teacher


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"function": value} if references.is_reference(value) else {"path": value}


@final
class Distill(TrainingStage):
    """Train a new student towards a teacher, by default the model before it; the student goes on through the stages."""

    accepts: ClassVar = {
        ArtifactKind.KERAS: ArtifactKind.KERAS,
        ArtifactKind.FLOAT: ArtifactKind.KERAS,
        ArtifactKind.QAT: ArtifactKind.KERAS,
    }
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    student: Annotated[Source, BeforeValidator(_named)] = Field(
        description="the new model: module:function, `{function: .., args: {..}}` or a .keras file"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the training split")
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better validation quality before it stops, keeping the best"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The student can be built, and the teachers can teach."""
        teacher_models.check(document, (*path, "teacher"), self._teacher, pipeline, needed=False)
        wrong = problem(self.student, pipeline.base_folder)
        if (
            not wrong
            and self.student.path is not None
            and self.student.kind(pipeline.base_folder) is not ArtifactKind.KERAS
        ):
            wrong = "a student is a .keras file of Keras 3 or module:function"
        if wrong:
            document.add_problem((*path, "student"), wrong)

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """What student and teachers are made of."""
        return {"student": self.student.key(pipeline), "teacher": teacher_models.identity(self._teacher, pipeline)}

    @property
    def _teacher(self) -> Teacher:
        return self.teacher or Teacher()

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Build the student, train it, store it."""
        from edgepipe.models.model_files import load_model
        from edgepipe.training.training_loop import fit, set_seeds

        made, _ = self.student.run(context)
        set_seeds(context.seed)
        student = load_model(made.path, ArtifactKind.KERAS, allow_code=self.student.allow_code)
        teaching = teacher_models.teaching(
            self._teacher, self.batch_size, context, usual=context.pipeline.earlier_stages[-1]
        )
        lesson = build_training_setup(context, teaching)
        history = fit(student, lesson, self.fit_schedule(context, self.patience), context.progress.epoch)
        artifact = model_io.write_keras(student, context.output_folder)
        notes = (*lesson.notes, *early_stopping_notes(history, self.patience))
        return artifact, Outcome(metrics=tuple(model_metrics.keras_metrics(student, artifact, context)), notes=notes)
