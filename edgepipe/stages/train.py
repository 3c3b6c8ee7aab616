"""`train`: fit the model to the training split."""

from typing import Any, ClassVar, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.outcome import Outcome
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.context import StageContext
from edgepipe.stages.training import TrainingStage, early_stopping_notes


@final
class Train(TrainingStage):
    """Fit the model to the training split; validation quality is measured after each epoch."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.KERAS, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "numpy")

    epochs: int = Field(default=20, ge=1, description="passes over the training split")
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many epochs without better validation quality and keep the best"
    )

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Train the model and store it with the Keras version it came with."""
        from edgepipe.models.model_files import load_model
        from edgepipe.training.training_loop import fit, set_seeds

        set_seeds(context.seed)
        model = load_model(context.artifact.path, context.artifact.kind, allow_code=context.allow_code)
        zero_counts_before = _count_zeros(model)
        schedule = self.fit_schedule(context, self.patience)
        setup = self.training_setup(context)
        history = fit(model, setup, schedule, context.progress.epoch)
        artifact = (model_io.write_keras if context.artifact.kind is ArtifactKind.KERAS else model_io.write_float)(
            model, context.output_folder
        )
        notes = (
            *setup.notes,
            *_lost_zero_notes(zero_counts_before, model),
            *early_stopping_notes(history, self.patience),
        )
        return artifact, Outcome(metrics=tuple(model_metrics.keras_metrics(model, artifact, context)), notes=notes)


def _count_zeros(model: Any) -> dict[str, tuple[int, int]]:
    """Exact zeros and elements of each kernel."""
    import numpy as np

    array_by_weight = {getattr(weight, "path", weight.name): np.asarray(weight) for weight in model.weights}
    return {name: (a.size - int(np.count_nonzero(a)), a.size) for name, a in array_by_weight.items() if a.ndim > 1}


def _lost_zero_notes(zero_counts_before: dict[str, tuple[int, int]], model: Any) -> tuple[str, ...]:
    """A note on each kernel that was pruned (at least a twentieth of it) and lost zeros."""
    zero_counts_after = _count_zeros(model)
    return tuple(
        f"'{name}' had {zeros} zeros and now has {zero_counts_after[name][0]}: training refills pruned weights; "
        "`prune` and `quantize` keep zeros"
        for name, (zeros, size) in zero_counts_before.items()
        if size / 20 <= zeros < size and zero_counts_after[name][0] < zeros
    )
