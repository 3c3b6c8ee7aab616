"""`edgepipe sensitivity`: ranks the layers of a model by quantization sensitivity."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from pydantic import Field

from edgepipe.commands.model_samples import read_model_samples
from edgepipe.compress.quantizer.layer_sensitivity import LayerSensitivity, SensitivityRanking, rank_layers
from edgepipe.compress.schemes import SCHEMES, ActivationCalibration
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.core.progress import report_step
from edgepipe.core.references import installed_version
from edgepipe.core.units import plural
from edgepipe.tflite.model import Model

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
    from edgepipe.compress.quantizer.trained_ranges import TrainedRanges
    from edgepipe.compress.source_model import SourceModel

CALIBRATION_SAMPLE_COUNT = 200


@final
@dataclass(frozen=True)
class SensitivityOptions:
    """The scheme that layers are quantized by, the calibration method, and the number of samples to compare on."""

    scheme: Literal["int8", "int16x8"] = "int8"
    calibration: ActivationCalibration = field(default_factory=ActivationCalibration)
    samples: int = 512
    input_shapes: tuple[str, ...] = ()  # sizes of open input dimensions, as `224x224x3` or `name=224x224x3`


@final
class SensitivityReport(Record):
    """The layers of a model, the most sensitive first."""

    model: str
    scheme: str
    calibration: str
    layers: tuple[LayerSensitivity, ...]
    whole: float = Field(description="error of the scores over their variance with all layers quantized")
    quality: str | None = Field(description="the metric taken where there are labels; null: none")
    quality_float: float | None
    quality_whole: float | None
    how: str = Field(description="what was run, on what, with which versions")
    notes: tuple[str, ...]


def rank_model_layers(
    path: Path, data: "str | Arrays", options: SensitivityOptions, allow_code: bool, custom_objects: str | None
) -> SensitivityReport:
    """Rank the layers of the model at `path`.

    Args:
        path: a `.keras` or `.h5` file, or a float `.tflite`.
        data: samples; or the path of a .npy or .npz file; or a description as `edgepipe data` takes it.
        options: see `SensitivityOptions`.
        allow_code: load a model that carries code.
        custom_objects: `module:attribute`, the model's own classes; None for none.

    Raises:
        InputError: no float model, no samples, or a model that cannot be quantized.
    """
    from edgepipe.compress.source_model import open_with_classes
    from edgepipe.models.file_kind import detect_kind

    kind = detect_kind(path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.TFLITE):
        raise InputError(f"{path}: is a {kind}; `sensitivity` takes a .keras or .h5 file, or a float .tflite")
    report_step("reading samples")
    calibration_samples, compared_samples, class_labels, data_notes = _read_samples(data, options.samples, path)
    report_step(f"reading {path}")
    source_model = open_with_classes(
        path, kind, allow_code=allow_code, custom_objects=custom_objects, input_shapes=options.input_shapes
    )
    with _open_float_model(source_model, calibration_samples) as float_model:
        lite = float_model.lite
        quantizer, range_notes = _build_quantizer(float_model, compared_samples, options)
        mismatch_notes = _label_mismatch_notes(lite, class_labels)
        measure_accuracy = (
            None if class_labels is None or mismatch_notes else _accuracy_function(compared_samples, class_labels)
        )
        ranking = rank_layers(quantizer, "int8" if options.scheme == "int8" else "int16", measure_accuracy)
    return _build_report(
        path,
        options,
        ranking,
        measure_accuracy is not None,
        count_samples(compared_samples),
        (*source_model.notes, *data_notes, *range_notes, *mismatch_notes),
    )


@dataclass(frozen=True)
class _ClassLabels:
    """The class labels of the compared samples, and the number of classes."""

    label_array: Array
    class_count: int


def _read_samples(
    data: "str | Arrays", sample_count: int, model_path: Path
) -> tuple[Arrays, Arrays, _ClassLabels | None, tuple[str, ...]]:
    """Calibration samples, samples to compare outputs on, their labels if they are classes, and notes."""
    if not isinstance(data, str):
        return take_samples(data, slice(CALIBRATION_SAMPLE_COUNT)), take_samples(data, slice(sample_count)), None, ()
    samples = read_model_samples(data, model_path)
    return (
        take_samples(samples.train_x, slice(CALIBRATION_SAMPLE_COUNT)),
        take_samples(samples.compared_x, slice(sample_count)),
        _class_labels(samples.compared_y, sample_count),
        (*samples.notes, *_no_classes_notes(samples.compared_y)),
    )


def _class_labels(y: Array | None, sample_count: int) -> _ClassLabels | None:
    if y is None or _no_classes_notes(y) or not len(y):
        return None
    return _ClassLabels(y[:sample_count], int(y.max()) + 1)


def _no_classes_notes(y: Array | None) -> tuple[str, ...]:
    """A note if the labels are not classes, such as those of a regression."""
    if y is None or (y.ndim == 1 and y.dtype.kind in "iu"):
        return ()
    return (f"no accuracy: labels of type {y.dtype} and shape {y.shape[1:]} are not classes",)


def _label_mismatch_notes(lite: Model, class_labels: _ClassLabels | None) -> tuple[str, ...]:
    """A note if the labels do not fit the model's outputs, such as those of an autoencoder."""
    if class_labels is None:
        return ()
    if (lowest_label := int(class_labels.label_array.min())) < 0:
        return (f"no accuracy: a label is {lowest_label}; classes are counted from 0",)
    output_width = lite.outputs[0].element_count
    if len(lite.outputs) == 1 and output_width == class_labels.class_count:
        return ()
    classes_text = plural(class_labels.class_count, "class", "classes")
    outputs_text = f"{plural(len(lite.outputs), 'output')} of {output_width}"
    return (f"no accuracy: the labels have {classes_text}, the model has {outputs_text}",)


@dataclass(frozen=True)
class _FloatModel:
    """A float .tflite decomposed for integer kernels, samples by input, trained ranges, and classes of layers."""

    lite: Model
    feeds: list[Array]
    trained_ranges: "TrainedRanges"
    class_by_layer: Mapping[str, str]


@contextmanager
def _open_float_model(source_model: "SourceModel", samples: Arrays) -> Iterator[_FloatModel]:
    from edgepipe.compress.conversion import open_float_tflite
    from edgepipe.compress.quantizer.integer_inputs import integer_inputs
    from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width

    with (
        open_float_tflite(source_model.model, samples) as (float_model, feeds, trained_ranges),
        integer_inputs(float_model, feeds, kept_names=()) as integers,
        decomposed_model(integers.model, uniform_bit_width(8)) as lite,
    ):
        yield _FloatModel(lite, feeds or [], trained_ranges, source_model.class_by_layer)


def _build_quantizer(
    float_model: _FloatModel, compared_inputs: Arrays, options: SensitivityOptions
) -> tuple["LayerwiseQuantizer", tuple[str, ...]]:
    from edgepipe.compress.quantizer.layerwise_quantizer import build_layerwise_quantizer
    from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed
    from edgepipe.compress.quantizer.quantizable_layers import find_layers
    from edgepipe.compress.quantizer.quantization import QuantizationRequest, collect_ranges

    request = QuantizationRequest(options.scheme, calibration=options.calibration)
    activation_ranges = calibrate_decomposed(
        float_model.lite, lambda lite: collect_ranges(lite, request, float_model.feeds, float_model.trained_ranges)
    )
    interface_type = SCHEMES[options.scheme].allowed_interface_types[0]
    quantizable_layers = find_layers(float_model.lite, float_model.class_by_layer)
    if not quantizable_layers:
        raise InputError("the model has no operators, it outputs its input: there is nothing to rank")
    io_types = (interface_type, interface_type)
    return build_layerwise_quantizer(
        float_model.lite, quantizable_layers, activation_ranges.by_tensor, io_types, compared_inputs
    ), (*float_model.trained_ranges.notes(), *activation_ranges.notes())


def _accuracy_function(compared_inputs: Arrays, class_labels: _ClassLabels) -> Callable[[bytes], float]:
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.tflite.interpreter import predict

    def accuracy(content: bytes) -> float:
        with temporary_tflite(content) as path:
            scores = np.asarray(predict(path, compared_inputs).real_values).reshape(len(class_labels.label_array), -1)
        return float(np.mean(scores.argmax(axis=1) == class_labels.label_array))

    return accuracy


def _build_report(
    path: Path,
    options: SensitivityOptions,
    ranking: "SensitivityRanking",
    has_labels: bool,
    sample_count: int,
    notes: tuple[str, ...],
) -> SensitivityReport:
    runtime_text = f"LiteRT {installed_version('ai-edge-litert')} xnnpack"
    return SensitivityReport(
        model=str(path), scheme=options.scheme, calibration=options.calibration.describe(), layers=ranking.layers,
        whole=ranking.whole,
        quality="accuracy" if has_labels else None, quality_float=ranking.quality_float,
        quality_whole=ranking.quality_whole, notes=notes,
        how=f"measured: each model built and run on {plural(sample_count, 'sample')}, {runtime_text}",
    )  # fmt: skip
