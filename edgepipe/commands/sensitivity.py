"""`edgepipe sensitivity`: ranks the layers of a model by quantization sensitivity."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, final

import numpy as np
from pydantic import Field

from edgepipe.compress.quantizer.layer_sensitivity import LayerSensitivity, SensitivityRanking, rank_layers
from edgepipe.compress.schemes import SCHEMES, ActivationCalibration
from edgepipe.core.arrays import Array, Arrays, count_samples, take_samples
from edgepipe.core.artifact import ArtifactKind
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.core.references import installed_version
from edgepipe.core.units import plural
from edgepipe.tflite.model import Model

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
    from edgepipe.compress.source_model import SourceModel

CALIBRATION_SAMPLES = 200


@final
@dataclass(frozen=True)
class SensitivityOptions:
    """The scheme that layers are quantized by, the calibration method, and the number of samples to compare on."""

    scheme: Literal["int8", "int16x8"] = "int8"
    calibration: ActivationCalibration = field(default_factory=ActivationCalibration)
    samples: int = 512


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
    from edgepipe.models.file_kind import detect_kind

    kind = detect_kind(path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.TFLITE):
        raise InputError(f"{path}: is a {kind}; `sensitivity` takes a .keras or .h5 file, or a float .tflite")
    calibration_samples, compared_samples, labels, data_notes = _read_samples(data, options.samples)
    with _open_float(path, kind, calibration_samples, allow_code, custom_objects) as (lite, feeds, layers):
        quantizer, range_notes = _build_quantizer(lite, feeds, layers, compared_samples, options)
        mismatch_notes = _label_mismatch_notes(lite, labels)
        measure_accuracy = None if labels is None or mismatch_notes else _accuracy_function(compared_samples, labels)
        ranking = rank_layers(quantizer, "int8" if options.scheme == "int8" else "int16", measure_accuracy)
    return _build_report(
        path,
        options,
        ranking,
        measure_accuracy is not None,
        count_samples(compared_samples),
        (*data_notes, *range_notes, *mismatch_notes),
    )


@dataclass(frozen=True)
class _ClassLabels:
    """The class labels of the compared samples, and the number of classes."""

    labels: Array
    class_count: int


def _read_samples(
    data: "str | Arrays", sample_count: int
) -> tuple[Arrays, Arrays, _ClassLabels | None, tuple[str, ...]]:
    """Calibration samples, samples to compare outputs on, their labels if they are classes, and notes."""
    if not isinstance(data, str):
        return take_samples(data, slice(CALIBRATION_SAMPLES)), take_samples(data, slice(sample_count)), None, ()
    if data.endswith((".npz", ".npy")):
        from edgepipe.data import sample_files

        x, y = sample_files.read_labelled(Path(data))
        return (
            take_samples(x, slice(CALIBRATION_SAMPLES)),
            take_samples(x, slice(sample_count)),
            _class_labels(y, sample_count),
            _no_classes_notes(y),
        )
    from edgepipe.commands.dataset import describe_dataset

    summary, splits = describe_dataset(data, Path.cwd())
    validation = splits.validation
    train = take_samples(splits.train.x, slice(CALIBRATION_SAMPLES))
    notes = (*summary.notes, *_no_classes_notes(validation.y))
    return train, take_samples(validation.x, slice(sample_count)), _class_labels(validation.y, sample_count), notes


def _class_labels(y: Array | None, sample_count: int) -> _ClassLabels | None:
    if y is None or _no_classes_notes(y) or not len(y):
        return None
    return _ClassLabels(y[:sample_count], int(y.max()) + 1)


def _no_classes_notes(y: Array | None) -> tuple[str, ...]:
    """A note if the labels are not classes, such as those of a regression."""
    if y is None or (y.ndim == 1 and y.dtype.kind in "iu"):
        return ()
    return (f"no accuracy: labels of type {y.dtype} and shape {y.shape[1:]} are not classes",)


def _label_mismatch_notes(lite: Model, labels: _ClassLabels | None) -> tuple[str, ...]:
    """A note if the labels do not fit the model's outputs, such as those of an autoencoder."""
    if labels is None:
        return ()
    if (lowest_label := int(labels.labels.min())) < 0:
        return (f"no accuracy: a label is {lowest_label}; classes are counted from 0",)
    width = lite.outputs[0].elements
    if len(lite.outputs) == 1 and width == labels.class_count:
        return ()
    classes_text = plural(labels.class_count, "class", "classes")
    outputs_text = f"{plural(len(lite.outputs), 'output')} of {width}"
    return (f"no accuracy: the labels have {classes_text}, the model has {outputs_text}",)


@contextmanager
def _open_float(
    path: Path, kind: ArtifactKind, samples: Arrays, allow_code: bool, custom_objects: str | None
) -> Iterator[tuple[Model, list[Array], Mapping[str, str]]]:
    """The float .tflite of the model at `path`, decomposed for integer kernels; samples by input; classes of layers."""
    from edgepipe.compress.conversion import open_float_tflite

    source = _open_source(path, kind, allow_code, custom_objects)
    from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width

    with (
        open_float_tflite(source.model, samples) as (float_model, feeds, _),
        decomposed_model(float_model, uniform_bit_width(8)) as lite,
    ):
        yield lite, feeds or [], source.layer_classes


def _open_source(path: Path, kind: ArtifactKind, allow_code: bool, custom_objects: str | None) -> "SourceModel":
    from edgepipe.compress.source_model import open_source

    if kind is ArtifactKind.TFLITE:
        return open_source(path, kind, allow_code=allow_code)
    from edgepipe.models.startup import load_tensorflow

    load_tensorflow()
    from edgepipe.models import custom_objects as user_classes

    with user_classes.scope(user_classes.load(custom_objects, Path.cwd()) if custom_objects else {}):
        return open_source(path, kind, allow_code=allow_code)


def _build_quantizer(
    lite: Model, feeds: list[Array], layer_classes: Mapping[str, str], samples: Arrays, options: SensitivityOptions
) -> tuple["LayerwiseQuantizer", tuple[str, ...]]:
    from edgepipe.compress.quantizer.activation_calibration import calibrate
    from edgepipe.compress.quantizer.layerwise_quantizer import build_layerwise_quantizer
    from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed
    from edgepipe.compress.quantizer.quantizable_layers import find_layers

    feed_by_input = dict(zip(lite.inputs_by_name, feeds, strict=True))
    ranges = calibrate_decomposed(lite, lambda model: calibrate(model, feed_by_input, options.calibration))
    interface_type, layers = SCHEMES[options.scheme].interfaces[0], find_layers(lite, layer_classes)
    if not layers:
        raise InputError("the model has no operators, it outputs its input: there is nothing to rank")
    types = (interface_type, interface_type)
    return build_layerwise_quantizer(lite, layers, ranges.by_tensor, types, samples), tuple(ranges.notes())


def _accuracy_function(samples: Arrays, labels: _ClassLabels) -> Callable[[bytes], float]:
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.tflite.interpreter import predict

    def accuracy(content: bytes) -> float:
        with temporary_tflite(content) as path:
            scores = np.asarray(predict(path, samples).real_values).reshape(len(labels.labels), -1)
        return float(np.mean(scores.argmax(axis=1) == labels.labels))

    return accuracy


def _build_report(
    path: Path,
    options: SensitivityOptions,
    ranking: "SensitivityRanking",
    has_labels: bool,
    sample_count: int,
    notes: tuple[str, ...],
) -> SensitivityReport:
    tools = ", ".join(f"{name} {installed_version(name)}" for name in ("litert-quantizer", "ai-edge-litert"))
    return SensitivityReport(
        model=str(path), scheme=options.scheme, calibration=options.calibration.describe(), layers=ranking.layers,
        whole=ranking.whole,
        quality="accuracy" if has_labels else None, quality_float=ranking.quality_float,
        quality_whole=ranking.quality_whole, notes=notes,
        how=f"measured: each model built and run on {plural(sample_count, 'sample')}, {tools}, LiteRT xnnpack",
    )  # fmt: skip
