"""The options of `convert`, and which of them go together."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from edgepipe.compress.schemes import (
    SCHEMES,
    ActivationCalibration,
    CalibrationMethod,
    InterfaceType,
    RecurrentForm,
    SchemeName,
    StatisticsSource,
    check_recurrent_form,
    check_split_outputs,
    check_streaming,
    interface_types,
)
from edgepipe.core import budget
from edgepipe.core.artifact import ArtifactKind, file_digest
from edgepipe.core.config import Document, KeyPath, Quantity
from edgepipe.core.errors import EdgepipeError, InputError
from edgepipe.core.units import Dimension
from edgepipe.devices import device_profile
from edgepipe.devices.device_profile import ReleaseText
from edgepipe.models.input_shapes import parse_input_shapes
from edgepipe.stages.base import RegularExpression, Stage
from edgepipe.stages.context import PipelineInfo

_REPEAT_OPTION_NAMES = ("representative", "calibration", "percentile", "equalize", "bias_correction")
MaxDrop = Annotated[float, Quantity(Dimension.FRACTION), Field(ge=0)]


class ConvertOptions(Stage):
    """Base of `Convert` with all of its options, so that the modules that do its work need not import the stage."""

    former_names: ClassVar = {"types": "keep_float_types", "layers": "keep_float_layers"}

    scheme: SchemeName = Field(
        default="int8",
        description="; ".join(f"{name}: {scheme.description}" for name, scheme in SCHEMES.items()),
    )
    input: InterfaceType | None = Field(
        default=None,
        description="type of the inputs; null: int8 for int8 and mixed, int16 for int16x8, else float32. In integer "
        "models, token ids and categories are int32 unless it is float32",
    )
    output: InterfaceType | None = Field(default=None, description="type of the outputs, likewise")
    representative: int | None = Field(
        default=None, ge=1, description="training samples that calibrate activations; null uses the number in `data:`"
    )
    calibration: CalibrationMethod = Field(default="min_max", description="activation-range calibration method")
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="for `calibration: percentile`: percentage of values inside the range"
    )
    equalize: StatisticsSource | None = Field(
        default=None,
        description="cross-layer equalization of channel ranges: from the weights alone, or on samples",
    )
    bias_correction: StatisticsSource | None = Field(
        default=None,
        description="correct biases for the output shift of rounded weights: from batch norms, or on samples",
    )
    keep_float_types: dict[str, None] = Field(
        default_factory=dict,
        description="layer classes or TFLite operators that stay in float: `{SOFTMAX: null}`",
    )
    keep_float_layers: dict[RegularExpression, None] = Field(
        default_factory=dict, description='layers that stay in float, by regular expression: `{"head_.*": null}`'
    )
    recipe: str | None = Field(default=None, description="for `scheme: recipe`: a litert-quantizer recipe file")
    max_drop: MaxDrop | None = Field(
        default=None, description="for `scheme: mixed`: maximum drop in validation quality against float, as 0.5 point"
    )
    recurrent: RecurrentForm = Field(
        default="unrolled",
        description="recurrent layers in integers: step by step; or, for `scheme: int8`, one operator for each LSTM, "
        "which keeps its state from call to call",
    )
    streaming: int | None = Field(
        default=None,
        ge=1,
        description="steps of the sequence in one call: the states of recurrent and causal layers become inputs and "
        "outputs, calibrated over whole sequences; null: whole windows",
    )
    split_outputs: bool = Field(
        default=False,
        description="where a part of an output (scores beside boxes) would get fewer than 20 of its 8-bit steps, give "
        "each part an output and a scale of its own; `decode` gets them joined",
    )
    allow_low_fidelity: bool = Field(
        default=False,
        description="accept an integer model with an output that is too far from the float one (below 5 to 8 dB)",
    )
    input_shape: str | None = Field(
        default=None,
        description="sizes of open input dimensions: `224x224x3`, or `name=224x224x3, ..` for several inputs",
    )
    keep_open_batch: bool = Field(
        default=False, description="of a float .tflite, which else gets a batch of 1 in schemes that calibrate"
    )
    signature: str | None = Field(
        default=None, description="the signature of a SavedModel; null: `serving_default`, or the only one"
    )
    runtime: ReleaseText | None = Field(
        default=None,
        description="a release of a runtime that must run the result right, such as tflite-runtime==2.14: lower "
        "versions of operators and simpler weights where it needs them, or a refusal",
    )
    device: str | None = Field(
        default=None, description="the target device profile: no float layers on an integer-only device"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> "ConvertOptions":
        for problem in filter(None, (find_problem(self) for find_problem in _PROBLEM_FINDERS)):
            raise ValueError(problem)
        return self

    def wants_data(self, kind: ArtifactKind) -> bool:
        """Only calibration needs data; whether a recipe does is known when it is read."""
        return SCHEMES[self.scheme].needs_calibration and self.scheme != "recipe"

    @property
    def quantizes(self) -> bool:
        """True for every scheme but float32."""
        return self.scheme != "float32"

    @property
    def input_shapes(self) -> tuple[str, ...]:
        """The texts of `input_shape`; none if no dimension is set."""
        return () if self.input_shape is None else (self.input_shape,)

    @property
    def keeps_float(self) -> bool:
        """Whether layers or types stay in float."""
        return bool(self.keep_float_types or self.keep_float_layers)

    def check(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        """The device exists and runs what stays in float; the recipe exists; `mixed` has a task to be decided by."""
        self._check_device(document, path, pipeline)
        quantizing_stages = pipeline.quantizing_stages
        # Only right after another one: otherwise the chain of artifact kinds is refused already.
        if quantizing_stages and pipeline.earlier_stages[-1] == quantizing_stages[-1]:
            document.add_problem(
                path, f"'{quantizing_stages[0]}' has quantized the model; drop one of them", anchor="key"
            )
        if self.recipe is not None and not (pipeline.base_folder / self.recipe).is_file():
            document.add_problem((*path, "recipe"), f"{self.recipe}: no such file")
        if self.scheme == "mixed" and pipeline.task is None:
            document.add_problem(
                path, "`scheme: mixed` is decided by validation quality: it needs `task:`", anchor="key"
            )
        if self.max_drop is not None and pipeline.task is not None and pipeline.task.measures:
            primary_measure = next(iter(pipeline.task.measures.values()))  # the drop is in its unit
            budget.read_amount(
                document, (*path, "max_drop"), document.get_value((*path, "max_drop")), primary_measure.unit
            )

    def _check_device(self, document: Document, path: KeyPath, pipeline: PipelineInfo) -> None:
        try:
            device = self.target_device(pipeline.base_folder)
        except EdgepipeError as error:
            document.add_problem((*path, "device"), str(error))
            return
        if device is None:
            return
        for option_name in ("input", "output"):
            if device.integer_only and getattr(self, option_name) == "float32":
                document.add_problem(
                    (*path, option_name), f"float32 at the {option_name}: {device.name} is for integers only"
                )
        for option_name in ("keep_float_types", "keep_float_layers"):
            if device.integer_only and getattr(self, option_name):
                document.add_problem(
                    (*path, option_name), f"nothing can stay in float: {device.name} is for integers only"
                )

    def key(self, pipeline: PipelineInfo) -> dict[str, Any]:
        """The number of calibration samples, which `data:` may set, and the content of recipe and device."""
        device = self.target_device(pipeline.base_folder)
        return {
            "representative": self.calibration_sample_count(pipeline),
            "recipe": file_digest(pipeline.base_folder / self.recipe) if self.recipe is not None else None,
            "device": device_profile.digest(device) if device is not None else None,
        }

    def target_device(self, base_folder: Path) -> device_profile.Device | None:
        """The device that the model is for; a path of a profile is relative to `base_folder`."""
        return None if self.device is None else device_profile.load(self.device, base_folder)

    def calibration_sample_count(self, pipeline: PipelineInfo) -> int:
        """The number of training samples that calibrate."""
        return self.representative or pipeline.calibration_samples

    def repeat_options(self) -> dict[str, object]:
        """The options of the file that `scheme: recipe` must repeat to rebuild a mixed model from its recipe."""
        return {name: getattr(self, name) for name in _REPEAT_OPTION_NAMES if name in self.model_fields_set}

    @property
    def activation_calibration(self) -> ActivationCalibration:
        """The activation-range calibration method, with its percentile."""
        return ActivationCalibration(self.calibration, self.percentile)


def _interface_problem(options: ConvertOptions) -> str:
    try:
        interface_types(options.scheme, options.input, options.output)
    except InputError as error:
        return str(error)
    return ""


def _recurrent_problem(options: ConvertOptions) -> str:
    try:
        check_recurrent_form(options.scheme, options.recurrent)
    except InputError as error:
        return str(error)
    return ""


def _streaming_problem(options: ConvertOptions) -> str:
    try:
        check_streaming(options.scheme, options.recurrent, options.streaming)
    except InputError as error:
        return str(error)
    return ""


def _split_outputs_problem(options: ConvertOptions) -> str:
    try:
        check_split_outputs(options.scheme, options.split_outputs, options.streaming)
    except InputError as error:
        return str(error)
    return ""


def _max_drop_problem(options: ConvertOptions) -> str:
    if options.scheme == "mixed":
        return "" if options.max_drop is not None else "scheme mixed needs max_drop, for example `max_drop: 0.5 point`"
    return "max_drop needs `scheme: mixed`" if options.max_drop is not None else ""


def _recipe_problem(options: ConvertOptions) -> str:
    if options.scheme == "recipe":
        return "" if options.recipe is not None else "scheme recipe needs a recipe, the path of a JSON file"
    return "a recipe needs `scheme: recipe`" if options.recipe is not None else ""


def _calibration_problem(options: ConvertOptions) -> str:
    if options.calibration != "min_max" and not SCHEMES[options.scheme].needs_calibration:
        return f"calibration {options.calibration}: scheme {options.scheme} quantizes no activations"
    if options.percentile != 99.99 and options.calibration != "percentile":
        return "percentile needs `calibration: percentile`"
    return ""


def _keep_float_problem(options: ConvertOptions) -> str:
    if (options.keep_float_types or options.keep_float_layers) and options.scheme in ("float32", "mixed"):
        reason = "chooses the types itself" if options.scheme == "mixed" else "quantizes nothing"
        return f"keep_float_types and keep_float_layers: scheme {options.scheme} {reason}"
    return ""


def _equalization_problem(options: ConvertOptions) -> str:
    used_option_names = [name for name in ("equalize", "bias_correction") if getattr(options, name) is not None]
    if used_option_names and options.scheme in ("float32", "float16"):
        return f"{used_option_names[0]} is for integer weights: scheme {options.scheme} rounds none to 8 bits"
    return ""


def _open_batch_problem(options: ConvertOptions) -> str:
    is_ignored = options.keep_open_batch and options.scheme == "mixed"
    return "`keep_open_batch`: models of `scheme: mixed` have a batch of 1" if is_ignored else ""


def _runtime_problem(options: ConvertOptions) -> str:
    is_ignored = options.runtime is not None and options.scheme == "mixed"
    return "`runtime`: `scheme: mixed` chooses forms for `device`; drop one of them" if is_ignored else ""


def _input_shape_problem(options: ConvertOptions) -> str:
    try:
        parse_input_shapes(options.input_shapes)
    except InputError as error:
        return str(error)
    return ""


_PROBLEM_FINDERS = (
    _interface_problem,
    _recurrent_problem,
    _streaming_problem,
    _split_outputs_problem,
    _equalization_problem,
    _max_drop_problem,
    _recipe_problem,
    _calibration_problem,
    _keep_float_problem,
    _input_shape_problem,
    _open_batch_problem,
    _runtime_problem,
)
