"""How each layer of a model is quantized: by quantization-aware training, by calibration, or not at all."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Literal

from edgepipe.compress.qat.activation_placement import QuantizationRole
from edgepipe.compress.qat.lowering.lower import LoweredModel
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.keras_types import TfKerasLayer

QuantizedBy = Literal["training", "calibration", "float"]
TRAINING_COVERAGE: tuple[QuantizedBy, str] = ("training", "")
# https://ai.google.dev/edge/litert/models/ops_compatibility: operators without an int8 kernel
FLOAT_LAYER_CLASSES = frozenset({"Conv3D", "Conv3DTranspose", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "ZeroPadding3D",
                           "MaxPooling3D", "AveragePooling3D"})  # fmt: skip
FLOAT_OPERATORS = frozenset({"Sin", "Cos", "Floor", "Cast"})


@dataclass(frozen=True)
class LayerCoverage:
    """How one original layer is quantized, and why if not by training."""

    layer: str
    cls: str
    quantized_by: QuantizedBy
    reason: str = ""


def compute_coverage(
    lowered_model: LoweredModel, role_by_name: dict[str, QuantizationRole]
) -> tuple[LayerCoverage, ...]:
    """The coverage of each original layer, in the order of computation.

    It is that of its first lowered layer that is not quantized by training. A layer without lowered layers of its own
    has the coverage of the lowered layer that computes its output.
    """
    coverage_by_name = {
        name: _classify_layer(
            lowered_model.model.get_layer(name), role, lowered_model.origin_by_name[name].opaque_reason
        )
        for name, role in role_by_name.items()
    }
    coverages_by_layer_id = defaultdict(list)
    for name in role_by_name:
        coverages_by_layer_id[id(lowered_model.origin_by_name[name].layer)].append(coverage_by_name[name])
    return tuple(
        LayerCoverage(
            layer.name,
            type(layer).__name__,
            *_worst_coverage(
                coverages_by_layer_id[id(layer)] or [coverage_by_name.get(output_name, TRAINING_COVERAGE)]
            ),
        )
        for layer, output_name in lowered_model.layer_output_names
    )


def _worst_coverage(layer_coverages: list[tuple[QuantizedBy, str]]) -> tuple[QuantizedBy, str]:
    return next((coverage for coverage in layer_coverages if coverage != TRAINING_COVERAGE), TRAINING_COVERAGE)


def _classify_layer(layer: TfKerasLayer, role: QuantizationRole, opaque_reason: str) -> tuple[QuantizedBy, str]:
    name = layer.operator if isinstance(layer, OperatorLayer) else type(layer).__name__
    if name in FLOAT_LAYER_CLASSES | FLOAT_OPERATORS:
        return "float", f"TFLite has no int8 operator for {name}"
    if role in ("unknown", "excluded"):
        return "calibration", opaque_reason or f"no rule for {name}; its output range is trained, its inside calibrated"
    return TRAINING_COVERAGE


def count_coverage(layer_coverages: tuple[LayerCoverage, ...]) -> Counter[str]:
    """The number of layers quantized by training, by calibration, and left in float."""
    return Counter(layer_coverage.quantized_by for layer_coverage in layer_coverages)
