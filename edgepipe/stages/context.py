"""What a stage works with: the pipeline around it when options are checked, and its context when it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgepipe.core.artifact import Artifact
from edgepipe.core.cache import Cache
from edgepipe.core.errors import InputError
from edgepipe.core.outcome import Outcome
from edgepipe.core.progress import Progress
from edgepipe.tasks.task_spec import TaskSpec

if TYPE_CHECKING:  # both need numpy, which a cached run does not load
    from edgepipe.data.splits import DatasetSplits
    from edgepipe.tasks.quality import Task


@dataclass(frozen=True)
class PipelineInfo:
    """What is known of the pipeline before anything runs, for a stage to check its own options against.

    Relative paths start from `base_folder`. The tuples hold names of the stages before this one, the model source
    first: all of them, those that train, those that output a Keras model (and can be teachers), those after which the
    model is quantized, and those whose options keep layers in float.
    """

    base_folder: Path
    task: TaskSpec | None
    earlier_stages: tuple[str, ...]
    training_stages: tuple[str, ...] = ()
    calibration_samples: int = 200  # `representative` of `data:`
    keras_stages: tuple[str, ...] = ()
    quantizing_stages: tuple[str, ...] = ()
    partly_float_stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageContext:
    """All that a running stage may use; only the data splits that it asked for are in it.

    A stage writes to `output_folder` only; relative paths start from `base_folder`. Without a `cache`, results that
    have cache entries of their own, such as Vela's, go to the default one.
    """

    stage_name: str
    input_artifact: Artifact | None
    output_folder: Path
    seed: int
    base_folder: Path
    progress: Progress
    pipeline: PipelineInfo
    splits: "DatasetSplits | None" = None
    task_if_any: "Task | None" = None
    allow_code: bool = False
    earlier_artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    earlier_outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    cache: Cache | None = None

    @property
    def artifact(self) -> Artifact:
        """The artifact this stage works on."""
        if self.input_artifact is None:
            raise InputError(f"stage '{self.stage_name}' has no model to work on")
        return self.input_artifact

    @property
    def data(self) -> "DatasetSplits":
        """The data splits this stage asked for."""
        if self.splits is None:
            raise InputError(f"stage '{self.stage_name}' needs data, and the pipeline has no `data:`")
        return self.splits

    @property
    def task(self) -> "Task":
        """The task that the model is trained and evaluated for."""
        if self.task_if_any is None:
            raise InputError(f"stage '{self.stage_name}' needs a task, and the pipeline has no `task:`")
        return self.task_if_any
