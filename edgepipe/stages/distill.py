"""`distill`: train a new, smaller model to do what the one before it does."""

from typing import Annotated, Any, ClassVar, final

from pydantic import BeforeValidator, Field

from edgepipe import sources
from edgepipe.artifact import Artifact, Kind
from edgepipe.config import Document, Path_
from edgepipe.outcome import Outcome
from edgepipe.stages import facts, teachers
from edgepipe.stages.base import TrainingStage, Work, World, taught
from edgepipe.stages.source import Source, problem
from edgepipe.training.distillation.options import Teacher


def _named(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"function": value} if sources.is_reference(value) else {"path": value}


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
        teachers.check(document, (*path, "teacher"), self._teacher, world, needed=False)
        wrong = problem(self.student, world.base)
        if not wrong and self.student.path is not None and self.student.kind(world.base) is not Kind.KERAS:
            wrong = "a student is a .keras file of Keras 3 or module:function"
        if wrong:
            document.problem((*path, "student"), wrong)

    def key(self, world: World) -> dict[str, Any]:
        """What student and teachers are made of."""
        return {"student": self.student.key(world), "teacher": teachers.identity(self._teacher, world)}

    @property
    def _teacher(self) -> Teacher:
        return self.teacher or Teacher()

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Build the student, train it, store it."""
        from edgepipe.models.loading import load
        from edgepipe.training.fit import fit, seeded

        made, _ = self.student.run(work)
        seeded(work.seed)
        student = load(made.path, Kind.KERAS, allow_code=self.student.allow_code)
        teaching = teachers.teaching(self._teacher, self.batch_size, work, usual=work.world.earlier[-1])
        lesson = taught(work, teaching)
        history = fit(student, lesson, self.fit_schedule(work, self.patience), work.progress.epoch)
        artifact = facts.write_keras(student, work.folder)
        notes = (*lesson.notes, *facts.stopped(history, self.patience))
        return artifact, Outcome(metrics=tuple(facts.keras_evidence(student, artifact, work)), notes=notes)
