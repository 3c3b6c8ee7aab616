"""`prune`: remove weights or channels that matter least, and train what is left."""

from typing import ClassVar, final

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.outcome import Outcome
from edgepipe.stages.context import StageContext
from edgepipe.stages.prune.prune_options import PruneOptions


@final
class Prune(PruneOptions):
    """Remove the weights or channels that matter least, by a schedule or in rounds, and train what is left."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Prune, train, and count what is left."""
        from edgepipe.stages.prune import channel_pruning, weight_pruning
        from edgepipe.training.training_loop import set_seeds

        set_seeds(context.seed)
        return (
            channel_pruning.run(self, context) if self.granularity == "channel" else weight_pruning.run(self, context)
        )
