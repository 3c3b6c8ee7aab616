"""`edgepipe sensitivity`: how sensitive each layer of a model is to quantization."""

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
from edgepipe.tflite.model import Model

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import LayerwiseQuantizer
    from edgepipe.compress.source_model import SourceModel

CALIBRATION_SAMPLES = 200


@final
@dataclass(frozen=True)
class SensitivityOptions:
    """What layers are quantized to, how activation ranges are calibrated, and how many samples outputs are compared on."""

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

    Raises:
        InputError: no float model, no samples, or a model that cannot be quantized.
    """
    from edgepipe.models.file_kind import detect_kind

    kind = detect_kind(path)
    if kind not in (ArtifactKind.KERAS, ArtifactKind.FLOAT, ArtifactKind.TFLITE):
        raise InputError(f"{path}: is a {kind}; `sensitivity` takes a .keras or .h5 file, or a float .tflite")
    calibration_samples, compared, labels, notes = _samples(data, options.samples)
    with _open_float(path, kind, calibration_samples, allow_code, custom_objects) as (lite, feeds, layers):
        bench, range_notes = _bench(lite, feeds, layers, compared, options)
        mismatch = _label_mismatch(lite, labels)
        quality = None if labels is None or mismatch else _accuracy(compared, labels)
        ranking = rank_layers(bench, "int8" if options.scheme == "int8" else "int16", quality)
    return _build_report(
        path, options, ranking, quality is not None, count_samples(compared), (*notes, *range_notes, *mismatch)
    )


@dataclass(frozen=True)
class _ClassLabels:
    """The classes of the samples that are looked at, and how many there are in all."""

    values: Array
    classes: int


def _samples(data: "str | Arrays", number: int) -> tuple[Arrays, Arrays, _ClassLabels | None, tuple[str, ...]]:
    """Samples that calibrate, samples that are looked at, their labels if they are classes, and notes."""
    if not isinstance(data, str):
        return take_samples(data, slice(CALIBRATION_SAMPLES)), take_samples(data, slice(number)), None, ()
    if data.endswith((".npz", ".npy")):
        from edgepipe.data import sample_files

        x, y = sample_files.read_labelled(Path(data))
        return (
            take_samples(x, slice(CALIBRATION_SAMPLES)),
            take_samples(x, slice(number)),
            _class_labels(y, number),
            _no_classes_note(y),
        )
    from edgepipe.commands.dataset import describe_dataset

    described, splits = describe_dataset(data, Path.cwd())
    validation = splits.validation
    train = take_samples(splits.train.x, slice(CALIBRATION_SAMPLES))
    notes = (*described.notes, *_no_classes_note(validation.y))
    return train, take_samples(validation.x, slice(number)), _class_labels(validation.y, number), notes


def _class_labels(y: Array | None, number: int) -> _ClassLabels | None:
    if y is None or _no_classes_note(y) or not len(y):
        return None
    return _ClassLabels(y[:number], int(y.max()) + 1)


def _no_classes_note(y: Array | None) -> tuple[str, ...]:
    """A note if the labels are no classes, such as the numbers of a regression."""
    if y is None or (y.ndim == 1 and y.dtype.kind in "iu"):
        return ()
    return (f"no accuracy: labels of type {y.dtype} and shape {y.shape[1:]} are no classes",)


def _label_mismatch(lite: Model, labels: _ClassLabels | None) -> tuple[str, ...]:
    """A note if the labels are none of the model's outputs, as those of an autoencoder."""
    if labels is None:
        return ()
    if (least := int(labels.values.min())) < 0:
        return (f"no accuracy: a label is {least}; classes are counted from 0",)
    width = lite.outputs[0].elements
    if len(lite.outputs) == 1 and width == labels.classes:
        return ()
    found = f"{len(lite.outputs)} output(s) of {width}"
    return (f"no accuracy: the labels have {labels.classes} classes, the model {found}",)


@contextmanager
def _open_float(
    path: Path, kind: ArtifactKind, samples: Arrays, allow_code: bool, custom_objects: str | None
) -> Iterator[tuple[Model, list[Array], Mapping[str, str]]]:
    """The float .tflite of the model at `path`, decomposed for integer kernels; samples by input; classes of layers."""
    from edgepipe.compress.conversion import open_float_tflite

    source = _open_source(path, kind, allow_code, custom_objects)
    from edgepipe.compress.quantizer.op_decomposition import decomposed_model, uniform_bit_width

    with (
        open_float_tflite(source.model, samples) as (plain, feeds, _),
        decomposed_model(plain, uniform_bit_width(8)) as lite,
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


def _bench(
    lite: Model, feeds: list[Array], classes: Mapping[str, str], samples: Arrays, options: SensitivityOptions
) -> tuple["LayerwiseQuantizer", tuple[str, ...]]:
    from edgepipe.compress.quantizer.activation_calibration import calibrate
    from edgepipe.compress.quantizer.layerwise_quantizer import build_layerwise_quantizer
    from edgepipe.compress.quantizer.op_decomposition import calibrate_decomposed
    from edgepipe.compress.quantizer.quantizable_layers import find_layers

    given = dict(zip(lite.inputs_by_name, feeds, strict=True))
    ranges = calibrate_decomposed(lite, lambda model: calibrate(model, given, options.calibration))
    types, found = SCHEMES[options.scheme].interfaces[0], find_layers(lite, classes)
    if not found:
        raise InputError("the model has no operator, it gives back what it is given: there is nothing to rank")
    return build_layerwise_quantizer(lite, found, ranges.by_tensor, (types, types), samples), tuple(ranges.notes())


def _accuracy(samples: Arrays, labels: _ClassLabels) -> Callable[[bytes], float]:
    from edgepipe.compress.quantizer.flatbuffer_edits import temporary_tflite
    from edgepipe.tflite.interpreter import predict

    def quality(content: bytes) -> float:
        with temporary_tflite(content) as path:
            scores = np.asarray(predict(path, samples).real_values).reshape(len(labels.values), -1)
        return float(np.mean(scores.argmax(axis=1) == labels.values))

    return quality


def _build_report(
    path: Path,
    options: SensitivityOptions,
    ranking: "SensitivityRanking",
    labelled: bool,
    number: int,
    notes: tuple[str, ...],
) -> SensitivityReport:
    tools = ", ".join(f"{name} {installed_version(name)}" for name in ("litert-quantizer", "ai-edge-litert"))
    return SensitivityReport(
        model=str(path), scheme=options.scheme, calibration=options.calibration.describe(), layers=ranking.layers,
        whole=ranking.whole,
        quality="accuracy" if labelled else None, quality_float=ranking.quality_float,
        quality_whole=ranking.quality_whole, notes=notes,
        how=f"measured: each model made and run on {number} samples, {tools}, LiteRT xnnpack",
    )  # fmt: skip
