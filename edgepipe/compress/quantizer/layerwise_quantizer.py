"""A model with a type for each layer: how it is made, and how far its scores are from those of the float model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.float_fallback import INTEGER_KERNELS
from edgepipe.compress.quantizer.op_decomposition import INT16_DECOMPOSITIONS
from edgepipe.compress.quantizer.quantizable_layers import QuantizableLayer
from edgepipe.compress.quantizer.recipes import LitertRecipe
from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model, Operator

LayerPrecision = Literal["int8", "int16", "float16", "float32"]


@final
@dataclass(frozen=True)
class LayerwiseQuantizer:
    """A float model, the layers that are decided on, ranges, and samples to look at outputs with."""

    float_model: Model  # spelled for integers of 8 bits
    layers: Sequence[QuantizableLayer]
    ranges: Mapping[str, ActivationRange]
    io_types: tuple[str, str]  # of inputs and outputs
    samples: Arrays
    scores_model: bytes  # the float model up to its scores: without a softmax or sigmoid at the end
    float_scores: Arrays  # what it gives on `samples`

    def build_recipe(self, precisions: Mapping[str, LayerPrecision], default: LayerPrecision) -> LitertRecipe:
        """Rules that give each layer its level, and every other one `rest`."""
        io_recipe = recipes.io_rules(*self.io_types) if default != "float32" else []
        base_recipe = recipes.scheme_recipe(SCHEME_BY_PRECISION[default]) if default != "float32" else []
        layer_recipe = [
            rule
            for layer in self.layers
            if (precision := precisions.get(layer.name))
            for rule in _layer_rules(layer, precision)
        ]
        return [
            *base_recipe,
            *layer_recipe,
            *io_recipe,
        ]  # whatever becomes of the last layer, the model's outputs are what was asked for

    def quantize(self, precisions: Mapping[str, LayerPrecision], default: LayerPrecision = "int8") -> bytes:
        """The model quantized so."""
        return recipes.quantize_with_recipe(
            self.float_model.content, self.build_recipe(precisions, default), self.ranges
        )

    def score_distance(self, precisions: Mapping[str, LayerPrecision], default: LayerPrecision = "int8") -> float:
        """How far the scores of the model quantized so are from the float ones; see `distance`.

        Scores tell more than probabilities: a softmax hides what does not change the winner, and what remains depends
        on a few samples, so that other samples give another ranking.
        """
        with flatbuffer_edits.temporary_tflite(
            recipes.quantize_with_recipe(self.scores_model, self.build_recipe(precisions, default), self.ranges)
        ) as path:
            return output_distance(predict(path, self.samples).real_values, self.float_scores)


SCHEME_BY_PRECISION: dict[LayerPrecision, str] = {"int8": "int8", "int16": "int16x8", "float16": "float16"}


def _layer_rules(layer: QuantizableLayer, precision: LayerPrecision) -> LitertRecipe:
    if precision == "float32":
        return recipes.keep_float_rules(layer.operators)
    if precision == "float16":
        float16_rules = [
            recipes.float16_rule(operator) for operator in layer.operators if operator.name in recipes.CASTABLE
        ]
        return [*recipes.keep_float_rules(layer.operators), *float16_rules]
    return [
        recipes.make_rule(recipes.integer_config(_activation_bits(operator, precision)), _operator_pattern(operator))
        for operator in layer.operators
    ]


def _activation_bits(operator: Operator, precision: LayerPrecision) -> int:
    """16 where that is asked for, but for operators that have integer kernels of 8 bits alone."""
    kernel = INTEGER_KERNELS.get(operator.name)
    has_int16 = kernel is None or 16 in kernel.versions or operator.name in INT16_DECOMPOSITIONS
    return 16 if precision == "int16" and has_int16 else 8


def _operator_pattern(operator: Operator) -> str:
    """The expression that names an operator, and those that it is `spelled` in."""
    return (
        recipes.decomposed_pattern(operator)
        if operator.name in INT16_DECOMPOSITIONS
        else recipes.operator_pattern(operator)
    )


def build_layerwise_quantizer(
    lite: Model,
    layers: Sequence[QuantizableLayer],
    ranges: Mapping[str, ActivationRange],
    io_types: tuple[str, str],
    samples: Arrays,
) -> LayerwiseQuantizer:
    """The bench of a float model; `samples` are what its outputs are looked at with."""
    scores_model = flatbuffer_edits.strip_output_activation(lite.content)
    with flatbuffer_edits.temporary_tflite(scores_model) as path:
        return LayerwiseQuantizer(
            lite, layers, ranges, io_types, samples, scores_model, predict(path, samples).real_values
        )


def output_distance(outputs: Arrays, float_outputs: Arrays) -> float:
    """Squared error of the outputs over their variance, the mean over several outputs; 1 is as bad as the mean."""
    # by their place: an output that several operators read gets another name when it is quantized
    pairs = zip(
        *(list(arrays.values()) if isinstance(arrays, dict) else [arrays] for arrays in (outputs, float_outputs)),
        strict=True,
    )
    return float(
        np.mean([_relative_squared_error(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs])
    )


def _relative_squared_error(output: Array, float_output: Array) -> float:
    variance = (
        np.square(float_output - float_output.mean(axis=0)).sum()
        if count_samples(float_output) > 1
        else np.square(float_output).sum()
    )
    return float(np.square(output - float_output).sum() / max(float(variance), np.finfo(np.float64).tiny))
