"""Which layers of a model quantization-aware training reaches: by training, by calibration, or not at all."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from edgepipe.compress.qat.lower import Lowered
from edgepipe.compress.qat.place import Role
from edgepipe.models.layers import Operator

By = Literal["training", "calibration", "float"]
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
    """The coverage of each layer of the original, in the order of computation."""
    found: dict[str, Coverage] = {}
    for name, kind in roles.items():
        origin = lowered.origins[name]
        by, reason = _by(lowered.model.get_layer(name), kind, origin.whole)
        known = found.get(origin.layer)
        if known is None or known.by == "training":
            found[origin.layer] = Coverage(origin.layer, origin.cls, by, reason)
    return tuple(found.values())


def _by(layer: object, kind: Role, whole: str) -> tuple[By, str]:
    name = layer.operator if isinstance(layer, Operator) else type(layer).__name__
    if name in FLOAT_CLASSES | FLOAT_OPERATORS:
        return "float", f"TFLite has no int8 operator for {name}"
    if kind in ("unknown", "alone"):
        return "calibration", whole or f"no rule for {name}; its output is trained, its inside calibrated"
    return "training", ""


def counts(coverage: tuple[Coverage, ...]) -> Counter[str]:
    """How many layers there are of each kind."""
    return Counter(entry.by for entry in coverage)
