"""Decides where fake-quant is placed: which tensors of a lowered model have their own range in TFLite, which share one.

Each lowered layer is one operator, and its output one tensor. The tensor has no range of its own if the next operator
is fused into the layer (batch norm, ReLU), if the layer only moves values (pooling, reshaping: TFLite requires equal
scales of input and output), or if it only feeds a concatenation, whose inputs share the range of its output. TFLite
prescribes the range of some outputs.
"""

from dataclasses import dataclass
from typing import Literal

import tf_keras

from edgepipe.compress.qat.lowering.normalizations import WEIGHTED_LAYER_CLASSES
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.keras_types import TfKerasLayer

K = tf_keras.layers
EXCLUDED_REASON = "excluded by the pipeline"
QuantizationRole = Literal[
    "weighted", "folded", "clipped", "arithmetic", "own", "shared", "passthrough", "fixed", "unknown", "excluded"
]

# https://ai.google.dev/edge/litert/models/quantization_spec: outputs with a prescribed scale and zero point
FIXED_RANGE_BY_NAME = {
    "softmax": (0.0, 255 / 256),
    "sigmoid": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
    "log_softmax": (-255 / 16, 0.0),
}
_PASSTHROUGH_LAYERS = (
    "MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D",
    "Flatten", "Reshape", "Permute", "RepeatVector", "ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D",
    "UpSampling1D", "UpSampling2D", "Resizing", "CenterCrop", "Dropout", "SpatialDropout1D", "SpatialDropout2D",
    "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization", "Identity", "Masking",
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomCrop",
    "RandomBrightness", "RandomHeight", "RandomWidth",
)  # fmt: skip
_PASSTHROUGH_OPERATORS = (
    "ExpandDims", "Squeeze", "Reshape", "Transpose", "Swapaxes", "Moveaxis", "GetItem", "Split", "Take", "Tile",
    "Repeat", "Flip", "MaxPool", "AveragePool", "Amax", "Max",
)  # fmt: skip
_ARITHMETIC_LAYERS = ("Add", "Subtract", "Multiply")  # TFLite fuses a ReLU into them
_SHARED_RANGE_LAYERS = ("Concatenate", "Maximum", "Minimum", "Stack")
_OWN_RANGE_LAYERS = (
    "LeakyReLU", "PReLU", "ELU", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Embedding", "Activation", "ReLU",
)  # fmt: skip
_OWN_RANGE_OPERATORS = (
    "Mean", "Sum", "Rsqrt", "Matmul", "Absolute", "Exp", "Log", "Sqrt", "LeakyRelu", "Gelu",
    "Silu", "HardSilu", "Elu", "Divide", "TrueDivide", "Relu", "Relu6", "Clip", "Pad",
)  # fmt: skip


@dataclass(frozen=True)
class FakeQuantPlacement:
    """Whether the output of a lowered layer has its own range, and the range that TFLite prescribes, if any."""

    has_own_range: bool
    fixed_limits: tuple[float, float] | None = None  # None: the range is trained


def quantization_role(layer: TfKerasLayer, opaque_reason: str) -> QuantizationRole:
    """The role of `layer` in TFLite's quantization; `opaque_reason` is why fake-quant cannot reach inside, if so."""
    is_operator = isinstance(layer, OperatorLayer)
    name = layer.operator if is_operator else type(layer).__name__
    if opaque_reason:
        return "excluded" if opaque_reason == EXCLUDED_REASON else "unknown"
    if isinstance(layer, WEIGHTED_LAYER_CLASSES):
        return "weighted"
    if fixed_range(layer):
        return "fixed"
    if name == "ReLU" and not layer.threshold and not layer.negative_slope and layer.max_value in (None, 1.0, 6.0):
        return "clipped"
    names_by_role: dict[QuantizationRole, tuple[str, ...]] = {
        "folded": ("BatchNormalization",),
        "arithmetic": _ARITHMETIC_LAYERS,
        "passthrough": _PASSTHROUGH_OPERATORS if is_operator else _PASSTHROUGH_LAYERS,
        "shared": _SHARED_RANGE_LAYERS,
        "own": _OWN_RANGE_OPERATORS if is_operator else _OWN_RANGE_LAYERS,
    }
    return next((role for role, names in names_by_role.items() if name in names), "unknown")


def fixed_range(layer: TfKerasLayer) -> tuple[float, float] | None:
    """The range that TFLite prescribes for the output of `layer`, if it does."""
    if isinstance(layer, OperatorLayer):
        return FIXED_RANGE_BY_NAME.get({"LogSoftmax": "log_softmax"}.get(layer.operator, layer.operator.lower()))
    name = "softmax" if isinstance(layer, K.Softmax) else getattr(getattr(layer, "activation", None), "__name__", "")
    return FIXED_RANGE_BY_NAME.get(name)


def place_fake_quant(
    layer: TfKerasLayer, role: QuantizationRole, reader_roles: list[QuantizationRole], call_count: int, is_output: bool
) -> FakeQuantPlacement:
    """The placement of fake-quant on the output of a lowered layer.

    Args:
        layer: The lowered layer.
        role: Its `quantization_role`.
        reader_roles: The roles of the layers that read its output, one per read.
        call_count: How often the layer is called.
        is_output: Whether the model returns its output.
    """
    if role == "fixed":
        return FakeQuantPlacement(True, fixed_range(layer))
    is_fused = (
        not is_output
        and len(reader_roles) == call_count
        and all(_is_fused_into(role, reader) for reader in reader_roles)
    )
    return FakeQuantPlacement(role not in ("passthrough", "excluded") and not is_fused)


def _is_fused_into(role: QuantizationRole, reader: QuantizationRole) -> bool:
    if reader == "folded":
        return role == "weighted"
    if reader == "clipped":
        return role in ("weighted", "folded", "arithmetic")
    return reader == "shared" and role in ("weighted", "folded", "clipped", "arithmetic", "own", "shared")
