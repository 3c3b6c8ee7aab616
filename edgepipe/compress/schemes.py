"""The conversion schemes, and what each needs; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal, final

from edgepipe.core.errors import InputError, did_you_mean

SchemeName = Literal[
    "int8", "int16x8", "mixed", "dynamic", "weight_only_int8", "weight_only_int4", "float16", "float32", "recipe"
]
StatisticsSource = Literal["data_free", "samples"]  # of equalization and bias correction
InterfaceType = Literal["int8", "uint8", "int16", "float32"]
CalibrationMethod = Literal["min_max", "moving_average", "percentile", "mse"]
RecurrentForm = Literal["unrolled", "fused"]  # how calibrated schemes write recurrent layers; fused: LSTM in int8


@final
@dataclass(frozen=True)
class Scheme:
    """One scheme: what it does, the interface types it supports (the first is the default), and what it needs."""

    description: str
    allowed_interface_types: tuple[InterfaceType, ...]
    needs_calibration: bool = False  # activation ranges are calibrated on representative samples
    integer_only: bool = False  # every operator and tensor must be integer, except a float32 interface if requested


SCHEMES: dict[SchemeName, Scheme] = {
    "int8": Scheme(
        "8-bit weights and activations", ("int8", "uint8", "float32"), needs_calibration=True, integer_only=True
    ),
    "int16x8": Scheme(
        "8-bit weights, 16-bit activations", ("int16", "float32"), needs_calibration=True, integer_only=True
    ),
    "mixed": Scheme("int8, except for layers that need more", ("int8", "uint8", "float32"), needs_calibration=True),
    "dynamic": Scheme("8-bit weights; activations are quantized at run time", ("float32",)),
    "weight_only_int8": Scheme("8-bit weights, computed in float", ("float32",)),
    "weight_only_int4": Scheme("4-bit weights, computed in float", ("float32",)),
    "float16": Scheme("16-bit float weights", ("float32",)),
    "float32": Scheme("not quantized", ("float32",)),
    "recipe": Scheme(
        "quantized by a litert-quantizer recipe", ("float32", "int8", "uint8", "int16"), needs_calibration=True
    ),
}


@final
@dataclass(frozen=True)
class ActivationCalibration:
    """How activation ranges are computed from representative samples.

    min_max: the smallest and the largest value. moving_average: of each sample's extremes, as fake-quant training
    tracks them. percentile: the range that holds this share of the values. mse: the range with the least squared error
    of 8-bit quantization.
    """

    method: CalibrationMethod = "min_max"
    percentile: float = 99.99  # per cent of the values inside the range, the rest split evenly between both tails

    @classmethod
    def from_options(cls, method: CalibrationMethod, percentile: float) -> "ActivationCalibration":
        """The calibration that a user requests.

        Raises:
            InputError: a percentile for another method, where it would be ignored.
        """
        if percentile != cls.percentile and method != "percentile":
            raise InputError(f"percentile {percentile:g} needs calibration percentile, found {method}")
        return cls(method, percentile)

    def describe(self) -> str:
        """For a report: `min_max`, or with the percentile."""
        return f"percentile {self.percentile:g}" if self.method == "percentile" else self.method


def interface_types(scheme: str, input_type: str | None, output_type: str | None) -> tuple[str, str]:
    """The types of inputs and outputs of `scheme`; None takes its default.

    Raises:
        InputError: no such scheme, or a type that it does not support.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme '{scheme}' is unknown{did_you_mean(scheme, SCHEMES)}")
    allowed_types = SCHEMES[scheme].allowed_interface_types
    io_types = (input_type or allowed_types[0], output_type or allowed_types[0])
    for side, io_type in zip(("input", "output"), io_types, strict=True):
        if io_type not in allowed_types:
            supporting_schemes = [
                name for name, scheme_spec in SCHEMES.items() if io_type in scheme_spec.allowed_interface_types
            ]
            remedy = (
                f"schemes with {io_type}: {', '.join(supporting_schemes)}" if supporting_schemes else "no scheme has it"
            )
            raise InputError(f"{side} type {io_type}: scheme {scheme} has {', '.join(allowed_types)}; {remedy}")
    return io_types


def check_recurrent_form(scheme: SchemeName, recurrent: RecurrentForm) -> None:
    """Raise an `InputError` for fused LSTMs in another scheme than int8, the only one with a kernel for them."""
    if recurrent == "fused" and scheme != "int8":
        raise InputError(
            f"recurrent fused: TFLite's fused LSTM has a kernel for int8, the scheme is {scheme}; use scheme int8, or "
            "drop `recurrent` (--recurrent)"
        )


def check_streaming(scheme: SchemeName, recurrent: RecurrentForm, steps: int | None) -> None:
    """Raise an `InputError` for a stream that the scheme or the form of recurrent layers cannot be."""
    if steps is None:
        return
    if steps < 1:
        raise InputError(f"streaming {steps}: a call takes one step or more, such as `streaming: 1` (--streaming 1)")
    if scheme == "mixed":
        raise InputError("streaming: scheme mixed is decided on whole windows; use scheme int8 or int16x8")
    if recurrent == "fused":
        raise InputError(
            "streaming and recurrent fused: a fused LSTM keeps its state inside the operator, not in inputs and "
            "outputs; drop one of them"
        )


def check_split_outputs(scheme: SchemeName, split_outputs: bool, streaming: int | None) -> None:
    """Raise an `InputError` for outputs that cannot be split."""
    if not split_outputs:
        return
    if scheme == "mixed" or not SCHEMES[scheme].needs_calibration:
        reason = "searches bits for each layer instead" if scheme == "mixed" else "gives outputs no scale"
        raise InputError(f"split_outputs: scheme {scheme} {reason}; use scheme int8, or drop split_outputs")
    if streaming is not None:
        raise InputError("split_outputs and streaming: a stream keeps its outputs; make the parts outputs of the model")
