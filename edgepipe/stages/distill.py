"""`distill`: train a new, smaller model to imitate the one before it."""

from typing import Annotated, Any, ClassVar, final

from pydantic import BeforeValidator, Field

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath
from edgepipe.core.outcome import Outcome
from edgepipe.stages import model_io, model_metrics, teacher_models
from edgepipe.stages.context import PipelineInfo, StageContext
from edgepipe.stages.model_source import Source, find_problem
from edgepipe.stages.training import TrainingStage, build_training_setup, early_stopping_notes
from edgepipe.training.distillation.teacher_options import Teacher


def _expand_shorthand(raw_source: Any) -> Any:
    if not isinstance(raw_source, str):
        return raw_source
    return {"function": raw_source} if references.is_reference(raw_source) else {"path": raw_source}


@final
class Distill(TrainingStage):
    """Train a new student model from a teacher, by default the model before it; later stages work on the student."""

    accepts: ClassVar = {
        ArtifactKind.KERAS: ArtifactKind.KERAS,
        ArtifactKind.FLOAT: ArtifactKind.KERAS,
        ArtifactKind.QAT: ArtifactKind.KERAS,
    }
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    student: Annotated[Source, BeforeValidator(_expand_shorthand, json_schema_input_type=str | Source)] = Field(
        description="the new model: module:function, `{function: .., args: {..}}` or a .keras file"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the training split")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without better validation quality and keep the best"
    )

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The student can be built, and the teachers exist."""
        teacher_models.check(document, (*path, "teacher"), self._teacher, pipeline, is_required=False)
        problem_text = find_problem(self.student, pipeline.base_folder)
        if (
            not problem_text
            and self.student.path is not None
            and self.student.kind(pipeline.base_folder) is not ArtifactKind.KERAS
        ):
            problem_text = "a student is a .keras file of Keras 3 or module:function"
        if problem_text:
            document.add_problem((*path, "student"), problem_text)

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The content of student and teachers."""
        return {
            "student": self.student.key(pipeline),
            "teacher": teacher_models.teacher_digests(self._teacher, pipeline),
        }

    @property
    def _teacher(self) -> Teacher:
        return self.teacher or Teacher()

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Build the student, train it, store it."""
        from edgepipe.models.model_files import load_model
        from edgepipe.training.training_loop import fit, set_seeds

        student_artifact, student_outcome = self.student.run(context)
        set_seeds(context.seed)
        student = load_model(student_artifact.path, ArtifactKind.KERAS, allow_code=self.student.allow_code)
        default_teacher = context.pipeline.earlier_stages[-1]
        distiller = teacher_models.load_distiller(self._teacher, self.batch_size, context, default_teacher)
        setup = build_training_setup(context, distiller)
        history = fit(student, setup, self.fit_schedule(context, self.patience), context.progress.epoch)
        artifact = model_io.write_keras(student, context.output_folder)
        notes = (*student_outcome.notes, *setup.notes, *early_stopping_notes(history, self.patience))
        return artifact, Outcome(metrics=tuple(model_metrics.keras_metrics(student, artifact, context)), notes=notes)
