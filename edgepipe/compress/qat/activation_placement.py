"""Decides where fake-quant is placed: which tensors of a lowered model have their own range in TFLite, which share one.

Each lowered layer is one operator, and its output one tensor. The tensor has no range of its own if the next operator
is fused into the layer (batch norm, ReLU), if the layer only moves values (pooling, reshaping: TFLite requires equal
scales of input and output), or if it only feeds a concatenation, whose inputs share the range of its output. TFLite
prescribes the range of some outputs. All this follows from what kernels demand: see the quantizer's
`kernel_requirements`.
"""

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf
import tf_keras

from edgepipe.compress.qat.lowering.normalizations import WEIGHTED_LAYER_CLASSES
from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.kernel_requirements import KERNEL_REQUIREMENTS, ScaleRule
from edgepipe.models.bridge_layers import OperatorLayer
from edgepipe.models.keras_types import TfKerasLayer

K = tf_keras.layers
EXCLUDED_REASON = "excluded by the pipeline"
QuantizationRole = Literal[
    "weighted", "folded", "clipped", "arithmetic", "own", "shared", "passthrough", "fixed", "filled", "unquantized",
    "unknown", "excluded",
]  # fmt: skip
_ROLES_WITHOUT_RANGE = frozenset({"passthrough", "filled", "unquantized", "excluded"})

# the TFLite operator of a lowered layer, by class or by Keras operator: its kernel decides which scales tensors have
_OPERATOR_BY_NAME = {
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D"), "MAX_POOL_2D"),
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D"), "AVERAGE_POOL_2D"),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), "REDUCE_MAX"),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), "MEAN"),
    **dict.fromkeys(("Flatten", "Reshape"), "RESHAPE"),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), "PAD"),
    **dict.fromkeys(("Cropping1D", "Cropping2D", "CenterCrop"), "STRIDED_SLICE"),
    **dict.fromkeys(("UpSampling1D", "UpSampling2D"), "RESIZE_NEAREST_NEIGHBOR"),
    "Resizing": "RESIZE_BILINEAR", "Permute": "TRANSPOSE", "RepeatVector": "TILE",
    "Concatenate": "CONCATENATION", "Stack": "PACK", "Maximum": "MAXIMUM", "Minimum": "MINIMUM",
    "Where": "SELECT_V2", "Equal": "EQUAL", "NotEqual": "NOT_EQUAL",
    "Add": "ADD", "Subtract": "SUB", "Multiply": "MUL",
    "LeakyReLU": "LEAKY_RELU", "PReLU": "PRELU", "ReLU": "RELU", "ELU": "ELU", "Softmax": "SOFTMAX",
    **dict.fromkeys(("Transpose", "Swapaxes", "Moveaxis"), "TRANSPOSE"),
    **dict.fromkeys(("Tile", "Repeat"), "TILE"),
    **dict.fromkeys(("Amax", "Max"), "REDUCE_MAX"),
    **dict.fromkeys(("Divide", "TrueDivide"), "MUL"),  # of a reciprocal, see `division`
    "GetItem": "STRIDED_SLICE", "Split": "SPLIT", "Take": "GATHER", "Flip": "REVERSE_V2",
    "ExpandDims": "EXPAND_DIMS", "Squeeze": "SQUEEZE", "Pad": "PADV2",
    "MaxPool": "MAX_POOL_2D", "AveragePool": "AVERAGE_POOL_2D", "Clip": "MINIMUM", "Relu6": "RELU6", "Relu": "RELU",
    "Mean": "MEAN", "Sum": "SUM", "Rsqrt": "RSQRT", "Sqrt": "SQRT", "Matmul": "BATCH_MATMUL", "Absolute": "ABS",
    "Exp": "EXP", "Log": "LOG", "LeakyRelu": "LEAKY_RELU", "Gelu": "GELU", "Elu": "ELU", "Silu": "MUL",
    "HardSilu": "HARD_SWISH", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "LogSoftmax": "LOG_SOFTMAX",
}  # fmt: skip
_OPERATOR_BY_ACTIVATION = {
    "softmax": "SOFTMAX", "sigmoid": "LOGISTIC", "tanh": "TANH", "log_softmax": "LOG_SOFTMAX", "gelu": "GELU",
    "hard_silu": "HARD_SWISH", "elu": "ELU",
}  # fmt: skip
# at inference they change no value
_IDENTITY_LAYERS = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise",
    "ActivityRegularization", "Identity", "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation",
    "RandomContrast", "RandomCrop", "RandomBrightness", "RandomHeight", "RandomWidth",
)  # fmt: skip
_IDENTITY_OPERATORS = ("ConvertToTensor", "Copy", "StopGradient")
_ROLE_BY_LAYER: dict[str, QuantizationRole] = {
    "BatchNormalization": "folded",
    "Embedding": "own",  # a GATHER of constants
    **dict.fromkeys(_IDENTITY_LAYERS, "passthrough"),
}
_ARITHMETIC_OPERATORS = ("ADD", "SUB", "MUL")  # TFLite fuses a ReLU into them
_ROLE_BY_SCALE_RULE: dict[ScaleRule, QuantizationRole] = {
    ScaleRule.OF_INPUT: "passthrough",
    ScaleRule.OF_OUTPUT: "shared",
    ScaleRule.OWN: "own",
}


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
    if not _computes_floats(layer):
        return "unquantized"
    if name == "ReLU" and not layer.threshold and not layer.negative_slope and layer.max_value in (None, 1.0, 6.0):
        return "clipped"
    if is_operator and name in _IDENTITY_OPERATORS:
        return "passthrough"
    if not is_operator and name in _ROLE_BY_LAYER:
        return _ROLE_BY_LAYER[name]
    return _kernel_role(tflite_operator(layer))


def _computes_floats(layer: TfKerasLayer) -> bool:
    """Whether the output of `layer` is a float, unlike indices and masks; before its first call, it may be."""
    nodes = layer._inbound_nodes
    return not nodes or any(tensor.dtype.is_floating for tensor in tf.nest.flatten(nodes[0].outputs))


def _kernel_role(operator: str | None) -> QuantizationRole:
    requirement = KERNEL_REQUIREMENTS.get(operator or "")
    if requirement is None:
        return "unknown"
    return "arithmetic" if operator in _ARITHMETIC_OPERATORS else _ROLE_BY_SCALE_RULE[requirement.scale_rule]


def tflite_operator(layer: TfKerasLayer) -> str | None:
    """The TFLite operator that computes the output of a lowered layer; None if it is not known."""
    if isinstance(layer, OperatorLayer):
        return _OPERATOR_BY_NAME.get(layer.operator)
    activation_name = getattr(getattr(layer, "activation", None), "__name__", "")
    return _OPERATOR_BY_ACTIVATION.get(activation_name) or _OPERATOR_BY_NAME.get(type(layer).__name__)


def fixed_range(layer: TfKerasLayer) -> tuple[float, float] | None:
    """The range that TFLite prescribes for the output of `layer`, if it does."""
    requirement = KERNEL_REQUIREMENTS.get(tflite_operator(layer) or "")
    if requirement is None or requirement.fixed_output_by_bits is None:
        return None
    return Encoding(8, *requirement.fixed_output_by_bits[8]).real_limits


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
    return FakeQuantPlacement(role not in _ROLES_WITHOUT_RANGE and not is_fused)


def _is_fused_into(role: QuantizationRole, reader: QuantizationRole) -> bool:
    if reader == "folded":
        return role == "weighted"
    if reader == "clipped":
        return role in ("weighted", "folded", "arithmetic")
    return reader == "shared" and role in ("weighted", "folded", "clipped", "arithmetic", "own", "shared")
