"""The main subgraph of a .tflite as it is changed: who makes and reads a tensor, and new tensors and operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits
from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.core.arrays import Array
from edgepipe.tflite.reader import builtins

Bits = Literal[8, 16]  # of activations
FUSING = ("ADD", "MUL", "SUB")  # kernels read their options; those of the other operators that are made have no fields
BITS: tuple[Bits, ...] = (8, 16)
Step = tuple[float, int]  # scale and zero point
Wanted = Callable[[str, Sequence[str]], Bits | None]  # of an operator, by its kind and the names of its outputs


@final
@dataclass
class Graph:
    """The objects of a flatbuffer, opened."""

    model: Any

    @property
    def main(self) -> Any:
        """The subgraph."""
        return self.model.subgraphs[0]

    @property
    def operators(self) -> list[Any]:
        """Its operators, in order."""
        found: list[Any] = self.main.operators
        return found

    def kind(self, operator: Any) -> str:
        """What an operator is called."""
        return builtins().get(flatbuffer_edits.kind(self.model, operator), "")

    def tensor(self, index: int) -> Any:
        """A tensor."""
        return self.main.tensors[index]

    def name(self, index: int) -> str:
        """What a tensor is called; empty for an input that is left out."""
        return str(self.tensor(index).name.decode()) if index >= 0 else ""

    def maker(self, index: int) -> Any:
        """The operator that makes a tensor; None for inputs and constants."""
        return next((operator for operator in self.operators if index in operator.outputs), None)

    def readers(self, index: int) -> list[Any]:
        """The operators that read a tensor."""
        return [operator for operator in self.operators if index in operator.inputs]

    def constant(self, index: int) -> Array | None:
        """The values of a float32 constant; None if it is computed."""
        data = self.model.buffers[self.tensor(index).buffer].data
        if data is None or not len(data):
            return None
        shape = [] if self.tensor(index).shape is None else list(self.tensor(index).shape)
        return np.frombuffer(bytes(bytearray(data)), np.float32).reshape(shape)

    def is_float(self, index: int) -> bool:
        """Whether a tensor is there and holds float32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return index >= 0 and bool(self.tensor(index).type == TensorType.FLOAT32)

    def step(self, index: int) -> Step:
        """Scale and zero point of a tensor that is quantized as a whole."""
        found = self.tensor(index).quantization
        return float(found.scale[0]), int(found.zeroPoint[0])

    def bits(self, index: int) -> Bits | None:
        """Of a tensor that is quantized to int8 or int16; None for all others."""
        quantization = self.tensor(index).quantization
        if quantization is None or quantization.scale is None or not len(quantization.scale):
            return None
        return next((bits for bits in BITS if self.tensor(index).type == integer(bits)), None)

    def place(self, operator: Any) -> int:
        """Where an operator stands; two that look alike are two."""
        return next(place for place, other in enumerate(self.operators) if other is operator)

    def remove(self, operator: Any) -> None:
        """Take an operator out."""
        del self.operators[self.place(operator)]

    def code(self, kind: str, version: int) -> int:
        """The index of an operator code, which is there afterwards."""
        from ai_edge_litert.schema_py_generated import BuiltinOperator, OperatorCodeT

        number = getattr(BuiltinOperator, kind)
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
                return index
        made = OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
        self.model.operatorCodes.append(made)
        return len(self.model.operatorCodes) - 1

    def operator(self, kind: str, version: int, inputs: list[int], outputs: list[int]) -> Any:
        """A new operator, that stands nowhere yet, with options as they are when nothing is said."""
        from ai_edge_litert import schema_py_generated as schema

        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self.code(kind, version), inputs, outputs
        if kind in FUSING:
            options = f"{kind.title()}Options"
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
        return made

    def floating(self, name: str, shape: Any, values: Array | None = None) -> int:
        """A new float32 tensor, with `values` if it is a constant."""
        from ai_edge_litert.schema_py_generated import TensorType

        data = None if values is None else values.astype(np.float32)
        return self._tensor(name, shape, int(TensorType.FLOAT32), None, data)

    def whole(self, name: str, values: list[int]) -> int:
        """A new constant list of int32."""
        from ai_edge_litert.schema_py_generated import TensorType

        return self._tensor(name, [len(values)], int(TensorType.INT32), None, np.array(values, np.int32))

    def stored(self, name: str, shape: Any, bits: Bits, step: Step, values: Array | None = None) -> int:
        """A new tensor in integers, with the real `values` if it is a constant."""
        from ai_edge_litert.schema_py_generated import QuantizationParametersT

        quantization = QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = np.array([step[0]], np.float32), np.array([step[1]], np.int64)
        data = None if values is None else _rounded(values, bits, step)
        return self._tensor(name, shape, integer(bits), quantization, data)

    def _tensor(self, name: str, shape: Any, kind: int, quantization: Any, data: Array | None) -> int:
        from ai_edge_litert.schema_py_generated import BufferT, TensorT

        made = TensorT()
        made.name, made.shape, made.type, made.quantization, made.buffer = name.encode(), shape, kind, quantization, 0
        if data is not None:
            buffer = BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            made.buffer = len(self.model.buffers) - 1
        self.main.tensors.append(made)
        return len(self.main.tensors) - 1


def integer(bits: Bits) -> int:
    """The number of the type in the schema."""
    from ai_edge_litert.schema_py_generated import TensorType

    return int(TensorType.INT8 if bits == 8 else TensorType.INT16)


def step_of(span: Range, bits: Bits) -> Step:
    """Scale and zero point of a range: 16 bits are symmetric, as the kernels want them."""
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    if bits == 16:
        return float(np.float32(max(-low, high, 1e-30) / 32767)), 0
    scale = float(np.float32(max(high - low, 1e-30) / 255))
    return scale, int(np.clip(np.rint(-128 - low / scale), -128, 127))


def _rounded(values: Array, bits: Bits, step: Step) -> Array:
    low = -(2 ** (bits - 1))
    return np.clip(np.rint(values / step[0]) + step[1], low, -low - 1).astype(np.int8 if bits == 8 else np.int16)
