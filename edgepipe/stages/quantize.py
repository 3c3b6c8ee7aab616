"""`quantize`: quantization-aware training."""

from typing import Any, ClassVar, final

from pydantic import Field

from edgepipe.artifact import Artifact, Kind
from edgepipe.outcome import Outcome
from edgepipe.stages import facts
from edgepipe.stages.base import TrainingStage, Work


@final
class Quantize(TrainingStage):
    """Train with fake-quant on weights and activations, so that the model learns to live with 8 bits (tfmot)."""

    accepts: ClassVar = {Kind.KERAS: Kind.QAT, Kind.FLOAT: Kind.QAT}
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")

    preserve_sparsity: bool | None = Field(
        default=None, description="keep zeros at zero; null does so when the model is sparse"
    )

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Apply fake-quant, train, store base model, recipe and weights."""
        from edgepipe.compress import quantize, ranges
        from edgepipe.training.fit import fit, seeded

        seeded(work.seed)
        base, notes = facts.open_float(work)
        scheme = self._scheme(quantize.is_sparse(base))
        model = quantize.fake_quant(base, scheme)
        ranges.initialise(model, work.data.train.x, work.seed)
        fit(model, work.goal, work.data.train, work.data.validation, self.fit_schedule(work), work.progress.epoch)
        folder = work.folder / "model"
        quantize.save(model, base, scheme, folder)
        artifact = Artifact.of(Kind.QAT, folder)
        notes = [*notes, f"scheme: tfmot {scheme}", *_in_float(quantize.left_in_float(model))]
        return artifact, Outcome(metrics=tuple(facts.keras_evidence(model, artifact, work)), notes=tuple(notes))

    def _scheme(self, sparse: bool) -> Any:
        keep = sparse if self.preserve_sparsity is None else self.preserve_sparsity
        return "default_8bit_preserve_sparsity" if keep else "default_8bit"


def _in_float(names: list[str]) -> list[str]:
    return [f"layer '{name}' carries no fake-quant; the converter calibrates it" for name in names]
