"""What a stage is: frozen options, the artifact kinds it takes and gives, and one function that does the work."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.config import Document, KeyPath, Options
from edgepipe.core.outcome import Outcome
from edgepipe.data.data_spec import Expression as Expression
from edgepipe.data.splits import Split
from edgepipe.stages.context import PipelineInfo, StageContext


class Stage(Options):
    """Base of all stages. A subclass is final; its fields are its options and their descriptions the user's help."""

    accepts: ClassVar[Mapping[ArtifactKind, ArtifactKind]]  # kind it takes -> kind it gives
    splits: ClassVar[frozenset[Split]] = frozenset()
    needs_data: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    tools: ClassVar[tuple[str, ...]] = ()  # packages whose versions are part of the cache key
    modules: ClassVar[tuple[str, ...]] = ()  # further modules whose sources are, besides the stage's own imports

    @abstractmethod
    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Do the work; write only below `context.output_folder`."""

    def wants_data(self, kind: ArtifactKind) -> bool:
        """Whether it cannot run without `data:` when given an artifact of `kind`."""
        return self.needs_data

    @property
    def quantizes(self) -> bool:
        """Whether its output is not a float model any more."""
        return False

    @property
    def leaves_float(self) -> bool:
        """Whether the options name layers that stay in float."""
        return False

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """Add problems of the options beyond their types to `document`; the base has nothing to add."""

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """What else decides the output and belongs in the cache key; nothing in the base."""
        return {}
