"""`export`: write the model for another tool."""

from typing import ClassVar, Literal, final

from pydantic import Field

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.outcome import Outcome
from edgepipe.data.split_names import FITTING_SPLITS
from edgepipe.stages import model_io, model_metrics
from edgepipe.stages.base import Stage
from edgepipe.stages.context import StageContext


@final
class Export(Stage):
    """Write a compressed model as a Keras 3 model, which Keras 3 loads, trains and saves without edgepipe."""

    accepts: ClassVar = {ArtifactKind.FLOAT: ArtifactKind.KERAS}
    splits: ClassVar = FITTING_SPLITS
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "numpy")

    format: Literal["keras"] = Field(default="keras", description="keras: a .keras file of Keras 3")

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Rebuild the model from Keras 3 layers, check that both give equal outputs, write it."""
        from edgepipe.models.keras3_export import export_to_keras3
        from edgepipe.models.model_files import load_model

        keras3_export = export_to_keras3(
            load_model(context.artifact.path, context.artifact.kind, allow_code=context.allow_code)
        )
        artifact = model_io.write_keras(keras3_export.model, context.output_folder)
        return artifact, Outcome(
            metrics=tuple(model_metrics.keras_metrics(keras3_export.model, artifact, context)),
            notes=(keras3_export.text,),
        )
