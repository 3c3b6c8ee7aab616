"""A model with a precision for each layer: its quantization, and how far its scores are from the float model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from edgepipe.compress.quantizer import flatbuffer_edits, recipes
from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.kernel_requirements import requirement_of
from edgepipe.compress.quantizer.op_decomposition import INT16_DECOMPOSITIONS
from edgepipe.compress.quantizer.output_bias import OutputBiasCorrection
from edgepipe.compress.quantizer.quantizable_layers import QuantizableLayer
from edgepipe.compress.quantizer.recipes import LitertRecipe
from edgepipe.core.arrays import Array, Arrays, count_samples
from edgepipe.tflite.interpreter import predict
from edgepipe.tflite.model import Model, Operator

LayerPrecision = Literal["int8", "int16", "float16", "float32"]


@final
@dataclass(frozen=True)
class LayerwiseQuantizer:
    """A float model, its quantizable layers, activation ranges, and samples on which outputs are compared."""

    float_model: Model  # decomposed for 8-bit integers, see `op_decomposition`
    layers: Sequence[QuantizableLayer]
    range_by_tensor: Mapping[str, ActivationRange]
    io_types: tuple[str, str]  # of inputs and outputs
    samples: Arrays
    scores_model_content: bytes  # the float model up to its scores: without a softmax or sigmoid at the end
    float_scores: Arrays  # its outputs on `samples`
    bias_correction: OutputBiasCorrection | None = None  # of the models that `quantize` gives

    def build_recipe(self, precisions: Mapping[str, LayerPrecision], default_precision: LayerPrecision) -> LitertRecipe:
        """Rules that give each layer of `precisions` its precision, and all others `default`."""
        io_rules = recipes.io_rules(*self.io_types) if default_precision != "float32" else []
        base_rules = (
            recipes.scheme_recipe(SCHEME_BY_PRECISION[default_precision]) if default_precision != "float32" else []
        )
        layer_rules = [
            rule
            for layer in self.layers
            if (precision := precisions.get(layer.name))
            for rule in _layer_rules(layer, precision)
        ]
        # last, so that the model's outputs have the requested type whatever the precision of the last layer
        return [*base_rules, *layer_rules, *io_rules]

    def quantize(self, precisions: Mapping[str, LayerPrecision], default_precision: LayerPrecision = "int8") -> bytes:
        """The .tflite with these layer precisions."""
        integer_model = recipes.quantize_with_recipe(
            self.float_model.content, self.build_recipe(precisions, default_precision), self.range_by_tensor
        )
        return integer_model.content if self.bias_correction is None else self.bias_correction.apply(integer_model)

    def score_distance(
        self, precisions: Mapping[str, LayerPrecision], default_precision: LayerPrecision = "int8"
    ) -> float:
        """How far the scores of the model with these precisions are from the float ones; see `output_distance`.

        Scores are more informative than probabilities: a softmax hides errors that do not change the winner, and what
        remains depends on a few samples, so that other samples give another ranking.
        """
        with flatbuffer_edits.temporary_tflite(
            recipes.quantize_with_recipe(
                self.scores_model_content, self.build_recipe(precisions, default_precision), self.range_by_tensor
            ).content
        ) as path:
            return output_distance(predict(path, self.samples).real_values, self.float_scores)


SCHEME_BY_PRECISION: dict[LayerPrecision, str] = {"int8": "int8", "int16": "int16x8", "float16": "float16"}


def _layer_rules(layer: QuantizableLayer, precision: LayerPrecision) -> LitertRecipe:
    if precision == "float32":
        return recipes.keep_float_rules(layer.operators)
    if precision == "float16":
        float16_rules = [
            recipes.float16_rule(operator)
            for operator in layer.operators
            if operator.name in recipes.CASTABLE_OPERATORS
        ]
        return [*recipes.keep_float_rules(layer.operators), *float16_rules]
    return [
        recipes.make_rule(recipes.integer_config(_activation_bits(operator, precision)), _operator_pattern(operator))
        for operator in layer.operators
    ]


def _activation_bits(operator: Operator, precision: LayerPrecision) -> int:
    """16 for int16, except for operators that have only 8-bit integer kernels."""
    requirement = requirement_of(operator.name)
    has_int16_kernel = requirement is None or 16 in requirement.bit_widths or operator.name in INT16_DECOMPOSITIONS
    return 16 if precision == "int16" and has_int16_kernel else 8


def _operator_pattern(operator: Operator) -> str:
    """The regular expression that matches an operator, and those that it is decomposed into."""
    return (
        recipes.decomposed_pattern(operator)
        if operator.name in (*INT16_DECOMPOSITIONS, "LOG")
        else recipes.operator_pattern(operator)
    )


def build_layerwise_quantizer(
    lite: Model,
    layers: Sequence[QuantizableLayer],
    range_by_tensor: Mapping[str, ActivationRange],
    io_types: tuple[str, str],
    samples: Arrays,
) -> LayerwiseQuantizer:
    """The `LayerwiseQuantizer` of a float model.

    Args:
        lite: the float model, decomposed for 8-bit integers.
        layers: its quantizable layers.
        range_by_tensor: of activations, by tensor name.
        io_types: types of the quantized model's inputs and outputs.
        samples: samples on which outputs are compared.
    """
    scores_model_content = flatbuffer_edits.strip_output_activation(lite.content)
    with flatbuffer_edits.temporary_tflite(scores_model_content) as path:
        return LayerwiseQuantizer(
            lite, layers, range_by_tensor, io_types, samples, scores_model_content, predict(path, samples).real_values
        )


def output_distance(outputs: Arrays, float_outputs: Arrays) -> float:
    """Squared error of the outputs over their variance, averaged over outputs; 1 is as bad as predicting the mean."""
    # by position: an output that several operators read is renamed when it is quantized
    output_pairs = zip(
        *(list(arrays.values()) if isinstance(arrays, dict) else [arrays] for arrays in (outputs, float_outputs)),
        strict=True,
    )
    return float(
        np.mean(
            [_relative_squared_error(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in output_pairs]
        )
    )


def _relative_squared_error(output: Array, float_output: Array) -> float:
    variance = (
        np.square(float_output - float_output.mean(axis=0)).sum()
        if count_samples(float_output) > 1
        else np.square(float_output).sum()
    )
    return float(np.square(output - float_output).sum() / max(float(variance), np.finfo(np.float64).tiny))
