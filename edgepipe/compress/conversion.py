"""What `convert` does: the request from its options, the work, and what there is to tell of the result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgepipe.compress.schemes import SCHEMES
from edgepipe.core.arrays import Array, Arrays
from edgepipe.core.artifact import Artifact, Kind
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Finding, Metric
from edgepipe.core.outcome import Outcome, Table
from edgepipe.devices.device_metrics import counts
from edgepipe.stages import model_metrics
from edgepipe.stages.base import Work
from edgepipe.tflite.integer_check import findings
from edgepipe.tflite.model import FLOATS, Model, Operator
from edgepipe.tflite.reader import read

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.quantization import Quantized, Request
    from edgepipe.stages.convert import Convert

SHOWN = 10  # operators that a note names; more are counted


@dataclass(frozen=True)
class Opened:
    """The model to convert, the classes of its layers by name, and those that training left alone."""

    model: Any  # a Keras model, a SavedModel's path, or the facts of a float .tflite
    layers: Mapping[str, str]
    suspects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Made:
    """A converted model, and what its making had to say."""

    content: bytes
    opened: Opened
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    metrics: tuple[Metric, ...] = ()


def made(convert: "Convert", work: Work) -> Made:
    """The .tflite that the options ask for.

    Raises:
        InputError: a model, samples or options that do not go together.
        NotMetError: no mix of types keeps the quality.
    """
    samples = _samples(convert, work)
    opened = _opened(convert, work, samples)
    request = _request(convert, opened, work)
    make = _mixed if convert.scheme == "mixed" else _quantized
    done = make(convert, work, opened, request, samples)
    return replace(done, notes=(*opened.notes, *done.notes), tables=(*opened.tables, *done.tables))


def _mixed(convert: "Convert", work: Work, opened: Opened, request: "Request", samples: Arrays | None) -> Made:
    from edgepipe.compress import mixed_precision
    from edgepipe.compress.quantizer.op_decomposition import all_in, spelled

    with (
        float_tflite(opened.model, samples) as (model, feeds, trained),
        spelled(model, all_in(8)) as lite,
    ):
        return mixed_precision.made(convert, work, opened, request, (lite, feeds, trained))


def _quantized(convert: "Convert", work: Work, opened: Opened, request: "Request", samples: Arrays | None) -> Made:
    done = by_request(opened.model, request, samples)
    return Made(done.content, opened, done.notes)


def by_request(model: Any, request: "Request", samples: Arrays | None) -> "Quantized":
    """An opened model, Keras or float .tflite, by any scheme but a mix.

    Raises:
        InputError: samples or a scheme that do not go with the model.
    """
    if not isinstance(model, Model):
        from edgepipe.compress.keras_to_tflite import converted

        return converted(model, request, samples)
    from edgepipe.compress.quantizer.quantization import needs_samples, quantized

    if request.scheme == "float32":
        raise InputError(f"{model.path}: is a float .tflite already; scheme float32 would change nothing")
    with float_tflite(model, samples if needs_samples(request) else None) as (lite, feeds, _):
        return quantized(lite, request, feeds)


@contextmanager
def float_tflite(model: Any, samples: Arrays | None) -> Iterator[tuple[Model, list[Array] | None, dict[str, Any]]]:
    """The float .tflite of `model`, samples in the order of its inputs, and the ranges that training found."""
    if isinstance(model, Model):
        from edgepipe.tflite.sample_conversion import stored

        yield model, None if samples is None else stored(model, samples), {}
        return
    from edgepipe.compress.keras_to_tflite import float_model
    from edgepipe.compress.qat.fake_quant import trained_ranges

    with float_model(model, samples, calibrated=samples is not None) as (lite, feeds):
        yield lite, feeds, trained_ranges(model)


def _opened(convert: "Convert", work: Work, samples: Arrays | None) -> Opened:
    path, kind = work.input.path, work.input.kind
    if convert.equalize is not None or convert.bias_correction is not None:
        from edgepipe.compress.equalization import equalize_source

        return equalize_source.opened(convert, work, samples)
    if kind is Kind.TFLITE:
        return Opened(float_file(path), {})
    if kind is Kind.QAT:
        from edgepipe.compress.qat.qat_store import restored

        found = restored(path)
        suspects = tuple(entry.layer for entry in found.coverage if entry.by != "training")
        return Opened(found.model, {entry.layer: entry.cls for entry in found.coverage}, suspects)
    model = model_metrics.open_any(path, kind, allow_code=work.allow_code)
    return Opened(model, {} if kind is Kind.SAVED_MODEL else classes(model))


def classes(model: Any) -> dict[str, str]:
    """The class of each layer by name, nested models opened up."""
    found: dict[str, str] = {}
    for layer in model.layers:
        found |= classes(layer) if hasattr(layer, "layers") else {layer.name: type(layer).__name__}
    return found


def float_file(path: Any) -> Model:
    """The facts of a float .tflite that runs.

    Raises:
        InputError: it is damaged, does not run, holds loops or branches, is quantized already, or has tensors without a
            name of their own.
    """
    from edgepipe.tflite.interpreter import check_runs

    model = read(path)
    computed = [t for operator in model.operators for t in operator.outputs if t is not None and t.quantization]
    weights = [t for t in model.parameter_tensors if t.dtype != "float32"]
    if found := [*computed, *weights]:
        raise InputError(
            f"{path}: is quantized already: '{found[0].name}' is {found[0].dtype}; `convert` takes a float .tflite "
            "(`scheme: float32` makes one)"
        )
    if len(model.subgraphs) > 1:
        raise InputError(
            f"{path}: has {len(model.subgraphs)} subgraphs (loops, branches or several signatures); one is taken"
        )
    _check_names(model)
    check_runs(path)
    return model


def _check_names(model: Model) -> None:
    """Ranges and rules go by the names of tensors."""
    seen: set[str] = set()
    for tensor in model.tensors:
        if tensor.name in seen or not tensor.name:
            what = f"two tensors are called '{tensor.name}'" if tensor.name else f"tensor {tensor.index} has no name"
            raise InputError(f"{model.path}: {what}; quantization goes by names, each must be there once")
        seen.add(tensor.name)


def _request(convert: "Convert", opened: Opened, work: Work) -> "Request":
    from edgepipe.compress.quantizer import recipes
    from edgepipe.compress.quantizer.float_exclusions import choice
    from edgepipe.compress.quantizer.quantization import Request

    left = None
    if convert.types or convert.layers:
        _check_left(work)
        left = choice(convert.types, convert.layers, opened.layers)
    recipe = recipes.read(work.base / convert.recipe) if convert.recipe is not None else None
    return Request(convert.scheme, convert.input, convert.output, convert.ranges, recipe, left)


def _check_left(work: Work) -> None:
    if work.input.kind is Kind.QAT:
        raise InputError(
            "types and layers: a fake-quant model is quantized as it was trained; say in `quantize` what stays in float"
        )


def _samples(convert: "Convert", work: Work) -> Arrays | None:
    if not SCHEMES[convert.scheme].calibrated or work.splits is None:
        return None
    from edgepipe.data.splits import representative

    return representative(work.data.train, convert.samples(work.world), work.seed)


def told(convert: "Convert", work: Work, artifact: Artifact, done: Made) -> Outcome:
    """Quality, counts, what stayed in float, and how int8 and fake-quant agree."""
    lite = read(artifact.path)
    tables, agreement = _agreement(convert, done.opened.model, lite, work)
    return Outcome(
        metrics=(*_quality(artifact, work), *agreement, *done.metrics, *counts(lite)),
        findings=tuple(_offenders(convert, lite, work)),
        notes=(*done.notes, *floats(convert.scheme, lite)),
        tables=(*done.tables, *tables),
    )


def _offenders(convert: "Convert", lite: Model, work: Work) -> list[Finding]:
    """What is float although integers were asked for, and not because the user said so."""
    device = convert.target(work.base)
    demanded = SCHEMES[convert.scheme].integer or (device is not None and device.integer_only)
    if not demanded or convert.types or convert.layers:
        return []
    return findings(lite, allow_float_interface="float32" in (convert.input, convert.output))


def floats(scheme: str, lite: Model) -> list[str]:
    """A note on operators that compute in float, where some were to be integer."""
    if scheme in ("float32", "float16"):
        return []
    places = [operator.place for operator in lite.operators if _in_float(operator)]
    left = [place for place in places if not place.startswith(("DEQUANTIZE", "QUANTIZE"))]
    if not left:
        return []
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return [f"{len(left)} of {len(lite.operators)} operators compute in float: {', '.join(left[:SHOWN])}{more}"]


def _in_float(operator: Operator) -> bool:
    """Whether it gives floats, and does not, with weights in integers, quantize what it is given while it runs."""
    weights = [t for t in operator.inputs if t is not None and t.constant and t.dtype in ("int4", "int8")]
    return not weights and any(t is not None and t.dtype in FLOATS for t in operator.outputs)


def _agreement(convert: "Convert", model: Any, lite: Model, work: Work) -> tuple[tuple[Table, ...], tuple[Metric, ...]]:
    """How far a fake-quant model and its int8 model agree; nothing for models without fake-quant."""
    if work.input.kind is not Kind.QAT or convert.scheme != "int8" or work.splits is None:
        return (), ()
    from edgepipe.stages.qat_agreement import compared

    return compared(model, lite, work)


def _quality(artifact: Artifact, work: Work) -> list[Metric]:
    if work.splits is None or work.task is None:
        return []
    from edgepipe.stages.tflite_quality import lite_quality
    from edgepipe.tflite.interpreter import Runtime

    return lite_quality(artifact.path, work.task, work.data.validation, "validation", Runtime.XNNPACK)
