"""Writes small quantized .tflite networks through the schema, without TensorFlow.

Weights are random and quantized per channel, as in TensorFlow's converter; the values do not matter, only shapes and
types do. Every activation has the same scale and a zero point of 0.
"""

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from edgepipe.core.arrays import Array

ACTIVATION_SCALE = 0.05  # of every activation
WEIGHT_SCALE = 0.01
LOGISTIC_SCALE = 1 / 256  # required by TFLite for LOGISTIC and SOFTMAX, with a zero point of -128
# The lowest operator versions that take int8 (TFLite's op_version.cc); all others are 1.
OPERATOR_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "SUB": 2, "MUL": 2, "AVERAGE_POOL_2D": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "PAD": 2, "CONCATENATION": 2, "SOFTMAX": 2, "LOGISTIC": 2, "DEQUANTIZE": 2,
    "RESIZE_BILINEAR": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "STRIDED_SLICE": 2, "TRANSPOSE": 2, "MAXIMUM": 2, "MINIMUM": 2,
}  # fmt: skip
ACTIVATION_CODES = {"": 0, "relu": 1, "relu6": 3}


@dataclass(frozen=True)
class TensorNode:
    """A tensor of a network under construction: its index and shape."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "int8"

    @property
    def channels(self) -> int:
        """The size of the last dimension."""
        return self.shape[-1]


class NetworkBuilder:
    """A network under construction; `to_bytes` packs it. Shapes are NHWC with a batch of 1."""

    def __init__(self, seed: int) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.random = np.random.default_rng(seed)
        self.model: Any = schema.ModelT()
        self.model.version, self.model.description = 3, "edgepipe calibration"
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph: Any = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.opcode_indices: dict[str, int] = {}

    # ---- tensors

    def input(self, *shape: int, dtype: str = "int8") -> TensorNode:
        """An input of the network, with a batch of 1 before `shape`."""
        node = self._add_tensor((1, *shape), dtype, zero_point=128 if dtype == "uint8" else 0)
        self.graph.inputs.append(node.index)
        return node

    def set_outputs(self, *nodes: TensorNode) -> Self:
        """Name the outputs; returns the network."""
        self.graph.outputs = [node.index for node in nodes]
        return self

    def _add_tensor(
        self, shape: tuple[int, ...], dtype: str = "int8", scale: float = ACTIVATION_SCALE, zero_point: int = 0
    ) -> TensorNode:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = f"t{len(self.graph.tensors)}", list(shape)
        tensor.type = getattr(self.schema.TensorType, dtype.upper())
        if dtype in ("int8", "uint8"):
            tensor.quantization = self._quantization_parameters([scale], [zero_point], 0)
        self.graph.tensors.append(tensor)
        return TensorNode(len(self.graph.tensors) - 1, shape, dtype)

    def _add_constant(
        self, array: Array, scale_count: int = 0, scale: float = WEIGHT_SCALE, axis: int = 0
    ) -> TensorNode:
        """A constant; if quantized, with `scale_count` scales along `axis`."""
        node = self._add_tensor(array.shape, str(array.dtype))
        tensor, buffer = self.graph.tensors[node.index], self.schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        tensor.buffer = len(self.model.buffers) - 1
        channel_scales = scale * np.linspace(0.5, 1.5, scale_count) if scale_count > 1 else np.full(scale_count, scale)
        tensor.quantization = (
            self._quantization_parameters(channel_scales.tolist(), [0] * scale_count, axis) if scale_count else None
        )
        return node

    def _quantization_parameters(self, scales: list[float], zero_points: list[int], axis: int) -> Any:
        quantization_parameters = self.schema.QuantizationParametersT()
        quantization_parameters.scale, quantization_parameters.zeroPoint, quantization_parameters.quantizedDimension = (
            scales,
            zero_points,
            axis,
        )
        return quantization_parameters

    def _add_weights(self, *shape: int, axis: int = 0) -> TensorNode:
        weight_array = self.random.integers(-127, 128, shape, dtype=np.int8)
        return self._add_constant(weight_array, shape[axis], axis=axis)

    def _add_bias(self, channels: int) -> TensorNode:
        bias_array = self.random.integers(-1000, 1000, channels, dtype=np.int32)
        return self._add_constant(bias_array, channels, ACTIVATION_SCALE * WEIGHT_SCALE)

    def _add_operator(
        self, operator_name: str, inputs: list[TensorNode], outputs: list[TensorNode], options: Any = None
    ) -> TensorNode:
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._opcode_index(operator_name)
        operator.inputs, operator.outputs = [node.index for node in inputs], [node.index for node in outputs]
        if options is not None:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self.graph.operators.append(operator)
        return outputs[0]

    def _opcode_index(self, operator_name: str) -> int:
        if operator_name not in self.opcode_indices:
            opcode = self.schema.OperatorCodeT()
            opcode.builtinCode = getattr(self.schema.BuiltinOperator, operator_name)
            opcode.version = OPERATOR_VERSIONS.get(operator_name, 1)
            opcode.deprecatedBuiltinCode = min(opcode.builtinCode, 127)
            self.opcode_indices[operator_name] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(opcode)
        return self.opcode_indices[operator_name]

    # ---- operators

    def conv(
        self,
        x: TensorNode,
        filters: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        act: str = "relu6",
        valid_padding: bool = False,
    ) -> TensorNode:
        """CONV_2D with SAME padding unless `valid_padding`.

        Args:
            x: the input, NHWC.
            filters: output channels.
            kernel: height and width, or one size for both.
            stride: in both dimensions.
            act: a key of `ACTIVATION_CODES`.
            valid_padding: VALID padding instead of SAME.
        """
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        out = self._add_tensor((1, *_output_size(x, (height, width), stride, valid_padding), filters))
        weights = self._add_weights(filters, height, width, x.channels)
        options = self._set_stride(self.schema.Conv2DOptionsT(), stride, valid_padding, act)
        return self._add_operator("CONV_2D", [x, weights, self._add_bias(filters)], [out], options)

    def depthwise(
        self, x: TensorNode, kernel: int = 3, stride: int = 1, act: str = "relu6", valid_padding: bool = False
    ) -> TensorNode:
        """DEPTHWISE_CONV_2D with a depth multiplier of 1.

        Args:
            x: the input, NHWC.
            kernel: height and width.
            stride: in both dimensions.
            act: a key of `ACTIVATION_CODES`.
            valid_padding: VALID padding instead of SAME.
        """
        out = self._add_tensor((1, *_output_size(x, (kernel, kernel), stride, valid_padding), x.channels))
        weights = self._add_weights(1, kernel, kernel, x.channels, axis=3)
        options = self._set_stride(self.schema.DepthwiseConv2DOptionsT(), stride, valid_padding, act)
        options.depthMultiplier = 1
        return self._add_operator("DEPTHWISE_CONV_2D", [x, weights, self._add_bias(x.channels)], [out], options)

    def dense(self, x: TensorNode, units: int, act: str = "") -> TensorNode:
        """FULLY_CONNECTED on a 2-D tensor."""
        weight_array = self.random.integers(-127, 128, (units, x.channels), dtype=np.int8)
        options = self.schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = ACTIVATION_CODES[act]
        bias_array = self.random.integers(-1000, 1000, units, dtype=np.int32)
        inputs = [
            x,
            self._add_constant(weight_array, 1),
            self._add_constant(bias_array, 1, ACTIVATION_SCALE * WEIGHT_SCALE),
        ]
        return self._add_operator("FULLY_CONNECTED", inputs, [self._add_tensor((x.shape[0], units))], options)

    def pool(self, x: TensorNode, operator_name: str, kernel: int, stride: int) -> TensorNode:
        """AVERAGE_POOL_2D or MAX_POOL_2D without padding.

        Args:
            x: the input, NHWC.
            operator_name: of the pooling.
            kernel: height and width of the window.
            stride: in both dimensions.
        """
        out = self._add_tensor((1, *_output_size(x, (kernel, kernel), stride, valid_padding=True), x.channels))
        options = self._set_stride(self.schema.Pool2DOptionsT(), stride, valid_padding=True, act="")
        options.filterWidth = options.filterHeight = kernel
        return self._add_operator(operator_name, [x], [out], options)

    def binary(self, operator_name: str, x: TensorNode, y: TensorNode, act: str = "") -> TensorNode:
        """ADD, SUB, MUL, MINIMUM or MAXIMUM; the last two ignore `act`.

        Args:
            operator_name: one of these.
            x: the first operand, which gives the output shape.
            y: the second operand; broadcast if it has a single row and column.
            act: a key of `ACTIVATION_CODES`.
        """
        has_activation = operator_name in ("ADD", "SUB", "MUL")
        options = getattr(
            self.schema, f"{operator_name.title()}OptionsT" if has_activation else "MaximumMinimumOptionsT"
        )()
        if has_activation:
            options.fusedActivationFunction = ACTIVATION_CODES[act]
        return self._add_operator(operator_name, [x, y], [self._add_tensor(x.shape)], options)

    def binary_constant(self, operator_name: str, x: TensorNode) -> TensorNode:
        """`binary` with a constant per channel as the second operand."""
        constant = self._add_constant(
            self.random.integers(-127, 128, (x.channels,), dtype=np.int8), 1, ACTIVATION_SCALE
        )
        return self.binary(operator_name, x, constant)

    def unary(self, operator_name: str, x: TensorNode) -> TensorNode:
        """LOGISTIC, HARD_SWISH or RELU: one input, one output, no options."""
        is_logistic = operator_name == "LOGISTIC"
        out = self._add_tensor(
            x.shape, "int8", LOGISTIC_SCALE if is_logistic else ACTIVATION_SCALE, -128 if is_logistic else 0
        )
        options = self.schema.HardSwishOptionsT() if operator_name == "HARD_SWISH" else None
        return self._add_operator(operator_name, [x], [out], options)

    def softmax(self, x: TensorNode) -> TensorNode:
        """SOFTMAX over the last dimension."""
        options = self.schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._add_operator("SOFTMAX", [x], [self._add_tensor(x.shape, "int8", LOGISTIC_SCALE, -128)], options)

    def mean(self, x: TensorNode, keep_dims: bool = False) -> TensorNode:
        """MEAN over height and width."""
        axes_tensor = self._add_constant(np.array([1, 2], np.int32))
        options = self.schema.ReducerOptionsT()
        options.keepDims = keep_dims
        out = self._add_tensor((1, 1, 1, x.channels) if keep_dims else (1, x.channels))
        return self._add_operator("MEAN", [x, axes_tensor], [out], options)

    def pad(self, x: TensorNode, pad_before: int, pad_after: int) -> TensorNode:
        """PAD of height and width."""
        padding_amounts = self._add_constant(
            np.array([[0, 0], [pad_before, pad_after], [pad_before, pad_after], [0, 0]], np.int32)
        )
        padding = pad_before + pad_after
        out = self._add_tensor((1, x.shape[1] + padding, x.shape[2] + padding, x.channels))
        return self._add_operator("PAD", [x, padding_amounts], [out], self.schema.PadOptionsT())

    def concat(self, *nodes: TensorNode) -> TensorNode:
        """CONCATENATION along the channels."""
        options = self.schema.ConcatenationOptionsT()
        options.axis = len(nodes[0].shape) - 1
        out = self._add_tensor((*nodes[0].shape[:-1], sum(node.channels for node in nodes)))
        return self._add_operator("CONCATENATION", list(nodes), [out], options)

    def resize(self, operator_name: str, x: TensorNode, factor: int) -> TensorNode:
        """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR to `factor` times the height and width."""
        height, width = x.shape[1] * factor, x.shape[2] * factor
        is_bilinear = operator_name == "RESIZE_BILINEAR"
        options = self.schema.ResizeBilinearOptionsT() if is_bilinear else self.schema.ResizeNearestNeighborOptionsT()
        size_tensor = self._add_constant(np.array([height, width], np.int32))
        return self._add_operator(
            operator_name, [x, size_tensor], [self._add_tensor((1, height, width, x.channels))], options
        )

    def reshape(self, x: TensorNode, *shape: int) -> TensorNode:
        """RESHAPE to a batch of 1 and `shape`."""
        target_shape_tensor = self._add_constant(np.array([1, *shape], np.int32))
        options = self.schema.ReshapeOptionsT()
        options.newShape = [1, *shape]
        return self._add_operator("RESHAPE", [x, target_shape_tensor], [self._add_tensor((1, *shape))], options)

    def dynamic_reshape(self, x: TensorNode, *shape: int) -> TensorNode:
        """RESHAPE to a shape computed from the batch, as converters emit for Flatten and Reshape layers."""
        input_shape_tensor = self._add_tensor((len(x.shape),), "int32")
        shape_options = self.schema.ShapeOptionsT()
        shape_options.outType = self.schema.TensorType.INT32
        self._add_operator("SHAPE", [x], [input_shape_tensor], shape_options)
        slice_bounds = [self._add_constant(np.array([bound], np.int32)) for bound in (0, 1, 1)]
        options = self.schema.StridedSliceOptionsT()
        options.shrinkAxisMask = 1
        batch_size_tensor = self._add_operator(
            "STRIDED_SLICE", [input_shape_tensor, *slice_bounds], [self._add_tensor((), "int32")], options
        )
        pack_options = self.schema.PackOptionsT()
        pack_options.valuesCount = 1 + len(shape)
        size_tensors = [batch_size_tensor, *(self._add_constant(np.array(size, np.int32)) for size in shape)]
        target_shape_tensor = self._add_operator(
            "PACK", size_tensors, [self._add_tensor((len(size_tensors),), "int32")], pack_options
        )
        return self._add_operator(
            "RESHAPE", [x, target_shape_tensor], [self._add_tensor((1, *shape))], self.schema.ReshapeOptionsT()
        )

    def strided_slice(self, x: TensorNode, height: int, width: int) -> TensorNode:
        """STRIDED_SLICE of the first rows and columns."""
        slice_ends = (1, height, width, x.channels)
        slice_bounds = [self._add_constant(np.array(bound, np.int32)) for bound in ((0,) * 4, slice_ends, (1,) * 4)]
        return self._add_operator(
            "STRIDED_SLICE", [x, *slice_bounds], [self._add_tensor(slice_ends)], self.schema.StridedSliceOptionsT()
        )

    def transpose(self, x: TensorNode) -> TensorNode:
        """TRANSPOSE to channels first."""
        axis_order = self._add_constant(np.array([0, 3, 1, 2], np.int32))
        out = self._add_tensor((1, x.channels, x.shape[1], x.shape[2]))
        return self._add_operator("TRANSPOSE", [x, axis_order], [out], self.schema.TransposeOptionsT())

    def quantize(self, x: TensorNode) -> TensorNode:
        """QUANTIZE from uint8 or float32 to int8."""
        return self._add_operator("QUANTIZE", [x], [self._add_tensor(x.shape)], self.schema.QuantizeOptionsT())

    def dequantize(self, x: TensorNode) -> TensorNode:
        """DEQUANTIZE to float32."""
        out = self._add_tensor(x.shape, "float32")
        return self._add_operator("DEQUANTIZE", [x], [out], self.schema.DequantizeOptionsT())

    # ---- the file

    def _set_stride(self, options: Any, stride: int, valid_padding: bool, act: str) -> Any:
        options.strideW = options.strideH = stride
        options.padding = self.schema.Padding.VALID if valid_padding else self.schema.Padding.SAME
        options.fusedActivationFunction = ACTIVATION_CODES[act]
        return options

    def to_bytes(self) -> bytes:
        """The .tflite file."""
        import flatbuffers

        self.model.subgraphs = [self.graph]
        flatbuffer_builder = flatbuffers.Builder(1024)
        flatbuffer_builder.Finish(self.model.Pack(flatbuffer_builder), file_identifier=b"TFL3")
        stream = io.BytesIO()
        stream.write(flatbuffer_builder.Output())
        return stream.getvalue()


def _output_size(x: TensorNode, kernel: tuple[int, int], stride: int, valid_padding: bool) -> tuple[int, int]:
    """Height and width of a convolution's or pool's output."""
    kernel_borders = (kernel[0] - 1, kernel[1] - 1) if valid_padding else (0, 0)
    height, width = (-(-(size - border) // stride) for size, border in zip(x.shape[1:3], kernel_borders, strict=True))
    return height, width
