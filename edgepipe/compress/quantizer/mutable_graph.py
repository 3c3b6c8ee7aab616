"""The main subgraph of a .tflite, for editing: producers and readers of tensors, new tensors and operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.flatbuffer_edits import (
    FlatbufferModel,
    FlatbufferOperator,
    FlatbufferSubgraph,
    FlatbufferTensor,
)
from edgepipe.core.arrays import Array
from edgepipe.tflite.reader import builtin_name_by_code

BitWidth = Literal[8, 16]  # of activations
# kernels that read their options; the other operators that are inserted have no option fields
FUSED_ACTIVATION_OPS = ("ADD", "MUL", "SUB")
BIT_WIDTHS: tuple[BitWidth, ...] = (8, 16)
QuantParams = tuple[float, int]  # scale and zero point
# (kind of an operator, names of its outputs) -> bits of its activations; None: it stays in float
BitWidthPolicy = Callable[[str, Sequence[str]], BitWidth | None]


@final
@dataclass
class MutableGraph:
    """An unpacked .tflite; tensors and operators are those of its first subgraph."""

    model: FlatbufferModel

    @property
    def subgraph(self) -> FlatbufferSubgraph:
        """The main subgraph."""
        return self.model.subgraphs[0]

    @property
    def operators(self) -> list[FlatbufferOperator]:
        """Its operators, in order."""
        operators: list[FlatbufferOperator] = self.subgraph.operators
        return operators

    def kind(self, operator: FlatbufferOperator) -> str:
        """The builtin name of an operator."""
        return builtin_name_by_code().get(flatbuffer_edits.builtin_code(self.model, operator), "")

    def tensor(self, index: int) -> FlatbufferTensor:
        """The tensor at `index`."""
        return self.subgraph.tensors[index]

    def name(self, index: int) -> str:
        """The name of a tensor; empty for an omitted input."""
        return str(self.tensor(index).name.decode()) if index >= 0 else ""

    def producer(self, index: int) -> FlatbufferOperator | None:
        """The operator that outputs a tensor; None for inputs and constants."""
        return next((operator for operator in self.operators if index in operator.outputs), None)

    def readers(self, index: int) -> list[FlatbufferOperator]:
        """The operators that read a tensor."""
        return [operator for operator in self.operators if index in operator.inputs]

    def constant(self, index: int) -> Array | None:
        """The values of a float32 constant; None if it is computed."""
        buffer_data = self.model.buffers[self.tensor(index).buffer].data
        if buffer_data is None or not len(buffer_data):
            return None
        shape = [] if self.tensor(index).shape is None else list(self.tensor(index).shape)
        return np.frombuffer(bytes(bytearray(buffer_data)), np.float32).reshape(shape)

    def is_float(self, index: int) -> bool:
        """Whether a tensor is not omitted and holds float32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return index >= 0 and bool(self.tensor(index).type == TensorType.FLOAT32)

    def quant_params(self, index: int) -> QuantParams:
        """Scale and zero point of a tensor that is quantized per tensor."""
        quantization = self.tensor(index).quantization
        return float(quantization.scale[0]), int(quantization.zeroPoint[0])

    def bit_width(self, index: int) -> BitWidth | None:
        """The bits of a tensor that is quantized to int8 or int16; None for all others."""
        quantization = self.tensor(index).quantization
        if quantization is None or quantization.scale is None or not len(quantization.scale):
            return None
        return next((bits for bits in BIT_WIDTHS if self.tensor(index).type == integer_type_code(bits)), None)

    def operator_index(self, operator: FlatbufferOperator) -> int:
        """The position of an operator, compared by identity."""
        return next(index for index, candidate in enumerate(self.operators) if candidate is operator)

    def remove_operator(self, operator: FlatbufferOperator) -> None:
        """Take an operator out."""
        del self.operators[self.operator_index(operator)]

    def ensure_opcode(self, kind: str, version: int) -> int:
        """The index of an operator code, which is added if it is missing."""
        from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

        builtin_number = getattr(BuiltinOperator, kind)
        for index, operator_code in enumerate(self.model.operatorCodes):
            if (
                max(operator_code.builtinCode, operator_code.deprecatedBuiltinCode) == builtin_number
                and operator_code.version == version
            ):
                return index
        opcode = OperatorCodeT()
        opcode.builtinCode, opcode.deprecatedBuiltinCode, opcode.version = (
            builtin_number,
            min(builtin_number, 127),
            version,
        )
        self.model.operatorCodes.append(opcode)
        return len(self.model.operatorCodes) - 1

    def new_operator(self, kind: str, version: int, inputs: list[int], outputs: list[int]) -> FlatbufferOperator:
        """A new operator with default options, not yet inserted.

        Args:
            kind: builtin name, such as MUL.
            version: of the operator.
            inputs: tensor indices.
            outputs: tensor indices.
        """
        from ai_edge_litert import schema_py_generated as schema

        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self.ensure_opcode(kind, version), inputs, outputs
        if kind in FUSED_ACTIVATION_OPS:
            options_name = f"{kind.title()}Options"
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options_name)
            operator.builtinOptions = getattr(schema, f"{options_name}T")()
        return operator

    def add_float_tensor(self, name: str, shape: Any, array: Array | None = None) -> int:
        """A new float32 tensor, with the values of `array` if it is a constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        float_array = None if array is None else array.astype(np.float32)
        return self._add_tensor(name, shape, int(TensorType.FLOAT32), None, float_array)

    def add_int32_constant(self, name: str, numbers: list[int]) -> int:
        """A new constant int32 vector."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, [len(numbers)], int(TensorType.INT32), None, np.array(numbers, np.int32))

    def add_quantized_tensor(
        self, name: str, shape: Any, bits: BitWidth, quant_params: QuantParams, array: Array | None = None
    ) -> int:
        """A new integer tensor.

        Args:
            name: of the tensor.
            shape: of the tensor.
            bits: 8 or 16.
            quant_params: scale and zero point.
            array: the real values of a constant, quantized here; None for an activation.
        """
        from ai_edge_litert.schema_py_generated import QuantizationParametersT

        quantization = QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = (
            np.array([quant_params[0]], np.float32),
            np.array([quant_params[1]], np.int64),
        )
        codes = None if array is None else _quantize_array(array, bits, quant_params)
        return self._add_tensor(name, shape, integer_type_code(bits), quantization, codes)

    def _add_tensor(self, name: str, shape: Any, type_code: int, quantization: Any, array: Array | None) -> int:
        from ai_edge_litert.schema_py_generated import BufferT, TensorT

        tensor = TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.quantization, tensor.buffer = (
            name.encode(),
            shape,
            type_code,
            quantization,
            0,
        )
        if array is not None:
            buffer = BufferT()
            buffer.data = np.frombuffer(array.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1


def integer_type_code(bits: BitWidth) -> int:
    """The schema's code of the type."""
    from ai_edge_litert.schema_py_generated import TensorType

    return int(TensorType.INT8 if bits == 8 else TensorType.INT16)


def choose_quant_params(activation_range: ActivationRange, bits: BitWidth) -> QuantParams:
    """Scale and zero point of a range: asymmetric in 8 bits, symmetric in 16, as the kernels require."""
    low, high = min(activation_range[0], 0.0), max(activation_range[1], 0.0)
    if bits == 16:
        return float(np.float32(max(-low, high, 1e-30) / 32767)), 0
    scale = float(np.float32(max(high - low, 1e-30) / 255))
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def _quantize_array(array: Array, bits: BitWidth, quant_params: QuantParams) -> Array:
    code_min = -(2 ** (bits - 1))
    return np.clip(np.rint(array / quant_params[0]) + quant_params[1], code_min, -code_min - 1).astype(
        np.int8 if bits == 8 else np.int16
    )
