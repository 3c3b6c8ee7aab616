"""The layers of a float .tflite that quantization is decided for: an operator that computes, and what only passes on.

A tensor between two layers can be kept in 16 bits only if both take it so. What merely passes values on (pooling,
reshapes, activations) therefore belongs to the layer whose values it passes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from edgepipe.compress.quantizer.layer_attribution import layers_of, short, unique, unnumbered
from edgepipe.tflite.model import Model, Operator

PASSING = frozenset(
    {
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MIRROR_PAD", "SLICE", "STRIDED_SLICE"),
        *("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "REDUCE_MAX", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"),
        *("RELU", "RELU6", "LEAKY_RELU", "PRELU", "SOFTMAX", "LOGISTIC", "TANH", "SPACE_TO_DEPTH", "GATHER", "SPLIT"),
        *("HARD_SWISH", "GELU", "ELU"),
    }
)
WEIGHTED = ("Conv", "Depthwise", "Separable", "Dense", "LSTM", "GRU")  # how the names of such classes begin


@final
@dataclass(frozen=True)
class Layer:
    """One layer: a name that no other has, its operators in order, the first the one that computes, and its MACs."""

    name: str
    operators: tuple[Operator, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(operator.macs for operator in self.operators)

    @property
    def kind(self) -> str:
        """The operator that computes."""
        return self.operators[0].name


def layers(model: Model, keras: Mapping[str, str] | None = None) -> list[Layer]:
    """The layers of the first subgraph of `model`; `keras` are the classes of the Keras model's layers, by name."""
    main = [operator for operator in model.operators if operator.subgraph == 0]
    groups = _groups(main)
    names = dict(zip(range(len(model.operators)), layers_of(model, keras or {}), strict=True))
    found = [_name(main[group[0]], names[group[0]], keras or {}) for group in groups]
    called = unique(found if keras else unnumbered(found))
    return [Layer(name, tuple(main[index] for index in group)) for name, group in zip(called, groups, strict=True)]


def _groups(operators: list[Operator]) -> list[list[int]]:
    """Indices of the operators of each layer, the one that computes first."""
    owner: dict[tuple[int, int], int] = {}  # tensor -> group
    groups: list[list[int]] = []
    waiting: list[int] = []  # what stands between an input and the first layer that computes
    for index, operator in enumerate(operators):
        given = [owner[t.key] for t in operator.inputs if t is not None and not t.constant and t.key in owner]
        if operator.name in PASSING and given:
            group = given[0]
            groups[group].append(index)
        elif operator.name in PASSING:
            waiting.append(index)
            continue
        else:
            group = len(groups)
            groups.append([index, *waiting])
            waiting = []
        owner.update((tensor.key, group) for tensor in operator.outputs if tensor is not None)
    return groups + ([waiting] if waiting else [])


def _name(operator: Operator, found: list[str], keras: Mapping[str, str]) -> str:
    weighted = [name for name in found if keras[name].startswith(WEIGHTED)]
    return (weighted or found[::-1] or [short(operator)])[0]
