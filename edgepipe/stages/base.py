"""What a stage is: frozen options, the kinds it takes and gives, and one function that does the work."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.cache import Cache
from edgepipe.core.config import Document, Options, Path_
from edgepipe.core.errors import InputError
from edgepipe.core.outcome import Outcome
from edgepipe.core.progress import Progress
from edgepipe.data.data_spec import Expression as Expression
from edgepipe.data.splits import FITTING, Split, Splits
from edgepipe.stages import teacher_models
from edgepipe.tasks.quality import Task
from edgepipe.tasks.task_spec import TaskSpec
from edgepipe.training.distillation.teacher_options import TeacherOption

if TYPE_CHECKING:
    from edgepipe.training.distillation.distiller import Teaching
    from edgepipe.training.training_loop import Schedule
    from edgepipe.training.training_setup import Lesson


@dataclass(frozen=True)
class World:
    """What is known before anything runs, for a stage to check its own options against."""

    base: Path
    task: TaskSpec | None
    earlier: tuple[str, ...]  # names of the stages before this one, the model source first
    trained: tuple[str, ...] = ()  # those of them that train
    representative: int = 200  # training samples that calibrate, as `data:` says
    models: tuple[str, ...] = ()  # those of `earlier` that give a Keras model, which can teach
    quantized: tuple[str, ...] = ()  # those of `earlier` after which there is no float model any more
    floating: tuple[str, ...] = ()  # those of `earlier` that leave layers in float because the options say so


@dataclass(frozen=True)
class Work:
    """All that a running stage may use. Splits that it did not ask for are not in it."""

    name: str
    artifact: Artifact | None
    folder: Path
    seed: int
    base: Path
    progress: Progress
    world: World
    splits: Splits | None = None
    task: Task | None = None
    allow_code: bool = False
    earlier: Mapping[str, Artifact] = field(default_factory=dict)
    cache: Cache | None = None  # of the run, for results that are kept by themselves; None is the default one

    @property
    def input(self) -> Artifact:
        """The artifact this stage works on."""
        if self.artifact is None:
            raise InputError(f"stage '{self.name}' has no model to work on")
        return self.artifact

    @property
    def data(self) -> Splits:
        """The data splits this stage asked for."""
        if self.splits is None:
            raise InputError(f"stage '{self.name}' needs data, and the pipeline has no `data:`")
        return self.splits

    @property
    def goal(self) -> Task:
        """The task the model is for."""
        if self.task is None:
            raise InputError(f"stage '{self.name}' needs a task, and the pipeline has no `task:`")
        return self.task


class Stage(Options):
    """Base of all stages. A subclass is final; its fields are its options and their descriptions the user's help."""

    accepts: ClassVar[Mapping[Kind, Kind]]  # kind it takes -> kind it gives
    splits: ClassVar[frozenset[Split]] = frozenset()
    needs_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ()  # packages whose versions are part of the cache key

    @abstractmethod
    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Do the work; write only below `work.folder`."""

    def wants_data(self, kind: Kind) -> bool:
        """Whether it cannot run without `data:` when given an artifact of `kind`."""
        return self.needs_data

    @property
    def quantizes(self) -> bool:
        """Whether what it gives is no float .tflite."""
        return False

    @property
    def leaves_float(self) -> bool:
        """Whether the options name layers that stay in float."""
        return False

    def check(self, document: Document, path: Path_, world: World) -> None:
        """Note in `document` what is wrong with the options beyond their types; the base has nothing to add."""

    def key(self, world: World) -> dict[str, Any]:
        """What else decides the result and belongs in the cache key; nothing in the base."""
        return {}


class TrainingStage(Stage):
    """Base of the stages that train: what they all can be told about it."""

    splits: ClassVar = FITTING
    needs_data: ClassVar = True
    trains: ClassVar = True

    epochs: int = Field(default=10, ge=1, description="passes over the training split")
    batch_size: int = Field(default=32, ge=1, description="samples per optimizer step")
    learning_rate: float | None = Field(default=None, gt=0, description="step size; null takes the task's")
    decay: Literal["constant", "cosine"] = Field(
        default="constant", description="how the learning rate goes on: as it is, or down to zero along a cosine"
    )
    teacher: TeacherOption = Field(
        default=None, description="an earlier stage, a model file or module:function to learn from besides the labels"
    )

    def check(self, document: Document, path: Path_, world: World) -> None:
        """Teachers exist and can teach."""
        if self.teacher is not None:
            teacher_models.check(document, (*path, "teacher"), self.teacher, world)

    def key(self, world: World) -> dict[str, Any]:
        """What teachers outside of the pipeline are made of."""
        return {"teacher": teacher_models.identity(self.teacher, world)} if self.teacher is not None else {}

    def lesson(self, work: Work) -> "Lesson":
        """The data of this stage, what is done to it, and who teaches."""
        return taught(
            work, None if self.teacher is None else teacher_models.teaching(self.teacher, self.batch_size, work)
        )

    def fit_schedule(self, work: Work, patience: int | None = None) -> "Schedule":
        """How long and how fast this stage trains."""
        from edgepipe.training.training_loop import Schedule

        rate = self.learning_rate or work.goal.optimizer.learning_rate
        return Schedule(self.epochs, self.batch_size, rate, self.decay, patience)


def taught(work: Work, teaching: "Teaching | None") -> "Lesson":
    """The data of a stage, augmented as `data:` says, with its teachers.

    Raises:
        InputError: samples that cannot be augmented so.
    """
    from edgepipe.training.augmentation import augmenter
    from edgepipe.training.training_setup import Lesson

    one = work.goal.kind == "classification" and work.goal.labels == "one"
    changed = augmenter(work.data, work.data.classes if one else None)
    return Lesson(work.goal, work.data.train, work.data.validation, changed, teaching, work.seed)
