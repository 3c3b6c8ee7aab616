"""The form of an operator, by which runtimes choose a kernel: its name, version, types, and what else they look at."""

from dataclasses import dataclass
from typing import final

from edgepipe.tflite.model import Operator, Tensor

# operators with any number of inputs or outputs of one type
VARIADIC_OPERATORS = frozenset({"ADD_N", "CONCATENATION", "PACK", "SPLIT", "SPLIT_V", "UNPACK"})
BATCH_MOVERS = frozenset({"BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND"})  # they change the size of the first dimension
PER_CHANNEL = "per channel"
LARGEST_COMMON_RANK = 4  # many kernels know no more dimensions


@final
@dataclass(frozen=True)
class OperatorForm:
    """What a runtime knows of an operator when it chooses its kernel."""

    name: str
    version: int
    types: str  # such as `int8 int8 int32 -> int8`; `-` for an absent input
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.name, f"version {self.version},", self.types, *(f"({name})" for name in self.features)))


def operator_form(operator: Operator) -> OperatorForm:
    """The form of an operator of a model."""
    is_variadic = operator.name in VARIADIC_OPERATORS
    inputs, outputs = (_types(tensors, is_variadic) for tensors in (operator.inputs, operator.outputs))
    return OperatorForm(operator.name, operator.version, f"{inputs} -> {outputs}", tuple(_features(operator)))


def _types(tensors: tuple[Tensor | None, ...], is_variadic: bool) -> str:
    types = ["-" if tensor is None else tensor.dtype for tensor in tensors]
    while types and types[-1] == "-":
        types.pop()
    return " ".join(dict.fromkeys(types) if is_variadic else types)


def _features(operator: Operator) -> list[str]:
    """In a fixed order."""
    ranks = [len(tensor.shape) for tensor in operator.tensors]
    present_by_feature = {
        PER_CHANNEL: any(t.is_constant and t.quantization and t.quantization.is_per_axis for t in operator.tensors),
        f"rank over {LARGEST_COMMON_RANK}": max(ranks, default=0) > LARGEST_COMMON_RANK,
        "sparse": any(tensor.is_sparse for tensor in operator.tensors),
        "open batch": operator.name in BATCH_MOVERS and any(t.shape_signature[:1] == (-1,) for t in operator.tensors),
    }
    return [feature for feature, is_present in present_by_feature.items() if is_present]
