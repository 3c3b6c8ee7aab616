"""The options of `convert`, and what they demand of each other."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from edgepipe.compress.equalization.equalize_source import StatisticsSource
from edgepipe.compress.schemes import (
    SCHEMES,
    ActivationCalibration,
    CalibrationMethod,
    InterfaceType,
    SchemeName,
    interface_types,
)
from edgepipe.core import budget
from edgepipe.core.artifact import ArtifactKind, file_digest
from edgepipe.core.config import Document, KeyPath, Quantity
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.stages.base import Expression, Stage
from edgepipe.stages.context import PipelineInfo

_REPEAT_OPTIONS = ("representative", "calibration", "percentile", "equalize", "bias_correction")
Drop = Annotated[float, Quantity(Dimension.FRACTION), Field(ge=0)]


class ConvertOptions(Stage):
    """Base of `Convert`, with all of its options, which the modules that do its work read."""

    scheme: SchemeName = Field(
        default="int8",
        description="; ".join(f"{name}: {scheme.description}" for name, scheme in SCHEMES.items()),
    )
    input: InterfaceType | None = Field(
        default=None, description="type of the model's inputs; null takes int8 for int8 and mixed, int16 for int16x8"
    )
    output: InterfaceType | None = Field(default=None, description="type of the model's outputs, likewise")
    representative: int | None = Field(
        default=None, ge=1, description="training samples that calibrate the activations; null takes what `data:` says"
    )
    calibration: CalibrationMethod = Field(default="min_max", description="activation-range calibration method")
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="of `calibration: percentile`: per cent of values inside the range"
    )
    equalize: StatisticsSource | None = Field(
        default=None,
        description="scale channels between layers so that their ranges are alike: by the weights alone, or on samples",
    )
    bias_correction: StatisticsSource | None = Field(
        default=None, description="take off biases what rounding the weights shifts, from batch norms or on samples"
    )
    keep_float_types: dict[str, None] = Field(
        default_factory=dict,
        description="what stays in float: layer classes or TFLite operators, `{SOFTMAX: null}`",
    )
    keep_float_layers: dict[Expression, None] = Field(
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
    def _agree(self) -> "ConvertOptions":
        for wrong in filter(None, (rule(self) for rule in _RULES)):
            raise ValueError(wrong)
        return self

    def wants_data(self, kind: ArtifactKind) -> bool:
        """Only calibration needs data; what a recipe needs is told when it is read."""
        return SCHEMES[self.scheme].needs_calibration and self.scheme != "recipe"

    @property
    def quantizes(self) -> bool:
        """Whatever the scheme, but for float32."""
        return self.scheme != "float32"

    @property
    def leaves_float(self) -> bool:
        """Whether layers or types are named."""
        return bool(self.keep_float_types or self.keep_float_layers)

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The device exists and takes what stays in float; the recipe can be read; a mix has a task to decide by."""
        self._check_device(document, path, pipeline)
        if (
            pipeline.quantizing_stages and pipeline.earlier_stages[-1] == pipeline.quantizing_stages[-1]
        ):  # after others, the chain itself does not fit
            document.add_problem(
                path, f"'{pipeline.quantizing_stages[0]}' has quantized the model; drop one of them", anchor="key"
            )
        if self.recipe is not None and not (pipeline.base_folder / self.recipe).is_file():
            document.add_problem((*path, "recipe"), f"{self.recipe}: no such file")
        if self.scheme == "mixed" and pipeline.task is None:
            document.add_problem(
                path, "`scheme: mixed` is decided by validation quality: it needs `task:`", anchor="key"
            )
        if self.max_drop is not None and pipeline.task is not None and pipeline.task.measures:
            deciding = next(iter(pipeline.task.measures.values()))  # the drop is in its unit
            budget.read_amount(document, (*path, "max_drop"), document.get_value((*path, "max_drop")), deciding.unit)

    def _check_device(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        try:
            device = self.target(pipeline.base_folder)
        except EdgepipeError as error:
            document.add_problem((*path, "device"), str(error))
            return
        if device is None:
            return
        for option in ("input", "output"):
            if device.integer_only and getattr(self, option) == "float32":
                document.add_problem((*path, option), f"float32 at the {option}: {device.name} is for integers only")
        for option in ("keep_float_types", "keep_float_layers"):
            if device.integer_only and getattr(self, option):
                document.add_problem((*path, option), f"nothing can stay in float: {device.name} is for integers only")

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """How many samples calibrate, which `data:` may say; the content of recipe and device."""
        target = self.target(pipeline.base_folder)
        return {
            "representative": self.samples(pipeline),
            "recipe": file_digest(pipeline.base_folder / self.recipe) if self.recipe is not None else None,
            "device": device_profile.digest(target) if target is not None else None,
        }

    def target(self, base: Path) -> device_profile.Device | None:
        """The device it is made for; `base` is what the path of a profile is relative to."""
        return None if self.device is None else device_profile.load(self.device, base)

    def samples(self, pipeline: PipelineInfo) -> int:
        """How many training samples calibrate."""
        return self.representative or pipeline.calibration_samples

    def repeat_options(self) -> dict[str, object]:
        """The options of the file that a replay of a mixed model's recipe must repeat: ranges and weights depend on them."""
        return {name: getattr(self, name) for name in _REPEAT_OPTIONS if name in self.model_fields_set}

    @property
    def ranges(self) -> ActivationCalibration:
        """How ranges of activations are taken."""
        return ActivationCalibration(self.calibration, self.percentile)


def _interface(options: ConvertOptions) -> str:
    try:
        interface_types(options.scheme, options.input, options.output)
    except InputError as error:
        return str(error)
    return ""


def _mixed_only(options: ConvertOptions) -> str:
    if options.scheme == "mixed":
        return "" if options.max_drop is not None else "scheme mixed needs max_drop, for example `max_drop: 0.5 point`"
    return "max_drop needs `scheme: mixed`" if options.max_drop is not None else ""


def _recipe_only(options: ConvertOptions) -> str:
    if options.scheme == "recipe":
        return "" if options.recipe is not None else "scheme recipe needs a recipe, the path of a JSON file"
    return "a recipe needs `scheme: recipe`" if options.recipe is not None else ""


def _calibrated_only(options: ConvertOptions) -> str:
    if options.calibration != "min_max" and not SCHEMES[options.scheme].needs_calibration:
        return f"calibration {options.calibration}: scheme {options.scheme} quantizes no activations"
    if options.percentile != 99.99 and options.calibration != "percentile":
        return "percentile needs `calibration: percentile`"
    return ""


def _quantizing_schemes_only(options: ConvertOptions) -> str:
    if (options.keep_float_types or options.keep_float_layers) and options.scheme in ("float32", "mixed"):
        why = "decides itself" if options.scheme == "mixed" else "quantizes nothing"
        return f"keep_float_types and keep_float_layers stay in float: scheme {options.scheme} {why}"
    return ""


def _integers_only(options: ConvertOptions) -> str:
    given = [name for name in ("equalize", "bias_correction") if getattr(options, name) is not None]
    if given and options.scheme in ("float32", "float16"):
        return f"{given[0]} is for integers: scheme {options.scheme} rounds no weight to 8 bits"
    return ""


_RULES = (_interface, _integers_only, _mixed_only, _recipe_only, _calibrated_only, _quantizing_schemes_only)
