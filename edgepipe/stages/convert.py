"""`convert`: to a TFLite model."""

from typing import Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from edgepipe.artifact import Artifact, Kind, write_bytes
from edgepipe.data.splits import FITTING
from edgepipe.devices.evidence import counts
from edgepipe.metric import Finding, Metric
from edgepipe.outcome import Outcome, Table
from edgepipe.stages import facts
from edgepipe.stages.base import Stage, Work, World
from edgepipe.tflite.graph import read
from edgepipe.tflite.integer import findings
from edgepipe.tflite.metadata import with_preprocessing
from edgepipe.tflite.model import Model

Scheme = Literal["int8", "float16", "dynamic", "float32"]


@final
class Convert(Stage):
    """Convert to TFLite: full-integer int8 calibrated on representative samples, or a float scheme."""

    accepts: ClassVar = dict.fromkeys((Kind.KERAS, Kind.FLOAT, Kind.QAT, Kind.SAVED_MODEL), Kind.TFLITE)
    splits: ClassVar = FITTING
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy",
                            "zstandard")  # fmt: skip

    scheme: Scheme = Field(
        default="int8", description="int8: integers throughout; dynamic: int8 weights only; float16: half-size weights"
    )
    input: Literal["int8", "uint8", "float32"] | None = Field(
        default=None, description="type of the model's inputs; null takes int8 for int8, else float32"
    )
    output: Literal["int8", "uint8", "float32"] | None = Field(
        default=None, description="type of the model's outputs; null takes int8 for int8, else float32"
    )
    representative: int | None = Field(
        default=None, ge=1, description="training samples that calibrate the activations; null takes what `data:` says"
    )

    @model_validator(mode="after")
    def _interface(self) -> "Convert":
        integer = {name for name in (self.input, self.output) if name in ("int8", "uint8")}
        if self.scheme != "int8" and integer:
            raise ValueError(
                f"{' and '.join(sorted(map(str, integer)))} inputs or outputs need scheme int8, not {self.scheme}"
            )
        return self

    def wants_data(self, kind: Kind) -> bool:
        """Only calibration needs data."""
        return self.scheme == "int8"

    def key(self, world: World) -> dict[str, Any]:
        """How many samples calibrate, which `data:` may say."""
        return {"representative": self._representative(world)}

    def _representative(self, world: World) -> int:
        return self.representative or world.representative

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Convert, then count and measure the result."""
        from edgepipe.compress.convert import convert
        from edgepipe.training.fit import seeded

        seeded(work.seed)
        interface = {"input_type": self.input or self._default(), "output_type": self.output or self._default()}
        model = facts.open_any(work.input.path, work.input.kind, allow_code=work.allow_code)
        path = work.folder / "model.tflite"
        content = convert(model, scheme=self.scheme, samples=self._samples(work), **interface)
        write_bytes(path, with_preprocessing(content, work.splits.preprocessing if work.splits is not None else None))
        artifact, lite = Artifact.of(Kind.TFLITE, path), read(path)
        tables = self._agreement(model, lite, work)
        metrics = (*_quality(artifact, work), *tables[1], *counts(lite))
        return artifact, Outcome(metrics=metrics, findings=tuple(self._offenders(lite)), tables=tables[0])

    def _offenders(self, lite: Model) -> list[Finding]:
        """What int8 left in float: operators and tensors that the user did not ask to be float."""
        if self.scheme != "int8":
            return []
        return findings(lite, allow_float_interface="float32" in (self.input, self.output))

    def _agreement(self, model: Any, lite: Model, work: Work) -> tuple[tuple[Table, ...], tuple[Metric, ...]]:
        """How far a fake-quant model and its int8 model agree; nothing for models without fake-quant."""
        if work.input.kind is not Kind.QAT or self.scheme != "int8" or work.splits is None:
            return (), ()
        from edgepipe.stages.agreed import compared

        return compared(model, lite, work)

    def _default(self) -> Literal["int8", "float32"]:
        return "int8" if self.scheme == "int8" else "float32"

    def _samples(self, work: Work) -> Any:
        if self.scheme != "int8":
            return None
        from edgepipe.data.splits import representative

        return representative(work.data.train, self._representative(work.world), work.seed)


def _quality(artifact: Artifact, work: Work) -> list[Metric]:
    if work.splits is None or work.task is None:
        return []
    from edgepipe.stages.lite import lite_quality
    from edgepipe.tflite.interpreter import Runtime

    return lite_quality(artifact.path, work.task, work.data.validation, "validation", Runtime.XNNPACK)
