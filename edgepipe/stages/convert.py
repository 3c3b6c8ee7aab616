"""`convert`: to a TFLite model."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, final

from pydantic import Field, model_validator

from edgepipe.compress.schemes import SCHEMES, Calibration, Method, Number, SchemeName, interface
from edgepipe.core import budget
from edgepipe.core.artifact import Artifact, Kind, file_digest, write_bytes
from edgepipe.core.config import Document, Path_, Quantity
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.outcome import Outcome
from edgepipe.core.units import Dimension
from edgepipe.data.splits import FITTING
from edgepipe.devices import device_profile
from edgepipe.stages.base import Expression, Stage, Work, World
from edgepipe.tflite.metadata import with_preprocessing

Without = Literal["data_free", "samples"]
Drop = Annotated[float, Quantity(Dimension.FRACTION), Field(ge=0)]


@final
class Convert(Stage):
    """Convert to TFLite: integers calibrated on representative samples, weights alone, float, or a mix of types."""

    accepts: ClassVar = dict.fromkeys((Kind.KERAS, Kind.FLOAT, Kind.QAT, Kind.SAVED_MODEL, Kind.TFLITE), Kind.TFLITE)
    splits: ClassVar = FITTING
    tools: ClassVar = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy",
                            "zstandard", "litert-quantizer")  # fmt: skip

    scheme: SchemeName = Field(
        default="int8",
        description="; ".join(f"{name}: {scheme.what}" for name, scheme in SCHEMES.items()),
    )
    input: Number | None = Field(
        default=None, description="type of the model's inputs; null takes int8 for int8 and mixed, int16 for int16x8"
    )
    output: Number | None = Field(default=None, description="type of the model's outputs, likewise")
    representative: int | None = Field(
        default=None, ge=1, description="training samples that calibrate the activations; null takes what `data:` says"
    )
    calibration: Method = Field(default="min_max", description="how ranges of activations are taken from them")
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="of `calibration: percentile`: per cent of values inside the range"
    )
    equalize: Without | None = Field(
        default=None,
        description="scale channels between layers so that their ranges are alike: by the weights alone, or on samples",
    )
    bias_correction: Without | None = Field(
        default=None, description="take off biases what rounding the weights shifts, from batch norms or on samples"
    )
    types: dict[str, None] = Field(
        default_factory=dict,
        description="what stays in float: layer classes or TFLite operators, `{SOFTMAX: null}`",
    )
    layers: dict[Expression, None] = Field(
        default_factory=dict, description='layers that stay in float, by regular expression: `{"head_.*": null}`'
    )
    recipe: str | None = Field(default=None, description="of `scheme: recipe`: a recipe file of litert-quantizer")
    max_drop: Drop | None = Field(
        default=None, description="of `scheme: mixed`: validation quality that may be lost against float, as 0.5 point"
    )
    device: str | None = Field(
        default=None, description="the profile it is made for: no float layer on an integer-only device"
    )

    @model_validator(mode="after")
    def _agree(self) -> "Convert":
        for wrong in filter(None, (rule(self) for rule in _RULES)):
            raise ValueError(wrong)
        return self

    def wants_data(self, kind: Kind) -> bool:
        """Only calibration needs data; what a recipe needs is told when it is read."""
        return SCHEMES[self.scheme].calibrated and self.scheme != "recipe"

    @property
    def quantizes(self) -> bool:
        """Whatever the scheme, but for float32."""
        return self.scheme != "float32"

    @property
    def leaves_float(self) -> bool:
        """Whether layers or types are named."""
        return bool(self.types or self.layers)

    def check(self, document: Document, path: Path_, world: World) -> None:
        """The device exists and takes what stays in float; the recipe can be read; a mix has a task to decide by."""
        self._check_device(document, path, world)
        if world.quantized and world.earlier[-1] == world.quantized[-1]:  # after others, the chain itself does not fit
            document.problem(path, f"'{world.quantized[0]}' has quantized the model; drop one of them", at="key")
        if self.recipe is not None and not (world.base / self.recipe).is_file():
            document.problem((*path, "recipe"), f"{self.recipe}: no such file")
        if self.scheme == "mixed" and world.task is None:
            document.problem(path, "`scheme: mixed` is decided by validation quality: it needs `task:`", at="key")
        if self.max_drop is not None and world.task is not None and world.task.measures:
            deciding = next(iter(world.task.measures.values()))  # the drop is in its unit
            budget.amount_of(document, (*path, "max_drop"), document.at((*path, "max_drop")), deciding.unit)

    def _check_device(self, document: Document, path: Path_, world: World) -> None:
        try:
            device = self.target(world.base)
        except EdgepipeError as error:
            document.problem((*path, "device"), str(error))
            return
        if device is None:
            return
        for option in ("input", "output"):
            if device.integer_only and getattr(self, option) == "float32":
                document.problem((*path, option), f"float32 at the {option}: {device.name} is for integers only")
        for option in ("types", "layers"):
            if device.integer_only and getattr(self, option):
                document.problem((*path, option), f"nothing can stay in float: {device.name} is for integers only")

    def key(self, world: World) -> dict[str, Any]:
        """How many samples calibrate, which `data:` may say; the content of recipe and device."""
        target = self.target(world.base)
        return {
            "representative": self.samples(world),
            "recipe": file_digest(world.base / self.recipe) if self.recipe is not None else None,
            "device": device_profile.digest(target) if target is not None else None,
        }

    def target(self, base: Path) -> device_profile.Device | None:
        """The device it is made for; `base` is what the path of a profile is relative to."""
        return None if self.device is None else device_profile.load(self.device, base)

    def samples(self, world: World) -> int:
        """How many training samples calibrate."""
        return self.representative or world.representative

    @property
    def ranges(self) -> Calibration:
        """How ranges of activations are taken."""
        return Calibration(self.calibration, self.percentile)

    def run(self, work: Work) -> tuple[Artifact, Outcome]:
        """Convert, then count and measure the result."""
        from edgepipe.compress import conversion
        from edgepipe.training.training_loop import seeded

        seeded(work.seed)
        made = conversion.made(self, work)
        path = work.folder / "model.tflite"
        write_bytes(
            path, with_preprocessing(made.content, work.splits.preprocessing if work.splits is not None else None)
        )
        artifact = Artifact.of(Kind.TFLITE, path)
        return artifact, conversion.told(self, work, artifact, made)


def _interface(convert: Convert) -> str:
    try:
        interface(convert.scheme, convert.input, convert.output)
    except InputError as error:
        return str(error)
    return ""


def _mixed_only(convert: Convert) -> str:
    if convert.scheme == "mixed":
        return "" if convert.max_drop is not None else "scheme mixed needs max_drop, for example `max_drop: 0.5 point`"
    return "max_drop needs `scheme: mixed`" if convert.max_drop is not None else ""


def _recipe_only(convert: Convert) -> str:
    if convert.scheme == "recipe":
        return "" if convert.recipe is not None else "scheme recipe needs a recipe, the path of a JSON file"
    return "a recipe needs `scheme: recipe`" if convert.recipe is not None else ""


def _calibrated_only(convert: Convert) -> str:
    if convert.calibration != "min_max" and not SCHEMES[convert.scheme].calibrated:
        return f"calibration {convert.calibration}: scheme {convert.scheme} quantizes no activations"
    if convert.percentile != 99.99 and convert.calibration != "percentile":
        return "percentile needs `calibration: percentile`"
    return ""


def _left(convert: Convert) -> str:
    if (convert.types or convert.layers) and convert.scheme in ("float32", "mixed"):
        why = "decides itself" if convert.scheme == "mixed" else "quantizes nothing"
        return f"types and layers stay in float: scheme {convert.scheme} {why}"
    return ""


def _integers_only(convert: Convert) -> str:
    given = [name for name in ("equalize", "bias_correction") if getattr(convert, name) is not None]
    if given and convert.scheme in ("float32", "float16"):
        return f"{given[0]} is for integers: scheme {convert.scheme} rounds no weight to 8 bits"
    return ""


_RULES = (_interface, _integers_only, _mixed_only, _recipe_only, _calibrated_only, _left)
