"""The main subgraph of a .tflite, for editing: producers and readers of tensors, new tensors and operators."""

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from edgepipe.compress.quantizer.encoding import Encoding
from edgepipe.compress.quantizer.flatbuffer_edits import (
    FlatbufferModel,
    FlatbufferOperator,
    FlatbufferSubgraph,
    FlatbufferTensor,
)
from edgepipe.compress.quantizer.kernel_requirements import BitWidth
from edgepipe.compress.quantizer.operator_codes import builtin_code, ensure_code
from edgepipe.core.arrays import Array
from edgepipe.tflite.reader import builtin_name_by_code, dtype_by_code

# kernels that read their options; the other operators that are inserted have no option fields
OPTIONS_BY_KIND = {
    "ADD": "AddOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "GATHER": "GatherOptions",
    "MUL": "MulOptions",
    "REDUCE_MAX": "ReducerOptions",
    "SOFTMAX": "SoftmaxOptions",
    "STRIDED_SLICE": "StridedSliceOptions",
    "SUB": "SubOptions",
    "SUM": "ReducerOptions",
}
BIT_WIDTHS: tuple[BitWidth, ...] = (8, 16)
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
        return builtin_name_by_code().get(builtin_code(self.model, operator), "")

    def tensor(self, index: int) -> FlatbufferTensor:
        """The tensor at `index`."""
        return self.subgraph.tensors[index]

    def name(self, index: int) -> str:
        """The name of a tensor; empty for an omitted input."""
        return str(self.tensor(index).name.decode()) if index >= 0 else ""

    def constant(self, index: int) -> Array | None:
        """The values of a float32 constant; None if it is computed."""
        buffer_data = self.model.buffers[self.tensor(index).buffer].data
        if buffer_data is None or not len(buffer_data):
            return None
        shape = [] if self.tensor(index).shape is None else list(self.tensor(index).shape)
        return np.frombuffer(bytes(bytearray(buffer_data)), np.float32).reshape(shape)

    def numbers(self, index: int) -> Array | None:
        """The values of a constant in its own type; None if it is computed."""
        buffer_data = self.model.buffers[self.tensor(index).buffer].data
        if buffer_data is None or not len(buffer_data):
            return None
        shape = [] if self.tensor(index).shape is None else list(self.tensor(index).shape)
        return np.frombuffer(bytes(bytearray(buffer_data)), self.dtype(index)).reshape(shape)

    def dtype(self, index: int) -> str:
        """The type of a tensor's elements, such as `float32`; empty for an omitted input."""
        return dtype_by_code()[int(self.tensor(index).type)] if index >= 0 else ""

    def is_float(self, index: int) -> bool:
        """Whether a tensor is not omitted and holds float32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return index >= 0 and bool(self.tensor(index).type == TensorType.FLOAT32)

    def code_limits(self, index: int) -> tuple[int, int]:
        """The least and the largest code that an integer tensor can store."""
        from ai_edge_litert.tools.flatbuffer_utils import type_to_name

        type_name = type_to_name(self.tensor(index).type)  # such as INT8 or UINT4
        bits = int(type_name.lstrip("UINT"))
        return (0, 2**bits - 1) if type_name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def operator_index(self, operator: FlatbufferOperator) -> int:
        """The position of an operator, compared by identity."""
        return next(index for index, candidate in enumerate(self.operators) if candidate is operator)

    def drop_unread(self, kinds: Collection[str]) -> None:
        """Drop the operators of these kinds that nothing reads."""
        read_tensors, kept_operators = {int(index) for index in self.subgraph.outputs}, []
        for operator in reversed(self.operators):
            if self.kind(operator) not in kinds or read_tensors & {int(index) for index in operator.outputs}:
                kept_operators.append(operator)
                read_tensors.update(int(index) for index in operator.inputs)
        self.subgraph.operators = kept_operators[::-1]

    def new_operator(self, kind: str, inputs: list[int], outputs: list[int]) -> FlatbufferOperator:
        """A new operator of a builtin name, such as MUL, with default options, not yet inserted.

        Its version is stamped when the model is packed.
        """
        from ai_edge_litert import schema_py_generated as schema

        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = ensure_code(self.model, kind), inputs, outputs
        if kind in OPTIONS_BY_KIND:
            options_name = OPTIONS_BY_KIND[kind]
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options_name)
            operator.builtinOptions = getattr(schema, f"{options_name}T")()
        if kind == "SOFTMAX":
            operator.builtinOptions.beta = 1.0
        return operator

    def copy_operator(self, operator: FlatbufferOperator, inputs: list[int], outputs: list[int]) -> FlatbufferOperator:
        """The same operator with other tensors, not yet inserted."""
        copied_operator = copy.copy(operator)
        copied_operator.inputs, copied_operator.outputs = inputs, outputs
        return copied_operator

    def add_float_tensor(self, name: str, shape: Any, array: Array | None = None) -> int:
        """A new float32 tensor, with the values of `array` if it is a constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        float_array = None if array is None else array.astype(np.float32)
        return self._add_tensor(name, shape, int(TensorType.FLOAT32), None, float_array)

    def add_int32_tensor(self, name: str, shape: Any) -> int:
        """A new int32 activation."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, shape, int(TensorType.INT32), None, None)

    def add_bool_tensor(self, name: str, shape: Any) -> int:
        """A new tensor of truth values."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, shape, int(TensorType.BOOL), None, None)

    def add_int32_constant(self, name: str, numbers: Array | list[int]) -> int:
        """A new int32 constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        array = np.array(numbers, np.int32)
        return self._add_tensor(name, list(array.shape), int(TensorType.INT32), None, array)

    def add_encoded_tensor(self, name: str, shape: Any, encoding: Encoding, array: Array | None = None) -> int:
        """A new integer tensor, with the codes of the real numbers in `array` if it is a constant."""
        codes = None if array is None else encoding.encode(array)
        return self._add_tensor(
            name,
            shape,
            integer_type_code(encoding.bits),
            _per_tensor_quantization(encoding.scale, encoding.zero_point),
            codes,
        )

    def add_copied_tensor(self, index: int) -> int:
        """A new activation of the shape, type and scale of the tensor `index`."""
        tensor = self.tensor(index)
        return self._add_tensor(f"{self.name(index)}_copy", tensor.shape, tensor.type, tensor.quantization, None)

    def add_uint8_tensor(self, name: str, shape: Any, scale: float, zero_point: int) -> int:
        """A new uint8 activation."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, shape, int(TensorType.UINT8), _per_tensor_quantization(scale, zero_point), None)

    def add_float16_constant(self, name: str, shape: Any, array: Array) -> int:
        """A new float16 constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._add_tensor(name, shape, int(TensorType.FLOAT16), None, array.astype(np.float16))

    def add_integer_tensor(
        self, name: str, shape: Any, codes: Array, scales: Array, axis: int, is_int4: bool = False
    ) -> int:
        """A new constant of symmetric codes.

        Args:
            name: of the tensor.
            shape: of the tensor.
            codes: int8, int32 or int64.
            scales: one for all, or one for each slice of `axis`.
            axis: of the scales.
            is_int4: store int8 codes two to a byte, the first one in the lower half.
        """
        from ai_edge_litert.schema_py_generated import TensorType

        quantization = _per_tensor_quantization(0.0, 0)
        quantization.scale, quantization.zeroPoint = scales.astype(np.float32), np.zeros(len(scales), np.int64)
        quantization.quantizedDimension = axis if len(scales) > 1 else 0
        type_name = "INT4" if is_int4 else codes.dtype.name.upper()
        stored_codes = _pack_int4(codes) if is_int4 else codes
        return self._add_tensor(name, shape, int(getattr(TensorType, type_name)), quantization, stored_codes)

    def set_encoding(self, index: int, encoding: Encoding) -> None:
        """Store an activation in integers."""
        tensor = self.tensor(index)
        tensor.type = integer_type_code(encoding.bits)
        tensor.quantization = _per_tensor_quantization(encoding.scale, encoding.zero_point)

    def set_scale(self, index: int, scale: float) -> None:
        """Give a tensor of integers a scale, with zero for zero."""
        self.tensor(index).quantization = _per_tensor_quantization(scale, 0)

    def set_float_constant(self, index: int, array: Array) -> None:
        """Make a computed float32 tensor a constant."""
        from ai_edge_litert.schema_py_generated import BufferT

        buffer = BufferT()
        buffer.data = np.frombuffer(array.astype(np.float32).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.tensor(index).buffer = len(self.model.buffers) - 1

    def set_int32(self, index: int) -> None:
        """Store an activation as integers without scale."""
        from ai_edge_litert.schema_py_generated import TensorType

        tensor = self.tensor(index)
        tensor.type, tensor.quantization = int(TensorType.INT32), None

    def replace_input(self, position: int, new_index: int) -> None:
        """Replace a model input, in the signatures too."""
        self._replace_port("inputs", position, new_index)

    def replace_output(self, position: int, new_index: int) -> None:
        """Replace a model output, in the signatures too."""
        self._replace_port("outputs", position, new_index)

    def _replace_port(self, side: str, position: int, new_index: int) -> None:
        indices = [int(index) for index in getattr(self.subgraph, side)]
        old_index, indices[position] = indices[position], new_index
        # a tensor that is several outputs has as many names; those before `position` keep it
        rank = indices[:position].count(old_index)
        setattr(self.subgraph, side, indices)
        for signature in self.model.signatureDefs or []:
            tensor_maps = [each for each in getattr(signature, side) if each.tensorIndex == old_index]
            for tensor_map in tensor_maps[rank : rank + 1]:
                tensor_map.tensorIndex = new_index

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


def _pack_int4(codes: Array) -> Array:
    """Two codes to a byte, the first one in the lower half, as the schema defines INT4."""
    nibbles = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).view(np.uint8) & 0x0F
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _per_tensor_quantization(scale: float, zero_point: int) -> Any:
    from ai_edge_litert.schema_py_generated import QuantizationParametersT

    quantization = QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([scale], np.float32), np.array([zero_point], np.int64)
    return quantization


def integer_type_code(bits: BitWidth) -> int:
    """The schema's code of the type."""
    from ai_edge_litert.schema_py_generated import TensorType

    return int(TensorType.INT8 if bits == 8 else TensorType.INT16)
