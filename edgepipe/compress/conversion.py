"""The conversion engine: from a source model to the bytes of a .tflite, by one scheme.

`convert` (the stage and the command), `sensitivity` and mixed precision all take this path: source model -> float
.tflite -> ranges -> integers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric
from edgepipe.core.outcome import Table
from edgepipe.tflite.model import FLOAT_TYPES, Model, Operator

if TYPE_CHECKING:
    from edgepipe.compress.fidelity import Fidelity
    from edgepipe.compress.quantizer.quantization import QuantizationRequest

MAX_OPERATORS_SHOWN = 10  # operators that a note names; the rest are counted
FLOAT_SCHEMES = ("float32", "float16")


@dataclass(frozen=True)
class ConvertedModel:
    """The bytes of a .tflite, with notes, tables and metrics of its conversion; `recipe` is JSON that repeats it."""

    content: bytes
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    metrics: tuple[Metric, ...] = ()
    recipe_json: str | None = None
    fidelity: "Fidelity | None" = None  # None: not measured

    def judge_fidelity(self, allow_low_fidelity: bool) -> tuple[list[Finding], list[str]]:
        """A finding for each output that has collapsed, or a note where the user accepts it."""
        collapses = self.fidelity.findings() if self.fidelity is not None else []
        if allow_low_fidelity:
            return [], [f"accepted by allow_low_fidelity: {collapse}" for collapse in collapses]
        return collapses, []


def convert_model(
    model: Any, request: "QuantizationRequest", samples: Arrays | None, held_out: Arrays | None = None
) -> ConvertedModel:
    """Convert a Keras model, a SavedModel's path or a parsed float .tflite by any scheme but `mixed`.

    Args:
        model: the `model` of a `SourceModel`.
        request: scheme, types, calibration and what stays in float.
        samples: representative samples; None for schemes that do not calibrate.
        held_out: samples that do not calibrate, on which an integer model is compared with the float one.

    Raises:
        InputError: samples or a scheme that do not fit the model.
    """
    if not isinstance(model, Model):
        from edgepipe.compress.keras_to_tflite import convert_keras

        quantized_model = convert_keras(model, request, samples, held_out)
        return ConvertedModel(quantized_model.content, quantized_model.notes, fidelity=quantized_model.fidelity)
    from edgepipe.compress.quantizer.quantization import needs_samples, quantize_tflite
    from edgepipe.tflite.sample_conversion import convert_samples

    if request.scheme == "float32":
        raise InputError(f"{model.path}: is a float .tflite already; scheme float32 would change nothing")
    if request.recurrent == "fused":
        raise InputError(f"{model.path}: recurrent fused: the layers of a .tflite are gone; convert the Keras model")
    with open_float_tflite(model, samples if needs_samples(request) else None) as (lite, feeds, _):
        held_out_feeds = None if held_out is None else convert_samples(model, held_out)
        quantized_model = quantize_tflite(lite, request, feeds, held_out_feeds=held_out_feeds)
        return ConvertedModel(quantized_model.content, quantized_model.notes, fidelity=quantized_model.fidelity)


@contextmanager
def open_float_tflite(model: Any, samples: Arrays | None) -> Iterator[tuple[Model, list[Array] | None, dict[str, Any]]]:
    """The float .tflite of `model`, samples in the order of its inputs, and trained ranges by layer.

    The file made from a Keras model exists inside the block only.
    """
    if isinstance(model, Model):
        from edgepipe.tflite.sample_conversion import convert_samples

        yield model, None if samples is None else convert_samples(model, samples), {}
        return
    from edgepipe.compress.keras_to_tflite import float_model
    from edgepipe.compress.qat.fake_quant import read_trained_ranges

    with float_model(model, samples, requires_samples=samples is not None) as (lite, feeds):
        yield lite, feeds, read_trained_ranges(model)


def float_operator_notes(scheme: str, lite: Model) -> list[str]:
    """A note on operators that compute in float, for schemes that quantize."""
    if scheme in FLOAT_SCHEMES:
        return []
    operator_locations = [operator.location for operator in lite.operators if _computes_in_float(operator)]
    operator_locations = [
        location for location in operator_locations if not location.startswith(("DEQUANTIZE", "QUANTIZE"))
    ]
    if not operator_locations:
        return []
    remainder_text = (
        f" and {len(operator_locations) - MAX_OPERATORS_SHOWN} more"
        if len(operator_locations) > MAX_OPERATORS_SHOWN
        else ""
    )
    locations_text = ", ".join(operator_locations[:MAX_OPERATORS_SHOWN])
    return [
        f"{len(operator_locations)} of {len(lite.operators)} operators compute in float: "
        f"{locations_text}{remainder_text}"
    ]


def _computes_in_float(operator: Operator) -> bool:
    """Whether its outputs are floats; hybrid kernels (integer weights, inputs quantized at run time) do not count."""
    integer_weights = [t for t in operator.inputs if t is not None and t.is_constant and t.dtype in ("int4", "int8")]
    return not integer_weights and any(t is not None and t.dtype in FLOAT_TYPES for t in operator.outputs)
