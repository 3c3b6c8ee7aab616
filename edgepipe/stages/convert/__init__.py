"""`convert`: convert to TFLite."""

from typing import ClassVar, final

from edgepipe.core.artifact import Artifact, ArtifactKind
from edgepipe.core.outcome import Outcome
from edgepipe.data.split_names import FITTING_SPLITS
from edgepipe.stages.context import StageContext
from edgepipe.stages.convert.convert_options import ConvertOptions


@final
class Convert(ConvertOptions):
    """Convert to TFLite: integers calibrated on representative samples, weights only, float, or a mix of types."""

    accepts: ClassVar = dict.fromkeys(
        (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.QAT, ArtifactKind.SAVED_MODEL, ArtifactKind.TFLITE),
        ArtifactKind.TFLITE,
    )
    splits: ClassVar = FITTING_SPLITS
    compresses: ClassVar = True
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy",
                            "zstandard")  # fmt: skip

    def run(self, context: StageContext) -> tuple[Artifact, Outcome]:
        """Convert, then count and measure the .tflite."""
        from edgepipe.stages.convert import conversion_steps, convert_outcome
        from edgepipe.training.training_loop import set_seeds

        set_seeds(context.seed)
        samples = conversion_steps.draw_samples(self, context)
        source = conversion_steps.open_source(self, context, samples)
        converted_model = conversion_steps.convert(self, context, source, samples)
        artifact = conversion_steps.write(context, converted_model)
        return artifact, convert_outcome.build_outcome(self, context, artifact, source, converted_model)
