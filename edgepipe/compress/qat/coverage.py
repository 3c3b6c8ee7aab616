"""Which layers of a model quantization-aware training reaches: by training, by calibration, or not at all."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from edgepipe.compress.qat.activation_placement import Role
from edgepipe.compress.qat.lowering.lower import Lowered
from edgepipe.models.bridge_layers import Operator

By = Literal["training", "calibration", "float"]
TRAINED: tuple[By, str] = ("training", "")
# https://ai.google.dev/edge/litert/models/ops_compatibility: operators without an int8 kernel
FLOAT_CLASSES = frozenset({"Conv3D", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "ZeroPadding3D",
                           "MaxPooling3D", "AveragePooling3D"})  # fmt: skip
FLOAT_OPERATORS = frozenset({"Sin", "Cos", "Floor", "Cast"})


@dataclass(frozen=True)
class Coverage:
    """How one layer of the original is quantized, and why if not by training."""

    layer: str
    cls: str
    by: By
    reason: str = ""


def cover(lowered: Lowered, roles: dict[str, Role]) -> tuple[Coverage, ...]:
    """The coverage of each layer of the original, in the order of computation.

    It is that of the first lowered layer that is not trained; one without a lowered layer of its own has that of the
    layer which gives its output.
    """
    told = {name: _by(lowered.model.get_layer(name), kind, lowered.origins[name].whole) for name, kind in roles.items()}
    parts = defaultdict(list)
    for name in roles:
        parts[id(lowered.origins[name].layer)].append(told[name])
    return tuple(
        Coverage(layer.name, type(layer).__name__, *_worst(parts[id(layer)] or [told.get(end, TRAINED)]))
        for layer, end in lowered.ends
    )


def _worst(found: list[tuple[By, str]]) -> tuple[By, str]:
    return next((entry for entry in found if entry != TRAINED), TRAINED)


def _by(layer: object, kind: Role, whole: str) -> tuple[By, str]:
    name = layer.operator if isinstance(layer, Operator) else type(layer).__name__
    if name in FLOAT_CLASSES | FLOAT_OPERATORS:
        return "float", f"TFLite has no int8 operator for {name}"
    if kind in ("unknown", "alone"):
        return "calibration", whole or f"no rule for {name}; its output is trained, its inside calibrated"
    return TRAINED


def counts(coverage: tuple[Coverage, ...]) -> Counter[str]:
    """How many layers there are of each kind."""
    return Counter(entry.by for entry in coverage)
