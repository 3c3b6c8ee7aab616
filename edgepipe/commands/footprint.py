"""The footprint of an architecture of the zoo before training: built for an input, converted to int8 and counted."""

import inspect
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from edgepipe.commands import profile as profiling
from edgepipe.commands.profile import DeviceProfileResult
from edgepipe.core.artifact import write_bytes
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.metric import Metric, Record, exact_metric
from edgepipe.core.units import Dimension
from edgepipe.tflite import reader, tflm_runtime
from edgepipe.zoo import published_footprints

SCORE_KERNEL_SCALE = 16.0  # scales the kernel of the class scores, so that random weights do not make all classes equal
DEFAULT_CLASSES = 10  # of a classifier
SAMPLE_COUNT = 4  # random calibration samples: ranges affect neither size nor speed, as a test checks


class Footprint(Record):
    """What an untrained architecture costs."""

    name: str
    input_shape: tuple[int, ...]
    classes: int | None = Field(description="null for an architecture that has none")
    options: dict[str, Any]
    metrics: tuple[Metric, ...]
    devices: tuple[DeviceProfileResult, ...] = ()


def measure_footprint(
    name: str,
    input_shape: tuple[int, ...],
    classes: int | None,
    options: Mapping[str, object],
    devices: Collection[str] = (),
) -> Footprint:
    """Build the architecture `name`, convert it to int8 and count.

    Args:
        name: an architecture of `edgepipe.zoo`.
        input_shape: of one sample, without the batch.
        classes: outputs of a classifier; None for 10, and for an architecture that is not a classifier.
        options: of the architecture.
        devices: names or paths of profiles to profile it on.

    Raises:
        InputError: no such architecture, option or device, or a shape or value that the architecture does not take.
    """
    from edgepipe.models.startup import load_tensorflow

    arguments = _architecture_arguments(name, input_shape, classes, options)
    load_tensorflow()
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        path = Path(folder) / f"{name}.tflite"
        parameter_metric = _write_and_count_model(name, arguments, path)
        model_profile = profiling.profile_model(path, devices) if devices else None
        metrics = (parameter_metric, *_count_metrics(path))
    return Footprint(
        name=name,
        input_shape=input_shape,
        classes=arguments.get("classes"),
        options=dict(options),
        metrics=metrics,
        devices=model_profile.devices if model_profile is not None else (),
    )


def _architecture_arguments(
    name: str, input_shape: tuple[int, ...], classes: int | None, options: Mapping[str, object]
) -> dict[str, Any]:
    from edgepipe import zoo

    if name not in zoo.__all__:
        raise InputError(f"no architecture '{name}'{did_you_mean(name, zoo.__all__)}")
    default_options = published_footprints.default_options(name)
    for option in options:
        if option not in default_options:
            raise InputError(f"{name} has no option '{option}'{did_you_mean(option, default_options)}")
    if "classes" in inspect.signature(getattr(zoo, name)).parameters:
        return {"input_shape": input_shape, "classes": DEFAULT_CLASSES if classes is None else classes, **options}
    if classes is not None:
        raise InputError(f"{name} is not a classifier; omit --classes")
    return {"input_shape": input_shape, **options}


def _write_and_count_model(name: str, arguments: dict[str, Any], path: Path) -> Metric:
    """Write the architecture, with random weights, as an int8 .tflite, and count its parameters."""
    import numpy as np

    from edgepipe import zoo
    from edgepipe.compress.keras_to_tflite import convert

    model = getattr(zoo, name)(**arguments)
    _randomize_weights(model)
    samples = np.random.RandomState(0).rand(SAMPLE_COUNT, *arguments["input_shape"]).astype(np.float32)
    write_bytes(path, convert(model, scheme="int8", samples=samples, input_type="int8", output_type="int8"))
    provenance = "elements of all weights of the Keras model, including the statistics of batch norms"
    return exact_metric("parameters", model.count_params(), Dimension.COUNT, provenance)


def _randomize_weights(model: Any) -> None:
    """Assign random weights of realistic size, because initial weights are misleading.

    Initial biases are all zero: the converter stores them once for all layers, or not at all, and the file is up to a
    fifth smaller than a trained one. Initial activations shrink from layer to layer until TensorFlow Lite Micro has no
    multiplier for them, and it aborts on a softmax over more than 256 classes with equal scores.
    """
    from edgepipe.models.perturb import perturb

    perturb(model)
    for layer in model.layers:
        if layer.name == "probabilities":
            layer.kernel.assign(layer.kernel * SCORE_KERNEL_SCALE)


def _count_metrics(path: Path) -> list[Metric]:
    model = reader.read(path)
    return [
        exact_metric("macs", model.macs, Dimension.COUNT, "multiply-accumulates of one inference of the int8 .tflite"),
        exact_metric(
            "flash", model.bytes, Dimension.BYTES, "bytes of the int8 .tflite; the runtime's own code is not in it"
        ),
        tflm_runtime.measure_arena(path),
    ]
