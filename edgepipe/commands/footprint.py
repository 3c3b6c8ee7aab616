"""Profile before you train: an architecture of the zoo, built for an input, converted to int8 and counted."""

import inspect
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from edgepipe.commands import profile as profiling
from edgepipe.commands.profile import OnOneDevice
from edgepipe.core.artifact import write_bytes
from edgepipe.core.errors import InputError, did_you_mean
from edgepipe.core.metric import Metric, Record, exact
from edgepipe.core.units import Dimension
from edgepipe.tflite import reader, tflm_runtime
from edgepipe.zoo import published_footprints

SPREAD = 16.0  # of the scores of random weights, so that some class stands out
CLASSES = 10  # of a classifier, unless given
SAMPLES = 4  # random ones that calibrate: ranges change neither size nor speed; a test holds it against training


class Footprint(Record):
    """What an untrained architecture costs."""

    name: str
    input_shape: tuple[int, ...]
    classes: int | None = Field(description="null for an architecture that has none")
    options: dict[str, Any]
    metrics: tuple[Metric, ...]
    devices: tuple[OnOneDevice, ...] = ()


def of(
    name: str,
    input_shape: tuple[int, ...],
    classes: int | None,
    options: Mapping[str, object],
    devices: Collection[str] = (),
) -> Footprint:
    """Build the architecture `name`, convert it and count; without `classes` a classifier has 10.

    Raises:
        InputError: no such architecture or option, a shape or an option's value that it does not take, or an unknown
            device.
    """
    from edgepipe.models.startup import load_tensorflow

    given = _given(name, input_shape, classes, options)
    load_tensorflow()
    with tempfile.TemporaryDirectory(prefix="edgepipe-") as folder:
        path = Path(folder) / f"{name}.tflite"
        parameters = _built(name, given, path)
        profiled = profiling.run(path, devices) if devices else None
        metrics = (parameters, *_counted(path))
    return Footprint(
        name=name,
        input_shape=input_shape,
        classes=given.get("classes"),
        options=dict(options),
        metrics=metrics,
        devices=profiled.devices if profiled is not None else (),
    )


def _given(
    name: str, input_shape: tuple[int, ...], classes: int | None, options: Mapping[str, object]
) -> dict[str, Any]:
    from edgepipe import zoo

    if name not in zoo.__all__:
        raise InputError(f"no architecture '{name}'{did_you_mean(name, zoo.__all__)}")
    allowed = published_footprints.options(name)
    for option in options:
        if option not in allowed:
            raise InputError(f"{name} has no option '{option}'{did_you_mean(option, allowed)}")
    if "classes" in inspect.signature(getattr(zoo, name)).parameters:
        return {"input_shape": input_shape, "classes": CLASSES if classes is None else classes, **options}
    if classes is not None:
        raise InputError(f"{name} tells no classes apart; leave --classes out")
    return {"input_shape": input_shape, **options}


def _built(name: str, given: dict[str, Any], path: Path) -> Metric:
    """Write the architecture, with random weights, as an int8 .tflite; its trainable and moving parameters."""
    import numpy as np

    from edgepipe import zoo
    from edgepipe.compress.keras_to_tflite import convert

    model = getattr(zoo, name)(**given)
    _as_if_trained(model)
    samples = np.random.RandomState(0).rand(SAMPLES, *given["input_shape"]).astype(np.float32)
    write_bytes(path, convert(model, scheme="int8", samples=samples, input_type="int8", output_type="int8"))
    how = "elements of all weights of the Keras model, statistics of batch norms among them"
    return exact("parameters", model.count_params(), Dimension.COUNT, how)


def _as_if_trained(model: Any) -> None:
    """Random weights of sane size, because fresh ones mislead.

    Fresh biases are all zero: the converter stores them once for all layers, or not at all, and the file is up to a
    fifth smaller than it will be. Fresh activations shrink from layer to layer until TensorFlow Lite Micro has no
    multiplier for them, and it aborts on a softmax over more than 256 classes whose scores are all alike.
    """
    from edgepipe.models.perturb import perturb

    perturb(model)
    for layer in model.layers:
        if layer.name == "probabilities":
            layer.kernel.assign(layer.kernel * SPREAD)


def _counted(path: Path) -> list[Metric]:
    lite = reader.read(path)
    return [
        exact("macs", lite.macs, Dimension.COUNT, "multiply-accumulates of one inference of the int8 .tflite"),
        exact("flash", lite.bytes, Dimension.BYTES, "bytes of the int8 .tflite; the runtime's own code is not in it"),
        tflm_runtime.arena(path),
    ]
