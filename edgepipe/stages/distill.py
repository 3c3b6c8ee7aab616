"""`distill`: train a new, smaller model to do what the one before it does."""

from typing import Annotated, Any, ClassVar, final

from pydantic import BeforeValidator, Field

from edgepipe.core import references
from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.config import Document, Path_
from edgepipe.core.outcome import Outcome
from edgepipe.stages import model_metrics, teacher_models
from edgepipe.stages.base import TrainingStage, Work, World, taught
from edgepipe.stages.model_source import Source, problem
from edgepipe.training.distillation.teacher_options import Teacher


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"function": value} if references.is_reference(value) else {"path": value}


@final
class Distill(TrainingStage):
    """Train a new student towards a teacher, by default the model before it; the student goes on through the stages."""

    accepts: ClassVar = {Kind.KERAS: Kind.KERAS, Kind.FLOAT: Kind.KERAS, Kind.QAT: Kind.KERAS}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    student: Annotated[Source, BeforeValidator(_named)] = Field(
        description="the new model: module:function, `{function: .., args: {..}}` or a .keras file"
    )
    epochs: int = Field(default=20, ge=1, description="passes over the training split")
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better validation quality before it stops, keeping the best"
    )

    def check(self, document: Document, path: Path_, world: World) -> None:
        """The student can be built, and the teachers can teach."""
        teacher_models.check(document, (*path, "teacher"), self._teacher, world, needed=False)
        wrong = problem(self.student, world.base)
        if not wrong and self.student.path is not None and self.student.kind(world.base) is not Kind.KERAS:
            wrong = "a student is a .keras file of Keras 3 or module:function"
        if wrong:
            document.problem((*path, "student"), wrong)

    def key(self, world: World) -> dict[str, Any]:
        """What student and teachers are made of."""
        return {"student": self.student.key(world), "teacher": teacher_models.identity(self._teacher, world)}

    @property
    def _teacher(self) -> Teacher:
        return self.teacher or Teacher()

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Build the student, train it, store it."""
        from edgepipe.models.model_files import load
        from edgepipe.training.training_loop import fit, seeded

        made, _ = self.student.run(work)
        seeded(work.seed)
        student = load(made.path, Kind.KERAS, allow_code=self.student.allow_code)
        teaching = teacher_models.teaching(self._teacher, self.batch_size, work, usual=work.world.earlier[-1])
        lesson = taught(work, teaching)
        history = fit(student, lesson, self.fit_schedule(work, self.patience), work.progress.epoch)
        artifact = model_metrics.write_keras(student, work.folder)
        notes = (*lesson.notes, *model_metrics.stopped(history, self.patience))
        return artifact, Outcome(metrics=tuple(model_metrics.keras_evidence(student, artifact, work)), notes=notes)
