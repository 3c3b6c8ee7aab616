"""Where fake-quant goes: which tensors of a lowered model have a range of their own in TFLite, and which share one.

Each lowered layer is one operator, and its output one tensor. It has no range of its own if the operator that follows
is fused into it (batch norm, ReLU), or if the operator only moves values (pooling, reshaping: TFLite demands that input
and output have equal scales), or if it only feeds a concatenation, whose inputs share the range of its output. Some
outputs have the range that TFLite prescribes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import tf_keras

from edgepipe.compress.qat.lowering.normalizations import WEIGHTED_LAYERS
from edgepipe.models.bridge_layers import Operator

K = tf_keras.layers
EXCLUDED_REASON = "left alone, as the pipeline says"
Role = Literal["weighted", "folded", "clipped", "arithmetic", "own", "shared", "moves", "fixed", "unknown", "alone"]

# https://ai.google.dev/edge/litert/models/quantization_spec: outputs with a prescribed scale and zero point
FIXED_RANGES = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128),
         "log_softmax": (-255 / 16, 0.0)}  # fmt: skip
_PASSTHROUGH = (
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
_ARITHMETIC = ("Add", "Subtract", "Multiply")  # TFLite fuses a ReLU into them
_SHARED_RANGE = ("Concatenate", "Maximum", "Minimum", "Stack")
_OWN_RANGE = (
    "LeakyReLU",
    "PReLU",
    "ELU",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "Embedding",
    "Activation",
    "ReLU",
)
_OWN_RANGE_OPERATORS = (
    "Mean", "Sum", "Rsqrt", "Matmul", "Absolute", "Exp", "Log", "Sqrt", "LeakyRelu", "Gelu",
    "Silu", "HardSilu", "Elu", "Divide", "TrueDivide", "Relu", "Relu6", "Clip", "Pad",
)  # fmt: skip


@dataclass(frozen=True)
class FakeQuantPlacement:
    """What happens to the output of a lowered layer: whether it has a range of its own, and the one prescribed."""

    has_range: bool
    limits: tuple[float, float] | None = None


def quantization_role(layer: Any, opaque_reason: str) -> Role:
    """What kind of operator `layer` is to TFLite's quantization; `whole` is why fake-quant cannot reach inside."""
    name = layer.operator if isinstance(layer, Operator) else type(layer).__name__
    passthrough, own_range = (
        (_PASSTHROUGH_OPERATORS, _OWN_RANGE_OPERATORS) if isinstance(layer, Operator) else (_PASSTHROUGH, _OWN_RANGE)
    )
    if opaque_reason:
        return "alone" if opaque_reason == EXCLUDED_REASON else "unknown"
    if isinstance(layer, WEIGHTED_LAYERS):
        return "weighted"
    if fixed_range(layer):
        return "fixed"
    if name == "ReLU" and not layer.threshold and not layer.negative_slope and layer.max_value in (None, 1.0, 6.0):
        return "clipped"
    groups: dict[Role, tuple[str, ...]] = {
        "folded": ("BatchNormalization",), "arithmetic": _ARITHMETIC, "moves": passthrough, "shared": _SHARED_RANGE, "own": own_range,
    }  # fmt: skip
    return next((kind for kind, names in groups.items() if name in names), "unknown")


def fixed_range(layer: Any) -> tuple[float, float] | None:
    """The range that TFLite prescribes for the output of `layer`, if it does."""
    if isinstance(layer, Operator):
        return FIXED_RANGES.get({"LogSoftmax": "log_softmax"}.get(layer.operator, layer.operator.lower()))
    name = "softmax" if isinstance(layer, K.Softmax) else getattr(getattr(layer, "activation", None), "__name__", "")
    return FIXED_RANGES.get(name)


def place_fake_quant(
    layer: Any, kind: Role, readers: list[Role], call_count: int, is_output: bool
) -> FakeQuantPlacement:
    """The placement of the output of `layer`, called `calls` times; `readers` are the roles of who reads it."""
    if kind == "fixed":
        return FakeQuantPlacement(True, fixed_range(layer))
    is_fused = not is_output and len(readers) == call_count and all(_is_fused_into(kind, reader) for reader in readers)
    return FakeQuantPlacement(kind not in ("moves", "alone") and not is_fused)


def _is_fused_into(kind: Role, reader: Role) -> bool:
    if reader == "folded":
        return kind == "weighted"
    if reader == "clipped":
        return kind in ("weighted", "folded", "arithmetic")
    return reader == "shared" and kind in ("weighted", "folded", "clipped", "arithmetic", "own", "shared")
