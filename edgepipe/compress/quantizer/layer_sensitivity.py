"""How much each layer minds being quantized: by the error of its own numbers, and by what becomes of the outputs.

The second is measured, not modelled: the model is quantized with this layer alone in integers, and with all layers but
this one, and both are run.
"""

from collections.abc import Callable, Mapping
from typing import Literal, final

import numpy as np
from pydantic import Field

from edgepipe.compress.quantizer.activation_calibration import Range
from edgepipe.compress.quantizer.layerwise_quantizer import Bench, Level
from edgepipe.compress.quantizer.quantizable_layers import Layer
from edgepipe.core.arrays import Array, count, take
from edgepipe.core.metric import Record
from edgepipe.tflite.dead_channels import FILTERS
from edgepipe.tflite.intermediate_tensors import run
from edgepipe.tflite.interpreter import Runtime
from edgepipe.tflite.model import WEIGHTS, Model, Operator, Tensor

LOOKED_AT = 64  # samples whose activations are held in memory
TINY = float(np.finfo(np.float32).tiny)
What = Literal["weights", "weights_per_tensor", "activation"]
SILENT = 1e-30  # power of a signal or an error that counts as none


@final
class Error(Record):
    """What rounding does to one tensor."""

    mse: float = Field(description="mean squared error, in the tensor's unit")
    snr: float = Field(description="power of the tensor over that of the error, in dB; at most 200")
    cosine: float = Field(description="of the angle between the tensor and its rounded form")
    worst_channel: float = Field(description="the lowest SNR of a channel, in dB")


@final
class Sensitivity(Record):
    """One layer, in the order of computation."""

    layer: str
    operator: str
    macs: int
    errors: dict[What, Error | None] = Field(
        description="weights: one scale for each output channel, as TFLite stores them; weights_per_tensor: one for "
        "all, to compare with; activation: the layer's output in the range it was calibrated to; null: it has none"
    )
    alone: float = Field(description="error of the scores over their variance, with only this layer in integers")
    left_out: float = Field(description="the same with every layer but this one in integers")
    quality_alone: float | None = None
    quality_left_out: float | None = None

    @property
    def weights(self) -> Error | None:
        """Of the weights, one scale for each output channel."""
        return self.errors["weights"]

    @property
    def weights_per_tensor(self) -> Error | None:
        """Of the weights, one scale for all."""
        return self.errors["weights_per_tensor"]

    @property
    def activation(self) -> Error | None:
        """Of the layer's output."""
        return self.errors["activation"]


@final
class Ranking(Record):
    """All layers of a model, and the model as a whole."""

    layers: tuple[Sensitivity, ...] = Field(description="the most sensitive first, by `alone`")
    whole: float = Field(description="error of the scores over their variance, with all layers in integers")
    quality_float: float | None = None
    quality_whole: float | None = None


Quality = Callable[[bytes], float]


def rank(bench: Bench, level: Level = "int8", quality: Quality | None = None) -> Ranking:
    """Every layer of `bench`, quantized to `level` by itself and left out; `quality` of the made models where given.

    Raises:
        InputError: the model cannot be quantized so.
    """
    errors = _errors(bench, level)
    found = [_one(bench, layer, level, errors[layer.name], quality) for layer in bench.layers]
    return Ranking(
        layers=tuple(sorted(found, key=lambda entry: -entry.alone)),
        whole=bench.distance({}, level),
        quality_float=None if quality is None else quality(bench.lite.content),
        quality_whole=None if quality is None else quality(bench.made({}, level)),
    )


def _one(
    bench: Bench, layer: Layer, level: Level, errors: dict[What, Error | None], quality: Quality | None
) -> Sensitivity:
    alone: tuple[dict[str, Level], Level] = ({layer.name: level}, "float32")
    others: tuple[dict[str, Level], Level] = ({layer.name: "float32"}, level)
    return Sensitivity(
        layer=layer.name,
        operator=layer.kind,
        macs=layer.macs,
        errors=errors,
        alone=bench.distance(*alone),
        left_out=bench.distance(*others),
        quality_alone=None if quality is None else quality(bench.made(*alone)),
        quality_left_out=None if quality is None else quality(bench.made(*others)),
    )


def _errors(bench: Bench, level: Level) -> dict[str, dict[What, Error | None]]:
    outputs = _outputs(bench)
    return {
        layer.name: {
            "weights": _of_weights(bench.lite, layer.operators[0], by_channel=True),
            "weights_per_tensor": _of_weights(bench.lite, layer.operators[0], by_channel=False),
            "activation": _of_activation(outputs[layer.name], bench.ranges, level),
        }
        for layer in bench.layers
    }


def _outputs(bench: Bench) -> dict[str, tuple[Tensor, Array] | None]:
    """The float values of each layer's output, (samples, ..., channels)."""
    ends = {layer.name: next((t for t in layer.operators[-1].outputs if t is not None), None) for layer in bench.layers}
    floats = {name: tensor for name, tensor in ends.items() if tensor is not None and tensor.dtype == "float32"}
    samples = take(bench.samples, slice(min(LOOKED_AT, count(bench.samples))))
    rows = list(run(bench.lite, samples, list(floats.values()), Runtime.BUILTIN))
    held = {name: (tensor, np.concatenate([row[place] for row in rows]))
            for place, (name, tensor) in enumerate(floats.items())}  # fmt: skip
    return {name: held.get(name) for name in ends}


def _of_activation(found: tuple[Tensor, Array] | None, ranges: Mapping[str, Range], level: Level) -> Error | None:
    if found is None or found[0].name not in ranges:
        return None
    tensor, values = found
    return error(values, rounded(values, ranges[tensor.name], level), axis=values.ndim - 1)


def rounded(values: Array, span: Range, level: Level) -> Array:
    """`values` as 8-bit asymmetric or 16-bit symmetric integers over `span` give them back."""
    low, high = span
    if level == "int16":
        reach = max(-low, high, TINY)
        scale, zero, least, most = reach / 32767, 0, -32768, 32767
    else:
        scale = max(high - low, TINY) / 255
        zero, least, most = round(-low / scale) - 128, -128, 127
    stored = np.clip(np.rint(values / scale) + zero, least, most)
    return np.asarray((stored - zero) * scale)


def _of_weights(model: Model, operator: Operator, by_channel: bool) -> Error | None:
    positions = WEIGHTS.get(operator.name, ())
    kernel = operator.input(positions[0]) if positions else None
    if kernel is None or not kernel.constant or kernel.dtype != "float32":
        return None
    values, axis = model.values(kernel), FILTERS.get(operator.name, (0, 0))[1]
    others = tuple(a for a in range(values.ndim) if a != axis) if by_channel else None
    scale = np.maximum(np.abs(values).max(axis=others, keepdims=True), TINY) / 127
    return error(values, np.rint(values / scale) * scale, axis)


def error(values: Array, stored: Array, axis: int) -> Error:
    """How far `stored` is from `values`, as a whole and along `axis`."""
    values, stored = values.astype(np.float64), stored.astype(np.float64)
    others = tuple(a for a in range(values.ndim) if a != axis)
    noise, power = np.square(stored - values), np.square(values)
    length = np.sqrt(power.sum() * np.square(stored).sum())
    return Error(
        mse=float(noise.mean()),
        snr=_decibel(power.sum(), noise.sum()),
        cosine=float((values * stored).sum() / length) if length > SILENT else 1.0,
        worst_channel=_worst(power.sum(axis=others), noise.sum(axis=others)),
    )


def _worst(power: Array, noise: Array) -> float:
    speaking = power > SILENT  # a channel that is always zero has no ratio
    return min((_decibel(p, n) for p, n in zip(power[speaking], noise[speaking], strict=True)), default=200.0)


def _decibel(power: float, noise: float) -> float:
    return float(min(200.0, 10 * np.log10(max(power, SILENT) / max(noise, SILENT))))
