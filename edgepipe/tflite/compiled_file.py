"""Reads a .tflite that a compiler has been through: for which accelerator, in how much memory, and what it left.

Vela (Arm Ethos-U) and the Edge TPU compiler replace what they map by custom operators. One of Vela holds the commands
as a constant, which begins with the configuration of the accelerator (`driver_actions.py` of ethos-u-vela: the tag
COP1, then words; the driver refuses commands whose configuration is not its own), then the weights and the scratch
memory as tensors. One of the Edge TPU holds a program in a format that Google does not publish.
"""

import struct
from dataclasses import dataclass

from edgepipe.tflite.model import Model, Operator, Tensor

VELA_CODE, EDGE_TPU_CODE = "ethos-u", "edgetpu-custom-op"
COMPILER_BY_CODE = {VELA_CODE: "Vela", EDGE_TPU_CODE: "Google's compiler"}
EDGE_TPU = "the Edge TPU"
_COMMAND_TAG = b"COP1"
_HEADER = struct.Struct("<4sII")  # the tag, an action with its parameters, the configuration
_CONFIG_ACTION = 1  # the lowest byte of the word after the tag
_PRODUCTS = ("ethos-u55", "ethos-u65", "ethos-u85")  # the highest four bits of the configuration
_WEIGHTS_POSITION, _SCRATCH_POSITION, _FAST_POSITION = 1, 2, 3  # inputs of Vela's operator, after the commands


@dataclass(frozen=True)
class CompiledFile:
    """What a compiler made of a model.

    Attributes:
        code: the custom code of the operators that the compiler wrote.
        accelerators: what they are compiled for: `ethos-u55-128` or `the Edge TPU`; empty where it cannot be read.
        accelerator_operators: the operators that the compiler wrote.
        cpu_operators: those that it left.
        scratch_bytes: activations, as Vela places them; None for the Edge TPU.
        fast_scratch_bytes: those that Vela places in a faster memory of its own; 0: there is none.
        weight_bytes: what Vela stores for the accelerator besides commands.
    """

    code: str
    accelerators: tuple[str, ...]
    accelerator_operators: tuple[Operator, ...]
    cpu_operators: tuple[Operator, ...]
    scratch_bytes: int | None = None
    fast_scratch_bytes: int = 0
    weight_bytes: int = 0

    @property
    def compiler(self) -> str:
        """For example `Vela`."""
        return COMPILER_BY_CODE[self.code]

    def text(self) -> str:
        """For example `compiled by Vela for ethos-u55-128`."""
        targets = " and ".join(self.accelerators) or "an unknown Ethos-U"
        return f"compiled by {self.compiler} for {targets}"


def read_compiled_file(model: Model) -> CompiledFile | None:
    """What a compiler made of `model`; None if none has been through it."""
    compiled_operators = tuple(op for op in model.operators if op.is_custom and op.name in COMPILER_BY_CODE)
    if not compiled_operators:
        return None
    code = compiled_operators[0].name
    cpu_operators = tuple(op for op in model.operators if op not in compiled_operators)
    if code == EDGE_TPU_CODE:
        return CompiledFile(code, (EDGE_TPU,), compiled_operators, cpu_operators)
    slow_tensors = _distinct(compiled_operators, _SCRATCH_POSITION)
    fast_tensors = tuple(t for t in _distinct(compiled_operators, _FAST_POSITION) if t not in slow_tensors)
    names = dict.fromkeys(_read_accelerator(model, operator) for operator in compiled_operators)
    return CompiledFile(
        code=code,
        accelerators=tuple(names) if "" not in names else (),
        accelerator_operators=compiled_operators,
        cpu_operators=cpu_operators,
        scratch_bytes=_largest_bytes(slow_tensors),
        fast_scratch_bytes=_largest_bytes(fast_tensors),
        weight_bytes=sum(tensor.bytes for tensor in _distinct(compiled_operators, _WEIGHTS_POSITION)),
    )


def scratch_tensors(operator: Operator) -> tuple[Tensor, ...]:
    """The inputs of a compiled operator that are memory for it to use and that nothing writes before."""
    if not operator.is_custom or operator.name != VELA_CODE:
        return ()
    return _distinct((operator,), _SCRATCH_POSITION) + _distinct((operator,), _FAST_POSITION)


def _read_accelerator(model: Model, operator: Operator) -> str:
    """The accelerator that Vela's commands are for; empty if they do not say it in the known way."""
    commands = operator.input(0)
    if commands is None or not commands.is_constant or commands.bytes < _HEADER.size:
        return ""
    tag, action, configuration = _HEADER.unpack(model.read_values(commands).tobytes()[: _HEADER.size])
    product_index, log2_macs = configuration >> 28, configuration & 0xF
    if tag != _COMMAND_TAG or action & 0xFF != _CONFIG_ACTION or product_index >= len(_PRODUCTS):
        return ""
    return f"{_PRODUCTS[product_index]}-{2**log2_macs}"


def _distinct(operators: tuple[Operator, ...], position: int) -> tuple[Tensor, ...]:
    tensors = (operator.input(position) for operator in operators)
    return tuple(dict.fromkeys(tensor for tensor in tensors if tensor is not None))


def _largest_bytes(tensors: tuple[Tensor, ...]) -> int:
    """Command streams run one after the other, in the same memory."""
    return max((tensor.bytes for tensor in tensors), default=0)
