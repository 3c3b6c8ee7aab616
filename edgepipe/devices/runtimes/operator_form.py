"""The form of an operator, by which runtimes choose a kernel: its name, version, types, and what else they look at."""

from dataclasses import dataclass
from typing import final

from edgepipe.tflite.model import Operator, Tensor

# operators with any number of inputs or outputs of one type
VARIADIC_OPERATORS = frozenset({"ADD_N", "CONCATENATION", "PACK", "SPLIT", "SPLIT_V", "UNPACK"})
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
BATCH_MOVERS = frozenset({"BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND"})  # they change the size of the first dimension
PER_CHANNEL = "per channel"
SKIPPING = "stride over kernel"  # a convolution that does not read some rows or columns
SEVERAL_ROWS = "several rows"  # that a dense layer is applied to
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
        SEVERAL_ROWS: _has_several_rows(operator),
        SKIPPING: _skips_inputs(operator),
        "sparse": any(tensor.is_sparse for tensor in operator.tensors),
        "open batch": operator.name in BATCH_MOVERS and any(t.shape_signature[:1] == (-1,) for t in operator.tensors),
    }
    return [feature for feature, is_present in present_by_feature.items() if is_present]


def _has_several_rows(operator: Operator) -> bool:
    source, weights = operator.input(0), operator.input(1)
    if operator.name != "FULLY_CONNECTED" or source is None or weights is None or not weights.shape:
        return False
    return source.element_count > weights.shape[-1]


def _skips_inputs(operator: Operator) -> bool:
    filters = operator.input(1)
    if operator.name not in CONVOLUTIONS or filters is None or len(filters.shape) != LARGEST_COMMON_RANK:
        return False
    strides = (operator.options.get("strideH", 1), operator.options.get("strideW", 1))
    return any(int(str(stride)) > size > 1 for stride, size in zip(strides, filters.shape[1:3], strict=True))
