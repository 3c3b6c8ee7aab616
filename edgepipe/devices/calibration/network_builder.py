"""Writes small quantized .tflite networks through the schema, without TensorFlow.

Weights are random and per-channel quantized, as TensorFlow's converter quantizes them; the numbers mean nothing, only
shapes and types do. Every activation has the same scale and a zero point of 0, so that no operator rescales for free.
"""

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from edgepipe.core.arrays import Array

SCALE = 0.05  # of every activation
WEIGHT_SCALE = 0.01
LOGISTIC_SCALE = 1 / 256  # what TFLite demands of LOGISTIC and SOFTMAX, with a zero point of -128
# The lowest operator versions that take int8 (TFLite's op_version.cc); all others are 1.
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "SUB": 2, "MUL": 2, "AVERAGE_POOL_2D": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "PAD": 2, "CONCATENATION": 2, "SOFTMAX": 2, "LOGISTIC": 2, "DEQUANTIZE": 2,
    "RESIZE_BILINEAR": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "STRIDED_SLICE": 2, "TRANSPOSE": 2, "MAXIMUM": 2, "MINIMUM": 2,
}  # fmt: skip
ACTIVATIONS = {"": 0, "relu": 1, "relu6": 3}


@dataclass(frozen=True)
class Node:
    """A tensor of a network under construction: its index and shape."""

    index: int
    shape: tuple[int, ...]
    dtype: str = "int8"

    @property
    def channels(self) -> int:
        """The size of the last dimension."""
        return self.shape[-1]


class Net:
    """A network under construction; `bytes` packs it. Shapes are NHWC with a batch of 1."""

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
        self.codes: dict[str, int] = {}

    # ---- tensors

    def input(self, *shape: int, dtype: str = "int8") -> Node:
        """An input of the network, with a batch of 1 before `shape`."""
        node = self._tensor((1, *shape), dtype, zero_point=128 if dtype == "uint8" else 0)
        self.graph.inputs.append(node.index)
        return node

    def output(self, *nodes: Node) -> Self:
        """Name the outputs; returns the network."""
        self.graph.outputs = [node.index for node in nodes]
        return self

    def _tensor(self, shape: tuple[int, ...], dtype: str = "int8", scale: float = SCALE, zero_point: int = 0) -> Node:
        made = self.schema.TensorT()
        made.name, made.shape = f"t{len(self.graph.tensors)}", list(shape)
        made.type = getattr(self.schema.TensorType, dtype.upper())
        if dtype in ("int8", "uint8"):
            made.quantization = self._quantization([scale], [zero_point], 0)
        self.graph.tensors.append(made)
        return Node(len(self.graph.tensors) - 1, shape, dtype)

    def _constant(self, values: Array, scales: int = 0, scale: float = WEIGHT_SCALE, axis: int = 0) -> Node:
        """A constant; with `scales` of them along `axis` if it is quantized."""
        node = self._tensor(values.shape, str(values.dtype))
        made, buffer = self.graph.tensors[node.index], self.schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        made.buffer = len(self.model.buffers) - 1
        spread = scale * np.linspace(0.5, 1.5, scales) if scales > 1 else np.full(scales, scale)
        made.quantization = self._quantization(spread.tolist(), [0] * scales, axis) if scales else None
        return node

    def _quantization(self, scales: list[float], zero_points: list[int], axis: int) -> Any:
        made = self.schema.QuantizationParametersT()
        made.scale, made.zeroPoint, made.quantizedDimension = scales, zero_points, axis
        return made

    def _weights(self, *shape: int, axis: int = 0) -> Node:
        values = self.random.integers(-127, 128, shape, dtype=np.int8)
        return self._constant(values, shape[axis], axis=axis)

    def _bias(self, channels: int) -> Node:
        values = self.random.integers(-1000, 1000, channels, dtype=np.int32)
        return self._constant(values, channels, SCALE * WEIGHT_SCALE)

    def _operator(self, name: str, inputs: list[Node], outputs: list[Node], options: Any = None) -> Node:
        made = self.schema.OperatorT()
        made.opcodeIndex = self._code(name)
        made.inputs, made.outputs = [node.index for node in inputs], [node.index for node in outputs]
        if options is not None:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            made.builtinOptions = options
        self.graph.operators.append(made)
        return outputs[0]

    def _code(self, name: str) -> int:
        if name not in self.codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode, code.version = getattr(self.schema.BuiltinOperator, name), VERSIONS.get(name, 1)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            self.codes[name] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self.codes[name]

    # ---- operators

    def conv(
        self,
        x: Node,
        filters: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        act: str = "relu6",
        valid: bool = False,
    ) -> Node:
        """CONV_2D, padded to the same size unless `valid`."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        out = self._tensor((1, *_sizes(x, (height, width), stride, valid), filters))
        weights = self._weights(filters, height, width, x.channels)
        options = self._strided(self.schema.Conv2DOptionsT(), stride, valid, act)
        return self._operator("CONV_2D", [x, weights, self._bias(filters)], [out], options)

    def depthwise(self, x: Node, kernel: int = 3, stride: int = 1, act: str = "relu6", valid: bool = False) -> Node:
        """DEPTHWISE_CONV_2D with a multiplier of 1."""
        out = self._tensor((1, *_sizes(x, (kernel, kernel), stride, valid), x.channels))
        weights = self._weights(1, kernel, kernel, x.channels, axis=3)
        options = self._strided(self.schema.DepthwiseConv2DOptionsT(), stride, valid, act)
        options.depthMultiplier = 1
        return self._operator("DEPTHWISE_CONV_2D", [x, weights, self._bias(x.channels)], [out], options)

    def dense(self, x: Node, units: int, act: str = "") -> Node:
        """FULLY_CONNECTED on a 2-D tensor."""
        values = self.random.integers(-127, 128, (units, x.channels), dtype=np.int8)
        options = self.schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = ACTIVATIONS[act]
        bias = self.random.integers(-1000, 1000, units, dtype=np.int32)
        inputs = [x, self._constant(values, 1), self._constant(bias, 1, SCALE * WEIGHT_SCALE)]
        return self._operator("FULLY_CONNECTED", inputs, [self._tensor((x.shape[0], units))], options)

    def pool(self, x: Node, kind: str, kernel: int, stride: int) -> Node:
        """AVERAGE_POOL_2D or MAX_POOL_2D without padding."""
        out = self._tensor((1, *_sizes(x, (kernel, kernel), stride, valid=True), x.channels))
        options = self._strided(self.schema.Pool2DOptionsT(), stride, valid=True, act="")
        options.filterWidth = options.filterHeight = kernel
        return self._operator(kind, [x], [out], options)

    def binary(self, name: str, x: Node, y: Node, act: str = "") -> Node:
        """ADD, SUB, MUL, MINIMUM or MAXIMUM (those without an activation); `y` may have one row and column."""
        fused = name in ("ADD", "SUB", "MUL")
        options = getattr(self.schema, f"{name.title()}OptionsT" if fused else "MaximumMinimumOptionsT")()
        if fused:
            options.fusedActivationFunction = ACTIVATIONS[act]
        return self._operator(name, [x, y], [self._tensor(x.shape)], options)

    def binary_constant(self, name: str, x: Node) -> Node:
        """As `binary`, with a constant for each channel."""
        constant = self._constant(self.random.integers(-127, 128, (x.channels,), dtype=np.int8), 1, SCALE)
        return self.binary(name, x, constant)

    def unary(self, name: str, x: Node) -> Node:
        """LOGISTIC, HARD_SWISH or RELU: one input, one output, no options."""
        fixed = name == "LOGISTIC"
        out = self._tensor(x.shape, "int8", LOGISTIC_SCALE if fixed else SCALE, -128 if fixed else 0)
        options = self.schema.HardSwishOptionsT() if name == "HARD_SWISH" else None
        return self._operator(name, [x], [out], options)

    def softmax(self, x: Node) -> Node:
        """SOFTMAX over the last dimension."""
        options = self.schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._operator("SOFTMAX", [x], [self._tensor(x.shape, "int8", LOGISTIC_SCALE, -128)], options)

    def mean(self, x: Node, keep: bool = False) -> Node:
        """MEAN over height and width."""
        axes = self._constant(np.array([1, 2], np.int32))
        options = self.schema.ReducerOptionsT()
        options.keepDims = keep
        out = self._tensor((1, 1, 1, x.channels) if keep else (1, x.channels))
        return self._operator("MEAN", [x, axes], [out], options)

    def pad(self, x: Node, before: int, after: int) -> Node:
        """PAD of height and width."""
        amounts = self._constant(np.array([[0, 0], [before, after], [before, after], [0, 0]], np.int32))
        grown = before + after
        out = self._tensor((1, x.shape[1] + grown, x.shape[2] + grown, x.channels))
        return self._operator("PAD", [x, amounts], [out], self.schema.PadOptionsT())

    def concat(self, *nodes: Node) -> Node:
        """CONCATENATION along the channels."""
        options = self.schema.ConcatenationOptionsT()
        options.axis = len(nodes[0].shape) - 1
        out = self._tensor((*nodes[0].shape[:-1], sum(node.channels for node in nodes)))
        return self._operator("CONCATENATION", list(nodes), [out], options)

    def resize(self, name: str, x: Node, factor: int) -> Node:
        """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR to `factor` times the height and width."""
        height, width = x.shape[1] * factor, x.shape[2] * factor
        bilinear = name == "RESIZE_BILINEAR"
        options = self.schema.ResizeBilinearOptionsT() if bilinear else self.schema.ResizeNearestNeighborOptionsT()
        size = self._constant(np.array([height, width], np.int32))
        return self._operator(name, [x, size], [self._tensor((1, height, width, x.channels))], options)

    def reshape(self, x: Node, *shape: int) -> Node:
        """RESHAPE to a batch of 1 and `shape`."""
        wanted = self._constant(np.array([1, *shape], np.int32))
        options = self.schema.ReshapeOptionsT()
        options.newShape = [1, *shape]
        return self._operator("RESHAPE", [x, wanted], [self._tensor((1, *shape))], options)

    def dynamic_reshape(self, x: Node, *shape: int) -> Node:
        """RESHAPE to a shape that is computed from the batch, as converters write Flatten and Reshape layers."""
        batch = self._tensor((len(x.shape),), "int32")
        asked = self.schema.ShapeOptionsT()
        asked.outType = self.schema.TensorType.INT32
        self._operator("SHAPE", [x], [batch], asked)
        bounds = [self._constant(np.array([value], np.int32)) for value in (0, 1, 1)]
        options = self.schema.StridedSliceOptionsT()
        options.shrinkAxisMask = 1
        first = self._operator("STRIDED_SLICE", [batch, *bounds], [self._tensor((), "int32")], options)
        packing = self.schema.PackOptionsT()
        packing.valuesCount = 1 + len(shape)
        sizes = [first, *(self._constant(np.array(size, np.int32)) for size in shape)]
        wanted = self._operator("PACK", sizes, [self._tensor((len(sizes),), "int32")], packing)
        return self._operator("RESHAPE", [x, wanted], [self._tensor((1, *shape))], self.schema.ReshapeOptionsT())

    def strided_slice(self, x: Node, height: int, width: int) -> Node:
        """STRIDED_SLICE of the first rows and columns."""
        ends = (1, height, width, x.channels)
        bounds = [self._constant(np.array(values, np.int32)) for values in ((0,) * 4, ends, (1,) * 4)]
        return self._operator("STRIDED_SLICE", [x, *bounds], [self._tensor(ends)], self.schema.StridedSliceOptionsT())

    def transpose(self, x: Node) -> Node:
        """TRANSPOSE that puts the channels first."""
        order = self._constant(np.array([0, 3, 1, 2], np.int32))
        out = self._tensor((1, x.channels, x.shape[1], x.shape[2]))
        return self._operator("TRANSPOSE", [x, order], [out], self.schema.TransposeOptionsT())

    def quantize(self, x: Node) -> Node:
        """QUANTIZE from uint8 or float32 to int8."""
        return self._operator("QUANTIZE", [x], [self._tensor(x.shape)], self.schema.QuantizeOptionsT())

    def dequantize(self, x: Node) -> Node:
        """DEQUANTIZE to float32."""
        out = self._tensor(x.shape, "float32")
        return self._operator("DEQUANTIZE", [x], [out], self.schema.DequantizeOptionsT())

    # ---- the file

    def _strided(self, options: Any, stride: int, valid: bool, act: str) -> Any:
        options.strideW = options.strideH = stride
        options.padding = self.schema.Padding.VALID if valid else self.schema.Padding.SAME
        options.fusedActivationFunction = ACTIVATIONS[act]
        return options

    def bytes(self) -> bytes:
        """The .tflite file."""
        import flatbuffers

        self.model.subgraphs = [self.graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        stream = io.BytesIO()
        stream.write(builder.Output())
        return stream.getvalue()


def _sizes(x: Node, kernel: tuple[int, int], stride: int, valid: bool) -> tuple[int, int]:
    """Height and width of a convolution's or pool's output."""
    lost = (kernel[0] - 1, kernel[1] - 1) if valid else (0, 0)
    height, width = (-(-(size - less) // stride) for size, less in zip(x.shape[1:3], lost, strict=True))
    return height, width
