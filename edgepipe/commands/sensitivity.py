"""`edgepipe sensitivity`: how much each layer of a model minds being quantized."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from pydantic import Field

from edgepipe.compress.quantizer.layer_sensitivity import Ranking, Sensitivity, rank
from edgepipe.compress.schemes import SCHEMES, Calibration
from edgepipe.core.arrays import Array, Arrays, count, take
from edgepipe.core.artifact import Kind
from edgepipe.core.errors import InputError
from edgepipe.core.metric import Record
from edgepipe.core.references import version
from edgepipe.tflite.model import Model

if TYPE_CHECKING:
    from edgepipe.compress.quantizer.layerwise_quantizer import Bench

CALIBRATING = 200  # samples that ranges are taken from


@final
@dataclass(frozen=True)
class How:
    """What layers are quantized to, how ranges are taken, and how many samples outputs are looked at with."""

    scheme: Literal["int8", "int16x8"] = "int8"
    calibration: Calibration = field(default_factory=Calibration)
    samples: int = 512


@final
class Sensed(Record):
    """The layers of a model, the most sensitive first."""

    model: str
    scheme: str
    calibration: str
    layers: tuple[Sensitivity, ...]
    whole: float = Field(description="error of the scores over their variance with all layers quantized")
    quality: str | None = Field(description="the metric taken where there are labels; null: none")
    quality_float: float | None
    quality_whole: float | None
    how: str = Field(description="what was run, on what, with which versions")
    notes: tuple[str, ...]


def sense(path: Path, data: "str | Arrays", how: How, allow_code: bool, custom_objects: str | None) -> Sensed:
    """Rank the layers of the model at `path`.

    Raises:
        InputError: no float model, no samples, or a model that cannot be quantized.
    """
    from edgepipe.models.file_kind import sniff

    kind = sniff(path)
    if kind not in (Kind.KERAS, Kind.FLOAT, Kind.TFLITE):
        raise InputError(f"{path}: is a {kind}; `sensitivity` takes a .keras or .h5 file, or a float .tflite")
    calibrating, looked_at, labels, notes = _samples(data, how.samples)
    with _float(path, kind, calibrating, allow_code, custom_objects) as (lite, feeds, layers):
        bench, told = _bench(lite, feeds, layers, looked_at, how)
        unfit = _unfit(lite, labels)
        quality = None if labels is None or unfit else _accuracy(looked_at, labels)
        ranking = rank(bench, "int8" if how.scheme == "int8" else "int16", quality)
    return _sensed(path, how, ranking, quality is not None, count(looked_at), (*notes, *told, *unfit))


@dataclass(frozen=True)
class _Labels:
    """The classes of the samples that are looked at, and how many there are in all."""

    values: Array
    classes: int


def _samples(data: "str | Arrays", number: int) -> tuple[Arrays, Arrays, _Labels | None, tuple[str, ...]]:
    """Samples that calibrate, samples that are looked at, their labels if they are classes, and notes."""
    if not isinstance(data, str):
        return take(data, slice(CALIBRATING)), take(data, slice(number)), None, ()
    if data.endswith((".npz", ".npy")):
        from edgepipe.data import sample_files

        x, y = sample_files.read_labelled(Path(data))
        return take(x, slice(CALIBRATING)), take(x, slice(number)), _classes(y, number), _no_classes(y)
    from edgepipe.commands.dataset import describe

    described, splits = describe(data, Path.cwd())
    validation = splits.validation
    train = take(splits.train.x, slice(CALIBRATING))
    notes = (*described.notes, *_no_classes(validation.y))
    return train, take(validation.x, slice(number)), _classes(validation.y, number), notes


def _classes(y: Array | None, number: int) -> _Labels | None:
    if y is None or _no_classes(y) or not len(y):
        return None
    return _Labels(y[:number], int(y.max()) + 1)


def _no_classes(y: Array | None) -> tuple[str, ...]:
    """A note if the labels are no classes, such as the numbers of a regression."""
    if y is None or (y.ndim == 1 and y.dtype.kind in "iu"):
        return ()
    return (f"no accuracy: labels of type {y.dtype} and shape {y.shape[1:]} are no classes",)


def _unfit(lite: Model, labels: _Labels | None) -> tuple[str, ...]:
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
def _float(
    path: Path, kind: Kind, samples: Arrays, allow_code: bool, custom_objects: str | None
) -> Iterator[tuple[Model, list[Array], dict[str, str]]]:
    """The float .tflite of the model at `path`, spelled; samples in the order of its inputs; classes of layers."""
    from edgepipe.compress import conversion

    model: Any = conversion.float_file(path) if kind is Kind.TFLITE else _keras(path, kind, allow_code, custom_objects)
    classes = {} if kind is Kind.TFLITE else conversion.classes(model)
    from edgepipe.compress.quantizer.op_decomposition import all_in, spelled

    with conversion.float_tflite(model, samples) as (plain, feeds, _), spelled(plain, all_in(8)) as lite:
        yield lite, feeds or [], classes


def _keras(path: Path, kind: Kind, allow_code: bool, custom_objects: str | None) -> Any:
    from edgepipe.models.startup import load_tensorflow

    load_tensorflow()
    from edgepipe.models import custom_objects as user_classes
    from edgepipe.stages import model_metrics

    with user_classes.known(user_classes.load(custom_objects, Path.cwd()) if custom_objects else {}):
        return model_metrics.open_any(path, kind, allow_code=allow_code)


def _bench(
    lite: Model, feeds: list[Array], classes: dict[str, str], samples: Arrays, how: How
) -> tuple["Bench", tuple[str, ...]]:
    from edgepipe.compress.quantizer.activation_calibration import calibrate
    from edgepipe.compress.quantizer.layerwise_quantizer import bench_of
    from edgepipe.compress.quantizer.op_decomposition import widened
    from edgepipe.compress.quantizer.quantizable_layers import layers

    given = dict(zip(lite.input_names, feeds, strict=True))
    ranges = widened(lite, lambda model: calibrate(model, given, how.calibration))
    types, found = SCHEMES[how.scheme].interfaces[0], layers(lite, classes)
    if not found:
        raise InputError("the model has no operator, it gives back what it is given: there is nothing to rank")
    return bench_of(lite, found, ranges.by_tensor, (types, types), samples), tuple(ranges.notes())


def _accuracy(samples: Arrays, labels: _Labels) -> Callable[[bytes], float]:
    from edgepipe.compress.quantizer.flatbuffer_edits import written
    from edgepipe.tflite.interpreter import predict

    def quality(content: bytes) -> float:
        with written(content) as path:
            scores = np.asarray(predict(path, samples).values).reshape(len(labels.values), -1)
        return float(np.mean(scores.argmax(axis=1) == labels.values))

    return quality


def _sensed(path: Path, how: How, ranking: "Ranking", labelled: bool, number: int, notes: tuple[str, ...]) -> Sensed:
    tools = ", ".join(f"{name} {version(name)}" for name in ("litert-quantizer", "ai-edge-litert"))
    return Sensed(
        model=str(path), scheme=how.scheme, calibration=how.calibration.told(), layers=ranking.layers,
        whole=ranking.whole,
        quality="accuracy" if labelled else None, quality_float=ranking.quality_float,
        quality_whole=ranking.quality_whole, notes=notes,
        how=f"measured: each model made and run on {number} samples, {tools}, LiteRT xnnpack",
    )  # fmt: skip
