"""Quantization sensitivity of each layer: the rounding error of its own tensors, and the error of the model's outputs.

The latter is measured, not modelled: the model is quantized with only this layer in integers, and with all layers but
this one, and both are run.
"""

from collections.abc import Callable, Mapping
from typing import Literal, final

import numpy as np
from pydantic import Field

from edgepipe.compress.quantizer.activation_calibration import ActivationRange
from edgepipe.compress.quantizer.layerwise_quantizer import LayerPrecision, LayerwiseQuantizer
from edgepipe.compress.quantizer.quantizable_layers import QuantizableLayer
from edgepipe.core.arrays import Array, count_samples, take_samples
from edgepipe.core.metric import Record
from edgepipe.core.progress import count_steps
from edgepipe.tflite.intermediate_tensors import record_tensors
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import Model, Operator, Tensor

MAX_SAMPLES = 64  # samples whose activations are held in memory
TINY_FLOAT32 = float(np.finfo(np.float32).tiny)
ErrorSource = Literal["weights", "weights_per_tensor", "activation"]
NEGLIGIBLE_POWER = 1e-30  # power of a signal or an error that counts as none


@final
class RoundingError(Record):
    """The rounding error of one tensor."""

    mse: float = Field(description="mean squared error, in the tensor's unit")
    snr: float = Field(description="power of the tensor over that of the error, in dB; at most 200")
    cosine: float = Field(description="of the angle between the tensor and its rounded form")
    worst_channel: float = Field(description="the lowest SNR of a channel, in dB")


@final
class LayerSensitivity(Record):
    """One layer, in the order of computation."""

    layer: str
    operator: str
    macs: int
    errors: dict[ErrorSource, RoundingError | None] = Field(
        description="weights: one scale for each output channel, as TFLite stores them; weights_per_tensor: one for "
        "all, to compare with; activation: the layer's output in the range it was calibrated to; null: it has none"
    )
    alone: float = Field(description="error of the scores over their variance, with only this layer in integers")
    left_out: float = Field(description="the same with every layer but this one in integers")
    quality_alone: float | None = None
    quality_left_out: float | None = None

    @property
    def weights(self) -> RoundingError | None:
        """Rounding error of the weights, one scale for each output channel."""
        return self.errors["weights"]

    @property
    def weights_per_tensor(self) -> RoundingError | None:
        """Rounding error of the weights, one scale for the whole tensor."""
        return self.errors["weights_per_tensor"]

    @property
    def activation(self) -> RoundingError | None:
        """Rounding error of the layer's output."""
        return self.errors["activation"]


@final
class SensitivityRanking(Record):
    """The layers of a model, ranked, and the whole model quantized."""

    layers: tuple[LayerSensitivity, ...] = Field(description="the most sensitive first, by `alone`")
    whole: float = Field(description="error of the scores over their variance, with all layers in integers")
    quality_float: float | None = None
    quality_whole: float | None = None


QualityFunction = Callable[[bytes], float]


def rank_layers(
    quantizer: LayerwiseQuantizer, precision: LayerPrecision = "int8", measure_quality: QualityFunction | None = None
) -> SensitivityRanking:
    """Rank the layers of `quantizer` by the output error with only that layer at `precision`.

    Args:
        quantizer: the float model and its layers.
        precision: what layers are quantized to.
        measure_quality: the quality of a .tflite's bytes; None: not measured.

    Raises:
        InputError: the model cannot be quantized so.
    """
    errors_by_layer = _rounding_errors(quantizer, precision)
    sensitivities = [
        _measure_layer(quantizer, layer, precision, errors_by_layer[layer.name], measure_quality)
        for layer in count_steps(quantizer.layers, "measuring layers")
    ]
    return SensitivityRanking(
        layers=tuple(sorted(sensitivities, key=lambda sensitivity: -sensitivity.alone)),
        whole=quantizer.score_distance({}, precision),
        quality_float=None if measure_quality is None else measure_quality(quantizer.float_model.content),
        quality_whole=None if measure_quality is None else measure_quality(quantizer.quantize({}, precision)),
    )


def _measure_layer(
    quantizer: LayerwiseQuantizer,
    layer: QuantizableLayer,
    precision: LayerPrecision,
    rounding_errors: dict[ErrorSource, RoundingError | None],
    measure_quality: QualityFunction | None,
) -> LayerSensitivity:
    only_layer_precisions: tuple[dict[str, LayerPrecision], LayerPrecision] = ({layer.name: precision}, "float32")
    other_layers_precisions: tuple[dict[str, LayerPrecision], LayerPrecision] = ({layer.name: "float32"}, precision)
    return LayerSensitivity(
        layer=layer.name,
        operator=layer.kind,
        macs=layer.macs,
        errors=rounding_errors,
        alone=quantizer.score_distance(*only_layer_precisions),
        left_out=quantizer.score_distance(*other_layers_precisions),
        quality_alone=None if measure_quality is None else measure_quality(quantizer.quantize(*only_layer_precisions)),
        quality_left_out=None
        if measure_quality is None
        else measure_quality(quantizer.quantize(*other_layers_precisions)),
    )


def _rounding_errors(
    quantizer: LayerwiseQuantizer, precision: LayerPrecision
) -> dict[str, dict[ErrorSource, RoundingError | None]]:
    output_by_layer = _layer_outputs(quantizer)
    return {
        layer.name: {
            "weights": _weight_error(quantizer.float_model, layer.operators[0], per_channel=True),
            "weights_per_tensor": _weight_error(quantizer.float_model, layer.operators[0], per_channel=False),
            "activation": _activation_error(output_by_layer[layer.name], quantizer.range_by_tensor, precision),
        }
        for layer in quantizer.layers
    }


def _layer_outputs(quantizer: LayerwiseQuantizer) -> dict[str, tuple[Tensor, Array] | None]:
    """The float values of each layer's output, (samples, ..., channels)."""
    output_tensor_by_layer = {
        layer.name: next((t for t in layer.operators[-1].outputs if t is not None), None) for layer in quantizer.layers
    }
    float_tensor_by_layer = {
        name: tensor
        for name, tensor in output_tensor_by_layer.items()
        if tensor is not None and tensor.dtype == "float32"
    }
    samples = take_samples(quantizer.samples, slice(min(MAX_SAMPLES, count_samples(quantizer.samples))))
    recorded_samples = list(
        record_tensors(quantizer.float_model, samples, list(float_tensor_by_layer.values()), Runtime.BUILTIN)
    )
    output_by_layer = {
        name: (tensor, np.concatenate([sample_arrays[index] for sample_arrays in recorded_samples]))
        for index, (name, tensor) in enumerate(float_tensor_by_layer.items())
    }
    return {name: output_by_layer.get(name) for name in output_tensor_by_layer}


def _activation_error(
    layer_output: tuple[Tensor, Array] | None, ranges: Mapping[str, ActivationRange], precision: LayerPrecision
) -> RoundingError | None:
    if layer_output is None or layer_output[0].name not in ranges:
        return None
    tensor, activation = layer_output
    return rounding_error(
        activation, fake_quantize(activation, ranges[tensor.name], precision), axis=activation.ndim - 1
    )


def fake_quantize(array: Array, activation_range: ActivationRange, precision: LayerPrecision) -> Array:
    """`array` quantized to 8-bit asymmetric or 16-bit symmetric integers over `span`, and dequantized."""
    low, high = activation_range
    if precision == "int16":
        max_abs = max(-low, high, TINY_FLOAT32)
        scale, zero_point, code_min, code_max = max_abs / 32767, 0, -32768, 32767
    else:
        scale = max(high - low, TINY_FLOAT32) / 255
        zero_point, code_min, code_max = round(-low / scale) - 128, -128, 127
    codes = np.clip(np.rint(array / scale) + zero_point, code_min, code_max)
    return np.asarray((codes - zero_point) * scale)


def _weight_error(model: Model, operator: Operator, per_channel: bool) -> RoundingError | None:
    parameter_positions, filter_layout = operator.traits.parameter_positions, operator.traits.filter_layout
    kernel = operator.input(parameter_positions[0]) if parameter_positions else None
    if kernel is None or not kernel.is_constant or kernel.dtype != "float32":
        return None
    weights, axis = model.read_values(kernel), filter_layout.filter_axis if filter_layout else 0
    other_axes = tuple(a for a in range(weights.ndim) if a != axis) if per_channel else None
    scale = np.maximum(np.abs(weights).max(axis=other_axes, keepdims=True), TINY_FLOAT32) / 127
    return rounding_error(weights, np.rint(weights / scale) * scale, axis)


def rounding_error(array: Array, rounded_array: Array, axis: int) -> RoundingError:
    """How far `rounded_array` is from `array`, overall and for each index of `axis`."""
    array, rounded_array = array.astype(np.float64), rounded_array.astype(np.float64)
    other_axes = tuple(a for a in range(array.ndim) if a != axis)
    noise_power, signal_power = np.square(rounded_array - array), np.square(array)
    norm_product = np.sqrt(signal_power.sum() * np.square(rounded_array).sum())
    return RoundingError(
        mse=float(noise_power.mean()),
        snr=_snr_decibels(signal_power.sum(), noise_power.sum()),
        cosine=float((array * rounded_array).sum() / norm_product) if norm_product > NEGLIGIBLE_POWER else 1.0,
        worst_channel=_worst_snr(signal_power.sum(axis=other_axes), noise_power.sum(axis=other_axes)),
    )


def _worst_snr(signal_power: Array, noise_power: Array) -> float:
    signal_mask = signal_power > NEGLIGIBLE_POWER  # a channel that is always zero has no ratio
    return min(
        (_snr_decibels(p, n) for p, n in zip(signal_power[signal_mask], noise_power[signal_mask], strict=True)),
        default=200.0,
    )


def _snr_decibels(signal_power: float, noise_power: float) -> float:
    return float(min(200.0, 10 * np.log10(max(signal_power, NEGLIGIBLE_POWER) / max(noise_power, NEGLIGIBLE_POWER))))
