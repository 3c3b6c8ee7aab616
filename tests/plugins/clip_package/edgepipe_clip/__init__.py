"""A stage of a separate package: clip the kernels of a float model before it is quantized."""

from typing import ClassVar, final

from pydantic import Field

from edgepipe import Artifact, ArtifactKind, Outcome, PipelineInfo, Stage, StageContext


@final
class ClipWeights(Stage):
    """Clip every kernel to a symmetric range, so that a few large weights do not stretch its int8 scale."""

    accepts: ClassVar = {ArtifactKind.KERAS: ArtifactKind.FLOAT, ArtifactKind.FLOAT: ArtifactKind.FLOAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "numpy")

    limit: float = Field(default=1.0, gt=0, description="largest magnitude that a weight keeps")
    after: str | None = Field(default=None, description="an earlier stage that this one must follow")

    def check(self, document, path, pipeline: PipelineInfo) -> None:
        """The stage named by `after` is there."""
        if self.after is not None and self.after not in pipeline.earlier_stages:
            known = ", ".join(pipeline.earlier_stages)
            document.add_problem((*path, "after"), f"no earlier stage is named '{self.after}'; allowed: {known}")

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Clip, and report how many weights that changed."""
        from edgepipe.stages import model_io, model_metrics
        from edgepipe_clip.kernels import clip_kernels

        model, notes = model_io.open_float(context)
        changed = clip_kernels(model, self.limit)
        artifact = model_io.write_float(model, context.output_folder)
        metrics = model_metrics.keras_metrics(model, artifact, context)
        return artifact, Outcome(metrics=tuple(metrics), notes=(*notes, f"{changed} weights clipped to {self.limit:g}"))
