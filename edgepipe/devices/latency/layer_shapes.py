"""How unlike the fitted layers the layers of a model are.

The cost per unit of a feature is not quite the same for all shapes: a 1x1 convolution to 16 channels spends more per
MAC than one to 256. So a fit is less certain of shapes that it has not seen. The distance of a layer is how many times
larger or smaller it is than the nearest fitted one, as a logarithm, in the dimension in which they differ most.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgepipe.core.arrays import Array
from edgepipe.devices.latency.feature_names import FeatureAmounts
from edgepipe.tflite.model import Operator

MAX_DISTANCE = 3.0  # of the logarithm, a factor of 20: that of an operator that no fitted model has
POINTWISE_CONVOLUTION = "CONV_2D 1x1"  # another kernel in all libraries, so other layers


class LayerShape(NamedTuple):
    """The sizes of a layer that its speed depends on."""

    input_channels: int
    output_channels: int
    positions: int  # of the output; of operators without weights, its elements
    kernel_size: int  # positions of the kernel


class Layer(NamedTuple):
    """One operator that does work: its kind, its shape, and the amounts of its features."""

    kind: str
    shape: LayerShape
    amounts: FeatureAmounts


def build_layer(operator: Operator, amounts: FeatureAmounts) -> Layer:
    """The layer of an operator, whose features have been counted."""
    kernel, output = operator.input(1), operator.outputs[0] if operator.outputs else None
    output_shape = output.shape if output is not None else ()
    if not operator.macs or kernel is None or len(kernel.shape) < 2:
        return Layer(operator.name, LayerShape(1, 1, max(1, int(np.prod(output_shape))), 1), amounts)
    first, *sides, last = (max(1, size) for size in kernel.shape)
    shape = LayerShape(last, first, max(1, int(np.prod(output_shape[1:-1]))), int(np.prod(sides)))
    is_pointwise = operator.name == "CONV_2D" and shape.kernel_size == 1
    return Layer(POINTWISE_CONVOLUTION if is_pointwise else operator.name, shape, amounts)


class FittedLayers:
    """The shapes of all fitted layers, by kind."""

    def __init__(self, shapes_by_kind: Mapping[str, Sequence[LayerShape]]) -> None:
        self.shapes_by_kind = {kind: sorted(set(shapes)) for kind, shapes in sorted(shapes_by_kind.items())}
        self._logarithms_by_kind = {kind: np.log(shapes) for kind, shapes in self.shapes_by_kind.items()}

    @classmethod
    def from_layers(cls, layers: Iterable[Layer]) -> "FittedLayers":
        """The shapes of `layers`."""
        shapes_by_kind: dict[str, list[LayerShape]] = {}
        for layer in layers:
            shapes_by_kind.setdefault(layer.kind, []).append(layer.shape)
        return cls(shapes_by_kind)

    @classmethod
    def from_texts(cls, text_by_kind: Mapping[str, str]) -> "FittedLayers":
        """The shapes as a profile stores them: `3x16x12544x9 16x16x3136x1`."""
        return cls(
            {
                kind: [LayerShape(*map(int, shape_text.split("x"))) for shape_text in text.split()]
                for kind, text in text_by_kind.items()
            }
        )

    def to_texts(self) -> dict[str, str]:
        """The inverse of `from_texts`."""
        return {
            kind: " ".join("x".join(map(str, shape)) for shape in shapes)
            for kind, shapes in self.shapes_by_kind.items()
        }

    def distance(self, layer: Layer) -> float:
        """The logarithm of the factor between the layer and the nearest fitted one of its kind, at most 3."""
        logarithms = self._logarithms_by_kind.get(layer.kind)
        if logarithms is None:
            return MAX_DISTANCE
        return min(MAX_DISTANCE, float(np.abs(logarithms - np.log(layer.shape)).max(axis=1).min()))

    def novelty(self, layers: Sequence[Layer], layer_seconds: Array) -> float:
        """The mean distance of the layers, each weighted by its share of the latency; 0 without any layer."""
        total_seconds = float(np.sum(layer_seconds))
        if total_seconds <= 0:
            return 0.0
        distances = np.array([self.distance(layer) for layer in layers])
        return float(distances @ layer_seconds) / total_seconds
