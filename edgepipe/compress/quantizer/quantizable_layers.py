"""The layers of a float .tflite whose precision is chosen: a compute operator, and the pass-through operators after it.

A tensor between two layers can have 16 bits only if both support it. Operators that merely pass values on (pooling,
reshapes, activations) therefore belong to the layer whose values they pass on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from edgepipe.compress.quantizer.layer_attribution import (
    layer_names_by_operator,
    make_unique,
    short_operator_name,
    strip_common_number,
)
from edgepipe.tflite.model import Model, Operator

PASS_THROUGH_OPS = frozenset(
    {
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE"),
        *("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "REDUCE_MAX", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
        *("RELU", "RELU6", "LEAKY_RELU", "PRELU", "SOFTMAX", "LOGISTIC", "TANH", "SPACE_TO_DEPTH", "GATHER", "SPLIT"),
        *("HARD_SWISH", "GELU", "ELU"),
    }
)
WEIGHTED_CLASS_PREFIXES = ("Conv", "Depthwise", "Separable", "Dense", "LSTM", "GRU")


@final
@dataclass(frozen=True)
class QuantizableLayer:
    """One layer: its unique name, and its operators, the compute operator first."""

    name: str
    operators: tuple[Operator, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(operator.macs for operator in self.operators)

    @property
    def kind(self) -> str:
        """The name of the compute operator."""
        return self.operators[0].name


def find_layers(model: Model, class_by_layer: Mapping[str, str] | None = None) -> list[QuantizableLayer]:
    """The layers of the first subgraph of `model`; `class_by_layer` has the Keras layers' classes by name, if known."""
    main_operators = [operator for operator in model.operators if operator.subgraph_index == 0]
    operator_groups = _group_operators(main_operators)
    names_by_operator = dict(
        zip(range(len(model.operators)), layer_names_by_operator(model, class_by_layer or {}), strict=True)
    )
    raw_names = [
        _layer_name(model, main_operators[group[0]], names_by_operator[group[0]], class_by_layer or {})
        for group in operator_groups
    ]
    layer_names = make_unique(raw_names if class_by_layer else strip_common_number(raw_names))
    return [
        QuantizableLayer(name, tuple(main_operators[index] for index in group))
        for name, group in zip(layer_names, operator_groups, strict=True)
    ]


def _group_operators(operators: list[Operator]) -> list[list[int]]:
    """Indices of the operators of each layer, the compute operator first."""
    group_index_by_tensor: dict[tuple[int, int], int] = {}  # tensor -> group
    operator_groups: list[list[int]] = []
    pending_indices: list[int] = []  # pass-through operators before the first compute operator
    for index, operator in enumerate(operators):
        input_group_indices = [
            group_index_by_tensor[t.key]
            for t in operator.inputs
            if t is not None and not t.is_constant and t.key in group_index_by_tensor
        ]
        if operator.name in PASS_THROUGH_OPS and input_group_indices:
            group_index = input_group_indices[0]
            operator_groups[group_index].append(index)
        elif operator.name in PASS_THROUGH_OPS:
            pending_indices.append(index)
            continue
        else:
            group_index = len(operator_groups)
            operator_groups.append([index, *pending_indices])
            pending_indices = []
        group_index_by_tensor.update((tensor.key, group_index) for tensor in operator.outputs if tensor is not None)
    return operator_groups + ([pending_indices] if pending_indices else [])


def _layer_name(model: Model, operator: Operator, candidate_names: list[str], class_by_layer: Mapping[str, str]) -> str:
    weighted_names = [name for name in candidate_names if class_by_layer[name].startswith(WEIGHTED_CLASS_PREFIXES)]
    return (weighted_names or candidate_names[::-1] or [short_operator_name(model, operator)])[0]
