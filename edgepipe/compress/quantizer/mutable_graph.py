"""The main subgraph of a .tflite as it is changed: who makes and reads a tensor, and new tensors and operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.core.arrays import Array
from edgepipe.tflite.reader import builtin_names

BitWidth = Literal[8, 16]  # of activations
FUSED_ACTIVATION_OPS = (
    "ADD",
    "MUL",
    "SUB",
)  # kernels read their options; those of the other operators that are made have no fields
BIT_WIDTHS: tuple[BitWidth, ...] = (8, 16)
QuantParams = tuple[float, int]  # scale and zero point
BitWidthPolicy = Callable[
    [str, Sequence[str]], BitWidth | None
]  # of an operator, by its kind and the names of its outputs


@final
@dataclass
class MutableGraph:
    """The objects of a flatbuffer, opened."""

    model: Any

    @property
    def subgraph(self) -> Any:
        """The subgraph."""
        return self.model.subgraphs[0]

    @property
    def operators(self) -> list[Any]:
        """Its operators, in order."""
        operators: list[Any] = self.subgraph.operators
        return operators

    def kind(self, operator: Any) -> str:
        """What an operator is called."""
        return builtin_names().get(flatbuffer_edits.builtin_code(self.model, operator), "")

    def tensor(self, index: int) -> Any:
        """A tensor."""
        return self.subgraph.tensors[index]

    def name(self, index: int) -> str:
        """What a tensor is called; empty for an input that is left out."""
        return str(self.tensor(index).name.decode()) if index >= 0 else ""

    def producer(self, index: int) -> Any:
        """The operator that makes a tensor; None for inputs and constants."""
        return next((operator for operator in self.operators if index in operator.outputs), None)

    def readers(self, index: int) -> list[Any]:
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
        """Whether a tensor is there and holds float32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return index >= 0 and bool(self.tensor(index).type == TensorType.FLOAT32)

    def quant_params(self, index: int) -> QuantParams:
        """Scale and zero point of a tensor that is quantized as a whole."""
        quantization = self.tensor(index).quantization
        return float(quantization.scale[0]), int(quantization.zeroPoint[0])

    def bit_width(self, index: int) -> BitWidth | None:
        """Of a tensor that is quantized to int8 or int16; None for all others."""
        quantization = self.tensor(index).quantization
        if quantization is None or quantization.scale is None or not len(quantization.scale):
            return None
        return next((bits for bits in BIT_WIDTHS if self.tensor(index).type == integer_type(bits)), None)

    def operator_index(self, operator: Any) -> int:
        """Where an operator stands; two that look alike are two."""
        return next(index for index, candidate in enumerate(self.operators) if candidate is operator)

    def remove(self, operator: Any) -> None:
        """Take an operator out."""
        del self.operators[self.operator_index(operator)]

    def ensure_opcode(self, kind: str, version: int) -> int:
        """The index of an operator code, which is there afterwards."""
        from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

        number = getattr(BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return index
        opcode = OperatorCodeT()
        opcode.builtinCode, opcode.deprecatedBuiltinCode, opcode.version = number, min(number, 127), version
        self.model.operatorCodes.append(opcode)
        return len(self.model.operatorCodes) - 1

    def new_operator(self, kind: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """A new operator, that stands nowhere yet, with options as they are when nothing is said."""
        from ai_edge_litert import schema_py_generated as schema

        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self.ensure_opcode(kind, version), inputs, outputs
        if kind in FUSED_ACTIVATION_OPS:
            options = f"{kind.title()}Options"
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")()
        return operator

    def add_float_tensor(self, name: str, shape: Any, array: Array | None = None) -> int:
        """A new float32 tensor, with `values` if it is a constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        float_array = None if array is None else array.astype(np.float32)
        return self._add_tensor(name, shape, int(TensorType.FLOAT32), None, float_array)

    def add_int32_constant(self, name: str, numbers: list[int]) -> int:
        """A new constant list of int32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, [len(numbers)], int(TensorType.INT32), None, np.array(numbers, np.int32))

    def add_quantized_tensor(
        self, name: str, shape: Any, bits: BitWidth, quant_params: QuantParams, array: Array | None = None
    ) -> int:
        """A new tensor in integers, with the real `values` if it is a constant."""
        from ai_edge_litert.schema_py_generated import QuantizationParametersT

        quantization = QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = (
            np.array([quant_params[0]], np.float32),
            np.array([quant_params[1]], np.int64),
        )
        codes = None if array is None else _quantize_array(array, bits, quant_params)
        return self._add_tensor(name, shape, integer_type(bits), quantization, codes)

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


def integer_type(bits: BitWidth) -> int:
    """The number of the type in the schema."""
    from ai_edge_litert.schema_py_generated import TensorType

    return int(TensorType.INT8 if bits == 8 else TensorType.INT16)


def choose_quant_params(span: ActivationRange, bits: BitWidth) -> QuantParams:
    """Scale and zero point of a range: 16 bits are symmetric, as the kernels want them."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    if bits == 16:
        return float(np.float32(max(-low, high, 1e-30) / 32767)), 0
    scale = float(np.float32(max(high - low, 1e-30) / 255))
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def _quantize_array(array: Array, bits: BitWidth, quant_params: QuantParams) -> Array:
    code_min = -(2 ** (bits - 1))
    return np.clip(np.rint(array / quant_params[0]) + quant_params[1], code_min, -code_min - 1).astype(
        np.int8 if bits == 8 else np.int16
    )
