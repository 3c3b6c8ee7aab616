"""The base class of all stages: frozen options, the artifact kinds a stage takes and gives, and `run`."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath, Options
from edgepipe.core.outcome import Outcome
from edgepipe.data.data_spec import RegularExpression as RegularExpression
from edgepipe.data.split_names import Split
from edgepipe.stages.context import PipelineInfo, StageContext


class Stage(Options):
    """Base of all stages. A subclass is final; its fields are its options, their descriptions are the user's help."""

    accepts: ClassVar[Mapping[ArtifactKind, ArtifactKind]]  # kind of the input artifact -> kind of the output artifact
    splits: ClassVar[frozenset[Split]] = frozenset()
    needs_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    always_runs: ClassVar[bool] = False  # its work is outside: on a device, which the cache knows nothing of
    compresses: ClassVar[bool] = False  # its model is compared with the one before the first stage that does
    tools: ClassVar[tuple[str, ...]] = ()  # packages whose versions are part of the cache key
    modules: ClassVar[tuple[str, ...]] = ()  # modules whose sources are too, besides those that the stage imports

    @abstractmethod
    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Do the stage's work; write only below `context.output_folder`."""

    def wants_data(self, kind: ArtifactKind) -> bool:
        """Whether it needs `data:` to run on an artifact of `kind`."""
        return self.needs_data

    @property
    def uses_tensorflow(self) -> bool:
        """Whether TensorFlow is loaded before it runs."""
        return "tensorflow" in self.tools

    @property
    def quantizes(self) -> bool:
        """Whether its output is no longer a float model."""
        return False

    @property
    def keeps_float(self) -> bool:
        """Whether the options name layers that stay in float."""
        return False

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """Add what is wrong with the options, beyond their types, to `document`; the base class adds nothing."""

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """Further inputs of the cache key, such as the content of files that options name; the base class has none."""
        return {}
