"""A model with a type for each layer: how it is made, and how far its scores are from those of the float model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.compress.quantizer.float_fallback import KERNELS
from edgepipe.compress.quantizer.op_decomposition import SIXTEEN
from edgepipe.compress.quantizer.quantizable_layers import Layer
from edgepipe.compress.quantizer.recipes import Recipe
from edgepipe.core.arrays import Array, Arrays, count
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model, Operator

Level = Literal["int8", "int16", "float16", "float32"]


@final
@dataclass(frozen=True)
class Bench:
    """A float model, the layers that are decided on, ranges, and samples to look at outputs with."""

    lite: Model  # spelled for integers of 8 bits
    layers: Sequence[Layer]
    ranges: Mapping[str, Range]
    types: tuple[str, str]  # of inputs and outputs
    samples: Arrays
    bare: bytes  # the float model up to its scores: without a softmax or sigmoid at the end
    wanted: Arrays  # what it gives on `samples`

    def recipe(self, levels: Mapping[str, Level], rest: Level) -> Recipe:
        """Rules that give each layer its level, and every other one `rest`."""
        ends = recipes.ends(*self.types) if rest != "float32" else []
        base = recipes.everything(SCHEME[rest]) if rest != "float32" else []
        own = [rule for layer in self.layers if (level := levels.get(layer.name)) for rule in _rules(layer, level)]
        return [*base, *own, *ends]  # whatever becomes of the last layer, the model's outputs are what was asked for

    def made(self, levels: Mapping[str, Level], rest: Level = "int8") -> bytes:
        """The model quantized so."""
        return recipes.applied(self.lite.content, self.recipe(levels, rest), self.ranges)

    def distance(self, levels: Mapping[str, Level], rest: Level = "int8") -> float:
        """How far the scores of the model quantized so are from the float ones; see `distance`.

        Scores tell more than probabilities: a softmax hides what does not change the winner, and what remains depends
        on a few samples, so that other samples give another ranking.
        """
        with flatbuffer_edits.written(recipes.applied(self.bare, self.recipe(levels, rest), self.ranges)) as path:
            return distance(predict(path, self.samples).values, self.wanted)


SCHEME: dict[Level, str] = {"int8": "int8", "int16": "int16x8", "float16": "float16"}


def _rules(layer: Layer, level: Level) -> Recipe:
    if level == "float32":
        return recipes.leave(layer.operators)
    if level == "float16":
        halves = [recipes.half(operator) for operator in layer.operators if operator.name in recipes.CASTABLE]
        return [*recipes.leave(layer.operators), *halves]
    return [recipes.rule(recipes.integers(_bits(operator, level)), _named(operator)) for operator in layer.operators]


def _bits(operator: Operator, level: Level) -> int:
    """16 where that is asked for, but for operators that have integer kernels of 8 bits alone."""
    kernel = KERNELS.get(operator.name)
    wide = kernel is None or 16 in kernel.versions or operator.name in SIXTEEN
    return 16 if level == "int16" and wide else 8


def _named(operator: Operator) -> str:
    """The expression that names an operator, and those that it is `spelled` in."""
    return recipes.spelled_ones(operator) if operator.name in SIXTEEN else recipes.one(operator)


def bench_of(
    lite: Model, layers: Sequence[Layer], ranges: Mapping[str, Range], types: tuple[str, str], samples: Arrays
) -> Bench:
    """The bench of a float model; `samples` are what its outputs are looked at with."""
    bare = flatbuffer_edits.without_head(lite.content)
    with flatbuffer_edits.written(bare) as path:
        return Bench(lite, layers, ranges, types, samples, bare, predict(path, samples).values)


def distance(found: Arrays, wanted: Arrays) -> float:
    """Squared error of the outputs over their variance, the mean over several outputs; 1 is as bad as the mean."""
    # by their place: an output that several operators read gets another name when it is quantized
    pairs = zip(*(list(of.values()) if isinstance(of, dict) else [of] for of in (found, wanted)), strict=True)
    return float(np.mean([_distance(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]))


def _distance(found: Array, wanted: Array) -> float:
    spread = np.square(wanted - wanted.mean(axis=0)).sum() if count(wanted) > 1 else np.square(wanted).sum()
    return float(np.square(found - wanted).sum() / max(float(spread), np.finfo(np.float64).tiny))
