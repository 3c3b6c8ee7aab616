"""`prune`: remove the least important weights or channels, and train the rest."""

from typing import ClassVar, final

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.outcome import Outcome
from edgepipe.stages.context import StageContext
from edgepipe.stages.prune.prune_options import PruneOptions


@final
class Prune(PruneOptions):
    """Remove the least important weights or channels, along a schedule or in rounds, and train the rest."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    compresses: ClassVar = True
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Prune, train, and count the remaining weights or channels."""
        from edgepipe.stages.prune import channel_pruning, weight_pruning
        from edgepipe.training.training_loop import set_seeds

        set_seeds(context.seed)
        return (
            channel_pruning.run(self, context) if self.granularity == "channel" else weight_pruning.run(self, context)
        )
