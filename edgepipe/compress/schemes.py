"""The schemes that a model can be converted by, and what each asks for; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal, final

from edgepipe.core.errors import InputError, did_you_mean

SchemeName = Literal[
    "int8", "int16x8", "mixed", "dynamic", "weight_only_int8", "weight_only_int4", "float16", "float32", "recipe"
]
Number = Literal["int8", "uint8", "int16", "float32"]
Method = Literal["min_max", "moving_average", "percentile", "mse"]


@final
@dataclass(frozen=True)
class Scheme:
    """One scheme: what it does, the interfaces it may have (the first is the default), and what it needs."""

    what: str
    interfaces: tuple[Number, ...]
    calibrated: bool = False  # activations take their ranges from representative samples
    integer: bool = False  # every operator and tensor is to be integer, the interface excepted if asked for


SCHEMES: dict[SchemeName, Scheme] = {
    "int8": Scheme("8-bit weights and activations", ("int8", "uint8", "float32"), calibrated=True, integer=True),
    "int16x8": Scheme("8-bit weights, 16-bit activations", ("int16", "float32"), calibrated=True, integer=True),
    "mixed": Scheme("int8, but for layers that need more", ("int8", "uint8", "float32"), calibrated=True),
    "dynamic": Scheme("8-bit weights; activations are quantized while the model runs", ("float32",)),
    "weight_only_int8": Scheme("8-bit weights, computed in float", ("float32",)),
    "weight_only_int4": Scheme("4-bit weights, computed in float", ("float32",)),
    "float16": Scheme("16-bit float weights", ("float32",)),
    "float32": Scheme("as it is", ("float32",)),
    "recipe": Scheme("what a recipe of litert-quantizer says", ("float32", "int8", "uint8", "int16"), calibrated=True),
}


@final
@dataclass(frozen=True)
class Calibration:
    """How ranges of activations are taken from what representative samples show.

    min_max: the smallest and the largest value. moving_average: of each sample's extremes, as fake-quant training
    keeps them. percentile: the range that holds this share of the values. mse: the range with the least squared error
    of its 8-bit steps.
    """

    method: Method = "min_max"
    percentile: float = 99.99  # per cent of the values that lie inside, as many of the rest below as above

    @classmethod
    def asked(cls, method: Method, percentile: float) -> "Calibration":
        """What a user asks for.

        Raises:
            InputError: a percentile for another method, which would be passed over.
        """
        if percentile != cls.percentile and method != "percentile":
            raise InputError(f"percentile {percentile:g} needs calibration percentile, found {method}")
        return cls(method, percentile)

    def told(self) -> str:
        """For a report: `min_max`, or with the percentile."""
        return f"percentile {self.percentile:g}" if self.method == "percentile" else self.method


def interface(scheme: str, input_type: str | None, output_type: str | None) -> tuple[str, str]:
    """The types of inputs and outputs that `scheme` has if these are asked for.

    Raises:
        InputError: no such scheme, or a type that it does not go with.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme '{scheme}' is unknown{did_you_mean(scheme, SCHEMES)}")
    allowed = SCHEMES[scheme].interfaces
    types = (input_type or allowed[0], output_type or allowed[0])
    for side, found in zip(("input", "output"), types, strict=True):
        if found not in allowed:
            takers = [name for name, known in SCHEMES.items() if found in known.interfaces]
            remedy = f"{found} goes with {', '.join(takers)}" if takers else "no scheme has it"
            raise InputError(f"{side} type {found}: scheme {scheme} has {', '.join(allowed)}; {remedy}")
    return types
