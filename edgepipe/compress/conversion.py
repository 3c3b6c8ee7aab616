"""The conversion engine: from a source model to the bytes of a .tflite, by one scheme.

`convert` (the stage and the command), `sensitivity` and mixed precision all take this path: source model -> float
.tflite -> ranges -> integers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric
from edgepipe.core.outcome import Table
from edgepipe.tflite.model import FLOAT_TYPES, Model, Operator

if TYPE_CHECKING:
    from edgepipe.compress.agreement import Agreement
    from edgepipe.compress.fidelity import Fidelity
    from edgepipe.compress.quantizer.quantization import QuantizationRequest, QuantizedModel
    from edgepipe.compress.quantizer.trained_ranges import TrainedRanges

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
    agreement: "Agreement | None" = None  # with a fake-quant model; None: not measured

    def fidelity_metrics(self, unavailable_reason: str) -> list[Metric]:
        """How far the outputs are from the float model's, or why that is not known."""
        from edgepipe.compress.fidelity import unavailable_fidelity

        return self.fidelity.metrics() if self.fidelity is not None else unavailable_fidelity(unavailable_reason)

    def judge_fidelity(self, allow_low_fidelity: bool) -> tuple[list[Finding], list[str]]:
        """A finding for each output that has collapsed, or a note where the user accepts it."""
        collapses = self.fidelity.findings() if self.fidelity is not None else []
        if allow_low_fidelity:
            return [], [f"accepted by allow_low_fidelity: {collapse}" for collapse in collapses]
        return collapses, []


def convert_model(
    model: Any, request: "QuantizationRequest", samples: Arrays | None, held_out: Arrays | None = None
) -> ConvertedModel:
    """Convert a Keras model, a SavedModel's signature or a parsed float .tflite by any scheme but `mixed`.

    Args:
        model: the `model` of a `SourceModel`.
        request: scheme, types, calibration and what stays in float.
        samples: representative samples; None for schemes that do not calibrate.
        held_out: samples that do not calibrate, on which an integer model is compared with the float one.

    Raises:
        InputError: samples or a scheme that do not fit the model.
    """
    if not isinstance(model, Model):
        if request.keep_open_batch:
            raise InputError("keep_open_batch is for a float .tflite; other models are converted with a batch of 1")
        from edgepipe.compress.keras_to_tflite import convert_keras

        return _converted_model(convert_keras(model, request, samples, held_out))
    return _convert_tflite(model, request, samples, held_out)


def _convert_tflite(
    model: Model, request: "QuantizationRequest", samples: Arrays | None, held_out: Arrays | None
) -> ConvertedModel:
    from edgepipe.compress.quantizer.float_preparation import folded_float16_constants, prepare_float_model
    from edgepipe.compress.quantizer.quantization import needs_samples, quantize_tflite
    from edgepipe.tflite.sample_conversion import convert_samples

    if request.scheme == "float32" and not folded_float16_constants(model):
        raise InputError(f"{model.path}: is a float .tflite already; scheme float32 would change nothing")
    if request.recurrent == "fused":
        raise InputError(f"{model.path}: recurrent fused: the layers of a .tflite are gone; convert the Keras model")
    if request.streaming is not None:
        raise InputError(
            f"{model.path}: streaming: the layers of a .tflite are gone; convert the Keras model (one that was "
            "exported with `streaming` keeps its states without the option)"
        )
    feeds, held_out_feeds = (
        None if arrays is None else convert_samples(model, arrays)
        for arrays in (samples if needs_samples(request) else None, held_out)
    )
    fixes_batch = needs_samples(request) and not request.keep_open_batch
    with prepare_float_model(model, fixes_batch) as prepared:
        converted_model = _converted_model(quantize_tflite(prepared.model, request, feeds, held_out_feeds))
    return replace(converted_model, notes=(*prepared.notes, *converted_model.notes))


def _converted_model(quantized_model: "QuantizedModel") -> ConvertedModel:
    return ConvertedModel(
        quantized_model.content,
        quantized_model.notes,
        fidelity=quantized_model.fidelity,
        agreement=quantized_model.agreement,
    )


@contextmanager
def open_float_tflite(
    model: Any, samples: Arrays | None
) -> Iterator[tuple[Model, list[Array] | None, "TrainedRanges"]]:
    """The float .tflite of `model`, samples in the order of its inputs, and the ranges that it was trained with.

    The file exists inside the block only.
    """
    from edgepipe.compress.quantizer.trained_ranges import without_fake_quant

    with _open_converted(model, samples) as (lite, feeds), without_fake_quant(lite) as (float_lite, trained_ranges):
        yield float_lite, feeds, trained_ranges


@contextmanager
def _open_converted(model: Any, samples: Arrays | None) -> Iterator[tuple[Model, list[Array] | None]]:
    if isinstance(model, Model):
        from edgepipe.compress.quantizer.float_preparation import prepare_float_model
        from edgepipe.tflite.sample_conversion import convert_samples
        from edgepipe.tflite.stream_ports import read_stream_ports

        if read_stream_ports(model) is not None:
            raise InputError(
                f"{model.path}: was exported with `streaming`; sensitivity and scheme mixed compare whole windows: "
                "give the Keras model, or convert this one with scheme int8 or int16x8"
            )
        with prepare_float_model(model, fixes_batch=samples is not None) as prepared:
            yield prepared.model, None if samples is None else convert_samples(model, samples)
        return
    from edgepipe.compress.keras_to_tflite import float_model

    with float_model(model, samples, requires_samples=samples is not None) as lite_and_feeds:
        yield lite_and_feeds


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
